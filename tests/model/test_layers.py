"""Layers against plain numpy, gradients against finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.model import layers, norms
from tests.ops.test_group_norm import numpy_group_norm


def numpy_conv(x, kernel, stride, groups=1, dilation=1):
    """Convolution with dilation * (kernel // 2) zeros on all sides, float64 loops over the taps."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    size, _, group_in, filters = kernel.shape
    pad = dilation * (size // 2)
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    height = (x.shape[1] - 2 * pad - 1) // stride + 1
    width = (x.shape[2] - 2 * pad - 1) // stride + 1
    out = np.zeros((len(x), height, width, filters))
    group_out = filters // groups
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            window = x[
                :, top : top + height * stride : stride, left : left + width * stride : stride
            ]
            for g in range(groups):
                channels = slice(g * group_in, (g + 1) * group_in)
                outputs = slice(g * group_out, (g + 1) * group_out)
                out[..., outputs] += window[..., channels] @ kernel[i, j, :, outputs]
    return out


def numpy_layer(layer, x, stride=1):
    """What a built `Conv` computes before its ReLU."""
    y = numpy_conv(x, layer.kernel.numpy(), stride, layer.groups, layer.dilation)
    norm = layer.norm
    if norm is None:
        return y + layer.bias.numpy()
    if isinstance(norm, norms.GroupNorm):
        return numpy_group_norm(y, norm.gamma.numpy(), norm.beta.numpy(), norm.groups)
    gamma, beta, mean, variance = (w.astype(np.float64) for w in norm.get_weights())
    return (y - mean) / np.sqrt(variance + 1e-5) * gamma + beta


PLAIN = [
    (4, 6, kernel_size, stride) for kernel_size, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2))
]
GROUPED = [(8, 8, 3, 2, 4), (128, 128, 3, 2, 32)]
DILATED = [(8, 8, 3, 1, groups, dilation) for groups in (1, 4) for dilation in (2, 5)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", PLAIN + GROUPED + DILATED)
@pytest.mark.parametrize("hw", [(8, 6), (7, 9)])
def test_conv(maybe_graph, kind, hw, training):
    """A kind is channels, filters, kernel size, stride, groups and dilation."""
    channels, filters, kernel_size, stride, groups, dilation = (*kind, 1, 1)[:6]
    x = np.random.normal(size=(2, *hw, channels)).astype(np.float32)
    conv = layers.Conv(filters, kernel_size, stride, groups, dilation=dilation)
    run = maybe_graph(lambda x: conv(x, training=training))
    y = run(x)
    conv.bias.assign(np.arange(filters, dtype=np.float32))
    expected = numpy_conv(x, conv.kernel.numpy(), stride, groups, dilation)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(run(x), expected + np.arange(filters), atol=1e-5)


@pytest.mark.both_stacks
@pytest.mark.parametrize("stride, groups, dilation", [(2, 32, 1), (1, 32, 2), (1, 1, 4)])
def test_gradient_of_a_grouped_or_dilated_conv(stride, groups, dilation, maybe_graph):
    channels = 128 if groups > 1 else 4
    x = tf.random.normal([1, 5, 7, channels])
    conv = layers.Conv(channels, 3, stride, groups, dilation=dilation)
    weight = tf.random.normal([1, 3, 4, channels] if stride == 2 else x.shape)

    @maybe_graph
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = conv(x, training=True)
            loss = tf.reduce_sum(y * weight)
        return tape.gradient(loss, [x, conv.kernel])

    dx, dkernel = (g.numpy().astype(np.float64) for g in run(x))
    kernel = conv.kernel.numpy()
    # The convolution is linear: <weight, conv(x)> = <dx, x> = <dkernel, kernel>.
    total = (numpy_conv(x.numpy(), kernel, stride, groups, dilation) * weight.numpy()).sum()
    np.testing.assert_allclose((dx * x.numpy()).sum(), total, atol=1e-3)
    np.testing.assert_allclose((dkernel * kernel).sum(), total, atol=1e-3)
    # One entry by its own sum.
    one = np.zeros_like(kernel)
    one[2, 0, 1, channels - 1] = 1
    by_hand = (numpy_conv(x.numpy(), one, stride, groups, dilation) * weight.numpy()).sum()
    np.testing.assert_allclose(dkernel[2, 0, 1, channels - 1], by_hand, atol=1e-4)


@pytest.mark.both_stacks
def test_folding_a_frozen_norm_keeps_the_result():
    x = tf.random.normal([1, 4, 5, 3])
    model = tf.keras.Sequential([layers.Conv(8, 3, norm="frozen_bn", relu=True), layers.Conv(4, 1)])
    model(x)
    norm = model.layers[0].norm
    norm.set_weights([*np.random.normal(size=(3, 8)), np.random.uniform(0.5, 2, size=8)])
    before = model(x)
    layers.fold_frozen_norms(model)
    np.testing.assert_allclose(model(x), before, atol=1e-5)
    assert len(model.variables) == 4  # two kernels, two biases
    assert model.layers[0].norm is None


def test_group_norm_takes_fewer_groups_if_the_channels_are_few():
    norm = norms.GroupNorm()
    norm(tf.zeros([1, 2, 2, 48]))
    assert norm.groups == 24


def test_initialisers():
    shape = (3, 3, 64, 128)
    kernel = layers.msra_initializer()(shape).numpy()
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 128)), rtol=0.02)
    kernel = layers.xavier_initializer()(shape).numpy()
    limit = np.sqrt(3 / (9 * 64))
    assert limit * 0.999 < np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)


@pytest.mark.both_stacks
def test_sync_bn_uses_the_statistics_of_all_replicas():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        conv = layers.Conv(2, 1, norm="sync_bn")
        conv.build((None, None, None, 2))
        conv.norm.build((None, None, None, 2))
    conv.kernel.assign(np.eye(2)[None, None])
    values = np.random.normal(size=(2, 1, 3, 4, 2)).astype(np.float32)
    values[1] += 5.0

    @tf.function(autograph=False)
    def step(x):
        return strategy.run(lambda x: conv(x, training=True), args=(x,))

    per_replica = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(values[context.replica_id_in_sync_group])
    )
    parts = strategy.experimental_local_results(step(per_replica))
    mean, std = values.mean(axis=(0, 1, 2, 3)), values.std(axis=(0, 1, 2, 3))
    for part, value in zip(parts, values):
        np.testing.assert_allclose(part, (value - mean) / std, atol=1e-3)
