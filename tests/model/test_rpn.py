"""The region proposal network."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import rpn
from tests.reference import boxes as reference
from tests.reference import nms as nms_reference

LEVELS = config_lib.LEVELS


def small_config(**settings):
    settings = {"rpn_pre_nms_top_k_eval": 20, "rpn_post_nms_top_k": 30, **settings}
    return config_lib.Config().replace(**settings).model


def random_pyramid(hw=(64, 96), channels=8, batch=2):
    return {
        level: tf.random.normal([batch, -(-hw[0] // s), -(-hw[1] // s), channels])
        for level, s in zip(LEVELS, (4, 8, 16, 32, 64))
    }


def numpy_propose(logits, deltas, anchors, hw, top_k, threshold, num):
    """[(logit, box)] of one image, one box after the other."""
    boxes, scores = np.zeros([len(LEVELS), top_k, 4]), np.full([len(LEVELS), top_k], -np.inf)
    for n, level in enumerate(LEVELS):
        for k, i in enumerate(np.argsort(-logits[level], kind="stable")[:top_k]):
            box = reference.decode(deltas[level][i], anchors[level][i])
            boxes[n, k], scores[n, k] = np.clip(box, 0, [*hw, *hw]), logits[level][i]
    kept = nms_reference.rpn(boxes, scores, threshold, num)
    return [(scores[key], boxes[key]) for key in kept]


def random_outputs(config, image_scale=1.0):
    pyramid = random_pyramid()
    anchors = rpn.pyramid_anchors(pyramid, config, tf.float32)
    logits = {level: tf.random.normal([2, len(a)]) for level, a in anchors.items()}
    deltas = {level: tf.random.normal([2, len(a), 4]) * image_scale for level, a in anchors.items()}
    return logits, deltas, anchors


def test_head_shares_its_weights_and_orders_its_outputs():
    pyramid = random_pyramid()
    head = rpn.RPNHead(8, 3)
    logits, deltas = head(pyramid)
    assert sum(v.shape.num_elements() for v in head.variables) == 9 * 64 + 8 + 15 * 8 + 15
    assert logits["p2"].shape == (2, 16 * 24 * 3)
    assert deltas["p6"].shape == (2, 1 * 2 * 3, 4)
    # Row 1, column 2, ratio 1 of p4 by itself.
    single = {level: pyramid["p4"] for level in LEVELS}
    hidden = head.conv(single["p4"])
    by_hand = hidden[0, 1, 2].numpy() @ head.deltas.kernel.numpy()[0, 0] + head.deltas.bias.numpy()
    np.testing.assert_allclose(deltas["p4"][0, (1 * 6 + 2) * 3 + 1], by_hand[4:8], atol=1e-6)


def test_proposals_against_numpy(maybe_graph):
    config = small_config(rpn_nms_threshold=0.5)
    logits, deltas, anchors = random_outputs(config)
    image_hw = tf.constant([[64, 96], [50, 70]])

    @maybe_graph
    def propose():
        return rpn.propose(logits, deltas, anchors, image_hw, config, training=False)

    proposals = propose()
    assert proposals.boxes.shape == (2, 30, 4)
    numpy_anchors = {level: a.numpy().astype(np.float64) for level, a in anchors.items()}
    for b in range(2):
        expected = numpy_propose(
            {level: x.numpy()[b] for level, x in logits.items()},
            {level: x.numpy()[b].astype(np.float64) for level, x in deltas.items()},
            numpy_anchors, image_hw[b].numpy(), 20, 0.5, 30,
        )  # fmt: skip
        valid = proposals.valid[b].numpy()
        assert valid.sum() == len(expected)
        np.testing.assert_allclose(proposals.logits[b].numpy()[valid], [e[0] for e in expected])
        np.testing.assert_allclose(
            proposals.boxes[b].numpy()[valid], [e[1] for e in expected], atol=1e-4
        )


def test_top_k_depends_on_training():
    config = small_config(
        rpn_pre_nms_top_k_train=1, rpn_pre_nms_top_k_eval=2, rpn_nms_threshold=1.0
    )
    logits, deltas, anchors = random_outputs(config, 0.0)
    # The whole anchors are inside an image of this size.
    anchors = {level: a + 2000.0 for level, a in anchors.items()}
    args = (logits, deltas, anchors, tf.constant([[9000, 9000]] * 2), config)
    assert rpn.propose(*args, training=True).valid.numpy().sum(1).tolist() == [5, 5]
    assert rpn.propose(*args, training=False).valid.numpy().sum(1).tolist() == [10, 10]


def test_boxes_outside_the_image_and_nan_are_dropped():
    config = small_config()
    logits, deltas, anchors = random_outputs(config, 0.0)
    outside = {level: a + 5000.0 for level, a in anchors.items()}
    args = (tf.constant([[64, 96], [64, 96]]), config, False)
    assert not rpn.propose(logits, deltas, outside, *args).valid.numpy().any()
    broken = {level: x * np.nan for level, x in logits.items()}
    proposals = rpn.propose(broken, deltas, anchors, *args)
    assert not proposals.valid.numpy().any()
    assert (proposals.boxes.numpy() == 0).all()


def test_no_gradient_through_proposals():
    config = small_config()
    logits, deltas, anchors = random_outputs(config)
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        proposals = rpn.propose(
            logits, deltas, anchors, tf.constant([[64, 96]] * 2), config, training=True
        )
        loss = tf.reduce_sum(proposals.boxes) + tf.reduce_sum(proposals.logits)
    assert all(g is None for g in tf.nest.flatten(tape.gradient(loss, [logits, deltas])))


@pytest.mark.parametrize("ratios", [(1.0,), (0.5, 1.0, 2.0)])
def test_anchors_of_all_levels(ratios):
    config = small_config(anchor_aspect_ratios=ratios)
    anchors = rpn.pyramid_anchors(random_pyramid(), config, tf.float64)
    assert [len(a) // len(ratios) for a in anchors.values()] == [384, 96, 24, 6, 2]
    assert anchors["p3"].dtype == tf.float64
    # Height / width of the first anchor; area 64 squared on p3.
    y1, x1, y2, x2 = anchors["p3"][0].numpy()
    np.testing.assert_allclose([(y2 - y1) / (x2 - x1), (y2 - y1) * (x2 - x1)], [ratios[0], 64**2])
    # The last anchor in row 2 of 12 columns, which are 8 pixels apart as the rows are.
    y1, x1, y2, x2 = anchors["p3"][3 * 12 * len(ratios) - 1].numpy()
    np.testing.assert_allclose([y1 + y2, x1 + x2, (y2 - y1) / (x2 - x1)], [32, 176, ratios[-1]])
