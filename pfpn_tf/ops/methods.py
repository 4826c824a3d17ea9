"""Which form of an operation a training step takes, where there are several that compute the same.

The fastest forms outside XLA are kernels that it lacks, or have shapes that depend on the values in
a batch. Those it can compile are made of plain arithmetic, with shapes that follow from the batch's
shape alone.
"""

from typing import NamedTuple


class Methods(NamedTuple):
    """The forms.

    Attributes:
      rpn_nms: `nms.rpn_nms`.
      roi_align: `roi_align.multilevel_roi_align`.
      mask_targets: `masks.mask_targets`.
      mask_slots: RoIs of an image that the mask head sees. "needed": as the batch has foreground;
        "most": as it may have at most.
    """

    rpn_nms: str
    roi_align: str
    mask_targets: str
    mask_slots: str


KERNELS = Methods(
    rpn_nms="kernel",
    roi_align="sparse",
    mask_targets="sparse",
    mask_slots="needed",
)
XLA = Methods(
    rpn_nms="matrix",
    roi_align="gather",
    mask_targets="gather",
    mask_slots="most",
)
