"""Labels and targets of anchors and RoIs as plain loops in float64; sampling takes everything."""

import math


def iou(a, b):
    """Of two yxyx boxes."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(height, 0.0) * max(width, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def deltas(box, anchor, weights):
    """(dy, dx, dh, dw) from `anchor` to `box`."""
    h, w, anchor_h, anchor_w = (
        box[2] - box[0],
        box[3] - box[1],
        anchor[2] - anchor[0],
        anchor[3] - anchor[1],
    )
    dy = ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / anchor_h
    dx = ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / anchor_w
    values = dy, dx, math.log(h / anchor_h), math.log(w / anchor_w)
    return [v * weight for v, weight in zip(values, weights)]


def _best(anchor, gt_boxes):
    """Index of the box with the largest IoU (the first of equals) and that IoU."""
    ious = [iou(gt, anchor) for gt in gt_boxes]
    return (ious.index(max(ious)), max(ious)) if ious else (0, 0.0)


def rpn(anchors, gt_boxes, positive_iou, negative_iou):
    """Per anchor: (label, deltas); one image, its real boxes only."""
    best = [_best(anchor, gt_boxes) for anchor in anchors]
    labels = [1 if v >= positive_iou else 0 if v < negative_iou else -1 for _, v in best]
    for gt in gt_boxes:
        ious = [iou(gt, anchor) for anchor in anchors]
        for i, value in enumerate(ious):
            if value == max(ious):
                labels[i] = 1
    return [
        (label, deltas(gt_boxes[index], anchor, (1, 1, 1, 1)) if label == 1 else [0.0] * 4)
        for label, (index, _), anchor in zip(labels, best, anchors)
    ]


def rois(proposals, gt_boxes, gt_class_ids, num_classes, positive_iou):
    """Per RoI, foreground first: (box, class, index of its box, deltas); one image."""
    foreground, background = [], []
    for box in list(proposals) + list(gt_boxes):
        index, value = _best(box, gt_boxes)
        if gt_boxes and value >= positive_iou:
            target = deltas(gt_boxes[index], box, (10, 10, 5, 5))
            foreground.append((box, gt_class_ids[index], index, target))
        else:
            background.append((box, num_classes, index, [0.0] * 4))
    return foreground + background
