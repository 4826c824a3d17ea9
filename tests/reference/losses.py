"""Losses of section 3.2 as plain loops in float64."""

import numpy as np

from tests.reference.resize import resize


def sigmoid_cross_entropy(logit, label):
    """-log of the probability of `label` (0 or 1), for one logit."""
    return np.logaddexp(0.0, -logit if label else logit)


def softmax_cross_entropy(logits, label):
    """-log of the probability of `label`, for one row of logits."""
    return np.logaddexp.reduce(logits) - logits[label]


def rpn_objectness(logits, labels):
    """Sum over anchors labelled 0 or 1; [B, A] each."""
    return sum(
        sigmoid_cross_entropy(logit, label)
        for logit, label in zip(logits.ravel(), labels.ravel())
        if label >= 0
    )


def l1(deltas, targets, chosen):
    """Sum of |deltas - targets| over the chosen rows; [B, N, 4], [B, N]."""
    return sum(
        abs(d - t)
        for row, target, take in zip(deltas.reshape(-1, 4), targets.reshape(-1, 4), chosen.ravel())
        if take
        for d, t in zip(row, target)
    )


def classes(logits, class_ids):
    """Sum over RoIs with a class; [B, R, K + 1], [B, R]."""
    rows = logits.reshape(-1, logits.shape[-1])
    return sum(softmax_cross_entropy(r, c) for r, c in zip(rows, class_ids.ravel()) if c >= 0)


def masks(logits, targets, class_ids):
    """Sum over the pixels of foreground RoIs; [B, F, P, P] twice, [B, F]."""
    total = 0.0
    for b, f in zip(*np.nonzero(class_ids >= 0)):
        for logit, label in zip(logits[b, f].ravel(), targets[b, f].ravel()):
            total += sigmoid_cross_entropy(logit, label)
    return total


def semantic(logits, labels, void=255):
    """Sum over labelled pixels of the logits upsampled to the labels' size."""
    total = 0.0
    for image, label in zip(logits, labels):
        image = resize(image, label.shape)
        for y, x in zip(*np.nonzero(label != void)):
            total += softmax_cross_entropy(image[y, x], label[y, x])
    return total
