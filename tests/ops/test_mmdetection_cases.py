"""What MMDetection's own functions give on cases that few photos reach, by our settings."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.ops import nms, roi_align
from pfpn_tf.postprocess import fusion, instances


@pytest.fixture(scope="module")
def cases(test_data):
    return np.load(test_data("golden/mmdetection/unit_cases.npz"))


def yxyx(values):
    """Boxes or deltas, there with x before y."""
    return tf.constant(values[..., [1, 0, 3, 2]])


def test_level_of_a_roi(cases):
    boxes = yxyx(cases["level_boxes"])
    levels = roi_align.roi_levels(boxes, "mmdetection").numpy() - 2
    np.testing.assert_array_equal(levels, cases["levels"])
    assert (roi_align.roi_levels(boxes).numpy() - 2 != cases["levels"]).sum() == 7  # Detectron2's


@pytest.mark.parametrize("kind, weights", [("rpn", (1, 1, 1, 1)), ("roi", (10, 10, 5, 5))])
def test_deltas_are_clamped_on_both_sides(cases, kind, weights):
    deltas, anchors = yxyx(cases["decode_deltas"]), yxyx(cases["decode_boxes"])
    boxes = box_ops.decode(deltas, anchors, weights, clamp_small=True)
    clipped = box_ops.clip(boxes, tf.constant([800, 1199]))
    for ours, name in ((boxes, f"decoded_{kind}_unclipped"), (clipped, f"decoded_{kind}")):
        np.testing.assert_allclose(ours, yxyx(cases[name]), rtol=3e-6, atol=1e-4)


@pytest.mark.parametrize(
    "settings, expected",
    [({"by_offset": True}, "per_class"), ({"class_agnostic": True, "by_offset": True}, "agnostic")],
)
def test_nms_of_moved_boxes(cases, settings, expected):
    scores, classes = cases["shift_scores"], cases["shift_classes"]
    rois = np.arange(len(scores))
    boxes = np.zeros((1, len(scores), 80, 4), np.float32)
    boxes[0, rois, classes] = yxyx(cases["shift_boxes"])
    all_scores = np.zeros((1, len(scores), 80), np.float32)
    all_scores[0, rois, classes] = scores
    _, kept, _, num = nms.class_nms(
        tf.constant(boxes), tf.constant(all_scores), 0.05, 0.5, 100, **settings
    )
    np.testing.assert_array_equal(kept[0, : num[0]], scores[cases[f"shift_keep_{expected}"]])


def test_levels_are_moved_apart_as_classes_are(cases):
    """The same boxes on the highest of many levels."""
    scores = cases["shift_scores"][:24]
    boxes = np.zeros((1, 80, 24, 4), np.float32)
    boxes[0, 79] = yxyx(cases["shift_boxes"])[:24]
    logits = np.full((1, 80, 24), -np.inf, np.float32)
    logits[0, 79] = scores
    _, kept, valid = nms.rpn_nms(tf.constant(boxes), tf.constant(logits), 0.5, 100, by_offset=True)
    expected = [scores[k] for k in cases["shift_keep_per_class"] if k < 24]
    np.testing.assert_array_equal(kept[valid], expected)


def test_masks_over_the_border(cases):
    for probs, box, expected in zip(
        cases["paste_probabilities"], cases["paste_boxes"], cases["pasted"]
    ):
        box = yxyx(box.astype(np.float64))
        window = instances.box_windows(box_ops.clip(box[tf.newaxis], expected.shape)[0])
        mask = np.zeros_like(expected)
        rows, columns = slice(window[0], window[2]), slice(window[1], window[3])
        mask[rows, columns] = instances.paste_window(tf.constant(probs), box, window)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("case", range(4))
def test_fusion(cases, case):
    masks, scores, classes, labels, limit, expected = (
        cases[f"fusion_{case}_{name}"]
        for name in ("masks", "scores", "classes", "semantic", "stuff_area_limit", "panoptic")
    )
    order = np.argsort(-scores, kind="stable")
    # A mask of as many cells as pixels is pasted as it is; masks have to be square.
    side = labels.shape[1]
    square = ((0, 0), (0, side - labels.shape[0]), (0, 0))
    whole = np.tile(np.float32([0, 0, side, side]), (len(scores), 1))
    detections = structures.Detections(
        whole, scores[order], classes[order], len(scores), np.pad(masks, square)[order] * 99.0 - 50
    )
    labels = np.pad((labels + 1) % 54, square[1:])  # stuff comes first there, "things" here
    stuff = np.r_[-1, 80:133].astype(np.int32)
    result = fusion.fuse_image(
        structures.InferenceOutputs(
            tf.nest.map_structure(tf.constant, detections), tf.zeros([1, 1, len(stuff)])
        ),
        tf.constant([side, side]),
        tf.constant([side, side]),
        fusion.FusionSettings(np.arange(80, dtype=np.int32), stuff, 0.0, 0.5, int(limit)),
        labels=tf.constant(labels),
    )
    theirs = np.full(int(result.num_segments) + 1, 133)
    for segment, category, is_thing in zip(
        result.segment_ids.numpy(), result.category_ids.numpy(), result.is_thing.numpy()
    ):
        if segment:
            theirs[segment] = category + 1000 * segment * is_thing
    ours = theirs[result.panoptic_ids.numpy()][: expected.shape[0]]
    np.testing.assert_array_equal(ours, expected)
