"""Bilinear resize in float64: half-pixel centres, border clamped, no antialiasing."""

import numpy as np


def resize(values, hw):
    """[..., h, w, C] -> [..., *hw, C]."""
    return resize_axis(resize_axis(values, hw[0], -3), hw[1], -2)


def resize_axis(values, size, axis):
    values = np.moveaxis(np.asarray(values, np.float64), axis, 0)
    length = len(values)
    position = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, length - 1)
    part = (position - low).reshape([-1] + [1] * (values.ndim - 1))
    return np.moveaxis(values[low] * (1 - part) + values[high] * part, 0, axis)
