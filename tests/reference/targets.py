"""Labels and targets of anchors and RoIs as plain loops in float64; sampling takes everything."""

from tests.reference.boxes import encode
from tests.reference.matching import match


def rpn(anchors, gt_boxes, positive_iou, negative_iou):
    """Per anchor: (label, deltas); one image, its real boxes only."""
    labels, best = match(gt_boxes, anchors, positive_iou, negative_iou, True)
    return [
        (label, encode(gt_boxes[index], anchor) if label == 1 else [0.0] * 4)
        for label, index, anchor in zip(labels, best, anchors)
    ]


def rois(proposals, gt_boxes, gt_class_ids, num_classes, positive_iou):
    """Per RoI, foreground first: (box, class, index of its box, deltas); one image."""
    boxes = list(proposals) + list(gt_boxes)
    labels, best = match(gt_boxes, boxes, positive_iou, positive_iou, False)
    foreground, background = [], []
    for box, label, index in zip(boxes, labels, best):
        if label == 1:
            target = encode(gt_boxes[index], box, (10, 10, 5, 5))
            foreground.append((box, gt_class_ids[index], index, target))
        else:
            background.append((box, num_classes, index, [0.0] * 4))
    return foreground + background
