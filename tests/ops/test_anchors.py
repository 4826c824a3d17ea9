"""Anchors against a plain reference."""

import numpy as np
import tensorflow as tf

from pfpn_tf.ops import anchors
from tests.reference import anchors as reference

RATIOS = (0.5, 1.0, 2.0)


def test_grid_order_in_double_precision(maybe_graph):
    level = maybe_graph(lambda hw: anchors.level_anchors(hw, 16, 128, RATIOS, tf.float64))
    got = level(tf.constant([3, 5]))
    assert got.dtype == tf.float64
    np.testing.assert_allclose(got, reference.level_anchors((3, 5), 16, 128, RATIOS), rtol=1e-14)
