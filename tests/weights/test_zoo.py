"""Published weights by name."""

import hashlib

import pytest

import pfpn_tf
from pfpn_tf.data import categories
from pfpn_tf.runs import run_directory
from pfpn_tf.serving import predictor
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import convert, detectron2, download, initialise, zoo
from tests import tiny
from tests.weights.test_finetune import HERE, model_of, settings

R50 = "detectron2://COCO-PanopticSegmentation/panoptic_fpn_R_50_3x"
R101 = "mmdet://panoptic_fpn_r101_fpn_mstrain_3x_coco"


@pytest.mark.parametrize("model", zoo.MODELS, ids=lambda model: model.full_name)
def test_every_name_brings_the_settings_of_its_network(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    config = zoo.config(model.full_name)
    info = categories.DatasetInfo.load(config.data.dataset_info)
    assert info.num_thing_classes == 80
    depth = "101" if "101" in model.name else "50"
    assert depth in config.model.backbone
    assert (config.model.task == "instance") == ("mask_rcnn" in model.name)
    of_mmdetection = model.project is zoo.MMDETECTION and "caffe" not in model.name
    scaled = of_mmdetection or "X_101" in model.name or "X-101" in model.name
    assert (config.data.pixel_std != (1.0, 1.0, 1.0)) == scaled
    assert config.model.stride_in_1x1 != scaled
    if "ImageNet" not in model.name:
        assert config.model.roi_sampling_ratio == 0


def test_addresses_and_hashes():
    assert zoo.find(R50).url == (
        "https://dl.fbaipublicfiles.com/detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_3x/"
        "139514569/model_final_c10459.pkl"
    )
    assert zoo.find(R101).url == (
        "https://download.openmmlab.com/mmdetection/v2.0/panoptic_fpn/"
        "panoptic_fpn_r101_fpn_mstrain_3x_coco/"
        "panoptic_fpn_r101_fpn_mstrain_3x_coco_20210823_114712-9c99acc4.pth"
    )
    hashes = {model.name: zoo._hash_in(model.path) for model in zoo.MODELS}
    assert hashes[zoo.find(R50).name] == ("md5", "c10459")
    assert hashes[zoo.find(R101).name] == ("sha256", "9c99acc4")
    without = [name for name, (_, digits) in hashes.items() if not digits]
    assert all(name.startswith("ImageNetPretrained/") for name in without)
    assert len({model.full_name for model in zoo.MODELS}) == len(zoo.MODELS)


def test_the_projects_own_spellings_are_known():
    assert zoo.find(f"{R50}.yaml") is zoo.find(f"{R50}/139514569/model_final_c10459.pkl")
    assert zoo.find("mmdet://panoptic-fpn_r101_fpn_ms-3x_coco") is zoo.find(R101)
    assert len({zoo._key(model.full_name) for model in zoo.MODELS}) == len(zoo.MODELS)


@pytest.mark.parametrize(
    "name", ["detectron2://COCO-Detection/retinanet_R_50_FPN_1x", "mmdet://panoptic_fpn_r18"]
)
def test_an_unknown_name_is_refused_with_the_way_to_the_list(name):
    with pytest.raises(ValueError, match=f"{name} is none of .*--list"):
        zoo.find(name)


def test_table():
    lines = zoo.table().splitlines()
    assert lines[0].split() == ["name", "PQ", "box", "AP", "mask", "AP", "MB", "licence"]
    (line,) = [line for line in lines if line.startswith(R101)]
    assert line.split() == [R101, "44.1", "-", "-", "260", "Apache", "2.0"]


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    """One published model, small, whose download is a copy; gives its name."""
    model = model_of(HERE, settings(stride_in_1x1=False))
    given = tmp_path / "given.pkl"
    detectron2.write(str(given), detectron2.to_detectron2(model))
    digits = hashlib.md5(given.read_bytes()).hexdigest()[:6]
    HERE.save(tmp_path / categories.FILE_NAME)
    flags = [f"--{name}={value}" for name, value in tiny.NETWORK.items()]
    flags += ["--nostride_in_1x1", f"--dataset_info={tmp_path / categories.FILE_NAME}"]
    project = zoo.DETECTRON2._replace(address="http://127.0.0.1:9/")
    published = zoo.Model(project, "tiny", f"tiny/model_final_{digits}.pkl", tuple(flags), 1)
    monkeypatch.setattr(zoo, "MODELS", (published,))
    monkeypatch.setenv("PFPN_TF_CACHE", str(tmp_path / "cache"))

    def fetch(url, path, algorithm, digest):
        assert url == f"http://127.0.0.1:9/tiny/model_final_{digits}.pkl"
        assert path == str(tmp_path / f"cache/detectron2/tiny/model_final_{digits}.pkl")
        assert (algorithm, digest) == ("md5", digits)
        return str(given)

    monkeypatch.setattr(download, "fetch", fetch)
    return published.full_name


def test_a_name_becomes_a_run_directory(tiny_zoo, tmp_path):
    convert.to_run_dir(tiny_zoo, zoo.config(tiny_zoo), str(tmp_path / "run"))
    config, info = run_directory.load_run(str(tmp_path / "run"))
    assert config.model.backbone == "resnet_tiny" and not categories.class_differences(info, HERE)


def test_a_training_starts_from_a_name_with_its_pixels_and_strides(tiny_zoo):
    def start(**changes):
        config = settings(init_weights=tiny_zoo, **changes)
        return initialise.initialise(model_of(HERE, config), config, HERE)

    assert start(stride_in_1x1=False).report[0].endswith(f"taken whole from {tiny_zoo}.")
    with pytest.raises(ValueError, match="Add --stride_in_1x1=false"):
        start()


def test_a_name_is_loaded_from_a_run_directory_made_once(tiny_zoo, monkeypatch):
    with pytest.raises(UserError, match="is a backbone alone"):
        pfpn_tf.load(tiny_zoo)
    monkeypatch.setattr(zoo, "MODELS", (zoo.MODELS[0]._replace(pq=40.0),))
    loaded = []
    monkeypatch.setattr(
        predictor, "load", lambda *args, **settings: loaded.append((args, settings))
    )
    pfpn_tf.load(tiny_zoo)
    (((run_dir, checkpoint), settings),) = loaded
    assert not categories.class_differences(run_directory.load_run(run_dir)[1], HERE)
    assert (checkpoint, settings) == (None, {})
    monkeypatch.setattr(convert, "to_run_dir", None)
    pfpn_tf.load(tiny_zoo, score_threshold=0.3)
    assert loaded[1] == ((run_dir, None), {"score_threshold": 0.3})
