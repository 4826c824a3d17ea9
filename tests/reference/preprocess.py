"""Plain loops: nearest labels and sizes."""

import numpy as np


def resize_labels(labels, hw):
    in_h, in_w = labels.shape
    out = np.empty(hw, labels.dtype)
    for y in range(hw[0]):
        for x in range(hw[1]):
            out[y, x] = labels[(2 * y + 1) * in_h // (2 * hw[0]), (2 * x + 1) * in_w // (2 * hw[1])]
    return out


def resized_hw(hw, min_side, max_side):
    h, w = hw
    scale = min_side / min(h, w)
    h, w = (min_side, scale * w) if h < w else (scale * h, min_side)
    if max(h, w) > max_side:
        shrink = max_side / max(h, w)
        h, w = h * shrink, w * shrink
    return int(h + 0.5), int(w + 0.5)
