"""Settings from a Detectron2 config."""

import numpy as np
import pytest

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.runs import restore
from pfpn_tf.weights import convert, detectron2, detectron2_config
from tests.weights.test_finetune import HERE, model_of, settings

# What Detectron2's Base-RCNN-FPN.yaml has, as far as this network is concerned; texts and lists
# stand for tuples there, too.
BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: "('p2', 'p3', 'p4', 'p5', 'p6')", PRE_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NUM_CONV: 4}
DATASETS:
  TRAIN: ("coco_2017_train",)
VERSION: 2
"""
PANOPTIC = (
    '_BASE_: "../Base-RCNN-FPN.yaml"\nMODEL: {META_ARCHITECTURE: PanopticFPN, MASK_ON: True}\n'
)


def read(tmp_path, text):
    """What is found in `text`, a model's config below the bases of the zoo, and the `Config`."""
    (tmp_path / "coco").mkdir(exist_ok=True)
    (tmp_path / "Base-RCNN-FPN.yaml").write_text(BASE)
    (tmp_path / "coco" / "Base-Panoptic-FPN.yaml").write_text(PANOPTIC)
    (tmp_path / "coco" / "model.yaml").write_text(text)
    found = detectron2_config.read(str(tmp_path / "coco" / "model.yaml"))
    return found, config_lib.Config().replace(**found.settings)


def test_the_zoos_config_gives_our_recipe_of_it(tmp_path):
    found, config = read(tmp_path, "_BASE_: Base-Panoptic-FPN.yaml\n")
    assert config == config_lib.Config().replace(roi_sampling_ratio=0)
    assert (found.num_things, found.num_semantic_classes) == (80, 54)
    assert found.of_coco and not found.rgb


def test_a_dumped_config_needs_no_base(test_data):
    found = detectron2_config.read(str(test_data("golden/detectron2/cfg_c.yaml")))
    config = config_lib.Config().replace(**found.settings)
    assert config == config_lib.Config().replace(eval_min_side=320, eval_max_side=533)


def test_what_differs_is_read(tmp_path):
    text = """
_BASE_: ../Base-RCNN-FPN.yaml
MODEL:
  MASK_ON: True
  PIXEL_STD: [57.375, 57.120, 58.395]
  RESNETS: {STRIDE_IN_1X1: False, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8, DEPTH: 101, NORM: "SyncBN"}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]], ASPECT_RATIOS: [[1.0, 2.0]]}
  RPN: {NMS_THRESH: 0.6, POST_NMS_TOPK_TEST: 500}
  ROI_HEADS: {NUM_CLASSES: 2, SCORE_THRESH_TEST: 0.1, NMS_THRESH_TEST: 0.4}
  ROI_BOX_HEAD: {POOLER_SAMPLING_RATIO: 2}
  ROI_MASK_HEAD: {POOLER_SAMPLING_RATIO: 2}
DATASETS: {TRAIN: (mine,)}
INPUT: {MIN_SIZE_TEST: 640, MAX_SIZE_TEST: 960}
TEST: {DETECTIONS_PER_IMAGE: 50}
"""
    found, config = read(tmp_path, text)
    assert config == config_lib.Config().replace(
        task="instance",
        pixel_std=(58.395, 57.12, 57.375),
        backbone="resnext101_32x8d",
        backbone_norm="sync_bn",
        stride_in_1x1=False,
        anchor_sizes=(16, 32, 64, 128, 256),
        anchor_aspect_ratios=(1, 2),
        rpn_nms_threshold=0.6,
        rpn_post_nms_top_k=500,
        score_threshold=0.1,
        nms_threshold=0.4,
        eval_min_side=640,
        eval_max_side=960,
        max_detections=50,
    )
    assert (found.num_things, found.num_semantic_classes, found.of_coco) == (2, None, False)
    detectron2_config.check_classes(found, HERE)


def test_a_semantic_network_needs_no_instance_branch(tmp_path):
    text = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  SEM_SEG_HEAD: {NUM_CLASSES: 3, CONVS_DIM: 64}
"""
    found, config = read(tmp_path, text)
    assert config.model.task == "semantic" and config.model.semantic_channels == 64
    assert (found.num_things, found.num_semantic_classes) == (None, 3)


@pytest.mark.parametrize(
    "change, named",
    [
        ("RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True]}", "DEFORM_ON_PER_STAGE is"),
        ("RESNETS: {DEPTH: 18}", r"WIDTH_PER_GROUP\) is \(18, 1, 64\), here one of \(50"),
        ("RESNETS: {NORM: LN}", "RESNETS.NORM is 'LN', here one of 'FrozenBN'"),
        ("FPN: {NORM: GN}", "ROI_MASK_HEAD.NORM is '', here as before 'GN'"),
        ("ROI_HEADS: {NAME: CascadeROIHeads}", "'CascadeROIHeads', here 'StandardROIHeads'"),
        ("ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}", "CLS_AGNOSTIC_BBOX_REG is True"),
        ("ROI_MASK_HEAD: {NAME: PointRendMaskHead}", "'PointRendMaskHead'"),
        ("KEYPOINT_ON: True", "KEYPOINT_ON is True, here False"),
        ("ANCHOR_GENERATOR: {OFFSET: 0.5}", "ANCHOR_GENERATOR.OFFSET is 0.5"),
        ("ANCHOR_GENERATOR: {SIZES: [[32, 64]]}", "here one for each of 5 levels"),
        ("ANCHOR_GENERATOR: {ASPECT_RATIOS: [[1], [2], [1], [1], [1]]}", "the same for all"),
        ("META_ARCHITECTURE: RetinaNet", "META_ARCHITECTURE is RetinaNet; .* can be PanopticFPN"),
    ],
)
def test_what_this_network_cannot_be_is_refused_by_name(tmp_path, change, named):
    with pytest.raises(ValueError, match=named):
        read(tmp_path, f"_BASE_: Base-Panoptic-FPN.yaml\nMODEL:\n  {change}\n")


def test_the_faults_of_a_file(tmp_path):
    for text, message in (
        ("_BASE_: nowhere.yaml", r"coco/nowhere.yaml: no such file. It is the _BASE_ of .*model"),
        ("_BASE_: model.yaml", "leads back"),
        ("- 1", "no Detectron2 config"),
        ("MODEL: !!python/object/apply:os.getcwd []", "no YAML of plain values"),
        ("MODEL: [", "no YAML"),
        ("_BASE_: Base-Panoptic-FPN.yaml\nMODEL: {PIXEL_MEAN: dark}", r"model.yaml: --pixel_mean"),
        ("_BASE_: Base-Panoptic-FPN.yaml\nINPUT: {MIN_SIZE_TEST: 0}", "--eval_min_side=0"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, text)
    with pytest.raises(ValueError, match="--detectron2_config: .*no.yaml: no such file"):
        detectron2_config.read(str(tmp_path / "no.yaml"))


def test_other_numbers_of_classes_are_named(tmp_path):
    found, _ = read(tmp_path, "_BASE_: Base-Panoptic-FPN.yaml\n")
    with pytest.raises(ValueError, match="ROI_HEADS.NUM_CLASSES is 80, but --dataset_info has 2"):
        detectron2_config.check_classes(found, HERE)


def test_a_network_of_rgb_keeps_its_stem(tmp_path, caplog):
    config = settings(dataset_info=str(tmp_path / categories.FILE_NAME))
    HERE.save(config.data.dataset_info)
    model = model_of(HERE, config)
    kernel = model.backbone.stem.kernel.numpy()
    path, run_dir = str(tmp_path / "rgb.pkl"), str(tmp_path / "run")
    detectron2.write(path, detectron2.to_detectron2(model))
    source = detectron2_config.Detectron2Config("config.yaml", {}, True, 2, 3, False)
    convert.to_run_dir(path, config, run_dir, source)
    assert "does not tell" not in caplog.text
    read_back = model_of(HERE, config)
    restore.restore_for_inference(read_back, run_dir)
    np.testing.assert_array_equal(read_back.backbone.stem.kernel, kernel[:, :, ::-1])


def test_without_a_config_the_log_names_what_a_file_does_not_tell():
    (line,) = convert.untold("a.pkl", config_lib.Config(), backbone_only=False)
    for flag in ("--pixel_std=1.0,1.0,1.0", "--stride_in_1x1=true", "--score_threshold=0.05"):
        assert flag in line
    (line,) = convert.untold("a.pkl", config_lib.Config(), backbone_only=True)
    assert "--pixel_std" in line and "--score_threshold" not in line
    assert not convert.untold("mmdet://any", config_lib.Config(), backbone_only=False)
