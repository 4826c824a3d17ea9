"""The symmetric decoder against numpy."""

import numpy as np
import tensorflow as tf

from pfpn_tf.model import resnet, symmetric_decoder
from tests.model.test_resnet import numpy_block
from tests.reference.resize import resize


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


def test_as_many_blocks_as_the_backbone():
    decoder = symmetric_decoder.SymmetricDecoder("resnet101")
    assert [len(blocks) for blocks in decoder.stages.values()] == list(
        resnet.ARCHITECTURES["resnet101"].blocks
    )
