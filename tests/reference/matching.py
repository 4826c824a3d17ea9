"""Matching one anchor at a time."""

from tests.reference.boxes import iou_matrix


def match(gt_boxes, anchors, positive_iou, negative_iou, allow_low_quality):
    """Labels, index of the best ground-truth box: lists over the anchors."""
    real = range(len(gt_boxes))
    iou = iou_matrix(gt_boxes, anchors)
    labels, index = [], []
    for a in range(len(anchors)):
        m = max(real, key=lambda m: (iou[m, a], -m), default=None)
        value = 0.0 if m is None else iou[m, a]
        label = 1 if value >= positive_iou else 0 if value < negative_iou else -1
        if allow_low_quality and any(iou[m, a] == max(iou[m]) for m in real):
            label = 1
        labels.append(label)
        index.append(0 if m is None else m)
    return labels, index
