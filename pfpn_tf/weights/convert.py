"""From weights of other projects to a run directory, and back."""

import os
import re
import tempfile
from typing import List, Optional, Tuple

import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints, restore, run_directory
from pfpn_tf.utils import recipes
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import (
    detectron2,
    detectron2_config,
    download,
    imagenet,
    mmdetection,
    safe_pickle,
    zoo,
)

IMAGENET = "imagenet"
PROJECTS = ("detectron2", "mmdetection")
"""What `from_run_dir` writes for."""

# What checkpoints hold besides the network's tensors.
_NO_PARAMETER = re.compile(
    r"(^|\.)pixel_(mean|std)$|anchor_generator\.cell_anchors|num_batches_tracked$|_momentum$|"
    r"^(fc|fc1000|pred|linear)[._]|^lr$|^weight_order$"
)
_C4_BLOCK = re.compile(r"backbone\.bottom_up\.res4\.\d+\.conv1\.weight")
OF_THE_PIXELS = ("pixel_mean", "pixel_std", "stride_in_1x1")
"""Settings that must be as they were when the weights were trained."""
_OF_INFERENCE = (
    *("eval_min_side", "eval_max_side", "anchor_sizes", "roi_sampling_ratio", "rpn_nms_threshold"),
    *("score_threshold", "nms_threshold", "fusion_score_threshold", "fusion_overlap_threshold"),
    "fusion_stuff_area_threshold_px",
)
_APPLICATIONS = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}


def to_run_dir(
    weights: str,
    config: config_lib.Config,
    run_dir: str,
    source: Optional[detectron2_config.Detectron2Config] = None,
    checkpoint: Optional[safe_pickle.Checkpoint] = None,
) -> str:
    """Writes a run directory that evaluation, export, prediction and `--init_weights` take.

    A file with a backbone alone gives the backbone; the heads keep their random start.

    Args:
      weights: a checkpoint of Detectron2 or MMDetection, an ImageNet backbone, or one of our run
        directories; a name that `zoo` knows; or "imagenet": the ResNet of that size of Keras
        applications. The last two are downloaded.
      config: settings; the network must be that of the weights.
      run_dir: the directory to write.
      source: the model's own config, from which the settings come.
      checkpoint: of the file, if it has been read already.

    Returns:
      The prefix of what is written.

    Raises:
      UserError: the weights cannot be read or do not fit, or the directory is that of a training,
        or of the weights themselves.
    """
    if os.path.realpath(weights) == os.path.realpath(run_dir):
        raise UserError(f"--run_dir={run_dir} is --weights as well. Give a new folder.")
    run_directory.check_new(run_dir)
    info = categories.DatasetInfo.load(config.data.dataset_info)
    if source:
        detectron2_config.check_classes(source, info)
    tf.keras.utils.set_random_seed(config.train.seed)
    model = panoptic_fpn.build_for_dataset(config.model, info)
    if os.path.isdir(weights):
        restore.restore_for_inference(model, weights)
    else:
        tensors, backbone_only = read(weights, config.model, checkpoint)
        if source and source.rgb:  # Detectron2's networks see BGR, unless the config says otherwise
            stem = next((name for name in tensors if name.endswith("stem.conv1.weight")), None)
            tensors.update({stem: tensors[stem][:, ::-1]} if stem else {})
        if not source:
            for line in untold(weights, config, backbone_only):
                logging.info("%s", line)
        try:
            detectron2.load(model, tensors, backbone_only)
        except UserError as error:
            raise UserError(f"{weights}: {error}") from None
        if backbone_only:
            logging.info("%s holds a backbone alone: FPN and heads start at random.", weights)
    prefix = checkpoints.save_weights(model, config, info, run_dir)
    logging.info("Wrote %d variables of %s to %s.", len(model.variables), weights, prefix)
    return prefix


def published_run(name: str) -> str:
    """The run directory of published weights, in the folder of downloads; made if need be.

    Raises:
      UserError: there are no weights of this name, they are a backbone alone, or cannot be had.
    """
    model = zoo.find(name)
    if model.pq is None and model.box_ap is None:
        raise UserError(f"{name} is a backbone alone, which says nothing of an image; train it.")
    run_dir = os.path.join(download.cache_dir(), "runs", model.path)
    if not os.path.isdir(run_dir):
        os.makedirs(os.path.dirname(run_dir), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(run_dir)) as folder:
            complete = os.path.join(folder, "run")
            to_run_dir(name, zoo.config(name), complete)
            if not os.path.isdir(run_dir):  # Another process may have been faster.
                os.rename(complete, run_dir)
    return run_dir


def known_config(
    weights: str, stride_in_1x1: Optional[bool] = None
) -> Tuple[Optional[config_lib.Config], Optional[safe_pickle.Checkpoint]]:
    """The settings of the published network that a file holds, as its tensors tell.

    Args:
      weights: as in `to_run_dir`.
      stride_in_1x1: the setting, if it is known: it tells MMDetection's two styles apart.

    Returns:
      The settings, None for a backbone alone or a network that nobody publishes for COCO; and the
      checkpoint that was read to tell them, None where the weights are no file.

    Raises:
      UserError: the file cannot be read, or it may be of either style.
    """
    if weights == IMAGENET:
        return None, None
    if os.path.isdir(weights):
        config, _ = run_directory.load_run(weights, "weights")
        dataset_info = os.path.join(weights, run_directory.DATASET_INFO)
        return config.replace(dataset_info=dataset_info), None
    checkpoint = safe_pickle.read(weights)
    tensors, of_mmdetection = checkpoint.tensors, mmdetection.is_mmdetection(checkpoint.tensors)
    if of_mmdetection:
        tensors = mmdetection.to_detectron2_names(tensors, "pytorch")
    depth = {6: 50, 23: 101}.get(sum(bool(_C4_BLOCK.fullmatch(name)) for name in tensors))
    panoptic = "sem_seg_head.predictor.bias" in tensors
    classes = tensors.get("roi_heads.box_predictor.cls_score.bias", np.zeros(0))
    if depth is None or len(classes) != 81:
        return None, checkpoint
    if not of_mmdetection:
        task = "panoptic" if panoptic else "instance"
        arguments = [recipes.flagfile("base/detectron2"), f"--task={task}"]
        arguments += [f"--backbone=resnet{depth}"]
    else:
        kind = "panoptic_fpn" if panoptic else "mask_rcnn"
        arguments = [recipes.flagfile(f"mmdetection/{kind}_r{depth}")]
        style = mmdetection.style_of(checkpoint)
        if stride_in_1x1 is None and style is None:
            raise UserError(
                f"{weights} is MMDetection's and does not tell its style: add --nostride_in_1x1"
                " for 'pytorch' or --stride_in_1x1 for 'caffe'."
            )
        if stride_in_1x1 or style == "caffe":
            arguments += ["--stride_in_1x1", "--pixel_std=1,1,1"]
    logging.info("The tensors of %s are those of %s.", weights, " ".join(arguments))
    return zoo.config_of(arguments), checkpoint


def untold(weights: str, config: config_lib.Config, backbone_only: bool) -> List[str]:
    """A line with the settings that only the user can know, if there are such."""
    if zoo.is_name(weights) or weights == IMAGENET:
        return []
    names = OF_THE_PIXELS if backbone_only else OF_THE_PIXELS + _OF_INFERENCE
    flags = run_directory.recipe_text(config).splitlines()
    taken = [flag for flag in flags if flag[2:].partition("=")[0] in names]
    return [
        f"A weights file does not tell {' '.join(taken)}, nor that Detectron2's networks see BGR."
        " If the model was trained otherwise, give its values, or convert a Detectron2 model with"
        " its config: tools/convert_weights.py --detectron2_config."
    ]


def is_foreign(weights: str) -> bool:
    """Whether these are weights of another project, rather than a run directory or a checkpoint."""
    if weights == IMAGENET or zoo.is_name(weights) or weights.endswith((".pkl", ".pth")):
        return True
    part_of_a_checkpoint = re.search(r"\.(index|data-\d+-of-\d+)$", weights)
    return os.path.isfile(weights) and not part_of_a_checkpoint


def from_run_dir(run_dir: str, weights: str, project: str) -> None:
    """Writes the weights of a run directory as a file that another project reads.

    Args:
      run_dir: a run directory with a checkpoint.
      weights: the file to write, a `.pkl` for Detectron2 or a `.pth` for MMDetection.
      project: one of `PROJECTS`.

    Raises:
      UserError: there is no checkpoint, or the other project has no such network.
    """
    config, info = run_directory.load_run(run_dir)
    model = panoptic_fpn.build_for_dataset(config.model, info)
    restore.restore_for_inference(model, run_dir)
    tensors = detectron2.to_detectron2(model)
    if project == "detectron2":
        detectron2.write(weights, tensors)
    else:
        if config.model.task != "instance" and config.model.semantic_targets != "other":
            raise UserError(
                "MMDetection's semantic head has one class for all things;"
                f" --semantic_targets={config.model.semantic_targets} of {run_dir} has not."
            )
        style = _style(config.model)
        tensors = mmdetection.from_detectron2_names(tensors, style)
        mmdetection.write(weights, tensors, style)
    logging.info("Wrote %d tensors of %s to %s.", len(tensors), run_dir, weights)


def read(
    weights: str,
    model_config: config_lib.Model,
    checkpoint: Optional[safe_pickle.Checkpoint] = None,
) -> Tuple[safe_pickle.Tensors, bool]:
    """The weights by Detectron2's names, and whether they are those of a backbone alone.

    Args:
      weights, checkpoint: as in `to_run_dir`.
      model_config: the network; says which of Keras' ResNets "imagenet" is.

    Raises:
      UserError: the weights cannot be read.
    """
    if weights != IMAGENET or os.path.exists(weights):
        checkpoint = checkpoint or safe_pickle.read(zoo.local_file(weights))
        try:
            return to_detectron2_names(checkpoint, model_config)
        except UserError as error:
            raise UserError(f"{weights}: {error}") from None
    name = _APPLICATIONS.get(model_config.backbone)
    if not name or not model_config.stride_in_1x1:
        raise UserError(
            f"The weights {IMAGENET} are a ResNet of Keras applications:"
            f" --backbone={model_config.backbone} must be one of {', '.join(_APPLICATIONS)}, with"
            " --stride_in_1x1. For others give a file."
        )
    build = getattr(tf.keras.applications, name)
    try:
        application = build(include_top=False, weights=IMAGENET)
    except Exception as error:  # Keras has no other class for a failed download.
        raise UserError(
            f"The weights {IMAGENET} of Keras cannot be had: {str(error).splitlines()[0]}. Or give"
            " detectron2://ImageNetPretrained/MSRA/R-50.pkl, or a file."
        ) from None
    return imagenet.from_keras_application(application), True


def to_detectron2_names(
    checkpoint: safe_pickle.Checkpoint, model_config: config_lib.Model
) -> Tuple[safe_pickle.Tensors, bool]:
    """Recognises by its names where a checkpoint comes from and renames its tensors.

    Args:
      checkpoint: of Detectron2 or MMDetection, or an ImageNet backbone of Caffe2 or torchvision.
      model_config: says which of MMDetection's two styles it is, where the file does not.

    Returns:
      Detectron2 names to values, without what is no parameter of the network; and whether they are
      those of a backbone alone.

    Raises:
      UserError: a Caffe2 detector, MMDetection's other style, or weights that are not finite.
    """
    tensors = {n: value for n, value in checkpoint.tensors.items() if not _NO_PARAMETER.search(n)}
    with np.errstate(over="ignore"):  # Variables are float32.
        odd = [n for n, value in tensors.items() if not np.isfinite(value.astype("f4")).all()]
    if odd:
        raise UserError(
            f"{len(odd)} of {len(tensors)} tensors are not finite (NaN or infinite), first"
            f" {odd[0]}: the training that wrote them diverged, or the file is damaged."
        )
    if "conv1_w" in tensors:
        return imagenet.from_caffe2(tensors), True
    if "layer1.0.conv1.weight" in tensors:  # torchvision names as MMDetection's backbone, in RGB
        tensors = {f"backbone.{name}": value for name, value in tensors.items()}
        return mmdetection.to_detectron2_names(tensors, "pytorch"), True
    if mmdetection.is_mmdetection(tensors):
        style = mmdetection.style_of(checkpoint) or _style(model_config)
        if style != _style(model_config):
            raise UserError(
                f"MMDetection trained these weights in the style {style!r}: they need"
                f" --{'' if style == 'caffe' else 'no'}stride_in_1x1 and the pixel scale of"
                " that style; take the flagfile of the model from configs/mmdetection."
            )
        logging.info("The weights are MMDetection's, read in the style %r.", style)
        tensors = mmdetection.to_detectron2_names(tensors, style)
    backbone_only = not any(re.search(r"fpn_|_head|proposal_generator", name) for name in tensors)
    return tensors, backbone_only


def _style(model_config):
    """Which of MMDetection's styles the network of these settings is."""
    return "caffe" if model_config.stride_in_1x1 else "pytorch"
