"""Targets against plain loops, with padding, without instances, and under random sampling."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.model import targets
from pfpn_tf.ops import anchors as anchor_ops
from pfpn_tf.ops import masks as mask_ops
from pfpn_tf.structures import GroundTruth, Proposals
from tests.reference import targets as reference

K, H, W = 4, 96, 160


def sampling(rpn, rpn_share, roi, roi_share):
    """Settings that take so many samples of an image, of which a share may be foreground."""
    shares = {"rpn_positive_fraction": rpn_share, "roi_positive_fraction": roi_share}
    return Config().replace(rpn_samples_per_image=rpn, roi_samples_per_image=roi, **shares).model


TAKE_ALL = sampling(65536, 0.5, 65536, 1.0)
SEED = tf.constant([[1, 2], [3, 4]])


def random_boxes(rng, count):
    start = rng.uniform(0, [H - 30, W - 30], [count, 2])
    end = start + rng.uniform(4, 60, [count, 2])
    return np.concatenate([start, np.minimum(end, [H, W])], axis=1).astype(np.float32)


def example(counts=(3, 1), num_proposals=40, valid_proposals=(40, 25), seed=0):
    """Ground truth and proposals of two images, padded; half the proposals lie near an instance."""
    rng = np.random.default_rng(seed)
    batch, m = len(counts), max(counts)
    gt_boxes = np.tile(np.float32([9, 9, 70, 90]), [batch, m, 1])  # padding must not match
    class_ids = np.full([batch, m], -1, np.int32)
    masks = np.zeros([batch, m, H, W], np.uint8)
    boxes = np.zeros([batch, num_proposals, 4], np.float32)
    for b, count in enumerate(counts):
        gt_boxes[b, :count] = np.round(random_boxes(rng, count))
        class_ids[b, :count] = rng.integers(0, K, count)
        for i in range(count):
            y1, x1, y2, x2 = gt_boxes[b, i].astype(int)
            masks[b, i, y1:y2, x1:x2] = rng.integers(0, 2, [y2 - y1, x2 - x1])
        n = valid_proposals[b]
        boxes[b, :n] = random_boxes(rng, n)
        if count:
            near = gt_boxes[b, rng.integers(0, count, n // 2)]
            boxes[b, : n // 2] = near + rng.normal(size=near.shape) * 3
    valid = np.arange(num_proposals) < np.array(valid_proposals)[:, None]
    ground_truth = GroundTruth(
        boxes=tf.constant(gt_boxes),
        class_ids=tf.constant(class_ids),
        masks=tf.constant(masks),
        semantic=tf.zeros([batch, H, W], tf.uint8),
    )
    proposals = Proposals(
        boxes=tf.constant(boxes),
        logits=tf.constant(-np.sort(rng.normal(size=[batch, num_proposals])), tf.float32),
        valid=tf.constant(valid),
    )
    return ground_truth, proposals


def anchors():
    ratios = [0.5, 1.0, 2.0]
    levels = [anchor_ops.level_anchors([H // s, W // s], s, 2.0 * s, ratios) for s in (16, 32)]
    return tf.concat(levels, axis=0)


def instances(ground_truth, b):
    """Boxes and classes of image b without the padding."""
    keep = ground_truth.class_ids[b].numpy() >= 0
    boxes = ground_truth.boxes[b].numpy()[keep].astype(float).tolist()
    return boxes, ground_truth.class_ids[b].numpy()[keep].tolist()


@pytest.mark.parametrize("counts", [(3, 1), (5, 0), (0, 0)])
def test_rpn_targets_equal_plain_loops(counts, maybe_graph):
    ground_truth, _ = example(counts)
    # In double precision, whose rounding the loops share: it decides between equal overlaps.
    actual = maybe_graph(lambda *a: targets.rpn_targets(*a, TAKE_ALL))(
        tf.cast(anchors(), tf.float64), ground_truth, SEED
    )
    assert actual.labels.shape == [2, len(anchors())]
    for b in range(2):
        expected = reference.rpn(
            anchors().numpy().astype(float).tolist(), instances(ground_truth, b)[0], 0.7, 0.3
        )
        labels, deltas = zip(*expected)
        np.testing.assert_array_equal(actual.labels[b], labels)
        np.testing.assert_allclose(actual.deltas[b], deltas, atol=1e-12)
    assert np.any(actual.labels == 1) == any(counts)


@pytest.mark.parametrize("counts", [(3, 1), (5, 0), (0, 0)])
def test_roi_targets_equal_plain_loops(counts, maybe_graph):
    ground_truth, proposals = example(counts)
    actual = maybe_graph(lambda *a: targets.roi_targets(*a[:2], K, a[2], TAKE_ALL))(
        proposals, ground_truth, SEED
    )
    for b in range(2):
        gt_boxes, gt_class_ids = instances(ground_truth, b)
        real = proposals.boxes[b].numpy()[proposals.valid[b].numpy()].astype(float).tolist()
        expected = reference.rois(real, gt_boxes, gt_class_ids, K, 0.5)
        boxes, class_ids, gt_index, deltas = (np.array(v) for v in zip(*expected))
        n = len(boxes)
        np.testing.assert_array_equal(actual.valid[b], np.arange(actual.valid.shape[1]) < n)
        np.testing.assert_allclose(actual.boxes[b, :n], boxes, rtol=1e-6)
        np.testing.assert_array_equal(actual.boxes[b, n:], 0)
        np.testing.assert_array_equal(actual.class_ids[b, :n], class_ids)
        np.testing.assert_array_equal(actual.class_ids[b, n:], -1)
        foreground = class_ids < K
        np.testing.assert_array_equal(actual.gt_index[b, :n][foreground], gt_index[foreground])
        np.testing.assert_allclose(actual.deltas[b, :n], deltas, atol=2e-5)
        np.testing.assert_array_equal(actual.deltas[b, n:], 0)
        assert foreground.sum() >= counts[b]
    indices = actual.gt_index[:, : actual.masks.shape[1]]
    masks = mask_ops.mask_targets(ground_truth.masks, actual.mask_boxes, indices, 28)
    np.testing.assert_array_equal(actual.masks, masks)
    assert np.any(masks) == any(counts)


def test_every_foreground_roi_has_a_mask_slot():
    ground_truth, proposals = example((3, 1))
    actual = targets.roi_targets(proposals, ground_truth, K, SEED, TAKE_ALL)
    slots = actual.mask_boxes.shape[1]
    foreground = (actual.class_ids.numpy() >= 0) & (actual.class_ids.numpy() < K)
    most = foreground.sum(axis=1).max()
    assert most <= slots < most + 16
    np.testing.assert_array_equal(actual.mask_boxes, actual.boxes[:, :slots])
    expected = np.where(foreground, actual.class_ids, -1)
    np.testing.assert_array_equal(actual.mask_class_ids, expected[:, :slots])
    assert not np.any(foreground[:, slots:])
    assert actual.masks.shape == [2, slots, 28, 28]


def test_random_sample_has_its_size_and_share():
    config = sampling(20, 0.25, 12, 0.25)
    ground_truth, proposals = example((6, 4))
    rpn = targets.rpn_targets(anchors(), ground_truth, SEED, config)
    rois = targets.roi_targets(proposals, ground_truth, K, SEED, config)
    whole = targets.roi_targets(proposals, ground_truth, K, SEED, TAKE_ALL)
    assert rois.boxes.shape == [2, 12, 4] and rois.mask_boxes.shape[1] == 12
    for b in range(2):
        assert np.sum(rpn.labels[b] == 1) == 5 and np.sum(rpn.labels[b] == 0) == 15
        assert np.sum((rois.class_ids[b] >= 0) & (rois.class_ids[b] < K)) == 3
        np.testing.assert_array_equal(rois.class_ids[b, 3:], K)
        # The sample keeps the order of the whole.
        rows = [np.flatnonzero(np.all(whole.boxes[b] == box, axis=1))[0] for box in rois.boxes[b]]
        assert rows == sorted(rows)


def test_sample_follows_the_seed_of_its_image_alone():
    config = Config().replace(rpn_samples_per_image=20, roi_samples_per_image=12).model
    ground_truth, proposals = example((6, 4))

    def run(images, seed):
        pick = lambda x: tf.gather(x, images)  # noqa: E731
        some_truth, some_proposals = tf.nest.map_structure(pick, (ground_truth, proposals))
        return (
            targets.rpn_targets(anchors(), some_truth, seed, config).labels,
            targets.roi_targets(some_proposals, some_truth, K, seed, config).boxes,
        )

    both = run([0, 1], SEED)
    for whole, swapped, alone in zip(both, run([1, 0], SEED[::-1]), run([1], SEED[1:])):
        np.testing.assert_array_equal(whole[1], swapped[0])
        np.testing.assert_array_equal(whole[1], alone[0])
    for whole, other in zip(both, run([0, 1], SEED + 7)):
        assert np.any(whole != other)


def test_unknown_sizes_in_a_graph():
    """One traced function serves any number of instances; the RoIs stay static."""
    ground_truth, proposals = example((5, 2), num_proposals=20, valid_proposals=(20, 20))
    config = Config().replace(roi_samples_per_image=16).model

    def unknown(x):
        return tf.TensorSpec([None] * x.shape.rank, x.dtype)

    signature = [
        proposals._replace(
            boxes=tf.TensorSpec([None, 20, 4]),
            logits=tf.TensorSpec([None, 20]),
            valid=tf.TensorSpec([None, 20], tf.bool),
        ),
        tf.nest.map_structure(unknown, ground_truth)._replace(boxes=tf.TensorSpec([None, None, 4])),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def function(proposals, ground_truth):
        result = targets.roi_targets(proposals, ground_truth, K, SEED, config)
        assert result.boxes.shape[1] == 16
        return result

    for counts in [(5, 2), (0, 0), (1, 0)]:
        ground_truth, proposals = example(counts, 20, (20, 20))
        expected = targets.roi_targets(proposals, ground_truth, K, SEED, config)
        for a, e in zip(function(proposals, ground_truth), expected):
            np.testing.assert_allclose(a, e, atol=1e-5)
