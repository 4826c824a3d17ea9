"""Group norm against plain numpy, its gradient against finite differences and float64."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops.group_norm import group_norm


def numpy_group_norm(x, gamma, beta, groups):
    x = x.astype(np.float64)
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height, width, groups, channels // groups)
    mean = grouped.mean(axis=(1, 2, 4), keepdims=True)
    variance = ((grouped - mean) ** 2).mean(axis=(1, 2, 4), keepdims=True)
    normal = (grouped - mean) / np.sqrt(variance + 1e-5)
    return normal.reshape(x.shape) * gamma + beta


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels, groups", [(64, 32), (32, 32), (12, 4)])
def test_group_norm(maybe_graph, channels, groups, relu):
    x = np.random.normal(1.0, 2.0, size=(2, 5, 7, channels)).astype(np.float32)
    gamma, beta = np.random.normal(size=(2, channels)).astype(np.float32)
    y = maybe_graph(lambda x: group_norm(x, gamma, beta, groups, relu))(tf.constant(x))
    expected = numpy_group_norm(x, gamma, beta, groups)
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, atol=2e-6)


@pytest.mark.both_stacks
@pytest.mark.parametrize(
    "mean, deviation", [(1e2, 1.0), (1e3, 1e-2), (1e4, 1.0), (1e5, 1.0), (1e5, 0.0)]
)
def test_group_norm_of_a_large_map_far_from_zero(mean, deviation):
    """The mean of many large values is rounded, by more than the deviation if that is small."""
    x = np.random.normal(mean, deviation, size=(1, 80, 90, 32))
    upstream = np.random.normal(size=x.shape)
    gamma, beta = np.random.normal(size=(2, 32))
    inputs = [tf.constant(v, tf.float32) for v in (x, gamma, beta, upstream)]
    answers = norm_and_gradient(*inputs, 32, False)
    for answer, reference in zip(answers, in_float64(*inputs, 32, False)):
        tolerance = 1e-5 * max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(answer, reference, atol=tolerance)


@pytest.mark.parametrize("hw", [(3, 5), (5, 6), (100, 150)])
def test_group_norm_of_a_constant_that_has_no_exact_mean(maybe_graph, hw):
    """Adding up 0.1 rounds, and the deviation of the mean grows by 1 / sqrt(1e-5)."""
    x, beta = tf.fill([1, *hw, 8], 0.1), tf.range(8.0)
    y = maybe_graph(lambda x: group_norm(x, tf.ones([8]), beta, 4, False))(x)
    np.testing.assert_allclose(y, tf.broadcast_to(beta, y.shape), atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_group_norm_gradient(relu):
    x = tf.random.normal([2, 3, 5, 8], dtype=tf.float64)
    gamma, beta = tf.unstack(tf.random.normal([2, 8], dtype=tf.float64))
    weight = tf.random.normal([2, 3, 5, 8], dtype=tf.float64)

    def loss(x, gamma, beta):
        return tf.reduce_sum(weight * group_norm(x, gamma, beta, 4, relu))

    theory, numeric = tf.test.compute_gradient(loss, [x, gamma, beta], delta=1e-6)
    for a, b in zip(theory, numeric):
        np.testing.assert_allclose(a, b, atol=2e-8)


def norm_and_gradient(x, gamma, beta, upstream, groups, relu):
    """Group norm of x, and the gradient for all that it depends on."""
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        y = group_norm(x, gamma, beta, groups, relu)
    return (y, *tape.gradient(y, [x, gamma, beta], output_gradients=upstream))


def in_float64(x, gamma, beta, upstream, groups, relu):
    """`norm_and_gradient` in float64."""
    inputs = (tf.cast(v, tf.float64) for v in (x, gamma, beta, upstream))
    return norm_and_gradient(*inputs, groups, relu)


@pytest.mark.both_stacks
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kind", ["usual", "zero", "constant", "half_dead", "tiny", "huge", "rare"])
@pytest.mark.parametrize("hw", [(1, 1), (1, 2), (3, 2), (7, 9)])
@pytest.mark.parametrize("channels, groups", [(4, 2), (32, 32), (64, 32)])
def test_group_norm_of_unusual_images(channels, groups, hw, kind, relu):
    """The result and its gradient are finite and those in float64, whatever the image holds."""
    x, upstream = np.random.normal(size=(2, 1, *hw, channels))
    gamma, beta = np.random.normal(size=(2, channels))
    x = {
        "usual": x,
        "zero": 0 * x,
        "constant": 0 * x + 7.0,
        "half_dead": x * (np.arange(channels) % 4 < 2),
        "tiny": 1e-20 * x,
        "huge": 1e17 * x,
        "rare": np.maximum(x - 2.0, 0.0),
    }[kind]
    inputs = [tf.constant(v, tf.float32) for v in (x, gamma, beta, upstream)]
    answers = norm_and_gradient(*inputs, groups, relu)
    references = in_float64(*inputs, groups, relu)
    # A group without variance multiplies rounding, and the gradient, by 1 / sqrt(1e-5) = 316.
    for answer, reference, unit in zip(answers, references, (1.0, 316.0, 1.0, 1.0)):
        assert np.isfinite(answer).all()
        scale = max(unit, np.abs(reference).max())
        np.testing.assert_allclose(answer, reference, atol=316 * 1.2e-7 * scale)


def test_group_norm_of_values_whose_squares_overflow():
    x = 1e20 * tf.random.normal([1, 4, 5, 8])
    answers = norm_and_gradient(x, tf.ones([8]), tf.ones([8]), tf.ones_like(x), 4, True)
    for answer in answers:
        assert np.isfinite(answer).all()


def test_an_answer_does_not_depend_on_the_other_images():
    x = tf.random.normal([3, 9, 17, 64])
    gamma, beta = tf.unstack(tf.random.normal([2, 64]))
    together = group_norm(x, gamma, beta, 32, True)
    for i in range(3):
        alone = group_norm(x[i : i + 1], gamma, beta, 32, True)
        np.testing.assert_array_equal(together[i : i + 1], alone)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_group_norm_in_half_precision(dtype):
    x = tf.cast(tf.random.normal([1, 64, 48, 32], mean=3.0), dtype)
    y = group_norm(x, tf.ones([32]), tf.zeros([32]), 32, True)
    assert y.dtype == dtype
    expected = np.maximum(numpy_group_norm(tf.cast(x, tf.float32).numpy(), 1.0, 0.0, 32), 0)
    # The result is rounded once, to 11 or 8 digits.
    rounding = 2.0**-11 if dtype == tf.float16 else 2.0**-8
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(tf.float16, 0.003), (tf.bfloat16, 0.02)])
def test_group_norm_gradient_in_half_precision(dtype, tolerance):
    x, upstream = (tf.cast(v, dtype) for v in tf.unstack(tf.random.normal([2, 1, 24, 20, 32])))
    gamma, beta = tf.unstack(tf.random.normal([2, 32]))
    answers = norm_and_gradient(x, gamma, beta, upstream, 16, False)
    for answer, reference in zip(answers, in_float64(x, gamma, beta, upstream, 16, False)):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(tf.cast(answer, tf.float64), reference, atol=tolerance * scale)


@pytest.mark.both_stacks
@pytest.mark.parametrize("jit_compile", [False, True])
def test_float16_far_from_zero(jit_compile):
    """Squares of x, and products of the gradient with it, exceed float16's 65504 by far."""
    x = tf.cast(tf.random.normal([2, 12, 10, 32], mean=2000.0, stddev=500.0), tf.float16)
    upstream = tf.cast(tf.random.normal(x.shape, stddev=1000.0), tf.float16)
    gamma, beta = tf.unstack(tf.random.normal([2, 32]))
    function = tf.function(
        lambda *inputs: norm_and_gradient(*inputs, 8, False), jit_compile=jit_compile
    )
    answers = function(x, gamma, beta, upstream)
    for answer, reference in zip(answers, in_float64(x, gamma, beta, upstream, 8, False)):
        tolerance = 2.0**-11 * np.abs(reference).max()
        np.testing.assert_allclose(tf.cast(answer, tf.float64), reference, atol=tolerance)
