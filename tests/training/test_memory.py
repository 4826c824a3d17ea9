"""What a training step keeps for its backward pass, and how recomputation changes that."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.model.resnet import ResNet
from pfpn_tf.training import memory
from tests import precision


def test_what_is_kept_by_hand():
    """The gradient of y = relu(x w)^2 reads x, relu(x w) twice, and w, which is no activation."""
    w = tf.Variable(tf.ones([3, 5]))
    spec = {"x": tf.TensorSpec([4, 3], tf.float32)}

    def loss(batch):
        return tf.reduce_sum(tf.square(tf.nn.relu(tf.matmul(tf.reshape(batch["x"], [4, 3]), w))))

    # x is the batch itself, which is counted apart; the sum's gradient reads a shape only.
    assert memory.kept_for_gradients(loss, [w], spec) == 4 * 5 * 4


def backbone_gradients(recompute, norm="group_norm", freeze_stages=0):
    tf.keras.utils.set_random_seed(3)
    net = ResNet("resnet_tiny", norm, freeze_stages=freeze_stages, recompute=recompute)
    net(tf.zeros([1, 64, 64, 3]))
    images = tf.random.stateless_normal([2, 64, 96, 3], [1, 2], dtype=tf.keras.backend.floatx())

    def loss(batch):
        features = net(batch["images"], training=True).values()
        return tf.add_n([tf.reduce_sum(f[:, ::2]) for f in features])  # keeps nothing itself

    @tf.function(autograph=False)
    def gradients(images):
        with tf.GradientTape() as tape:
            value = loss({"images": images})
        return value, tape.gradient(value, net.trainable_variables)

    kept = memory.kept_for_gradients(
        loss, net.trainable_variables, {"images": tf.TensorSpec(images.shape, images.dtype)}
    )
    value, found = gradients(images)
    return kept, value, found


@pytest.mark.both_stacks
@pytest.mark.parametrize("norm, freeze_stages", [("group_norm", 1), ("frozen_bn", 2)])
def test_recomputing_the_backbone_changes_the_memory_and_nothing_else(norm, freeze_stages):
    with precision.policy():
        kept, value, plain = backbone_gradients(False, norm, freeze_stages)
        kept_less, same_value, recomputed = backbone_gradients(True, norm, freeze_stages)
    assert kept_less < 0.6 * kept
    assert value == same_value
    assert len(plain) == len(recomputed) > 5
    for a, b in zip(plain, recomputed):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10 * np.abs(a).max())
    assert any(np.abs(a).max() > 0 for a in plain)


def test_the_peak_grows_with_what_is_held():
    before = memory.peak()["main memory"]
    held = np.ones(before // 8 + 2**22)  # more than all memory so far
    assert memory.peak()["main memory"] - before > 2**24
    del held
