"""Losses against plain float64 loops, and the exactness of the replica split."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import losses
from pfpn_tf.config import Config
from pfpn_tf.structures import GroundTruth, RoiTargets, RpnTargets, TrainOutputs
from tests.reference import losses as reference
from tests.training.test_replicas import two_cpus

K, S = 5, 6
CONFIG = Config().replace(rpn_samples_per_image=8)


def example(batch=2, hw=(24, 36), dtype=np.float64, seed=0):
    """Random outputs and labels of a batch; the images have different numbers of everything."""
    rng = np.random.default_rng(seed)
    anchors, rois, slots, size = 30, 7, 4, 28
    labels = rng.integers(-1, 2, [batch, anchors])
    class_ids = np.full([batch, rois], -1)
    for b in range(batch):
        foreground, valid = b % 3 + 1, rois - 2 * (b % 2)
        class_ids[b, :valid] = K
        class_ids[b, :foreground] = rng.integers(0, K, foreground)
    is_foreground = (class_ids >= 0) & (class_ids < K)
    mask_class_ids = np.where(is_foreground, class_ids, -1)[:, :slots]
    semantic = rng.integers(0, S, [batch, *hw])
    semantic[:, :, -7:] = 255
    semantic[0, :5] = 255

    def normal(*shape):
        return tf.constant(rng.normal(size=shape), dtype)

    boxes = tf.zeros([batch, rois, 4], dtype)
    roi_targets = RoiTargets(
        boxes=boxes,
        valid=tf.constant(class_ids >= 0),
        class_ids=tf.constant(class_ids, tf.int32),
        gt_index=tf.zeros([batch, rois], tf.int32),
        deltas=normal(batch, rois, 4) * tf.cast(is_foreground[..., None], dtype),
        mask_boxes=boxes[:, :slots],
        mask_class_ids=tf.constant(mask_class_ids, tf.int32),
        masks=tf.constant(rng.integers(0, 2, [batch, slots, size, size]), dtype),
    )
    rpn_targets = RpnTargets(
        labels=tf.constant(labels, tf.int32),
        deltas=normal(batch, anchors, 4),
        gt_index=tf.zeros([batch, anchors], tf.int32),
    )
    outputs = TrainOutputs(
        objectness_logits=normal(batch, anchors) * 3,
        anchor_deltas=normal(batch, anchors, 4),
        rpn_targets=rpn_targets,
        class_logits=normal(batch, rois, K + 1) * 3,
        box_deltas=normal(batch, rois, 4),
        mask_logits=normal(batch, slots, size, size) * 3,
        roi_targets=roi_targets,
        semantic_logits=normal(batch, hw[0] // 4, hw[1] // 4, S) * 3,
    )
    ground_truth = GroundTruth(
        boxes=tf.zeros([batch, 0, 4]),
        class_ids=tf.zeros([batch, 0], tf.int32),
        masks=tf.zeros([batch, 0, *hw], tf.uint8),
        semantic=tf.constant(semantic, tf.uint8),
    )
    return outputs, ground_truth


def predictions(outputs):
    """The float tensors that the losses differentiate."""
    return [x for x in outputs._replace(rpn_targets=None, roi_targets=None) if x is not None]


def total_gradients(outputs, ground_truth, config=CONFIG):
    with tf.GradientTape() as tape:
        tape.watch(predictions(outputs))
        result = losses.panoptic_fpn_losses(outputs, ground_truth, config)
    return result, tape.gradient(result["total"], predictions(outputs))


@pytest.mark.both_stacks
def test_all_losses_equal_plain_loops(maybe_graph):
    outputs, ground_truth = example()
    result = maybe_graph(lambda o, g: losses.panoptic_fpn_losses(o, g, CONFIG))(
        outputs, ground_truth
    )
    rpn, rois = outputs.rpn_targets, outputs.roi_targets
    class_ids, mask_class_ids = rois.class_ids.numpy(), rois.mask_class_ids.numpy()
    num_rois = (class_ids >= 0).sum()
    labels, semantic = rpn.labels.numpy(), ground_truth.semantic.numpy()
    logits, deltas, classes, box_deltas, masks, pixels = (x.numpy() for x in predictions(outputs))
    foreground, num_masks = (class_ids >= 0) & (class_ids < K), (mask_class_ids >= 0).sum()
    sums_and_counts = {
        "rpn_objectness": (reference.rpn_objectness(logits, labels), 16),
        "rpn_box": (reference.l1(deltas, rpn.deltas.numpy(), labels == 1), 16),
        "class": (reference.classes(classes, class_ids), num_rois),
        "box": (reference.l1(box_deltas, rois.deltas.numpy(), foreground), num_rois),
        "mask": (reference.masks(masks, rois.masks.numpy(), mask_class_ids), num_masks * 28 * 28),
        "semantic": (0.5 * reference.semantic(pixels, semantic), (semantic != 255).sum()),
    }
    expected = {name: value / count for name, (value, count) in sums_and_counts.items()}
    expected["total"] = sum(expected.values())
    assert list(result) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-12, err_msg=name)


def test_float32_is_as_exact_as_float32_can_be():
    exact = losses.panoptic_fpn_losses(*example(), CONFIG)
    single = losses.panoptic_fpn_losses(*example(dtype=np.float32), CONFIG)
    for name in exact:
        assert single[name].dtype == tf.float32
        np.testing.assert_allclose(single[name], exact[name], rtol=1e-6, err_msg=name)


def test_half_precision_predictions_give_float32_losses():
    outputs, ground_truth = example(dtype=np.float32)
    half = outputs._replace(
        class_logits=tf.cast(outputs.class_logits, tf.bfloat16),
        semantic_logits=tf.cast(outputs.semantic_logits, tf.bfloat16),
    )
    result = losses.panoptic_fpn_losses(half, ground_truth, CONFIG)
    full = losses.panoptic_fpn_losses(outputs, ground_truth, CONFIG)
    assert result["total"].dtype == tf.float32
    np.testing.assert_allclose(result["total"], full["total"], rtol=1e-2)


def test_weights_are_the_papers():
    outputs, ground_truth = example()
    base = losses.panoptic_fpn_losses(outputs, ground_truth, CONFIG)
    config = CONFIG.replace(instance_loss_weight=0.25, semantic_loss_weight=0.75)
    weighted = losses.panoptic_fpn_losses(outputs, ground_truth, config)
    factors = {"class": 0.25, "box": 0.25, "mask": 0.25, "semantic": 1.5}
    for name in base:
        if name != "total":
            expected = base[name] * factors.get(name, 1.0)
            np.testing.assert_allclose(weighted[name], expected, rtol=1e-12, err_msg=name)


def test_without_instance_weight_only_the_semantic_loss_remains():
    config = CONFIG.replace(instance_loss_weight=0.0)
    result, gradients = total_gradients(*example(), config=config)
    np.testing.assert_array_equal(result["total"], result["semantic"])
    assert all(not np.any(g) for g in gradients[:-1]) and np.any(gradients[-1])


@pytest.mark.parametrize("step", [0, 1, 2, 41])
def test_alternating_losses_take_turns(step):
    """Table 3c: the losses of one branch as they are, those of the other 0, like their
    gradients.
    """
    outputs, ground_truth = example()
    combined = losses.panoptic_fpn_losses(outputs, ground_truth, CONFIG)
    config = CONFIG.replace(alternate_losses=True)
    with tf.GradientTape() as tape:
        tape.watch(predictions(outputs))
        at = tf.constant(step, tf.int64)
        result = losses.panoptic_fpn_losses(outputs, ground_truth, config, at)
    for name in combined.keys() - {"total"}:
        on = (name == "semantic") == (step % 2 == 1)
        expected = combined[name] if on else 0.0
        np.testing.assert_allclose(result[name], expected, rtol=1e-7, err_msg=name)
    *instance, semantic = tape.gradient(result["total"], predictions(outputs))
    assert np.any(semantic) == (step % 2 == 1)
    assert all(np.any(gradient) == (step % 2 == 0) for gradient in instance)


@pytest.mark.parametrize("branch", ["semantic", "instance"])
def test_a_missing_branch_has_no_loss(branch):
    outputs, ground_truth = example()
    if branch == "semantic":
        outputs = TrainOutputs(semantic_logits=outputs.semantic_logits)
        names = {"semantic", "total"}
    else:
        outputs = outputs._replace(semantic_logits=None)
        names = {"rpn_objectness", "rpn_box", "class", "box", "mask", "total"}
    assert set(losses.panoptic_fpn_losses(outputs, ground_truth, CONFIG)) == names


def test_nothing_to_count_gives_zero_losses_and_zero_gradients():
    outputs, ground_truth = example()
    rois = outputs.roi_targets
    outputs = outputs._replace(
        rpn_targets=outputs.rpn_targets._replace(labels=-tf.ones([2, 30], tf.int32)),
        roi_targets=rois._replace(
            valid=tf.zeros_like(rois.valid),
            class_ids=-tf.ones_like(rois.class_ids),
            mask_class_ids=-tf.ones_like(rois.mask_class_ids),
        ),
    )
    ground_truth = ground_truth._replace(semantic=tf.fill([2, 24, 36], tf.constant(255, tf.uint8)))
    result, gradients = total_gradients(outputs, ground_truth)
    for name, value in result.items():
        assert value == 0.0, name
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.both_stacks
def test_two_replicas_add_up_to_one():
    """Uneven RoIs and labelled pixels; the sum over replicas is the one-replica result."""
    outputs, ground_truth = example(batch=4)
    whole, whole_gradients = total_gradients(outputs, ground_truth)
    strategy = two_cpus()

    def share():
        first = 2 * tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.nest.map_structure(lambda x: x[first : first + 2], (outputs, ground_truth))

    @tf.function(autograph=False)
    def step():
        return strategy.run(lambda: total_gradients(*share()))

    result, gradients = step()
    for name, value in whole.items():
        replica_values = strategy.experimental_local_results(result[name])
        np.testing.assert_allclose(sum(replica_values), value, rtol=1e-12, err_msg=name)
        assert replica_values[0] != replica_values[1]
    for gradient, expected in zip(gradients, whole_gradients):
        both = np.concatenate(strategy.experimental_local_results(gradient))
        np.testing.assert_allclose(both, expected, rtol=1e-10, atol=1e-15)
