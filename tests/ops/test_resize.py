"""Bilinear resizing against plain loops."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops.resize import resize_bilinear


def numpy_resize(x, hw):
    """Bilinear with half-pixel centres, one output pixel at a time."""
    out = np.zeros((len(x), hw[0], hw[1], x.shape[3]))
    for i in range(hw[0]):
        for j in range(hw[1]):
            y = min(max((i + 0.5) * x.shape[1] / hw[0] - 0.5, 0), x.shape[1] - 1)
            z = min(max((j + 0.5) * x.shape[2] / hw[1] - 0.5, 0), x.shape[2] - 1)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[1] - 1), min(z0 + 1, x.shape[2] - 1)
            top = x[:, y0, z0] * (1 - z + z0) + x[:, y0, z1] * (z - z0)
            bottom = x[:, y1, z0] * (1 - z + z0) + x[:, y1, z1] * (z - z0)
            out[:, i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 1e-5), (tf.float64, 1e-12)])
@pytest.mark.parametrize("hw", [(6, 10), (12, 20), (4, 7), (3, 5)])
def test_resize_bilinear(maybe_graph, hw, dtype, tolerance):
    x = np.random.normal(size=(2, 3, 5, 2))
    y = maybe_graph(lambda x: resize_bilinear(x, hw))(tf.constant(x, dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, numpy_resize(x, hw), atol=tolerance)
