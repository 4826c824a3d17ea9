"""Every stage of the forward pass against MMDetection's, with the same weights and photo.

The tolerances are twice the difference that MMDetection shows between float32 and float64.
"""

import json
import runpy

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.postprocess import fusion, instances, semantic_labels
from pfpn_tf.weights import convert, detectron2, safe_pickle
from tests.integration.stages import PHOTO, Stages, assert_close, chw, forward, network_input, yxyx
from tests.test_configs import ROOT, parse_flagfile

FEATURES = 5.1e-5
OBJECTNESS = 7.2e-5
DELTAS = 1.8e-5
PROPOSAL_BOXES_PX = 9.6e-3
PROPOSAL_SCORES = 7.3e-6
BOX_POOLED = 9.5e-4
CLASS_LOGITS = 3.7e-3
BOX_DELTAS = 6.1e-4
SCORES = 1.3e-4
BOXES_PX = 1e-2
ORIGINAL_BOXES_PX = 1.4e-2
MASK_POOLED = 2.8e-3
MASK_LOGITS = 1e-2
SEMANTIC = 9.4e-5
MASK_PIXELS = 48
ARGMAX_PIXELS = 4
PANOPTIC_PIXELS = 78


def network(test_data, flagfile, names, stem_divisor=1.0):
    """The settings of a flagfile, and its network with the reference's seeded weights."""
    folder = test_data("golden/mmdetection")
    script = runpy.run_path(str(folder / "make_seeded_checkpoint.py"))
    tensors = script["build"](json.loads((folder / f"{names}.json").read_text()), stem_divisor)
    _, config = parse_flagfile(ROOT / f"configs/mmdetection/{flagfile}.flags")
    model = panoptic_fpn.build_model(config.model, 80, 54)
    checkpoint = safe_pickle.Checkpoint(tensors, config_text="")
    detectron2.load(model, convert.to_detectron2_names(checkpoint, config.model)[0])
    return config, model


@pytest.fixture(scope="module")
def panoptic(test_data):
    """Stages of Panoptic FPN at 320x480, sizes, settings."""
    config, model = network(test_data, "panoptic_fpn_r50", "names")
    config = config.replace(eval_min_side=320, eval_max_side=533)
    golden = np.load(test_data("golden/mmdetection/c_000000142238.npz"))
    images, hw, original_hw = network_input(test_data(PHOTO).read_bytes(), config)
    return Stages(forward(model), golden, images, hw), hw, original_hw, config


@pytest.fixture(scope="module")
def stages(panoptic):
    return panoptic[0]


def test_features(stages):
    stages.close("input_normalized", chw(stages.images), 0.0)
    for level in config_lib.LEVELS:
        stages.close(level, chw(stages["pyramid"][level]), FEATURES)
        stages.check_rpn(level, OBJECTNESS, DELTAS)
    semantic = chw(stages["semantic"])
    stages.close("sem_logits_stride4", np.concatenate([semantic[1:], semantic[:1]]), SEMANTIC)


def test_proposals(stages):
    nearest = stages.proposal_order(PROPOSAL_BOXES_PX)
    scores = tf.sigmoid(stages["proposals"].logits[0])
    assert_close("scores", scores, stages.golden["proposal_scores"][nearest], PROPOSAL_SCORES)


def test_heads(stages):
    golden = stages.golden
    pooled = stages["pooled"].numpy()[0].transpose(0, 3, 1, 2)
    stages.close("box_pooled_1000x256x7x7", pooled, BOX_POOLED)
    logits = stages["class_logits"][0, :200]
    assert_close("class logits", logits, golden["box_cls_logits_200"], CLASS_LOGITS)
    deltas = stages["box_deltas"][0, :200].numpy()[..., [1, 0, 3, 2]].reshape(200, -1)
    assert_close("box deltas", deltas, golden["box_deltas_200"], BOX_DELTAS)
    pooled = stages["mask_pooled"].numpy()[0].transpose(0, 3, 1, 2)
    stages.close("mask_pooled_Nx256x14x14", pooled, MASK_POOLED)


@pytest.mark.parametrize("which", ["given proposals", "own proposals"])
def test_detections(stages, which):
    golden, whole = stages.golden, stages["whole"].detections
    found = stages["found"] if which == "given proposals" else whole
    masks = stages["mask_logits"] if which == "given proposals" else whole.mask_logits
    num = len(golden["det_scores"])
    assert found.num_detections[0] == num
    np.testing.assert_array_equal(found.class_ids[0, :num], golden["det_classes"])
    assert_close("scores", found.scores[0, :num], golden["det_scores"], SCORES)
    assert_close("boxes", found.boxes[0, :num], yxyx(golden["det_boxes_resized"]), BOXES_PX)
    assert_close("mask logits", masks[0, :num], golden["mask_logits"], MASK_LOGITS)


def test_photo_to_panoptic_map(panoptic):
    stages, hw, original_hw, config = panoptic
    golden = stages.golden
    outputs = tf.nest.map_structure(lambda x: x[0], stages["whole"])
    labels = semantic_labels.semantic_labels(outputs.semantic_logits, hw, original_hw).numpy()
    wrong = np.count_nonzero((labels.astype(int) - 1) % 54 != golden["sem_argmax_orig"])
    print("semantic argmax: different pixels", wrong)
    assert wrong <= ARGMAX_PIXELS

    info = categories.DatasetInfo.load(str(ROOT / config.data.dataset_info))
    settings = fusion.fusion_settings(info, config.model)
    result = fusion.fuse_image(outputs, hw, original_hw, settings)
    segments = json.loads(str(golden["segments_info_json"]))
    ids = result.panoptic_ids.numpy()
    their_ids = np.zeros_like(ids)
    category_of = dict(zip(result.segment_ids.numpy(), result.category_ids.numpy()))
    assert category_of.pop(0, 0) == 0 and len(category_of) == len(segments)
    for segment in segments:
        (number,) = [
            i
            for i, category in category_of.items()
            if category == segment["category_id"]
            and (i == segment["id"] // 1000 or not segment["isthing"])
        ]
        their_ids[golden["mmdet_panoptic"] == segment["id"]] = number
    wrong = np.count_nonzero(ids != their_ids)
    print("panoptic map: different pixels", wrong)
    assert wrong <= PANOPTIC_PIXELS


@pytest.mark.parametrize(
    "name, stem_divisor, scores", [("", 1.0, SCORES), ("_caffe", 57.375, 6e-4)]
)
def test_mask_rcnn_in_both_styles(test_data, name, stem_divisor, scores):
    """At 800x1199, padded. Detections whose scores are this close may come in another order."""
    name = f"mask_rcnn_r50{name}"
    config, model = network(test_data, name, f"names_{name}", stem_divisor)
    images, hw, original_hw = network_input(test_data(PHOTO).read_bytes(), config)
    golden = np.load(test_data(f"golden/mmdetection/{name}_000000142238.npz"))
    found = tf.function(model, autograph=False)(images, hw[tf.newaxis]).detections
    found = tf.nest.map_structure(lambda x: x[0], found)
    found = instances.place_instances(found, hw, original_hw)
    found = instances.original_instances(found)
    boxes = yxyx(golden["det_boxes_orig"])
    assert len(found.boxes) == len(boxes)
    assert_close("scores by rank", found.scores, golden["det_scores"], scores)
    same_class = found.class_ids[:, None] == golden["det_classes"]
    distance = np.abs(found.boxes[:, None] - boxes).max(-1) + np.where(same_class, 0.0, np.inf)
    nearest = distance.argmin(1)
    assert len(set(nearest)) == len(boxes)
    assert_close("boxes", distance.min(1), 0.0, ORIGINAL_BOXES_PX)
    assert_close("scores", found.scores, golden["det_scores"][nearest], scores)
    masks = json.loads(
        test_data(f"golden/mmdetection/{name}_000000142238_masks_rle.json").read_text()
    )
    wrong = [
        np.count_nonzero(ours != coco_mask.decode(masks[i]))
        for ours, i in zip(instances.full_masks(found, original_hw), nearest)
    ]
    print("mask pixels:", max(wrong))
    assert max(wrong) <= MASK_PIXELS
