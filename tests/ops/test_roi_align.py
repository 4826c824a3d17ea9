"""RoIAlign against a plain reference, value and gradient."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops import roi_align
from tests.reference import roi_align as reference


def random_features(hw, batch=2, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=[batch, *hw, channels])


# Named by what is special about them, for a p2 of 11 x 17 cells (44 x 68 px). All go to p2.
BOXES = {
    "inside": [5.0, 9.0, 30.0, 50.0],
    "whole map": [0.0, 0.0, 44.0, 68.0],
    "one pixel": [13.0, 21.0, 14.0, 22.0],
    "beyond all borders": [-30.0, -30.0, 64.0, 88.0],
    "outside": [100.0, 200.0, 120.0, 230.0],
    "wide": [20.0, 1.0, 23.0, 67.0],
    "high": [0.5, 33.0, 43.5, 36.0],
    "border": [40.0, 60.0, 44.0, 68.0],
}


def pyramid_of(features):
    """A pyramid with these features as p2 and other values above."""
    features = tf.convert_to_tensor(features)
    steps = {"p3": 2, "p4": 4, "p5": 8}
    return {"p2": features, **{k: features[:, ::s, ::s] + 100 for k, s in steps.items()}}


def pool(features, boxes, output_size, ratio, for_xla=False):
    return roi_align.multilevel_roi_align(
        pyramid_of(features), tf.convert_to_tensor(boxes), output_size, ratio, for_xla
    )


def expected(features, boxes, output_size, ratio):
    return np.stack(
        [
            [reference.roi_align(features[b], box, output_size, ratio, 4) for box in boxes[b]]
            for b in range(len(boxes))
        ]
    )


either_form = pytest.mark.parametrize("for_xla", [False, True])


@either_form
@pytest.mark.parametrize("ratio", (2, 0, 1, 3))
def test_one_level(for_xla, ratio, maybe_graph):
    features = random_features([11, 17])
    boxes = np.array([list(BOXES.values()), list(BOXES.values())[::-1]])
    call = maybe_graph(lambda f, b: pool(f, b, 3, ratio, for_xla))
    np.testing.assert_allclose(
        call(tf.constant(features), tf.constant(boxes)),
        expected(features, boxes, 3, ratio),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.both_stacks
@either_form
@pytest.mark.parametrize("ratio", (2, 0))
def test_multilevel(for_xla, ratio):
    pyramid = {
        f"p{k}": random_features([-(-160 // 2**k), -(-224 // 2**k)], seed=k) for k in range(2, 7)
    }
    boxes = [
        [[0, 0, 100, 90], [3, 5, 150, 200], [10, 20, 30, 200], [0, 0, 160, 224], [0, 0, 0, 0]],
        [[0, 0, 600, 700], [50, 60, 55, 63], [0, 0, 112, 112], [0, 0, 224, 224], [9, 9, 90, 90]],
    ]
    boxes = np.array(boxes, np.float64)
    tensors = {k: tf.constant(v) for k, v in pyramid.items()}
    got = roi_align.multilevel_roi_align(tensors, tf.constant(boxes), 2, ratio, for_xla).numpy()
    assert np.isfinite(got).all()
    for b, r in np.ndindex(2, 5):
        level = reference.level_of(boxes[b, r])
        np.testing.assert_allclose(
            got[b, r],
            reference.roi_align(pyramid[f"p{level}"][b], boxes[b, r], 2, ratio, 2**level),
            atol=1e-12,
        )


@pytest.mark.parametrize("dtype", (tf.float32, tf.float64))
def test_levels_of_the_paper(dtype):
    sides = np.array([1, 111, 112, 223, 224, 447, 448, 2000])
    boxes = tf.constant(np.stack([0 * sides, 0 * sides, sides, sides], axis=1), dtype)
    np.testing.assert_array_equal(roi_align.roi_levels(boxes), [2, 2, 3, 3, 4, 4, 5, 5])


@either_form
@pytest.mark.parametrize("ratio", (2, 0))
def test_gradient_is_the_transpose(for_xla, ratio):
    """For a linear map f, <f(x), u> = <x, f'(u)>, and f(e) of each unit vector e is a column of
    f.
    """
    features = tf.constant(random_features([5, 7], batch=2, channels=1))
    boxes = np.array([[[2.0, 4, 18, 26], [-6, 0, 8, 16]], [[0, 0, 20, 28], [0, 0, 0, 0]]])
    upstream = np.random.default_rng(1).normal(size=[2, 2, 2, 2, 1])
    with tf.GradientTape() as tape:
        tape.watch(features)
        loss = tf.reduce_sum(pool(features, boxes, 2, ratio, for_xla) * upstream)
    gradient = tape.gradient(loss, features).numpy()
    for index in np.ndindex(2, 5, 7, 1):
        unit = np.zeros([2, 5, 7, 1])
        unit[index] = 1
        column = expected(unit, boxes, 2, ratio)
        np.testing.assert_allclose(gradient[index], np.sum(column * upstream), atol=1e-12)


@pytest.mark.parametrize("dtype", (tf.bfloat16, tf.float16))
@either_form
def test_half_precision_sums_in_float32(dtype, for_xla):
    features = tf.cast(random_features([11, 17]), dtype)
    boxes = [list(BOXES.values())[:4]] * 2
    got = pool(features, boxes, 3, 2, for_xla)
    assert got.dtype == dtype
    exact = tf.cast(pool(tf.cast(features, tf.float32), boxes, 3, 2), dtype)
    np.testing.assert_array_equal(tf.cast(got, tf.float32), tf.cast(exact, tf.float32))


@either_form
@pytest.mark.parametrize("ratio", (2, 0))
def test_no_rois(for_xla, ratio):
    got = pool(tf.zeros([2, 6, 8, 3]), tf.zeros([2, 0, 4]), 7, ratio, for_xla)
    assert got.shape == (2, 0, 7, 7, 3)


def test_unknown_sizes_in_a_graph():
    call = tf.function(
        lambda features, boxes: pool(features, boxes, 4, 0),
        [tf.TensorSpec([None, None, None, 2]), tf.TensorSpec([None, None, 4])],
    )
    features = random_features([6, 9], channels=2).astype(np.float32)
    boxes = np.array([[[0, 0, 24, 36]], [[4, 4, 16, 32]]], np.float32)
    np.testing.assert_allclose(call(features, boxes), expected(features, boxes, 4, 0), atol=1e-5)
