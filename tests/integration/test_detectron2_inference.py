"""Every stage of the forward pass against what Detectron2 computes with the same weights and
pixels.

The tolerances are twice the difference that Detectron2 shows between float32 and float64. Where the
reference gives no such figure, the test derives one from a figure that it gives and says how.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.postprocess import fusion, semantic_labels
from tests.integration.stages import PHOTO, Stages, assert_close, chw, forward, network_input, yxyx

# With and without oneDNN's kernels; see tools/test.sh.
pytestmark = pytest.mark.both_stacks

FEATURES = 2 * 2.5e-5
OBJECTNESS = 2 * 2.9e-5
DELTAS = 2 * 1e-5
SEMANTIC = 2 * 5e-5
SCORES = 2 * 9e-5
BOXES_PX = 2 * 0.013
MASK_LOGITS = 2 * 6.4e-3
ARGMAX_PIXELS = 2 * 3
PANOPTIC_PIXELS = 2 * 30
SIDES = {"c": (320, 533), "b": (800, 1333)}


@pytest.fixture(scope="module")
def run(golden_model):
    return forward(golden_model)


@pytest.fixture(scope="module", params=list(SIDES))
def stages(request, run, golden_config, test_data):
    """From the bytes of the JPEG; decoding and resizing are ours, too."""
    shorter, longer = SIDES[request.param]
    config = golden_config.replace(eval_min_side=shorter, eval_max_side=longer)
    golden = np.load(test_data(f"golden/detectron2/{request.param}_000000142238.npz"))
    return Stages(run, golden, *network_input(test_data(PHOTO).read_bytes(), config)[:2])


def test_input(stages):
    """Normalised first, then padded with zeros: exact, padding included."""
    stages.close("input_normalized", np.moveaxis(stages.images[0, ..., ::-1], -1, 0), 0.0)


@pytest.mark.parametrize("level", config_lib.LEVELS)
def test_pyramid(stages, level):
    stages.close(level, chw(stages["pyramid"][level]), FEATURES)


@pytest.mark.parametrize("level", config_lib.LEVELS)
def test_rpn(stages, level):
    stages.check_rpn(level, OBJECTNESS, DELTAS)


def test_proposals_are_the_same_set(stages):
    nearest = stages.proposal_order(BOXES_PX)
    logits = stages.golden["proposal_logits"][nearest]
    assert_close("proposal logits", stages["proposals"].logits[0].numpy(), logits, OBJECTNESS)
    out_of_order = int((nearest != np.arange(len(nearest))).sum())
    print("proposals out of order:", out_of_order)
    assert out_of_order <= 16  # twice what the reference shows


def test_pooled_features(stages):
    """RoIAlign averages features, so it cannot be further off than these, beside its own
    rounding.
    """
    pooled = stages["pooled"].numpy()[0].transpose(0, 3, 1, 2)
    stages.close("box_pooled_1000x256x7x7", pooled, FEATURES)
    pooled = stages["mask_pooled"].numpy()[0].transpose(0, 3, 1, 2)
    stages.close("mask_pooled_Nx256x14x14", pooled, FEATURES)


def test_box_head(stages):
    """Deviations of class logits reach the scores at most halved, so the scores' tolerance holds
    doubled.
    """
    logits = stages["class_logits"][0, :200].numpy()
    assert_close("class logits", logits, stages.golden["box_cls_logits_200"], 2 * SCORES)
    deltas = stages["box_deltas"][0, :200].numpy()[..., [1, 0, 3, 2]].reshape(200, -1)
    # A delta of 1 moves a box of the image's size by a tenth of that size.
    tolerance = 10 * BOXES_PX / max(stages.hw)
    assert_close("class deltas", deltas, stages.golden["box_deltas_200"], tolerance)


@pytest.mark.parametrize("which", ["given proposals", "own proposals"])
def test_detections(stages, which):
    found = stages["found"] if which == "given proposals" else stages["whole"].detections
    assert found.num_detections[0] == len(stages.golden["det_scores"])
    np.testing.assert_array_equal(found.class_ids[0], stages.golden["det_classes"])
    assert_close(f"scores, {which}", found.scores[0], stages.golden["det_scores"], SCORES)
    expected = yxyx(stages.golden["det_boxes_resized"])
    assert_close(f"boxes, {which}", found.boxes[0], expected, BOXES_PX)


@pytest.mark.parametrize("which", ["given boxes", "own boxes"])
def test_mask_logits(stages, which):
    logits = (
        stages["mask_logits"] if which == "given boxes" else stages["whole"].detections.mask_logits
    )
    expected = stages.golden["mask_logits"]  # float16
    half_a_step = np.spacing(np.abs(expected)).astype(np.float32) / 2
    difference = np.abs(logits[0].numpy() - expected.astype(np.float32)) - half_a_step
    assert_close(f"mask logits, {which}", np.maximum(difference, 0), 0.0, MASK_LOGITS)


def test_semantic_logits(stages):
    for which in (stages["semantic"], stages["whole"].semantic_logits):
        stages.close("sem_logits_stride4", chw(which), SEMANTIC)


def test_panoptic_map(stages, golden_config):
    """From the JPEG to the map at the photo's size, all of it our own."""
    hw = tf.constant(stages.hw), tf.constant(stages.golden["sem_argmax_orig"].shape)
    outputs = tf.nest.map_structure(lambda x: x[0], stages["whole"])
    labels = semantic_labels.semantic_labels(outputs.semantic_logits, *hw).numpy()
    wrong = np.count_nonzero(labels != stages.golden["sem_argmax_orig"])
    print("semantic argmax: different pixels", wrong)
    assert wrong <= ARGMAX_PIXELS

    result = _fuse(outputs, *hw, golden_config.model)
    segments = json.loads(str(stages.golden["segments_info_json"]))
    num = int(result.num_segments)
    assert result.segment_ids[:num].numpy().tolist() == [s["id"] for s in segments]
    assert result.category_ids[:num].numpy().tolist() == [s["category_id"] for s in segments]
    assert result.is_thing[:num].numpy().tolist() == [s["isthing"] for s in segments]
    wrong = np.count_nonzero(result.panoptic_ids.numpy() != stages.golden["panoptic_seg"])
    print("panoptic map: different pixels", wrong)
    assert wrong <= PANOPTIC_PIXELS


def _fuse(outputs, image_hw, original_hw, config):
    """The panoptic map of one image under COCO's 80 things and 53 stuff classes."""
    settings = fusion.FusionSettings(
        np.arange(80, dtype=np.int32),
        np.r_[-1, 1:54].astype(np.int32),
        config.fusion_score_threshold,
        config.fusion_overlap_threshold,
        config.fusion_stuff_area_threshold_px,
    )
    return fusion.fuse_image(outputs, image_hw, original_hw, settings)
