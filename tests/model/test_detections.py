"""From box-head outputs to detections."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import detections
from pfpn_tf.structures import Proposals
from tests.model.test_rpn import numpy_iou

WEIGHTS = np.array([10.0, 10.0, 5.0, 5.0])


def numpy_detect(boxes, logits, deltas, hw, score_threshold, nms_threshold, num):
    """One image: every proposal and class by itself, then a greedy loop."""
    found = []
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for class_id in range(deltas.shape[1]):
        kept = []
        for r in np.argsort(-scores[:, class_id], kind="stable"):
            if scores[r, class_id] <= score_threshold:
                continue
            size, delta = boxes[r, 2:] - boxes[r, :2], deltas[r, class_id] / WEIGHTS
            centre = boxes[r, :2] + size / 2 + delta[:2] * size
            size = size * np.exp(np.minimum(delta[2:], np.log(1000 / 16)))
            box = np.clip(np.concatenate([centre - size / 2, centre + size / 2]), 0, [*hw, *hw])
            if all(numpy_iou(box, other) <= nms_threshold for other in kept):
                kept.append(box)
                found.append((scores[r, class_id], class_id, box))
    return sorted(found, key=lambda f: -f[0])[:num]


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


def test_nothing_found():
    config = config_lib.Config().model
    boxes, logits, deltas = random_inputs()
    logits[..., -1] = 100.0
    proposals = Proposals(tf.constant(boxes), tf.zeros([2, 40]), tf.ones([2, 40], tf.bool))
    found = detections.detect(proposals, logits, deltas, tf.constant([[70, 90]] * 2), config)
    assert found.num_detections.numpy().tolist() == [0, 0]
    assert not found.boxes.numpy().any()


def test_nan_is_no_detection():
    config = config_lib.Config().replace(max_detections=40).model
    boxes, logits, deltas = random_inputs()
    logits[0, 3] = np.nan
    deltas[0, 5] = np.nan
    proposals = Proposals(tf.constant(boxes), tf.zeros([2, 40]), tf.ones([2, 40], tf.bool))
    found = detections.detect(proposals, logits, deltas, tf.constant([[70, 90]] * 2), config)
    assert found.num_detections[0] > 0
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
