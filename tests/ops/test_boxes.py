"""Box arithmetic against a plain reference."""

import math

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops import boxes as box_ops
from tests.reference import boxes as reference


def random_boxes(count, hw=(40.0, 90.0), seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, hw, [count, 2])
    return np.concatenate([corner, corner + rng.uniform(1, 30, [count, 2])], axis=1)


@pytest.mark.both_stacks
def test_iou_matrix(maybe_graph):
    a, b = random_boxes(7), random_boxes(11, seed=1)
    got = maybe_graph(box_ops.iou_matrix)(tf.constant(a), tf.constant(b))
    np.testing.assert_allclose(got, reference.iou_matrix(a, b), rtol=1e-13)
    assert got.numpy().max() > 0.2


def test_iou_matrix_is_batched_and_may_be_empty():
    a, b = random_boxes(6).reshape(2, 3, 4), random_boxes(10, seed=1).reshape(2, 5, 4)
    got = box_ops.iou_matrix(tf.constant(a), tf.constant(b))
    np.testing.assert_allclose(got[1], reference.iou_matrix(a[1], b[1]), rtol=1e-13)
    assert box_ops.iou_matrix(tf.zeros([0, 4]), tf.zeros([5, 4])).shape == (0, 5)


def test_iou_of_empty_boxes_is_zero():
    empty = tf.constant([[3.0, 3.0, 3.0, 3.0]])
    assert box_ops.iou_matrix(empty, empty).numpy() == 0.0


def test_iou_keeps_the_float32_order_of_operations(maybe_graph):
    gt = random_boxes(50).astype(np.float32)
    anchors = random_boxes(70, seed=1).astype(np.float32)
    y1, x1, y2, x2 = np.split(gt, 4, axis=1)
    inter = np.maximum(
        np.minimum(x2, anchors[:, 3]) - np.maximum(x1, anchors[:, 1]), 0
    ) * np.maximum(np.minimum(y2, anchors[:, 2]) - np.maximum(y1, anchors[:, 0]), 0)
    area = (y2 - y1) * (x2 - x1)
    anchor_area = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    got = maybe_graph(box_ops.iou_matrix)(tf.constant(gt), tf.constant(anchors))
    np.testing.assert_array_equal(got, inter / ((area + anchor_area) - inter))


def test_is_empty():
    boxes = tf.constant([[0.0, 0, 1, 1], [0, 0, 0, 1], [0, 2, 1, 1], [0, 0, math.nan, 1]])
    np.testing.assert_array_equal(box_ops.is_empty(boxes), [False, True, True, True])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_deltas(weights):
    boxes, anchors = random_boxes(9), random_boxes(9, seed=1)
    deltas = box_ops.encode(tf.constant(boxes), tf.constant(anchors), weights)
    expected = [reference.encode(b, a, weights) for b, a in zip(boxes, anchors)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-12)
    np.testing.assert_allclose(
        box_ops.decode(deltas, tf.constant(anchors), weights), boxes, rtol=1e-12
    )


def test_decode_caps_growth_but_not_shrinking():
    anchor = np.array([10.0, 10.0, 26.0, 26.0])
    delta = np.array([0.5, -0.25, 9.0, -9.0])
    got = box_ops.decode(tf.constant(delta), tf.constant(anchor)).numpy()
    np.testing.assert_allclose(got, reference.decode(delta, anchor), rtol=1e-12)
    np.testing.assert_allclose(got[2] - got[0], 1000.0)


def test_encode_of_padding_is_finite():
    zeros, box = tf.zeros([1, 4]), tf.constant([[1.0, 1.0, 5.0, 7.0]])
    for boxes, anchors in ((zeros, box), (box, zeros), (zeros, zeros)):
        assert np.isfinite(box_ops.encode(boxes, anchors)).all()
