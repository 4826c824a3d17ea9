"""Boxes and masks at the original size."""

import numpy as np

from pfpn_tf.postprocess import instances
from tests.postprocess.test_fusion import golden, make_case
from tests.reference import paste as reference


def expected_masks(detections, image_hw, original_hw):
    boxes = reference.scale_boxes(detections.boxes, image_hw, original_hw)[
        : detections.num_detections
    ]
    keep = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    probs = 1 / (1 + np.exp(-detections.mask_logits.astype(np.float64)))
    return keep, boxes[keep], [reference.paste(probs[i], boxes[i], original_hw) for i in keep]


def placed_instances(detections, image_hw, original_hw):
    placed = instances.place_instances(detections, image_hw, original_hw)
    found = instances.original_instances(placed)
    assert (placed.class_ids[len(found.boxes) :].numpy() == -1).all()
    return found, list(instances.full_masks(found, original_hw))


def check(detections, image_hw, original_hw):
    """tests/postprocess/test_fusion.py does the same for the masks in a graph."""
    keep, boxes, masks = expected_masks(detections, image_hw, original_hw)
    found, found_masks = placed_instances(detections, image_hw, original_hw)
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.scores, detections.scores[keep])
    np.testing.assert_array_equal(found.class_ids, detections.class_ids[keep])
    assert len(found_masks) == len(masks)
    for ours, expected in zip(found_masks, masks):
        np.testing.assert_array_equal(ours, expected)


def test_equal_to_reference_at_several_sizes():
    rng = np.random.default_rng(1)
    for image_hw, original_hw in [
        ((40, 60), (40, 60)),
        ((40, 60), (21, 33)),
        ((33, 20), (90, 57)),
        ((32, 32), (1, 1)),
    ]:
        check(make_case(rng, image_hw).detections, image_hw, original_hw)


def test_boxes_that_are_empty_are_dropped_from_the_middle():
    detections = make_case(np.random.default_rng(2), (40, 60)).detections
    detections.boxes[1] = [5, 5, 5, 9]
    detections.boxes[2] = [40, 10, 40, 20]
    keep, _, _ = expected_masks(detections, (40, 60), (80, 120))
    assert len(keep) == 4
    check(detections, (40, 60), (80, 120))


def test_no_detections():
    check(make_case(np.random.default_rng(2), (40, 60), num=0).detections, (40, 60), (30, 20))


def test_masks_of_detectron2(test_data):
    data, photo, detections = golden(test_data, "b")
    image_hw, original_hw = photo["resized_bgr"].shape[:2], tuple(photo["orig_hw"])
    ours, our_masks = placed_instances(detections, image_hw, original_hw)
    np.testing.assert_allclose(ours.boxes, data["det_boxes_orig"][:, [1, 0, 3, 2]], atol=1e-4)
    theirs = np.unpackbits(data["det_masks_packbits"], axis=-1)[
        :, : original_hw[0] * original_hw[1]
    ]
    # The file's mask logits are float16, a step of up to 0.004 around the cut.
    wrong = [np.count_nonzero(a.ravel() != b) for a, b in zip(our_masks, theirs)]
    assert len(wrong) == len(data["det_scores"])
    assert sum(wrong) <= 2e-4 * theirs.sum()
