"""Bilinear resizing against plain numpy."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops.resize import resize_bilinear
from tests.reference import resize as reference


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 1e-5), (tf.float64, 1e-12)])
@pytest.mark.parametrize("hw", [(6, 10), (12, 20), (4, 7), (3, 5)])
def test_resize_bilinear(maybe_graph, hw, dtype, tolerance):
    x = np.random.normal(size=(2, 3, 5, 2))
    y = maybe_graph(lambda x: resize_bilinear(x, hw))(tf.constant(x, dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, reference.resize(x, hw), atol=tolerance)
