"""Where time goes, on operations whose share and multiply-adds are known."""

import pytest
import tensorflow as tf

from pfpn_tf.benchmark import breakdown
from pfpn_tf.utils import scopes
from pfpn_tf.utils.errors import UserError


@pytest.mark.parametrize(
    "name, component",
    [
        ("panoptic_fpn/backbone/c2_0/conv1/Relu", "backbone"),
        ("gradient_tape/panoptic_fpn/backbone/c2_0/Conv2D", "backbone, backward"),
        ("while/body/_9/call/panoptic_fpn/roi_align_1/Reshape", "RoIAlign"),
        ("while/body/_9/fusion/labels/map/while/Max", "labels"),
        ("while/body/_9/add", "the rest"),
        ("gradient_tape/truediv", "the rest"),
    ],
)
def test_component_of_an_operation(name, component):
    assert breakdown.component_of(name) == component


def test_moments_are_shared_equally():
    events = [("a", 0.0, 10.0), ("b", 4.0, 8.0), ("a", 6.0, 7.0), ("b", 20.0, 21.0)]
    times = breakdown.shares(events)
    # 4 to 6 and 7 to 8 belong to both, and two thirds of 6 to 7 to a.
    assert times == pytest.approx({"a": 4 + 1.5 + 2 / 3 + 2, "b": 1.5 + 1 / 3 + 1})
    assert sum(times.values()) == pytest.approx(11)


def _network(x, kernel, matrix):
    with tf.name_scope("backbone"):
        x = tf.nn.conv2d(x, kernel, 2, "SAME")
    with tf.name_scope("box_head"):
        return tf.matmul(tf.reshape(x, [-1, 5]), matrix)


def _gradients(x, kernel, matrix):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel, matrix])
        y = tf.reduce_sum(_network(x, kernel, matrix) ** 2)
    return tape.gradient(y, [x, kernel, matrix])


@pytest.mark.parametrize("known", [True, False])
def test_multiply_adds_forward_and_backward(known):
    x, kernel = tf.ones([2, 8, 6, 3]), tf.ones([3, 3, 3, 5])

    def step(x, kernel, matrix):
        if not known:
            x = tf.ensure_shape(tf.reshape(x, [tf.size(x) // 144, 8, 6, 3]), [None, 8, 6, 3])
        return _gradients(x, kernel, matrix)

    counts = breakdown.multiply_adds(step, x, kernel, tf.ones([5, 7]))
    convolution, product = 2 * 4 * 3 * 5 * 9 * 3, 2 * 4 * 3 * 5 * 7
    assert counts == {
        "backbone": convolution,
        "backbone, backward": 2 * convolution,
        "box head": product,
        "box head, backward": 2 * product,
    }


@pytest.mark.both_stacks
def test_components_add_up_to_the_whole():
    @scopes.custom_gradient
    def twice(x):
        return 2 * x, lambda dy: tf.matmul(dy, dy)

    x = tf.ones([300, 300])

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            with tf.name_scope("fpn"):
                y = tf.map_fn(lambda row: tf.linalg.matvec(x, row), x)
            with tf.name_scope("losses"):
                y = tf.square(twice(y))
        return y, tape.gradient(y, x)

    step()
    found = breakdown.profile(lambda: step()[0].numpy(), 2)
    assert sum(found.ms.values()) == pytest.approx(found.whole_ms)
    # Both gradients, TensorFlow's own and the written one, have the names of their forward pass.
    assert set(found.ms) == {"FPN", "FPN, backward", "losses", "losses, backward", "the rest"}
    assert min(found.ms.values()) > 0


def test_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    with pytest.raises(UserError, match="--breakdown measures CPUs"):
        breakdown.profile(lambda: None, 1)
