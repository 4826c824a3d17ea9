"""Which segments of a ground-truth and a predicted map share how many pixels.

Speed: an image is a few thousand runs of equal (ground truth, prediction) pixels, and only the runs
are sorted, not the pixels.

Shapes: h, w image size · P pairs of segments.
"""

from typing import NamedTuple

import cv2
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
    return _add_runs(gt[starts], pred[starts], starts, gt.size)


def segment_pairs_of_pixels(gt_pixels: np.ndarray, pred_pixels: np.ndarray) -> SegmentPairs:
    """`segment_pairs` of maps as they are in their PNGs, which saves making ids of all pixels.

    Args:
      gt_pixels: [h, w, 3] uint8, bytes of the id, lowest first.
      pred_pixels: [h, w, 3] uint8.
    """
    gt, pred = gt_pixels.reshape(1, -1, 3), pred_pixels.reshape(1, -1, 3)
    size = gt.shape[1]
    starts = np.zeros(1, np.int64)
    if size > 1:
        # 255 where a byte differs: [1, h * w - 1, 3].
        gt_bytes = cv2.compare(gt[:, 1:], gt[:, :-1], cv2.CMP_NE)
        pred_bytes = cv2.compare(pred[:, 1:], pred[:, :-1], cv2.CMP_NE)
        changed_bytes = cv2.bitwise_or(gt_bytes, pred_bytes, dst=gt_bytes)
        # The weighted sum of three bytes of 0 or 255 is 0 only if all are.
        changed = cv2.cvtColor(changed_bytes, cv2.COLOR_RGB2GRAY)[0]
        changed[_MAX_RUN - 1 :: _MAX_RUN] = 255
        starts = np.concatenate([starts, np.flatnonzero(changed.view(bool)) + 1])
    return _add_runs(_ids_at(gt[0], starts), _ids_at(pred[0], starts), starts, size)


def _ids_at(pixels, positions):
    """Ids of some of the [n, 3] pixels: uint32."""
    padded = np.zeros((len(positions), 4), np.uint8)
    padded[:, :3] = pixels.take(positions, 0)
    return padded.view("<u4")[:, 0]


def _add_runs(gt_ids, pred_ids, starts, size) -> SegmentPairs:
    """Sums the lengths of runs by pair.

    Args:
      gt_ids, pred_ids: ids in each run.
      starts: first pixel of each run, rising from 0; no run is longer than `_MAX_RUN`.
      size: pixels in all.
    """
    lengths = np.diff(starts, append=size)
    # gt id, pred id and run length in one number: sorting it groups the pairs.
    runs = gt_ids.astype(np.uint64) << np.uint64(40)
    runs |= pred_ids.astype(np.uint64) << np.uint64(16)
    runs |= (lengths - 1).astype(np.uint64)
    runs.sort()
    pairs = (runs >> np.uint64(16)).view(np.int64)
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    pixels = np.add.reduceat((runs & np.uint64(0xFFFF)).view(np.int64) + 1, first)
    return SegmentPairs(pairs[first] >> 24, pairs[first] & 0xFFFFFF, pixels)
