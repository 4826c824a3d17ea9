"""Mask targets one sample at a time."""

import numpy as np

from tests.reference.roi_align import roi_align


def mask_values(mask, box, size):
    """[P, P] mean of the 0/1 mask [H, W] over each cell of the box, before the threshold."""
    return roi_align(np.asarray(mask)[..., np.newaxis], box, size, 0)[..., 0]
