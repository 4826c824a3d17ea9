"""From box-head outputs to detections."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import detections
from pfpn_tf.structures import Proposals
from tests.reference import boxes as reference
from tests.reference import nms as nms_reference


def numpy_detect(boxes, logits, deltas, hw, score_threshold, nms_threshold, num):
    """[(score, class, box)] of one image: every proposal and class by itself."""
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    decoded = np.zeros_like(deltas)
    for r, class_id in np.ndindex(deltas.shape[:2]):
        box = reference.decode(deltas[r, class_id], boxes[r], (10, 10, 5, 5))
        decoded[r, class_id] = np.clip(box, 0, [*hw, *hw])
    thresholds = score_threshold, nms_threshold
    kept = nms_reference.per_class(decoded, scores[:, :-1], *thresholds, num)
    return [(scores[key], key[1], decoded[key]) for key in kept]


def random_inputs(num_rois=40, num_classes=3):
    corner = np.random.uniform(0, 60, size=(2, num_rois, 2))
    size = np.random.uniform(5, 40, size=(2, num_rois, 2))
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    logits = np.random.normal(size=(2, num_rois, num_classes + 1)).astype(np.float32) * 2
    deltas = np.random.normal(size=(2, num_rois, num_classes, 4)).astype(np.float32)
    return boxes, logits, deltas


@pytest.mark.both_stacks
def test_against_numpy(maybe_graph):
    config = config_lib.Config().replace(max_detections=25, score_threshold=0.2).model
    boxes, logits, deltas = random_inputs()
    image_hw = np.array([[70, 90], [100, 60]], np.int32)
    valid = np.arange(40) < np.array([[40], [30]])
    proposals = Proposals(tf.constant(boxes), tf.zeros([2, 40]), tf.constant(valid))

    @maybe_graph
    def detect():
        return detections.detect(proposals, logits, deltas, tf.constant(image_hw), config)

    found = detect()
    assert found.boxes.shape == (2, 25, 4)
    for b in range(2):
        n = valid[b].sum()
        expected = numpy_detect(
            boxes[b, :n].astype(np.float64), logits[b, :n].astype(np.float64),
            deltas[b, :n].astype(np.float64), image_hw[b], 0.2, 0.5, 25,
        )  # fmt: skip
        assert found.num_detections[b] == len(expected)
        num = len(expected)
        np.testing.assert_array_equal(found.class_ids[b, :num], [e[1] for e in expected])
        np.testing.assert_allclose(found.scores[b, :num], [e[0] for e in expected], atol=1e-6)
        np.testing.assert_allclose(found.boxes[b, :num], [e[2] for e in expected], atol=1e-4)
        assert (found.class_ids[b, num:].numpy() == -1).all()


def test_nan_is_no_detection():
    config = config_lib.Config().replace(max_detections=40).model
    boxes, logits, deltas = random_inputs()
    logits[0, 3] = np.nan
    deltas[0, 5] = np.nan
    proposals = Proposals(tf.constant(boxes), tf.zeros([2, 40]), tf.ones([2, 40], tf.bool))
    found = detections.detect(proposals, logits, deltas, tf.constant([[70, 90]] * 2), config)
    assert found.num_detections[0] > 0
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
