"""Plain numpy: antialiased bilinear resize with rounding between passes, nearest labels, sizes."""

import numpy as np


def resize_rows(image, n_out):
    """[n, ...] uint8 -> [n_out, ...] uint8, one output row at a time."""
    n = image.shape[0]
    ratio = n / n_out
    support = max(ratio, 1.0)
    out = []
    for i in range(n_out):
        centre = (i + 0.5) * ratio
        weights = np.array([max(0.0, 1 - abs(j + 0.5 - centre) / support) for j in range(n)])
        weights /= weights.sum()
        out.append(np.floor(np.tensordot(weights, image.astype(np.float64), 1) + 0.5))
    return np.stack(out).astype(np.uint8)


def resize_image(image, hw):
    columns = resize_rows(image.swapaxes(0, 1), hw[1]).swapaxes(0, 1)
    return resize_rows(columns, hw[0])


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
