"""Greedy non-maximum suppression, one box at a time."""

import numpy as np

from tests.reference.boxes import iou


def greedy(boxes, scores, threshold):
    """Indices kept, by falling score (ties: lower index first)."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def rpn(boxes, logits, threshold, max_outputs):
    """(level, index) pairs kept of one image: boxes [L, k, 4], logits [L, k]."""
    kept = []
    for level in range(len(logits)):
        usable = [
            i
            for i in range(len(logits[level]))
            if logits[level][i] > -np.inf
            and boxes[level][i][2] > boxes[level][i][0]
            and boxes[level][i][3] > boxes[level][i][1]
        ]
        chosen = greedy(boxes[level][usable], logits[level][usable], threshold)
        kept += [(level, usable[i]) for i in chosen]
    return sorted(kept, key=lambda key: (-logits[key], key))[:max_outputs]


def per_class(boxes, scores, score_threshold, iou_threshold, max_detections):
    """(roi, class) pairs kept of one image: boxes [R, K, 4], scores [R, K]."""
    kept = []
    for k in range(scores.shape[1]):
        candidates = np.flatnonzero(scores[:, k] > score_threshold)
        chosen = greedy(boxes[candidates, k], scores[candidates, k], iou_threshold)
        kept += [(candidates[i], k) for i in chosen]
    return sorted(kept, key=lambda key: (-scores[key], key))[:max_detections]
