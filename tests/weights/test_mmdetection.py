"""Names and layouts of MMDetection, both ways."""

import json

import numpy as np
import pytest

from pfpn_tf import config as config_lib
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints
from pfpn_tf.weights import convert, detectron2, mmdetection, safe_pickle
from tests.weights.test_detectron2 import INFO, assert_tensors, random_tensors, tiny_model
from tests.weights.test_finetune import settings


@pytest.mark.parametrize(
    "names, task", [("names", "panoptic"), ("names_mask_rcnn_r50", "instance")]
)
def test_names_and_shapes_are_mmdetections(test_data, names, task):
    expected = json.loads(test_data(f"golden/mmdetection/{names}.json").read_text())
    config = config_lib.Config().replace(task=task)
    model = panoptic_fpn.build_model(config.model, 80, 54)
    written = mmdetection.from_detectron2_names(detectron2.to_detectron2(model), "pytorch")
    assert {name: [list(v.shape), v.dtype.name] for name, v in written.items()} == {
        name: [shape, dtype] for name, shape, dtype in expected
    }


def test_names_of_resnet101_come_back(test_data):
    names = json.loads(test_data("golden/mmdetection/names_panoptic_fpn_r101.json").read_text())
    theirs = {name: np.zeros([0] * len(shape)) for name, shape, _ in names}
    ours = mmdetection.to_detectron2_names(theirs, "caffe")
    assert "backbone.bottom_up.res4.22.conv3.norm.running_var" in ours
    assert not ours.keys() & theirs.keys()
    assert mmdetection.from_detectron2_names(ours, "caffe").keys() == theirs.keys()


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_round_trip_through_a_file_is_exact(style, tmp_path):
    stride_in_1x1 = style == "caffe"
    config = settings(stride_in_1x1=stride_in_1x1)
    model = tiny_model(stride_in_1x1=stride_in_1x1)
    tensors = random_tensors(model)
    theirs = mmdetection.from_detectron2_names(tensors, style)
    given, run_dir, back = (str(tmp_path / name) for name in ("given.pth", "run", "back.pth"))
    mmdetection.write(given, theirs, style)
    checkpoint = safe_pickle.read(given)
    assert_tensors(checkpoint.tensors, theirs)
    assert mmdetection.style_of(checkpoint) == style
    detectron2.load(model, *convert.read(given, config.model))
    assert_tensors(detectron2.to_detectron2(model), tensors)
    checkpoints.save_weights(model, config, INFO, run_dir)
    convert.from_run_dir(run_dir, back, "mmdetection")
    assert_tensors(safe_pickle.read(back).tensors, theirs)


def test_layouts():
    model = tiny_model()
    ours = random_tensors(model)
    stem = ours["backbone.bottom_up.stem.conv1.weight"]
    pytorch = mmdetection.from_detectron2_names(ours, "pytorch")
    caffe = mmdetection.from_detectron2_names(ours, "caffe")
    assert pytorch["backbone.conv1.weight"][5, 2, 1, 2] == stem[5, 0, 1, 2]  # red first
    assert caffe["backbone.conv1.weight"][5, 2, 1, 2] == stem[5, 2, 1, 2]  # red last
    bias = ours["sem_seg_head.predictor.bias"]  # "things" first there, last here
    assert pytorch["semantic_head.conv_logits.bias"].tolist() == [*bias[1:], bias[0]]


@pytest.mark.parametrize(
    "text, style",
    [
        ("backbone=dict(type='ResNet', depth=50, style='pytorch')", "pytorch"),
        ('style="caffe"\nimg_norm_cfg = dict(std=[1.0, 1.0, 1.0], to_rgb=False)', "caffe"),
        ("data_preprocessor=dict(bgr_to_rgb=True, std=[58.395, 57.12, 57.375])", "pytorch"),
        ("model = dict(type='PanopticFPN')", None),
    ],
)
def test_style_is_read_from_the_configuration(text, style):
    assert mmdetection.style_of(safe_pickle.Checkpoint({}, text)) == style


def test_styles_that_do_not_fit_are_refused():
    tensors = mmdetection.from_detectron2_names(random_tensors(tiny_model()), "caffe")
    for text in ("style='pytorch'", ""):  # all published Panoptic FPNs are of that style
        checkpoint = safe_pickle.Checkpoint(tensors, text)
        with pytest.raises(ValueError, match="style 'pytorch': they need --nostride_in_1x1"):
            convert.to_detectron2_names(checkpoint, config_lib.Config().model)
    with pytest.raises(ValueError, match="mixes the styles"):
        mmdetection.style_of(safe_pickle.Checkpoint({}, "style='pytorch', to_rgb=False"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])  # The last one in float32.
def test_weights_that_are_not_finite_are_refused(value):
    tensors = {name: np.ones(3) for name in ("backbone.fpn_output2.bias", "pixel_mean", "fc.bias")}
    tensors["backbone.fpn_output2.bias"][1] = value
    with pytest.raises(ValueError, match="1 of 1 tensors are not finite .* backbone.fpn_output2"):
        convert.to_detectron2_names(safe_pickle.Checkpoint(tensors, ""), config_lib.Config().model)


@pytest.mark.parametrize(
    "depth, panoptic, style, stride_in_1x1",
    [
        (50, True, "unknown", None),
        (101, True, "pytorch", None),
        (101, False, "caffe", None),
        (50, False, "unknown", True),
        (50, False, "unknown", False),
    ],
)
def test_settings_follow_from_the_tensors(tmp_path, depth, panoptic, style, stride_in_1x1):
    path = write_names(tmp_path, {50: 6, 101: 23}[depth], panoptic, style)
    config, _ = convert.known_config(path, stride_in_1x1)
    assert config.model.backbone == f"resnet{depth}"
    assert config.model.task == ("panoptic" if panoptic else "instance")
    assert config.model.class_agnostic_nms == panoptic and config.data.resize == "opencv"
    caffe = style == "caffe" or bool(stride_in_1x1)
    assert config.model.stride_in_1x1 == caffe == (config.data.pixel_std == (1.0, 1.0, 1.0))


def test_settings_that_do_not_follow_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="add --nostride_in_1x1 for 'pytorch' or"):
        convert.known_config(write_names(tmp_path, 6, False, "unknown"))
    assert convert.known_config(write_names(tmp_path, 6, True, "pytorch", classes=12))[0] is None
    assert convert.known_config(write_names(tmp_path, 3, True, "pytorch"))[0] is None


def write_names(folder, blocks, panoptic, style, classes=81):
    """A file with those of MMDetection's tensors that tell networks apart."""
    names = [f"backbone.layer3.{i}.conv1.weight" for i in range(blocks)]
    tensors = dict.fromkeys(["backbone.conv1.weight", *names], np.zeros(1, np.float32))
    tensors["roi_head.bbox_head.fc_cls.bias"] = np.zeros(classes, np.float32)
    if panoptic:
        tensors["semantic_head.conv_logits.bias"] = np.zeros(54, np.float32)
    path = str(folder / "names.pth")
    mmdetection.write(path, tensors, style)
    return path
