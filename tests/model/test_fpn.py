"""The feature pyramid against numpy."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.model import fpn
from tests.model.test_layers import numpy_layer


def random_features(hw):
    return {
        f"c{k}": np.random.normal(size=(2, hw[0] >> k, hw[1] >> k, 2**k)).astype(np.float32)
        for k in range(2, 6)
    }


def numpy_fpn(model, features):
    merged, pyramid = 0.0, {}
    for level in (5, 4, 3, 2):
        merged = numpy_layer(model.lateral[f"c{level}"], features[f"c{level}"]) + merged
        pyramid[f"p{level}"] = numpy_layer(model.output_convs[f"p{level}"], merged)
        merged = merged.repeat(2, axis=1).repeat(2, axis=2)
    pyramid["p6"] = pyramid["p5"][:, ::2, ::2]
    return pyramid


@pytest.mark.parametrize("hw", [(64, 96), (96, 32)])
def test_against_numpy(maybe_graph, hw):
    features = random_features(hw)
    model = fpn.FPN(8)
    model(features)
    for v in model.variables:
        v.assign(tf.random.normal(v.shape))
    pyramid = maybe_graph(model)(features)
    assert list(pyramid) == ["p2", "p3", "p4", "p5", "p6"]
    for level, value in numpy_fpn(model, features).items():
        np.testing.assert_allclose(pyramid[level], value, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_gradient_of_doubling_adds_up_the_four_copies(dtype, maybe_graph):
    x = tf.cast(tf.random.normal([2, 3, 5, 4]), dtype)
    dy = tf.cast(tf.random.uniform([2, 6, 10, 4], -4, 4, tf.int32), dtype)  # sums without rounding

    def value_and_gradient(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fpn._double(x)
        return y, tape.gradient(y, x, output_gradients=dy)

    y, gradient = maybe_graph(value_and_gradient)(x, dy)
    assert y.dtype == gradient.dtype == dtype
    np.testing.assert_array_equal(y, x.numpy().repeat(2, axis=1).repeat(2, axis=2))
    dy = tf.cast(dy, tf.float32).numpy().reshape(2, 3, 2, 5, 2, 4)
    np.testing.assert_array_equal(tf.cast(gradient, tf.float32), dy.sum((2, 4)))


def test_group_norm_replaces_the_bias():
    model = fpn.FPN(32, norm="group_norm")
    model(random_features((32, 64)))
    names = {v.name.split("/")[-1] for v in model.variables}
    assert names == {"kernel:0", "gamma:0", "beta:0"}
