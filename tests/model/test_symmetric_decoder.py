"""The symmetric decoder against numpy."""

import numpy as np
import tensorflow as tf

from pfpn_tf.model import symmetric_decoder
from tests.model.test_layers import numpy_conv
from tests.ops.test_group_norm import numpy_group_norm
from tests.reference.resize import resize


def numpy_block(block, x):
    def conv(layer, x):
        y = numpy_conv(x, layer.kernel.numpy(), 1, layer.groups)
        norm = layer.norm
        return numpy_group_norm(y, norm.gamma.numpy(), norm.beta.numpy(), norm.groups)

    y = np.maximum(conv(block.conv1, x), 0)
    y = np.maximum(conv(block.conv2, y), 0)
    return np.maximum(conv(block.conv3, y) + (conv(block.shortcut, x) if block.shortcut else x), 0)


def test_against_numpy(maybe_graph):
    hw = (64, 96)
    features = {
        f"c{level}": np.random.normal(
            size=(2, hw[0] >> level, hw[1] >> level, 4 * 2**level)
        ).astype(np.float32)
        for level in range(2, 6)
    }
    decoder = symmetric_decoder.SymmetricDecoder("resnext_tiny")
    decoder(features)
    for v in decoder.variables:
        v.assign(tf.random.normal(v.shape, stddev=0.3))
    pyramid = maybe_graph(decoder)(features)
    assert list(pyramid) == ["p2", "p3", "p4", "p5"]
    below = None
    for level in (5, 4, 3, 2):
        x = features[f"c{level}"]
        if below is not None:
            up = resize(below, (2 * below.shape[1], 2 * below.shape[2]))
            x = np.concatenate([x, up], axis=-1)
        for block in decoder.stages[f"p{level}"]:
            x = numpy_block(block, x)
        assert x.shape[-1] == 4 * 2**level  # the backbone's own width
        np.testing.assert_allclose(pyramid[f"p{level}"], x, atol=1e-4 * np.abs(x).max())
        below = x
