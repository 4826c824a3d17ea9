"""Settings from a Detectron2 model's own config.yaml: all that inference needs of it.

How the model was trained (solver, losses, augmentation) is not read.
"""

import ast
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

import yaml

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.utils.errors import UserError


class Detectron2Config(NamedTuple):
    """What a config says.

    Attributes:
      path: its file.
      settings: ours, by name.
      rgb: whether the network sees RGB, where Detectron2's usually see BGR.
      num_things: K; None without an instance branch.
      num_semantic_classes: stuff and one class for things; None without a semantic branch.
      of_coco: whether it was trained on COCO's classes.
    """

    path: str
    settings: Dict[str, Any]
    rgb: bool
    num_things: Optional[int]
    num_semantic_classes: Optional[int]
    of_coco: bool


_TASKS = {
    "PanopticFPN": "panoptic",
    "GeneralizedRCNN": "instance",
    "SemanticSegmentor": "semantic",
}
_BACKBONES = {  # depth, groups, width of a group
    (50, 1, 64): "resnet50",
    (101, 1, 64): "resnet101",
    (152, 1, 64): "resnet152",
    (50, 32, 4): "resnext50_32x4d",
    (101, 32, 8): "resnext101_32x8d",
    (101, 64, 4): "resnext101_64x4d",
    (152, 32, 8): "resnext152_32x8d",
}
_BACKBONE_NORMS = {
    "FrozenBN": "frozen_bn",
    "GN": "group_norm",
    "SyncBN": "sync_bn",
    "BN": "sync_bn",  # they differ in training only
}
_HEAD_NORMS = {"": "none", "GN": "group_norm"}
_LEVELS = ("p2", "p3", "p4", "p5")
_STAGES = ("res2", "res3", "res4", "res5")

# Key -> our setting, Detectron2's default.
_SETTINGS = {
    "INPUT.MIN_SIZE_TEST": ("eval_min_side", 800),
    "INPUT.MAX_SIZE_TEST": ("eval_max_side", 1333),
    "MODEL.BACKBONE.FREEZE_AT": ("freeze_stages", 2),
    "MODEL.RESNETS.STRIDE_IN_1X1": ("stride_in_1x1", True),
    "MODEL.FPN.OUT_CHANNELS": ("fpn_channels", 256),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": ("rpn_pre_nms_top_k_eval", 6000),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("rpn_post_nms_top_k", 1000),
    "MODEL.RPN.NMS_THRESH": ("rpn_nms_threshold", 0.7),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("score_threshold", 0.05),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("nms_threshold", 0.5),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": ("roi_sampling_ratio", 0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": ("box_fc_channels", 1024),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ("mask_channels", 256),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": ("semantic_channels", 128),
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": ("fusion_overlap_threshold", 0.5),
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": ("fusion_stuff_area_threshold_px", 4096),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": ("fusion_score_threshold", 0.5),
    "TEST.DETECTIONS_PER_IMAGE": ("max_detections", 100),
}

# Key -> the one value that this network has, Detectron2's default.
_FIXED = {
    "VERSION": (2, 2),
    "MODEL.KEYPOINT_ON": (False, False),
    "MODEL.LOAD_PROPOSALS": (False, False),
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_resnet_backbone"),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ((False,) * 4, (False,) * 4),
    "MODEL.RESNETS.RES5_DILATION": (1, 1),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": (256, 256),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": (64, 64),
    "MODEL.FPN.IN_FEATURES": (_STAGES, ()),
    "MODEL.FPN.FUSE_TYPE": ("sum", "sum"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "RPN"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": (0, 0),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator", "DefaultAnchorGenerator"),
    "MODEL.ANCHOR_GENERATOR.OFFSET": (0, 0),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead", "StandardRPNHead"),
    "MODEL.RPN.IN_FEATURES": ((*_LEVELS, "p6"), ("res4",)),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ((1, 1, 1, 1), (1, 1, 1, 1)),
    "MODEL.RPN.CONV_DIMS": ((-1,), (-1,)),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads"),
    "MODEL.ROI_HEADS.IN_FEATURES": (_LEVELS, ("res4",)),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", ""),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlignV2"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": (7, 14),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0, 0),
    "MODEL.ROI_BOX_HEAD.NUM_FC": (2, 0),
    "MODEL.ROI_BOX_HEAD.NORM": ("", ""),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ((10, 10, 5, 5), (10, 10, 5, 5)),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False, False),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False, False),
    "MODEL.MASK_ON": (True, False),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsampleHead"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlignV2"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": (14, 14),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": (4, 0),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": (False, False),
    "MODEL.SEM_SEG_HEAD.NAME": ("SemSegFPNHead", "SemSegFPNHead"),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (_LEVELS, _LEVELS),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": (4, 4),
    "MODEL.SEM_SEG_HEAD.NORM": ("GN", "GN"),
}
_OF_INSTANCES = (
    "MODEL.PROPOSAL", "MODEL.ANCHOR", "MODEL.RPN", "MODEL.ROI", "MODEL.MASK_ON", "TEST.",
)  # fmt: skip
_OF_SEMANTICS = ("MODEL.SEM_SEG_HEAD",)
_OF_BOTH = ("MODEL.PANOPTIC_FPN",)


def read(path: str) -> Detectron2Config:
    """Reads a config, with the files that `_BASE_` names.

    Raises:
      UserError: a file is missing or no config, or it describes what this network cannot be: every
        such key, with its value and what this network has.
    """
    keys = _with_bases(path, ())

    def get(key, default):
        return keys.get(key, default)

    architecture = get("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    if architecture not in _TASKS:
        raise UserError(
            f"{path}: MODEL.META_ARCHITECTURE is {architecture}; this network can be"
            f" {', '.join(_TASKS)}."
        )
    task = _TASKS[architecture]
    outside = {
        "panoptic": (),
        "instance": _OF_SEMANTICS + _OF_BOTH,
        "semantic": _OF_INSTANCES + _OF_BOTH,
    }[task]
    fixed = {key: v for key, v in _FIXED.items() if not key.startswith(outside)}
    problems = [
        f"{key} is {get(key, default)!r}, here {ours!r}"
        for key, (ours, default) in fixed.items()
        if get(key, default) != ours
    ]
    settings: Dict[str, Any] = {"task": task}
    for key, (name, default) in _SETTINGS.items():
        if not key.startswith(outside):
            settings[name] = get(key, default)
    _read_network(get, task, settings, problems)
    rgb = _read_pixels(get, settings, problems)
    if problems:
        raise UserError(f"{path} describes another network:\n  " + "\n  ".join(problems))
    try:
        config_lib.Config().replace(**settings)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Detectron2Config(
        path,
        settings,
        rgb,
        None if task == "semantic" else get("MODEL.ROI_HEADS.NUM_CLASSES", 80),
        None if task == "instance" else get("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54),
        any(str(name).startswith("coco_") for name in _as_tuple(get("DATASETS.TRAIN", ()))),
    )


def check_classes(config: Detectron2Config, info: categories.DatasetInfo) -> None:
    """Compares the numbers of classes.

    Raises:
      UserError: they differ.
    """
    semantic = info.num_semantic_classes("other")
    for key, theirs, ours in (
        ("MODEL.ROI_HEADS.NUM_CLASSES", config.num_things, info.num_thing_classes),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", config.num_semantic_classes, semantic),
    ):
        if theirs not in (None, ours):
            raise UserError(
                f"{config.path}: {key} is {theirs}, but --dataset_info has {ours} of them"
                f"{' (stuff, and one class for things)' if 'SEM_SEG' in key else ''}; give the"
                " classes that the model was trained on."
            )


def _read_network(get, task, settings, problems):
    def one_of(choices, key, value):
        if value not in choices:
            problems.append(f"{key} is {value!r}, here one of {', '.join(map(repr, choices))}")
        return choices.get(value)

    sizes = [get(f"MODEL.RESNETS.{key}", value) for key, value in
             (("DEPTH", 50), ("NUM_GROUPS", 1), ("WIDTH_PER_GROUP", 64))]  # fmt: skip
    settings["backbone"] = one_of(
        _BACKBONES, "MODEL.RESNETS.(DEPTH, NUM_GROUPS, WIDTH_PER_GROUP)", tuple(sizes)
    )
    norm = get("MODEL.RESNETS.NORM", "FrozenBN")
    settings["backbone_norm"] = one_of(_BACKBONE_NORMS, "MODEL.RESNETS.NORM", norm)
    head_norm = get("MODEL.FPN.NORM", "")
    settings["head_norm"] = one_of(_HEAD_NORMS, "MODEL.FPN.NORM", head_norm)
    if task == "semantic":
        return
    for key, ours, default in (
        ("MODEL.ROI_MASK_HEAD.NORM", head_norm, ""),
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", settings["roi_sampling_ratio"], 0),
    ):
        if get(key, default) != ours:
            problems.append(f"{key} is {get(key, default)!r}, here as before {ours!r}")
    levels = _as_tuple(get("MODEL.ANCHOR_GENERATOR.SIZES", ((32, 64, 128, 256, 512),)))
    if len(levels) == 5 and all(len(_as_tuple(level)) == 1 for level in levels):
        settings["anchor_sizes"] = tuple(_as_tuple(level)[0] for level in levels)
    else:
        problems.append(f"MODEL.ANCHOR_GENERATOR.SIZES is {levels}, here one for each of 5 levels")
    ratios = _as_tuple(get("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ((0.5, 1.0, 2.0),)))
    if len(set(ratios)) == 1:
        settings["anchor_aspect_ratios"] = _as_tuple(ratios[0])
    else:
        problems.append(
            f"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS is {ratios}, here the same for all levels"
        )


def _read_pixels(get, settings, problems) -> bool:
    """Reads mean and scale in our order, RGB; returns whether the config has that order, too."""
    order = get("INPUT.FORMAT", "BGR")
    if order not in ("RGB", "BGR"):
        problems.append(f"INPUT.FORMAT is {order!r}, here 'RGB' or 'BGR'")
    mean = get("MODEL.PIXEL_MEAN", (103.53, 116.28, 123.675))
    std = get("MODEL.PIXEL_STD", (1.0, 1.0, 1.0))
    for name, value in (("pixel_mean", mean), ("pixel_std", std)):
        settings[name] = _as_tuple(value)[:: 1 if order == "RGB" else -1]
    return order == "RGB"


# --------------------------------------------------------------------------------------------------
# YAML


def _with_bases(path, above) -> Dict[str, Any]:
    """Key, such as MODEL.MASK_ON, -> value of a file on top of its bases."""
    if path in above:
        raise UserError(f"{path}: _BASE_ leads back to this file.")
    try:
        with open(path, encoding="utf-8") as f:
            content = yaml.safe_load(f)
    except FileNotFoundError:
        needed_by = f" It is the _BASE_ of {above[-1]}; put it there." if above else ""
        raise UserError(f"--detectron2_config: {path}: no such file.{needed_by}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no YAML of plain values ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no Detectron2 config; expected keys such as MODEL.")
    base = content.pop("_BASE_", None)
    if base is None:
        return _flat(content)
    base_path = os.path.join(os.path.dirname(path), os.path.expanduser(str(base)))
    return _with_bases(os.path.normpath(base_path), (*above, path)) | _flat(content)


def _flat(content, prefix="") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _value(value)
    return flat


def _value(value):
    """Lists become tuples, and texts that are Python's, such as "(640, 800)", what they say."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return tuple(map(_value, value)) if isinstance(value, (list, tuple)) else value


def _as_tuple(value) -> Tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
