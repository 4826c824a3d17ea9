"""Box arithmetic one box at a time, in double precision."""

import math

import numpy as np


def iou(a, b):
    """IoU of two yxyx boxes."""
    height = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = height * width
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def iou_matrix(boxes_a, boxes_b):
    return np.array([[iou(a, b) for b in boxes_b] for a in boxes_a]).reshape(
        len(boxes_a), len(boxes_b)
    )


def encode(box, anchor, weights=(1, 1, 1, 1)):
    height, width = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dy = ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / height
    dx = ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / width
    dh, dw = math.log((box[2] - box[0]) / height), math.log((box[3] - box[1]) / width)
    return [w * d for w, d in zip(weights, (dy, dx, dh, dw))]


def decode(delta, anchor, weights=(1, 1, 1, 1)):
    dy, dx, dh, dw = [d / w for w, d in zip(weights, delta)]
    height, width = anchor[2] - anchor[0], anchor[3] - anchor[1]
    y, x = dy * height + (anchor[0] + anchor[2]) / 2, dx * width + (anchor[1] + anchor[3]) / 2
    height *= math.exp(min(dh, math.log(1000 / 16)))
    width *= math.exp(min(dw, math.log(1000 / 16)))
    return [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
