"""Non-maximum suppression against a greedy reference."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.ops import nms
from tests.reference import nms as reference


def random_case(shape, seed=0, offset=0.0, ties=False):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, (40, 90), [*shape, 2]) + offset
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, [*shape, 2])], axis=-1)
    scores = rng.normal(size=shape)
    return boxes.astype(np.float32), (np.round(scores) if ties else scores).astype(np.float32)


@pytest.fixture(params=[False, True])
def for_xla(request):
    return request.param


def check_rpn(boxes, logits, threshold, max_outputs, for_xla, wrap=lambda f: f):
    got = wrap(lambda b, s: nms.rpn_nms(b, s, threshold, max_outputs, for_xla))(
        tf.constant(boxes), tf.constant(logits)
    )
    for image in range(len(boxes)):
        kept = reference.rpn(boxes[image], logits[image], threshold, max_outputs)
        count = len(kept)
        np.testing.assert_array_equal(got[2][image], np.arange(max_outputs) < count)
        np.testing.assert_array_equal(
            got[0][image][:count], [boxes[image][key] for key in kept] or np.zeros([0, 4])
        )
        np.testing.assert_array_equal(got[1][image][:count], [logits[image][key] for key in kept])
        assert not got[0][image][count:].numpy().any() and not got[1][image][count:].numpy().any()
    return got


@pytest.mark.both_stacks
def test_rpn_nms(for_xla, maybe_graph):
    boxes, logits = random_case([2, 3, 40])
    got = check_rpn(boxes, logits, 0.3, 30, for_xla, maybe_graph)
    assert got[2].numpy().all()  # more survive than fit


def test_rpn_nms_with_equal_logits_prefers_the_first(for_xla):
    boxes, logits = random_case([2, 3, 60], ties=True)
    check_rpn(boxes, logits, 0.3, 50, for_xla)


def test_rpn_nms_of_large_negative_logits_and_coordinates(for_xla):
    boxes, logits = random_case([1, 2, 40], offset=-3000.0)
    check_rpn(boxes, logits * 1e6 - 1e9, 0.3, 200, for_xla)


def test_rpn_nms_leaves_out_padding_and_empty_boxes(for_xla):
    boxes, logits = random_case([2, 2, 20])
    logits[0, 1, 7:] = -np.inf  # a level with fewer anchors
    logits[1] = -np.inf  # an image without any
    boxes[0, 0, 3, 2] = boxes[0, 0, 3, 0]
    got = check_rpn(boxes, logits, 0.5, 40, for_xla)
    assert not got[2][1].numpy().any()


def test_rpn_nms_keeps_a_box_at_the_threshold(for_xla):
    boxes = np.array(
        [[[[0, 0, 4, 4], [0, 0, 2, 4], [0, 0, 3, 4]]]], np.float32
    )  # IoU 1/2 and 3/4 with the first
    got = check_rpn(boxes, np.array([[[3, 2, 1]]], np.float32), 0.5, 3, for_xla)
    np.testing.assert_array_equal(got[2], [[True, True, False]])


def test_rpn_nms_returns_the_callers_precision(for_xla):
    boxes, logits = random_case([1, 2, 20])
    boxes = boxes.astype(np.float64) + 1e-9
    got = nms.rpn_nms(tf.constant(boxes), tf.constant(logits, tf.float64), 0.7, 10, for_xla)
    assert got[0].dtype == got[1].dtype == tf.float64
    assert set(got[0][0, :, 0].numpy()) <= set(boxes[..., 0].ravel())


def check_class(boxes, scores, score_threshold, iou_threshold, max_detections, wrap=lambda f: f):
    call = wrap(lambda b, s: nms.class_nms(b, s, score_threshold, iou_threshold, max_detections))
    got_boxes, got_scores, class_ids, num = call(tf.constant(boxes), tf.constant(scores))
    for image in range(len(boxes)):
        kept = reference.per_class(
            boxes[image], scores[image], score_threshold, iou_threshold, max_detections
        )
        count = len(kept)
        assert num[image] == count
        kept_boxes = [boxes[image][key] for key in kept] or np.zeros([0, 4])
        np.testing.assert_array_equal(got_boxes[image][:count], kept_boxes)
        kept_scores = [scores[image][key] for key in kept]
        np.testing.assert_array_equal(got_scores[image][:count], kept_scores)
        kept_classes = [class_id for _, class_id in kept]
        np.testing.assert_array_equal(class_ids[image][:count], kept_classes)
        assert not np.any(got_boxes[image][count:]) and not np.any(got_scores[image][count:])
        assert np.all(class_ids[image][count:] == -1)
    return num.numpy()


@pytest.mark.both_stacks
def test_class_nms(maybe_graph):
    boxes, scores = random_case([2, 25, 4])
    assert (check_class(boxes, scores, 0.05, 0.3, 60, maybe_graph) < 60).all()
    assert (check_class(boxes, scores, 0.05, 0.3, 10, maybe_graph) == 10).all()


def test_class_nms_of_equal_scores():
    boxes, scores = random_case([2, 30, 3], ties=True)
    check_class(boxes, scores, 0.0, 0.3, 40)


def test_class_nms_takes_every_candidate():
    """The best class crowds the top of the scores with one object; the others must still come
    out.
    """
    boxes, scores = random_case([1, 300, 5])
    boxes[:, :, 0] = [0, 0, 50, 50]
    scores[:, :, 0] += 100
    check_class(boxes, scores, -10.0, 0.5, 100)


def test_class_nms_keeps_classes_apart_without_rounding():
    """A shift of the coordinates by class would move tiny boxes by more than their difference."""
    tiny = np.array([0.0, 0.0, 0.01, 0.01], np.float32)
    boxes = np.tile(tiny, [1, 3, 80, 1])
    boxes[:, 1, :, [1, 3]] += 0.004  # IoU 0.43 with the first
    boxes[:, 2] = [0, 0, 1300, 1300]
    scores = np.zeros([1, 3, 80], np.float32)
    scores[..., 79] = [[0.9, 0.8, 0.7]]
    assert check_class(boxes, scores, 0.05, 0.5, 10)[0] == 3


def test_class_nms_without_a_candidate():
    boxes, scores = random_case([2, 6, 3])
    assert (check_class(boxes, scores, 50.0, 0.5, 4) == 0).all()


def test_class_nms_ignores_what_is_not_finite():
    boxes, scores = random_case([1, 4, 2])
    scores[:] = 0.5
    boxes[0, 0, 0, 2], boxes[0, 1, 1, 0], scores[0, 2, 0] = np.nan, -np.inf, np.nan
    num = nms.class_nms(tf.constant(boxes), tf.constant(scores), 0.05, 1.0, 10)[3]
    assert num.numpy() == 5
