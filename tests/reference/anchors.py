"""Anchors one at a time, in double precision."""

import math

import numpy as np


def level_anchors(level_hw, stride, size, aspect_ratios):
    anchors = []
    for i in range(level_hw[0]):
        for j in range(level_hw[1]):
            for ratio in aspect_ratios:
                width = math.sqrt(size * size / ratio)
                height = ratio * width
                y, x = i * stride, j * stride
                anchors.append([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
    return np.array(anchors)
