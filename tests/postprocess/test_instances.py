"""Boxes and masks at the original size."""

import numpy as np
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.postprocess import instances
from tests.reference import paste as reference


def make_detections(rng, image_hw, num=5, width=7):
    corner = rng.uniform(-0.2, 0.8, (width, 2)) * image_hw
    boxes = np.concatenate([corner, corner + rng.uniform(0.02, 0.8, (width, 2)) * image_hw], 1)
    return structures.Detections(
        boxes=np.float32(boxes.clip(0, np.tile(image_hw, 2))),
        scores=np.float32(np.sort(rng.uniform(0.1, 1, width))[::-1]),
        class_ids=rng.integers(0, 3, width).astype(np.int32),
        num_detections=np.int32(num),
        mask_logits=np.float32(rng.normal(0.3, 1.5, (width, 28, 28))),
    )


def expected_masks(detections, image_hw, original_hw):
    boxes = reference.scale_boxes(detections.boxes, image_hw, original_hw)[
        : detections.num_detections
    ]
    keep = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    probs = 1 / (1 + np.exp(-detections.mask_logits.astype(np.float64)))
    return keep, boxes[keep], [reference.paste(probs[i], boxes[i], original_hw) for i in keep]


def paste_placed(detections, image_hw, original_hw):
    """The instances of `place_instances` and their masks [D, h, w]."""
    placed = instances.place_instances(detections, image_hw, original_hw)
    windows = instances.box_windows(placed.boxes)
    probs = instances.mask_probabilities(placed.mask_logits)
    masks = np.zeros([len(windows), *original_hw], np.uint8)
    for mask, prob, box, window in zip(masks, probs, placed.boxes, windows):
        y0, x0, y1, x1 = window.numpy()
        mask[y0:y1, x0:x1] = instances.paste_window(prob, tf.cast(box, tf.float64), window)
    return placed, masks


def placed_instances(detections, image_hw, original_hw):
    placed = instances.place_instances(detections, image_hw, original_hw)
    found = instances.original_instances(placed)
    return found, instances.full_masks(found, original_hw)


def check_both(detections, image_hw, original_hw):
    keep, boxes, masks = expected_masks(detections, image_hw, original_hw)
    lazy, lazy_masks = placed_instances(detections, image_hw, original_hw)
    np.testing.assert_array_equal(lazy.boxes, boxes)
    np.testing.assert_array_equal(lazy.scores, detections.scores[keep])
    np.testing.assert_array_equal(lazy.class_ids, detections.class_ids[keep])
    lazy_masks = list(lazy_masks)
    assert len(lazy_masks) == len(keep)
    placed, dense = paste_placed(
        tf.nest.map_structure(tf.constant, detections),
        tf.constant(image_hw),
        tf.constant(original_hw),
    )
    assert int(placed.num_detections) == len(keep)
    np.testing.assert_array_equal(placed.boxes[: len(keep)], boxes)
    np.testing.assert_array_equal(placed.class_ids[len(keep) :], -1)
    assert not np.any(dense[len(keep) :])
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(lazy_masks[i], mask)
        np.testing.assert_array_equal(dense[i], mask)


def test_equal_to_reference_at_several_sizes():
    rng = np.random.default_rng(1)
    for image_hw, original_hw in [
        ((40, 60), (40, 60)),
        ((40, 60), (21, 33)),
        ((33, 20), (90, 57)),
        ((32, 32), (1, 1)),
    ]:
        check_both(make_detections(rng, image_hw), image_hw, original_hw)


def test_boxes_that_are_empty_are_dropped_from_the_middle():
    detections = make_detections(np.random.default_rng(2), (40, 60))
    detections.boxes[1] = [5, 5, 5, 9]
    detections.boxes[2] = [40, 10, 40, 20]
    keep, _, _ = expected_masks(detections, (40, 60), (80, 120))
    assert len(keep) == 3
    check_both(detections, (40, 60), (80, 120))


def test_no_detections():
    check_both(make_detections(np.random.default_rng(2), (40, 60), num=0), (40, 60), (30, 20))


def test_masks_of_detectron2(test_data):
    data = np.load(test_data("golden/detectron2") / "b_000000142238.npz")
    hw = np.load(test_data("golden/detectron2") / str(data["input_file"]))
    image_hw, original_hw = hw["resized_bgr"].shape[:2], tuple(hw["orig_hw"])
    num = len(data["det_scores"])
    detections = structures.Detections(
        data["det_boxes_resized"][:, [1, 0, 3, 2]],
        data["det_scores"],
        data["det_classes"],
        np.int32(num),
        data["mask_logits"],
    )
    ours, masks = placed_instances(detections, image_hw, original_hw)
    np.testing.assert_allclose(ours.boxes, data["det_boxes_orig"][:, [1, 0, 3, 2]], atol=1e-4)
    theirs = np.unpackbits(data["det_masks_packbits"], axis=-1)[
        :, : original_hw[0] * original_hw[1]
    ]
    # The file's mask logits are float16, a step of up to 0.004 around the cut.
    wrong = [np.count_nonzero(a.ravel() != b) for a, b in zip(masks, theirs)]
    assert len(wrong) == num
    assert sum(wrong) <= 2e-4 * theirs.sum()
