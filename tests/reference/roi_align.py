"""RoIAlign one sample at a time, in double precision."""

import math

import numpy as np


def level_of(box):
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5)


def bilinear(features, y, x):
    """Value of a [H, W, C] map at cell coordinates; zeros beyond one cell outside."""
    height, width = features.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(features.shape[2])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = features[y0, x0] * (1 - (x - x0)) + features[y0, x1] * (x - x0)
    bottom = features[y1, x0] * (1 - (x - x0)) + features[y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def roi_align(features, box, output_size, sampling_ratio, stride=1):
    """[P, P, C] of one RoI and one [H, W, C] map."""
    features = np.asarray(features, np.float64)
    y1, x1, y2, x2 = [float(v) / stride - 0.5 for v in box]
    height, width = (y2 - y1) / output_size, (x2 - x1) / output_size
    samples_y = sampling_ratio or max(math.ceil(height), 1)
    samples_x = sampling_ratio or max(math.ceil(width), 1)
    out = np.zeros([output_size, output_size, features.shape[2]])
    for i in range(output_size):
        for j in range(output_size):
            for a in range(samples_y):
                for b in range(samples_x):
                    y = y1 + i * height + (a + 0.5) * height / samples_y
                    x = x1 + j * width + (b + 0.5) * width / samples_x
                    out[i, j] += bilinear(features, y, x)
    return out / (samples_y * samples_x)
