"""Anchors that fit the boxes of a dataset, and how many boxes they match.

Shapes: N boxes · L levels p2..p6 · A aspect ratios. Sizes are the square root of a box's area,
ratios its height / width.
"""

import functools
from typing import List, Sequence, Tuple

import numpy as np

from pfpn_tf.ops import anchors

STRIDES = (4, 8, 16, 32, 64)  # of p2..p6
# An anchor of few cells slips between the centres of the grid, one of many cells has its like at
# the neighbouring centres. So sizes have at most the paper's eight cells of their level, and at
# least the number of these that lets the anchors match most.
MOST_CELLS = 8
LEAST_CELLS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
IOUS = (0.5, 0.7)  # at which a RoI and an anchor count as a match
LEAST_STEP = 1.4  # from level to level; closer sizes match the same boxes
LEAST_RATIO_STEP = 1.5
RATIO_LIMIT = 5.0


def fit(boxes_hw: np.ndarray) -> Tuple[List[float], List[float]]:
    """Anchor sizes and aspect ratios by k-means of the boxes' sides.

    The sides are clustered as logarithms of size and of ratio, which IoU depends on, each by itself
    since every level has all ratios.

    Args:
      boxes_hw: [N, 2] heights and widths at the training size, N > 0.

    Returns:
      [L] sizes, rising, and 1 to 3 ratios, rising.
    """
    height, width = np.maximum(np.asarray(boxes_hw, np.float64), 1.0).T
    ratios, counts = _k_means(np.log(height / width), 3, np.sort)
    ratios = [_rounded(r) for r in np.exp(_merged(ratios, counts))]
    ratios = sorted({min(max(r, 1 / RATIO_LIMIT), RATIO_LIMIT) for r in ratios})
    candidates = []
    for cells in LEAST_CELLS:
        within_levels = functools.partial(_within_levels, least_cells=cells)
        sizes, _ = _k_means(np.log(height * width) / 2, len(STRIDES), within_levels)
        candidates.append([_rounded(size) for size in np.exp(sizes)])
    return max(candidates, key=lambda sizes: sum(matched(boxes_hw, sizes, ratios))), ratios


def matched(
    boxes_hw: np.ndarray, sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> List[float]:
    """For each of `IOUS` the share of the boxes that an anchor reaches it with."""
    iou = best_iou(boxes_hw, sizes, aspect_ratios)
    return [float((iou >= limit).mean()) for limit in IOUS]


def _within_levels(centres, least_cells):
    """Logarithms of sizes, moved to where they suit their level and are apart."""
    centres = np.clip(
        np.sort(centres),
        np.log(np.multiply(least_cells, STRIDES)),
        np.log(np.multiply(MOST_CELLS, STRIDES)),
    )
    for i in range(1, len(centres)):
        centres[i] = max(centres[i], centres[i - 1] + np.log(LEAST_STEP))
    return centres


def best_iou(
    boxes_hw: np.ndarray, sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> np.ndarray:
    """[N] IoU of each box with the best anchor of the grid.

    Where a box lies between the anchors' centres is not known; it is spread evenly over a cell.
    """
    boxes_hw = np.asarray(boxes_hw, np.float64).reshape(-1, 2)
    height, width = boxes_hw[:, :1], boxes_hw[:, 1:]  # [N, 1]
    # A sequence of two irrational steps covers the unit square evenly.
    offset_y, offset_x = (
        (np.arange(len(boxes_hw)) * step % 1.0 - 0.5)[:, np.newaxis] for step in (0.75488, 0.56984)
    )
    best = np.zeros(len(boxes_hw))
    for size, stride in zip(sizes, STRIDES):
        cells = anchors.cell_anchors(size, aspect_ratios)  # [A, 4]
        anchor_h, anchor_w = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
        shared = _overlap(height, anchor_h, offset_y * stride) * _overlap(
            width, anchor_w, offset_x * stride
        )  # [N, A]
        union = height * width + anchor_h * anchor_w - shared
        best = np.maximum(best, (shared / union).max(1))
    return best


def _overlap(a, b, offset):
    """Length that two intervals share whose middles are `offset` apart."""
    return np.clip(np.minimum((a + b) / 2 - np.abs(offset), np.minimum(a, b)), 0.0, None)


def _k_means(values, k, project):
    """(centres of k clusters of numbers, how many numbers each has). `project` sorts centres and
    moves them to where they may be.
    """
    centres = project(np.quantile(values, (np.arange(k) + 0.5) / k))
    for _ in range(100):
        nearest = np.abs(values[:, np.newaxis] - centres).argmin(1)
        counts = np.bincount(nearest, minlength=k)
        sums = np.bincount(nearest, values, minlength=k)
        moved = project(np.where(counts, sums / np.maximum(counts, 1), centres))
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres, counts


def _merged(centres, counts):
    """Centres of clusters, those that are close to one another as one."""
    centres, counts = list(centres), list(counts)
    while len(centres) > 1 and np.diff(centres).min() < np.log(LEAST_RATIO_STEP):
        i = int(np.diff(centres).argmin())
        together = max(counts[i] + counts[i + 1], 1)
        centres[i] = (centres[i] * counts[i] + centres[i + 1] * counts[i + 1]) / together
        counts[i] = together
        del centres[i + 1], counts[i + 1]
    return centres


def _rounded(value):
    """Two significant digits, which is more than a sample of boxes knows."""
    rounded = float(f"{value:.2g}")
    return int(rounded) if rounded == int(rounded) else rounded
