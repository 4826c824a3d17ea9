"""Views of the semantic branch, and two networks in the place of one, with exact arithmetic."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import inference
from pfpn_tf.structures import InferenceOutputs

INFO = DatasetInfo.from_coco_categories(
    [
        {"id": 1, "name": "cat", "isthing": 1},
        {"id": 2, "name": "sky", "isthing": 0},
        {"id": 3, "name": "sea", "isthing": 0},
    ]
)
SEMANTIC = config_lib.Config().replace(task="semantic", eval_min_side=32, eval_max_side=64)


class Branch(tf.keras.Model):
    """A semantic branch that sees the left of a cell otherwise than its right: logits are the grey
    levels of a cell's pixels 0, 1 and 2 to the power of `power`."""

    def __init__(self, power=1.0):
        super().__init__()
        self.seen = []
        self._power = power

    def semantic_logits(self, images):
        self.seen.append(images)
        shape = tf.shape(images)
        cells = tf.reshape(images[..., 0], [shape[0], shape[1] // 4, 4, shape[2] // 4, 4])[:, :, 0]
        return cells[..., :3] ** self._power  # [B, H4, W4, 3]

    def call(self, images, image_hw, training=False):
        del image_hw, training
        return InferenceOutputs(semantic_logits=self.semantic_logits(images))


def photo(height, width, seed=0):
    """[1, 32, 64, 3] with random content of the size, zero-padded."""
    image = np.zeros([1, 32, 64, 3], np.float32)
    image[:, :height, :width] = np.random.RandomState(seed).uniform(0, 4, [1, height, width, 1])
    return tf.constant(image)


def labels(model, config, images, hw, semantic=None):
    """[h, w] labels of the first image, at its own size."""
    run = inference.Inference(config, INFO, model, semantic)
    size = tf.constant([hw])
    inputs = [(images, size)] * len(run.settings)
    return run(inputs, size).labels[0].numpy()


def test_mirrored_maps_come_back_exactly():
    """20 x 36 pixels are 5 x 9 cells of a map of 8 x 16."""
    maps = tf.random.normal([2, 8, 16, 3])
    hw, size = tf.constant([[20, 36], [32, 64]]), tf.constant([8, 16])
    turned = inference.resample(maps, hw, size, hw, flip=True)
    np.testing.assert_array_equal(turned[0, :5, :9], maps[0, :5, 8::-1])
    np.testing.assert_array_equal(turned[1], maps[1, :, ::-1])
    same = inference.resample(maps, hw, size, hw, flip=False)
    np.testing.assert_array_equal(same[0, :5, :9], maps[0, :5, :9])
    np.testing.assert_array_equal(same[0, 5:, 9:], np.broadcast_to(maps[0, 4, 8], [3, 7, 3]))
    np.testing.assert_array_equal(same[1], maps[1])


def test_mirrored_maps_of_a_width_between_cells():
    """At 34 pixels the centre of cell j is 34 - 4 (j + 0.5) in the mirror: halfway between two
    cells.
    """
    ramp = tf.constant(np.broadcast_to(np.arange(16.0)[None, None, :, None], [1, 8, 16, 1]))
    hw = tf.constant([[20, 34]])
    turned = inference.resample(ramp, hw, tf.constant([8, 16]), hw, flip=True)[0, 0, :, 0].numpy()
    np.testing.assert_array_equal(turned, np.maximum(7.5 - np.arange(16), 0))


def test_maps_of_another_scale_keep_their_place():
    """A ramp over the content at twice the size is the same ramp."""
    hw, large = tf.constant([[20, 36]]), tf.constant([[40, 72]])
    x = (np.arange(32) + 0.5) * 4 / 72  # share of the content's width at each cell's centre
    ramp = tf.constant(np.broadcast_to(x[None, None, :, None], [1, 16, 32, 1]))
    found = inference.resample(ramp, large, tf.constant([8, 16]), hw, flip=False)[
        0, 0, :9, 0
    ].numpy()
    np.testing.assert_allclose(found, (np.arange(9) + 0.5) * 4 / 36, rtol=1e-12)


@pytest.mark.parametrize("width", [36, 64])
def test_flip_makes_any_network_equivariant(width):
    images, hw = photo(20, width), [20, width]
    turned = images.numpy()
    turned[:, :, :width] = turned[:, :, width - 1 :: -1]  # the content alone
    config = SEMANTIC.replace(semantic_flip=True)
    found = labels(Branch(), config, images, hw)
    np.testing.assert_array_equal(labels(Branch(), config, turned, hw), found[:, ::-1])
    alone = labels(Branch(), SEMANTIC, images, hw)
    assert (labels(Branch(), SEMANTIC, turned, hw) != alone[:, ::-1]).any()  # the network is not
    assert (found != alone).any()


def test_scale_1_alone_changes_nothing():
    images, hw = photo(20, 36), [20, 36]
    model = Branch()
    run = inference.Inference(SEMANTIC.replace(semantic_scales=(1.0,)), INFO, model)
    assert run.settings == [SEMANTIC]
    logits = []
    model.semantic_logits = lambda x: logits.append(Branch().semantic_logits(x)) or logits[-1]
    inputs = [(images, tf.constant([hw]))]
    assert run._semantic_logits(inputs, model(*inputs[0]).semantic_logits) is logits[0]


def test_mean_of_probabilities():
    """The mean of two views by hand: probabilities of each, not logits, which may differ in
    range.
    """
    images, hw = photo(32, 64), [32, 64]
    run = inference.Inference(SEMANTIC.replace(semantic_flip=True), INFO, Branch(power=3.0))
    inputs = [(images, tf.constant([hw]))]
    found = run._semantic_logits(inputs, None).numpy()

    def probs(x):
        logits = x.reshape(8, 4, 16, 4)[:, 0, :, :3].astype(np.float64) ** 3
        return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    grey = images.numpy()[0, ..., 0]
    expected = (probs(grey) + probs(grey[:, ::-1])[:, ::-1]) / 2
    np.testing.assert_allclose(np.exp(found[0]), expected, rtol=1e-5, atol=1e-12)


def test_inputs_of_scales():
    """Each scale is one input more, flipped or not; scale 1 is always there as the frame."""
    config = SEMANTIC.replace(
        semantic_flip=True, semantic_scales=(0.5, 2.0), eval_min_side=64, eval_max_side=96
    )
    model = Branch()
    run = inference.Inference(config, INFO, model)
    sides = [(s.data.eval_min_side, s.data.eval_max_side) for s in run.settings]
    assert sides == [(64, 96), (32, 48), (128, 192)]
    inputs = [(photo(32, 64, i), tf.constant([[32, 64]])) for i in range(3)]
    run(inputs, tf.constant([[32, 64]]))
    assert len(model.seen) == 4  # scale 1 is not asked for, so the network does not run at it


def test_two_networks_have_their_own_inputs():
    instance = SEMANTIC.replace(task="panoptic", eval_min_side=48)
    for semantic, count in ((SEMANTIC, 2), (instance.replace(task="semantic"), 1)):
        run = inference.Inference(instance, INFO, None, inference.Network(semantic, Branch()))
        assert [s.data for s in run.settings] == [instance.data, semantic.data][:count]
