"""Matching and sampling by hand; tests/model/test_targets.py compares both with plain loops."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops import matching


def test_equal_boxes_match_the_first():
    box = [0.0, 0.0, 8.0, 8.0]
    got = matching.match_anchors(
        tf.constant([[box] * 9]), tf.ones([1, 9], tf.bool), tf.constant([box] * 40), 0.7, 0.3, True
    )
    assert (got[1].numpy() == 0).all() and (got[0].numpy() == 1).all()


def test_ground_truth_no_anchor_meets():
    """As in Detectron2: its best IoU is 0, and every anchor that misses it has just that."""
    anchors = tf.constant([[0.0, 0, 4, 4], [9, 9, 12, 12]])
    labels, _ = matching.match_anchors(
        tf.constant([[[50.0, 50, 60, 60]]]), tf.constant([[True]]), anchors, 0.7, 0.3, True
    )
    np.testing.assert_array_equal(labels, [[1, 1]])


def test_thresholds_are_inclusive_above():
    gt = tf.constant([[[0.0, 0, 4, 4]]])
    anchors = tf.constant([[0.0, 0, 4, 2], [0.0, 0, 4, 1], [0.0, 0, 2, 1.5]])  # IoU 1/2, 1/4, 3/16
    labels, _ = matching.match_anchors(gt, tf.constant([[True]]), anchors, 0.5, 0.25, False)
    np.testing.assert_array_equal(labels, [[1, -1, 0]])


def random_labels(counts, seed=0):
    """One image with so many labels of -1, 0 and 1."""
    return np.random.default_rng(seed).permutation(np.repeat([-1, 0, 1], counts)).astype(np.int32)


def counts(labels):
    return [int(np.sum(np.asarray(labels) == value)) for value in (0, 1)]


@pytest.mark.parametrize(
    "available, expected",
    [
        ((10, 100, 60), [16, 16]),  # enough of both
        ((10, 100, 5), [27, 5]),  # few positives make room for negatives
        ((10, 4, 100), [4, 16]),  # few negatives do not make room for positives
        ((10, 12, 9), [12, 9]),  # nothing to drop
        ((131, 0, 0), [0, 0]),
    ],
)
def test_sample_is_balanced(available, expected, maybe_graph):
    labels = random_labels(available)
    call = maybe_graph(lambda labels, seed: matching.sample(labels, 32, 0.5, seed))
    got = call(tf.constant([labels]), tf.constant([[1, 2]])).numpy()[0]
    assert counts(got) == expected
    assert np.all((got == labels) | (got == -1))


def test_sample_is_the_same_under_xla():
    labels = tf.constant(np.stack([random_labels((300, 2000, 300), seed) for seed in (0, 1)]))
    seeds = tf.constant([[1, 2], [-3, 2**31 - 1]])
    compiled = tf.function(matching.sample, jit_compile=True, autograph=False)
    expected = matching.sample(labels, 64, 0.25, seeds)
    np.testing.assert_array_equal(compiled(labels, 64, 0.25, seeds), expected)


def test_sample_is_uniform():
    labels = tf.constant(np.tile(random_labels((0, 6, 6)), [400, 1]))
    seeds = tf.stack([tf.range(400), tf.zeros([400], tf.int32)], axis=1)
    sampled = tf.function(
        lambda labels, seed: matching.sample(labels, 6, 0.5, seed), autograph=False
    )(labels, seeds)
    kept = np.mean(sampled.numpy() >= 0, axis=0)
    np.testing.assert_allclose(kept, 0.5, atol=0.1)  # 4 standard deviations
