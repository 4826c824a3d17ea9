"""Published weights by name: where they are, the flags of their networks, what they reach.

Addresses and numbers are those of Detectron2's MODEL_ZOO.md and MMDetection's metafile.yml.
"""

import difflib
import os
import re
from typing import Iterable, NamedTuple, Optional, Tuple

from pfpn_tf import config as config_lib
from pfpn_tf import flags
from pfpn_tf.data import categories
from pfpn_tf.utils import recipes, tables
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import download

COCO_INFO = os.path.join(recipes.ROOT, "configs", "coco", categories.FILE_NAME)


class Project(NamedTuple):
    """Who publishes weights. A name of theirs is `scheme`, then the model's name."""

    scheme: str
    address: str
    licence: str


DETECTRON2 = Project("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/", "CC BY-SA 3.0")
MMDETECTION = Project("mmdet://", "https://download.openmmlab.com/mmdetection/v2.0/", "Apache 2.0")


class Model(NamedTuple):
    """Published weights.

    Attributes:
      project: who publishes them.
      name: how they call it.
      path: of the file below the project's address.
      flags: of its network.
      megabytes: of the file, about.
      pq, box_ap, mask_ap: on COCO val2017, as published. A backbone has none.
    """

    project: Project
    name: str
    path: str
    flags: Tuple[str, ...]
    megabytes: int
    pq: Optional[float] = None
    box_ap: Optional[float] = None
    mask_ap: Optional[float] = None

    @property
    def url(self) -> str:
        return self.project.address + self.path

    @property
    def full_name(self) -> str:
        return self.project.scheme + self.name


def _recipe(*flagfiles, backbone=""):
    found = tuple(map(recipes.flagfile, flagfiles))
    return found + ((f"--backbone={backbone}",) if backbone else ())


def _detectron2(name, file, recipe, *numbers):
    flags_of_all = _recipe("base/detectron2")
    return Model(DETECTRON2, name, f"{name}/{file}", recipe + flags_of_all, *numbers)


def _backbone(name, recipe, megabytes):
    return Model(DETECTRON2, name, name, (*recipe, f"--dataset_info={COCO_INFO}"), megabytes)


def _mmdetection(folder, name, date_and_hash, recipe, *numbers):
    path = f"{folder}/{name}/{name}_{date_and_hash}.pth"
    return Model(MMDETECTION, name, path, _recipe(f"mmdetection/{recipe}"), *numbers)


_X101 = {"backbone": "resnext101_32x8d"}
MODELS = (
    # name, file, recipe; megabytes, PQ, box AP, mask AP
    _detectron2(
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", "139514544/model_final_dbfeb4.pkl",
        _recipe("coco/panoptic_fpn_r50_1x"), 184, 39.4, 37.6, 34.7,
    ),
    _detectron2(
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x", "139514569/model_final_c10459.pkl",
        _recipe("coco/panoptic_fpn_r50_3x"), 184, 41.5, 40.0, 36.5,
    ),
    _detectron2(
        "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x", "139514519/model_final_cafdb1.pkl",
        _recipe("coco/panoptic_fpn_r101_3x"), 260, 43.0, 42.4, 38.5,
    ),
    _mmdetection(
        "panoptic_fpn", "panoptic_fpn_r50_fpn_1x_coco", "20210821_101153-9668fd13",
        "panoptic_fpn_r50", 184, 40.2,
    ),
    _mmdetection(
        "panoptic_fpn", "panoptic_fpn_r50_fpn_mstrain_3x_coco", "20210824_171155-5650f98b",
        "panoptic_fpn_r50", 184, 42.5,
    ),
    _mmdetection(
        "panoptic_fpn", "panoptic_fpn_r101_fpn_1x_coco", "20210820_193950-ab9157a2",
        "panoptic_fpn_r101", 260, 42.2,
    ),
    _mmdetection(
        "panoptic_fpn", "panoptic_fpn_r101_fpn_mstrain_3x_coco", "20210823_114712-9c99acc4",
        "panoptic_fpn_r101", 260, 44.1,
    ),
    _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "137260431/model_final_a54504.pkl",
        _recipe("coco/mask_rcnn_fpn_r50_1x"), 178, None, 38.6, 35.2,
    ),
    _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "137849600/model_final_f10217.pkl",
        _recipe("coco/mask_rcnn_fpn_r50_3x"), 178, None, 41.0, 37.2,
    ),
    _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x", "138205316/model_final_a3ec72.pkl",
        _recipe("coco/mask_rcnn_fpn_r101_3x"), 254, None, 42.9, 38.6,
    ),
    _detectron2(
        "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x",
        "139653917/model_final_2d9806.pkl",
        _recipe("coco/mask_rcnn_fpn_r50_3x", "base/resnext", **_X101), 431, None, 44.3, 39.5,
    ),
    _mmdetection(
        "mask_rcnn", "mask_rcnn_r50_fpn_1x_coco", "20200205-d4b0c5d6",
        "mask_rcnn_r50", 178, None, 38.2, 34.7,
    ),
    _mmdetection(
        "mask_rcnn", "mask_rcnn_r50_fpn_mstrain-poly_3x_coco", "20210524_201154-21b550bb",
        "mask_rcnn_r50", 178, None, 40.9, 37.1,
    ),
    _mmdetection(
        "mask_rcnn", "mask_rcnn_r101_fpn_1x_coco", "20200204-1efe0ed5",
        "mask_rcnn_r101", 254, None, 40.0, 36.1,
    ),
    _mmdetection(
        "mask_rcnn", "mask_rcnn_r101_fpn_mstrain-poly_3x_coco", "20210524_200244-5675c317",
        "mask_rcnn_r101", 254, None, 42.7, 38.5,
    ),
    _mmdetection(
        "mask_rcnn", "mask_rcnn_r101_caffe_fpn_mstrain-poly_3x_coco", "20210526_132339-3c33ce02",
        "mask_rcnn_r101_caffe", 254, None, 42.9, 38.5,
    ),
    _backbone("ImageNetPretrained/MSRA/R-50.pkl", _recipe("coco/panoptic_fpn_r50_1x"), 102),
    _backbone("ImageNetPretrained/MSRA/R-101.pkl", _recipe("coco/panoptic_fpn_r101_1x"), 178),
    _backbone(
        "ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        _recipe("coco/panoptic_fpn_r101_1x", "base/resnext", **_X101), 356,
    ),
)  # fmt: skip


def is_name(weights: str) -> bool:
    """Whether this names published weights, rather than a file."""
    return weights.startswith((DETECTRON2.scheme, MMDETECTION.scheme))


def find(weights: str) -> Model:
    """The model that a name means: of a config's file, a checkpoint's path, or in MMDetection 3.x.

    Raises:
      UserError: there is none.
    """
    for model in MODELS:
        if _key(weights) in (_key(model.full_name), _key(model.project.scheme + model.path)):
            return model
    near = difflib.get_close_matches(weights, [model.full_name for model in MODELS], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"{weights} is none of the published models that this network takes.{hint}"
        " tools/convert_weights.py --list prints them."
    )


def _key(name):
    """MMDetection 3.x calls mask_rcnn and mstrain mask-rcnn and ms."""
    return re.sub(r"[-_]|\.yaml$|\.py$", "", name.replace("mstrain", "ms"))


def local_file(weights: str) -> str:
    """The file that weights mean: their own path, or that of a download.

    Raises:
      UserError: the name is unknown or the file cannot be had.
    """
    if not is_name(weights):
        return weights
    model = find(weights)
    path = os.path.join(download.cache_dir(), model.project.scheme.rstrip(":/"), model.path)
    return download.fetch(model.url, path, *_hash_in(model.path))


def _hash_in(path):
    """Algorithm and first digits of a file's hash, as its name tells: MD5 for Detectron2's models,
    SHA-256 for MMDetection's; none for backbones.
    """
    md5 = re.search(r"_([0-9a-f]{6})\.pkl$", path)
    sha256 = re.search(r"-([0-9a-f]{8})\.pth$", path)
    return ("md5", md5[1]) if md5 else ("sha256", sha256[1] if sha256 else "")


def config(weights: str) -> config_lib.Config:
    """The settings of a model's network, classes included.

    Raises:
      UserError: the name is unknown.
    """
    return config_of(find(weights).flags)


def config_of(arguments: Iterable[str]) -> config_lib.Config:
    """The settings that flags give, with the flagfiles of this package."""
    settings = flags.settings_of(arguments)
    settings["dataset_info"] = os.path.join(recipes.ROOT, settings["dataset_info"])
    return config_lib.Config().replace(**settings)


def coco_info() -> categories.DatasetInfo:
    """COCO's classes."""
    return categories.DatasetInfo.load(COCO_INFO)


def table() -> str:
    """All models, a line each."""
    rows = []
    for model in MODELS:
        metrics = (model.pq, model.box_ap, model.mask_ap)
        numbers = ["-" if value is None else f"{value:.1f}" for value in metrics]
        rows.append([model.full_name, *numbers, str(model.megabytes), model.project.licence])
    return tables.aligned(["name", "PQ", "box AP", "mask AP", "MB", "licence"], rows)
