"""Anchors against a plain reference."""

import numpy as np
import tensorflow as tf

from pfpn_tf.ops import anchors
from tests.reference import anchors as reference

RATIOS = (0.5, 1.0, 2.0)


def test_ratio_is_height_over_width():
    cell = anchors.cell_anchors(32, RATIOS)
    np.testing.assert_allclose((cell[:, 2] - cell[:, 0]) / (cell[:, 3] - cell[:, 1]), RATIOS)
    np.testing.assert_allclose((cell[:, 2] - cell[:, 0]) * (cell[:, 3] - cell[:, 1]), 32 * 32)


def test_first_anchor_is_centred_at_the_origin():
    got = anchors.level_anchors(tf.constant([1, 1]), 8, 64, (1.0,))
    np.testing.assert_array_equal(got, [[-32, -32, 32, 32]])


def test_grid_order_in_double_precision(maybe_graph):
    level = maybe_graph(lambda hw: anchors.level_anchors(hw, 16, 128, RATIOS, tf.float64))
    got = level(tf.constant([3, 5]))
    assert got.dtype == tf.float64
    np.testing.assert_allclose(got, reference.level_anchors((3, 5), 16, 128, RATIOS), rtol=1e-14)
