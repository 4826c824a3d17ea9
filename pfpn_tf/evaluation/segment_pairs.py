"""Which segments of a ground-truth and a predicted map share how many pixels.

Speed: an image is a few thousand runs of equal (ground truth, prediction) pixels, and only the runs
are sorted, not the pixels.

Shapes: h, w image size · P pairs of segments.
"""

from typing import NamedTuple

import numpy as np

_MAX_RUN = 1 << 16  # No run may be longer than 16 bits can say.


class SegmentPairs(NamedTuple):
    """The pairs of a ground-truth and a predicted segment of one image that share pixels, by rising
    ids. Void is a segment of id 0 here.

    Attributes:
      gt_ids: [P] int64.
      pred_ids: [P] int64.
      pixels: [P] int64, all above 0.
    """

    gt_ids: np.ndarray
    pred_ids: np.ndarray
    pixels: np.ndarray


def segment_pairs(gt_ids: np.ndarray, pred_ids: np.ndarray) -> SegmentPairs:
    """Counts the pixels of each pair of ids.

    Args:
      gt_ids: [h, w] uint32 below 2**24.
      pred_ids: [h, w] uint32 below 2**24.
    """
    gt, pred = gt_ids.reshape(-1), pred_ids.reshape(-1)
    starts_run = np.empty(gt.size, bool)
    np.not_equal(gt[1:], gt[:-1], out=starts_run[1:])
    starts_run[1:] |= pred[1:] != pred[:-1]
    starts_run[::_MAX_RUN] = True
    starts = np.flatnonzero(starts_run)
    # gt id, pred id and run length in one number: sorting it groups the pairs.
    lengths = np.diff(starts, append=gt.size)
    runs = gt[starts].astype(np.uint64) << np.uint64(40)
    runs |= pred[starts].astype(np.uint64) << np.uint64(16)
    runs |= (lengths - 1).astype(np.uint64)
    runs.sort()
    pairs = (runs >> np.uint64(16)).view(np.int64)
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    pixels = np.add.reduceat((runs & np.uint64(0xFFFF)).view(np.int64) + 1, first)
    return SegmentPairs(pairs[first] >> 24, pairs[first] & 0xFFFFFF, pixels)
