"""Reading and writing checkpoints of other projects."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import panoptic_fpn, resnet
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import convert, detectron2, imagenet, safe_pickle
from tests import processes, tiny
from tests.weights.test_finetune import model_of, settings

INFO = tiny.info_of(things="abc", stuff="defg")


def tiny_model(**changes):
    return model_of(INFO, settings(**changes))


def renamed_tensors(tensors):
    checkpoint = safe_pickle.Checkpoint(tensors, config_text="")
    return convert.to_detectron2_names(checkpoint, settings().model)


def random_tensors(model):
    return {
        p.name: np.random.normal(size=p.detectron2_shape()).astype(np.float32)
        for p in detectron2.parameters(model)
    }


def assert_tensors(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


# --------------------------------------------------------------------------------------------------
# Names and layouts


def test_names_and_shapes_are_detectron2s(test_data):
    model = panoptic_fpn.build_model(config_lib.Config().model, 80, 54)
    lines = test_data("golden/detectron2/param_names.txt").read_text().splitlines()
    expected = {name: shape for name, shape, _ in (line.split("\t") for line in lines)}
    ours = {p.name: str(list(p.detectron2_shape())) for p in detectron2.parameters(model)}
    assert ours == expected
    assert len({p.variable.ref() for p in detectron2.parameters(model)}) == len(model.variables)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": "instance"},
        {"task": "semantic"},
        {"backbone_norm": "sync_bn"},
        {"backbone_norm": "group_norm", "head_norm": "group_norm", "fpn_channels": 32},
    ],
)
def test_round_trip_is_exact(changes, tmp_path):
    model = tiny_model(**changes)
    tensors = random_tensors(model)
    detectron2.load(model, tensors)
    path = str(tmp_path / "weights.pkl")
    detectron2.write(path, detectron2.to_detectron2(model))
    back = safe_pickle.read(path).tensors
    assert_tensors(back, tensors)
    assert {value.dtype for value in back.values()} == {np.dtype(np.float32)}


def test_layouts_one_value_at_a_time():
    model = tiny_model()
    tensors = random_tensors(model)
    detectron2.load(model, tensors)
    conv = tensors["backbone.bottom_up.res3.0.conv2.weight"]
    assert model.backbone.stages[1][0].conv2.kernel[0, 2, 3, 4] == conv[4, 3, 0, 2]
    stem = tensors["backbone.bottom_up.stem.conv1.weight"]
    assert model.backbone.stem.kernel[1, 2, 0, 5] == stem[5, 2, 1, 2]  # red is last in BGR
    fc1 = tensors["roi_heads.box_head.fc1.weight"]  # input (channel, row, column), 8 x 7 x 7
    assert model.box_head.fc1.kernel[(2 * 7 + 5) * 8 + 3, 11] == fc1[11, (3 * 7 + 2) * 7 + 5]
    boxes = tensors["roi_heads.box_predictor.bbox_pred.weight"]  # 4 c + (dx, dy, dw, dh)
    assert [model.box_head.deltas.kernel[6, 4 + i] for i in range(4)] == [
        boxes[4 + i, 6] for i in (1, 0, 3, 2)
    ]
    anchors = tensors["proposal_generator.rpn_head.anchor_deltas.bias"]
    expected = anchors[[1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]]
    np.testing.assert_array_equal(model.rpn_head.deltas.bias, expected)
    deconv = tensors["roi_heads.mask_head.deconv.weight"]  # in, out, row, column
    assert model.mask_head.deconv_kernel[2, 0, 1, 7] == deconv[2, 7, 0, 1]


def test_problems_are_listed_together():
    model = tiny_model()
    tensors = random_tensors(model)
    del tensors["backbone.fpn_lateral3.bias"]
    tensors["roi_heads.box_predictor.cls_score.bias"] = np.zeros(81, np.float32)
    tensors["roi_heads.cascade.weight"] = np.zeros((2, 3), np.float32)
    before = [v.numpy() for v in model.variables]
    with pytest.raises(ValueError) as error:
        detectron2.load(model, tensors)
    text = str(error.value)
    assert "missing: backbone.fpn_lateral3.bias" in text
    assert "surplus: roi_heads.cascade.weight [2, 3]" in text
    assert "roi_heads.box_predictor.cls_score.bias is [81], expected [4]" in text
    for v, value in zip(model.variables, before):
        np.testing.assert_array_equal(v, value)


def test_whole_numbers_are_no_weights():
    model = tiny_model()
    tensors = random_tensors(model)
    tensors["odd"] = np.array(3)
    detectron2.matches(model, tensors)
    tensors["roi_heads.box_head.fc2.bias"] = np.ones(16, np.int8)
    with pytest.raises(ValueError, match=r"1 of \d+ .*, first roi_heads.box_head.fc2.bias \(int8"):
        detectron2.load(model, tensors)


def test_names_match_by_their_end_and_the_longest_wins():
    model = tiny_model()
    tensors = random_tensors(model)
    full = "backbone.bottom_up.res3.0.conv1.weight"
    tensors["res3.0.conv1.weight"] = tensors.pop(full)
    detectron2.load(model, tensors)
    tensors[full] = tensors["res3.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"surplus: res3.0.conv1.weight"):
        detectron2.load(model, tensors)


def test_buffers_and_optimizer_are_left_out():
    anchors = "proposal_generator.anchor_generator.cell_anchors.0"
    names = ("pixel_mean", anchors, "backbone.fpn_output2.bias")
    tensors = {name: np.zeros(3) for name in names}
    renamed, backbone_only = renamed_tensors(tensors)
    assert list(renamed) == ["backbone.fpn_output2.bias"] and not backbone_only


# --------------------------------------------------------------------------------------------------
# Backbones


def caffe2_name(name):
    """backbone.bottom_up.res2.0.conv1.norm.weight -> res2_0_branch2a_bn_s"""
    parts = name.split(".")[2:]
    end = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}.get(
        ".".join(parts[-2:] if "norm" in parts else parts[-1:])
    )
    if end is None:
        return None  # Caffe2's files have no statistics
    if parts[0] == "stem":
        return f"conv1_{end}" if end == "w" else f"res_conv1_{end}"
    branch = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[
        parts[2]
    ]
    return f"{parts[0]}_{parts[1]}_{branch}_{end}"


def torchvision_name(name):
    parts = name.split(".")[2:]
    if parts[0] == "stem":
        start, layer = [], 1
    else:
        start, layer = [f"layer{int(parts[0][3]) - 1}", parts[1]], parts[2][-1]
    if "shortcut" in parts:
        return ".".join([*start, "downsample", "1" if "norm" in parts else "0", parts[-1]])
    return ".".join([*start, f"bn{layer}" if "norm" in parts else f"conv{layer}", parts[-1]])


def backbone_tensors(model):
    return {n: t for n, t in random_tensors(model).items() if n.startswith("backbone.bottom_up")}


def test_caffe2_backbone():
    model = tiny_model()
    tensors = backbone_tensors(model)
    file = {caffe2_name(n): t for n, t in tensors.items() if caffe2_name(n)}
    file.update(fc1000_w=np.zeros((1000, 8)), fc1000_b=np.zeros(1000), conv1_w_momentum=np.zeros(3))
    renamed, backbone_only = renamed_tensors(file)
    assert backbone_only
    heads = model.box_head.fc1.kernel.numpy()
    detectron2.load(model, renamed, backbone_only=True)
    back = detectron2.to_detectron2(model)
    for name, value in tensors.items():
        if name.endswith("running_mean"):
            value = np.zeros_like(value)
        if name.endswith("running_var"):
            value = np.ones_like(value)
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    np.testing.assert_array_equal(model.box_head.fc1.kernel, heads)


def test_torchvision_backbone():
    model = tiny_model(stride_in_1x1=False)
    tensors = backbone_tensors(model)
    file = {torchvision_name(n): t for n, t in tensors.items()}
    file.update({"fc.weight": np.zeros((1000, 8)), "bn1.num_batches_tracked": np.array(3)})
    renamed, backbone_only = renamed_tensors(file)
    detectron2.load(model, renamed, backbone_only)
    back = detectron2.to_detectron2(model)
    for name, value in tensors.items():
        value = value[:, ::-1] if "stem.conv1.weight" in name else value  # torchvision sees RGB
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_caffe2_detectors_are_refused():
    with pytest.raises(ValueError, match="detector in Caffe2's naming"):
        renamed_tensors({"conv1_w": np.zeros(1), "fpn_res2_w": np.zeros(1)})


def test_keras_application_gives_the_same_features():
    """Keras' ResNet50 and ours with its weights, on the same pixels (caffe preprocessing: BGR, no
    scale).
    """
    application = tf.keras.applications.ResNet50(include_top=False, weights=None)
    for v in application.variables:
        noise = np.random.normal(size=v.shape)
        if "variance" in v.name or "gamma" in v.name:
            v.assign(np.abs(1 + 0.1 * noise))
        elif "beta" in v.name or "mean" in v.name or "bias" in v.name:
            v.assign(0.1 * noise)
    tensors = imagenet.from_keras_application(application)
    model = panoptic_fpn.build_model(config_lib.Config().replace(task="semantic").model, 3, 5)
    detectron2.load(model, tensors, backbone_only=True)
    rgb = np.random.normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = application(rgb[..., ::-1], training=False)
    ours = model.backbone(rgb)["c5"]
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_keras_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(**settings):
        raise Exception("URL fetch failure on resnet50.h5: None -- Name or service not known")

    monkeypatch.setattr(tf.keras.applications, "ResNet50", fail)
    config = config_lib.Config().replace(stride_in_1x1=True).model
    with pytest.raises(UserError, match="imagenet of Keras cannot be had: URL fetch .* or a file"):
        convert.read("imagenet", config)


# --------------------------------------------------------------------------------------------------
# Run directories and the tool


@pytest.fixture
def config(tmp_path):
    path = str(tmp_path / "dataset_info.json")
    INFO.save(path)
    return settings(dataset_info=path)


def test_to_run_dir_and_back(tmp_path, config):
    """By the tool, and from one run directory to another."""
    tensors = random_tensors(tiny_model())  # 3 things, 4 stuff classes and "other"
    given, run_dir, again, back = (f"{tmp_path}/{name}" for name in ("a.pkl", "b", "c", "d.pkl"))
    prefixed = {f"model.{name}": value for name, value in tensors.items()}
    detectron2.write(given, {**prefixed, "loss.weight": np.zeros(2)})
    values = {**tiny.NETWORK, "dataset_info": config.data.dataset_info, "weights": given}
    flags = (f"--{name}={value}" for name, value in values.items())
    told = processes.call("tools/convert_weights.py", f"--run_dir={run_dir}", *flags).stderr
    assert told.count("Not used, as it stands beside model.: loss.weight") == 1
    assert run_directory.load_run(run_dir)[0] == config
    model = tiny_model()
    restore.restore_for_inference(model, run_dir)
    np.testing.assert_array_equal(model.box_head.fc2.bias, tensors["roi_heads.box_head.fc2.bias"])
    convert.to_run_dir(run_dir, convert.known_config(run_dir)[0], again)
    flags = f"--run_dir={again}", "--to=detectron2", f"--weights={back}"
    processes.call("tools/convert_weights.py", *flags)
    assert_tensors(safe_pickle.read(back).tensors, tensors)


def test_no_training_and_no_source_is_overwritten(tmp_path, config):
    run_dir, file = tmp_path / "run", tmp_path / "given.pkl"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "checkpoints" / "ckpt-0.index").touch()  # as a conversion leaves it
    run_directory.check_new(str(run_dir))
    (run_dir / "checkpoints" / "ckpt-300.index").touch()
    file.touch()
    for weights, target, message in (
        ("given.pkl", run_dir, "run holds the checkpoints of a training.* Give a new folder"),
        (str(run_dir), f"{run_dir}/", "run/ is --weights as well. Give a new folder"),
        (str(run_dir), file, "given.pkl is a file; choose another folder"),
    ):
        with pytest.raises(ValueError, match=rf"^--run_dir=.*{message}"):
            convert.to_run_dir(weights, config, str(target))
    assert [path.name for path in run_dir.iterdir()] == ["checkpoints"]


def test_backbone_to_run_dir(tmp_path, config):
    tensors = backbone_tensors(tiny_model())
    path = str(tmp_path / "backbone.pkl")
    detectron2.write(path, tensors)
    convert.to_run_dir(path, config, str(tmp_path / "run"))
    model = tiny_model()
    restore.restore_for_inference(model, str(tmp_path / "run"))
    back = detectron2.to_detectron2(model)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def test_imagenet_names_the_backbones_it_knows(tmp_path, config):
    with pytest.raises(ValueError, match="one of resnet50, resnet101, resnet152"):
        convert.to_run_dir("imagenet", config, str(tmp_path / "run"))


def test_every_plain_resnet_of_keras_is_offered():
    plain = [
        name for name, arch in resnet.ARCHITECTURES.items() if arch.groups == 1 and arch.width == 64
    ]
    assert sorted(plain) == sorted(convert._APPLICATIONS)
