"""Pasting a mask by its definition: every pixel of the image, one at a time, in float64."""

import math

import numpy as np


def cell(probs, row, column):
    """A mask cell; zero outside the mask."""
    inside = 0 <= row < len(probs) and 0 <= column < len(probs)
    return float(probs[row, column]) if inside else 0.0


def bilinear(probs, v, u):
    """Value at row v, column u, in cells whose centres have integer coordinates."""
    v0, u0 = math.floor(v), math.floor(u)
    fv, fu = v - v0, u - u0
    return (
        cell(probs, v0, u0) * (1 - fv) * (1 - fu)
        + cell(probs, v0, u0 + 1) * (1 - fv) * fu
        + cell(probs, v0 + 1, u0) * fv * (1 - fu)
        + cell(probs, v0 + 1, u0 + 1) * fv * fu
    )


def paste(probs, box, hw):
    """[P, P] probabilities and a yxyx box -> [h, w] bool."""
    mask = np.zeros(hw, bool)
    y0, x0, y1, x1 = (float(c) for c in box)
    if y1 <= y0 or x1 <= x0:
        return mask
    size = len(probs)
    # A pixel whose centre is more than a cell outside the box interpolates zeros only.
    margin_y, margin_x = (y1 - y0) / size, (x1 - x0) / size
    for y in range(max(0, int(y0 - margin_y) - 1), min(hw[0], int(y1 + margin_y) + 2)):
        for x in range(max(0, int(x0 - margin_x) - 1), min(hw[1], int(x1 + margin_x) + 2)):
            v = (y + 0.5 - y0) / (y1 - y0) * size - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * size - 0.5
            mask[y, x] = bilinear(probs, v, u) >= 0.5
    return mask


def scale_boxes(boxes, image_hw, original_hw):
    """Boxes of the input in the original image, clipped; float32 as the network's boxes are."""
    scale = np.float32(np.divide(original_hw, image_hw))
    scaled = np.float32(boxes) * np.tile(scale, 2)
    return np.clip(scaled, 0, np.float32(np.tile(original_hw, 2)))
