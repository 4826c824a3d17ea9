"""Every setting of the project, written once.

`Config` holds five frozen groups. Each field carries its default, its help text and its limits;
`flags.py` derives the command-line flag from it, and `config.json` in a run directory is its dump.
Defaults are the paper's Panoptic FPN with ResNet-50 on COCO, 1x schedule.

Sizes are (height, width). `_px` are pixels of the image named in the help text.
"""

import dataclasses
import difflib
import json
from typing import Any, Dict, List, Mapping, Tuple

from absl import logging

from pfpn_tf.utils.errors import UserError

BACKBONES = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext152_32x8d",
    "resnet_tiny",
    "resnext_tiny",
)
LEVELS = ("p2", "p3", "p4", "p5", "p6")


def _field(default, help_text, choices=None, at_least=None, above=None, at_most=None):
    return dataclasses.field(
        default=default,
        metadata={
            "help": help_text,
            "choices": choices,
            "at_least": at_least,
            "above": above,
            "at_most": at_most,
        },
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the examples are and what is done to them."""

    train_records: str = _field(
        "", "Glob of the training TFRecords, e.g. data/coco/train-*.tfrecord."
    )
    eval_records: str = _field("", "Glob of the evaluation TFRecords.")
    dataset_info: str = _field(
        "", "Path of dataset_info.json. Empty: the file of that name beside the TFRecords."
    )
    train_min_sides: Tuple[int, ...] = _field(
        (640, 672, 704, 736, 768, 800),
        "Shorter image side in training, drawn from this list (the paper's scale jitter, 640 to "
        "800).",
    )
    train_max_side: int = _field(1333, "Longest image side in training.", at_least=32)
    eval_min_side: int = _field(800, "Shorter image side at inference.", at_least=32)
    eval_max_side: int = _field(1333, "Longest image side at inference.", at_least=32)
    random_scale: Tuple[float, ...] = _field(
        (),
        "Two numbers: scale each training image by a factor drawn between them, instead of "
        "--train_min_sides (the paper's Cityscapes recipe: 0.5,2.0).",
    )
    crop_size: Tuple[int, ...] = _field(
        (), "Height,width of a random crop after scaling (the paper's Cityscapes recipe: 512,1024)."
    )
    crop_bootstrap: float = _field(
        0.0,
        "Share of the random crops that must hold a pixel of a class drawn among those of the"
        " image, all equally likely (the paper's crop bootstrapping).",
        at_least=0.0,
        at_most=1.0,
    )
    random_flip: bool = _field(True, "Flip half of the training images from left to right.")
    color_jitter: bool = _field(
        False, "Random brightness, contrast, saturation and hue (the paper's color augmentation)."
    )
    pixel_mean: Tuple[float, ...] = _field(
        (123.675, 116.28, 103.53), "Mean of the R, G, B channels, subtracted before the network."
    )
    pixel_std: Tuple[float, ...] = _field(
        (1.0, 1.0, 1.0), "R, G, B divisors after the mean; 1,1,1 for Caffe-style ImageNet weights."
    )
    size_divisor: int = _field(
        32,
        "Padded sizes are multiples of this; 32 is the stride of the deepest feature map.",
        at_least=32,
    )
    max_instances: int = _field(
        100,
        "Most ground-truth instances used per training image; the largest are kept.",
        at_least=1,
    )
    static_shapes: bool = _field(
        False,
        "Pad training batches to a few fixed sizes and --max_instances instances (needed for XLA).",
    )
    min_box_size_px: float = _field(
        1.0, "Instances narrower or lower than this after augmentation are dropped.", at_least=0.0
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """The network. Its class counts come from the dataset."""

    task: str = _field(
        "panoptic",
        "panoptic: Panoptic FPN; instance: Mask R-CNN with FPN; semantic: Semantic FPN.",
        choices=("panoptic", "instance", "semantic"),
    )
    backbone: str = _field("resnet50", "Backbone network.", choices=BACKBONES)
    backbone_norm: str = _field(
        "frozen_bn",
        "frozen_bn: batch norm as a fixed affine map (the paper); group_norm; sync_bn: batch norm "
        "with statistics over all replicas.",
        choices=("frozen_bn", "group_norm", "sync_bn"),
    )
    stride_in_1x1: bool = _field(
        True,
        "Stride of a stage in its first 1x1 convolution (Caffe, the paper) or in its 3x3 "
        "(torchvision).",
    )
    freeze_stages: int = _field(
        2,
        "Backbone stages without gradient: 0 none, 1 the stem, 2 stem and c2, ... Needs trained "
        "weights.",
        at_least=0,
        at_most=5,
    )
    output_stride: int = _field(
        32,
        "Stride of c5. 16 and 8 dilate c5, or c4 and c5, in place of their stride (Figure 5b);"
        " needs --decoder=none.",
        choices=(32, 16, 8),
    )
    decoder: str = _field(
        "fpn",
        "What brings the backbone's features to high resolution (Figure 5). fpn; symmetric: as many"
        " blocks on the way up as on the way down; none. The last two are for --task=semantic.",
        choices=("fpn", "symmetric", "none"),
    )
    backbone_recompute: bool = _field(
        False,
        "Compute the trained stages of the backbone twice in a training step, instead of keeping"
        " what is inside them: less memory, a tenth to a third more time.",
    )
    fpn_channels: int = _field(256, "Channels of every pyramid level.", at_least=1)
    fpn_groups: int = _field(
        1,
        "2: the first half of the pyramid's channels is for the instance branch, the second for the"
        " semantic branch (Table 3d).",
        choices=(1, 2),
    )
    head_norm: str = _field(
        "none",
        "Norm in FPN and instance heads; group_norm is for training from scratch.",
        choices=("none", "group_norm"),
    )
    anchor_sizes: Tuple[float, ...] = _field(
        (32.0, 64.0, 128.0, 256.0, 512.0),
        "Square root of the anchor area in pixels, one per level p2..p6.",
    )
    anchor_aspect_ratios: Tuple[float, ...] = _field(
        (0.5, 1.0, 2.0), "Anchor height divided by width (the same convention as Detectron2)."
    )
    rpn_pre_nms_top_k_train: int = _field(
        2000, "Proposals kept per level before NMS, training.", at_least=1
    )
    rpn_pre_nms_top_k_eval: int = _field(
        1000, "Proposals kept per level before NMS, inference.", at_least=1
    )
    rpn_post_nms_top_k: int = _field(1000, "Proposals kept per image after NMS.", at_least=1)
    rpn_nms_threshold: float = _field(
        0.7, "IoU above which NMS drops a proposal.", above=0.0, at_most=1.0
    )
    rpn_positive_iou: float = _field(
        0.7, "Anchors at or above this IoU are positive.", above=0.0, at_most=1.0
    )
    rpn_negative_iou: float = _field(
        0.3, "Anchors below this IoU are negative.", at_least=0.0, at_most=1.0
    )
    rpn_samples_per_image: int = _field(
        256, "Anchors sampled per image for the RPN losses.", at_least=1
    )
    rpn_positive_fraction: float = _field(
        0.5, "Largest share of positives among them.", above=0.0, at_most=1.0
    )
    roi_samples_per_image: int = _field(
        512, "RoIs sampled per image for the heads' losses.", at_least=1
    )
    roi_positive_fraction: float = _field(
        0.25, "Largest share of foreground among them.", above=0.0, at_most=1.0
    )
    roi_positive_iou: float = _field(
        0.5, "RoIs at or above this IoU are foreground.", above=0.0, at_most=1.0
    )
    roi_sampling_ratio: int = _field(
        2,
        "RoIAlign samples per bin and axis; 0: adaptive, ceil(RoI size / output size).",
        at_least=0,
    )
    box_fc_channels: int = _field(
        1024, "Width of the box head's two fully connected layers.", at_least=1
    )
    mask_channels: int = _field(256, "Width of the mask head's convolutions.", at_least=1)
    semantic_channels: int = _field(
        128, "Width of the semantic branch (Table 1c: 64, 128, 256).", at_least=1
    )
    semantic_aggregation: str = _field(
        "sum", "How the semantic branch merges its levels (Table 1d).", choices=("sum", "concat")
    )
    semantic_convs_per_stage: int = _field(
        1,
        "3x3 convolutions of the semantic branch before each upsampling (2: the COCO-Stuff 2017 "
        "entry of Table 1b).",
        at_least=1,
    )
    semantic_head: str = _field(
        "fpn",
        "fpn: the branch of Figure 3 on all levels; deeplabv3: parallel dilated convolutions on c5 "
        "(the comparison of Table 1a).",
        choices=("fpn", "deeplabv3"),
    )
    semantic_targets: str = _field(
        "other",
        "other: stuff classes plus one class for all things (the paper on COCO); all: every class "
        "(the paper on Cityscapes; fusion discards the thing classes).",
        choices=("other", "all"),
    )
    score_threshold: float = _field(0.05, "Lowest score of a detection.", at_least=0.0, at_most=1.0)
    nms_threshold: float = _field(
        0.5, "IoU above which per-class NMS drops a detection.", above=0.0, at_most=1.0
    )
    max_detections: int = _field(100, "Detections kept per image.", at_least=1)
    fusion_score_threshold: float = _field(
        0.5, "Instances below this score do not enter the panoptic map.", at_least=0.0, at_most=1.0
    )
    fusion_overlap_threshold: float = _field(
        0.5,
        "An instance is dropped if more than this share of it is already taken.",
        at_least=0.0,
        at_most=1.0,
    )
    fusion_stuff_area_threshold_px: int = _field(
        4096,
        "Stuff segments smaller than this, in pixels of the original image, are dropped.",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """Losses, schedule and the loop."""

    global_batch_size: int = _field(16, "Images per step over all replicas.", at_least=1)
    train_steps: int = _field(90000, "Steps of the whole run.", at_least=1)
    learning_rate: float = _field(0.02, "Learning rate after warm-up.", above=0.0)
    base_batch_size: int = _field(
        0,
        "If positive, --learning_rate is meant for this batch size and scaled linearly to "
        "--global_batch_size.",
        at_least=0,
    )
    warmup_steps: int = _field(1000, "Steps of linear warm-up.", at_least=0)
    warmup_factor: float = _field(
        0.001, "Share of the learning rate at step 0.", at_least=0.0, at_most=1.0
    )
    lr_decay_steps: Tuple[int, ...] = _field(
        (60000, 80000), "Steps at which the learning rate drops."
    )
    lr_decay_factor: float = _field(0.1, "Factor of each drop.", above=0.0, at_most=1.0)
    momentum: float = _field(0.9, "SGD momentum.", at_least=0.0, at_most=1.0)
    weight_decay: float = _field(
        1e-4,
        "L2 weight decay on weights and biases; norm scales and shifts have none.",
        at_least=0.0,
    )
    gradient_clip_norm: float = _field(
        0.0, "Clip the global gradient norm to this; 0: no clipping.", at_least=0.0
    )
    gradient_accumulation_steps: int = _field(
        1,
        "Parts into which each replica cuts its share of the batch, one after the other to save "
        "memory; their "
        "gradients are averaged.",
        at_least=1,
    )
    ema_decay: float = _field(
        0.0,
        "Keep a moving average of the weights with this decay, e.g. 0.9999, beside the raw ones; "
        "0: none.",
        at_least=0.0,
        at_most=0.99999999,
    )
    instance_loss_weight: float = _field(1.0, "The paper's lambda_i.", at_least=0.0)
    semantic_loss_weight: float = _field(0.5, "The paper's lambda_s.", at_least=0.0)
    alternate_losses: bool = _field(
        False,
        "Even steps take the losses of the instance branch alone, odd steps that of the semantic "
        "branch (Table 3c, with twice the steps). Logged losses are means over both kinds of step.",
    )
    init_weights: str = _field(
        "",
        "Weights to start from: a run directory, a checkpoint, a Detectron2 .pkl or torchvision"
        " .pth file, or imagenet (Keras' ResNets, downloaded). Of predictors, the rows of classes"
        " with the same name are taken. Empty: from scratch.",
    )
    restored_lr_factor: float = _field(
        1.0,
        "Share of the learning rate for what starts from --init_weights, e.g. 0.1; what starts at"
        " random has all of it.",
        above=0.0,
        at_most=1.0,
    )
    precision: str = _field(
        "float32",
        "Compute precision. Of an export: float32 or bfloat16.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    xla: bool = _field(
        False,
        "Compile forward pass, losses and backward pass of each replica with XLA (of several "
        "replicas the network alone), once for every padded size. Needs --static_shapes. Meant for "
        "GPUs: on a CPU it is slower than the plain step. The results differ by rounding.",
    )
    distribution: str = _field(
        "mirrored",
        "mirrored: all GPUs of this machine, else its CPU; one_device; cpu; multi_worker: several "
        "machines by TF_CONFIG.",
        choices=("mirrored", "multi_worker", "one_device", "cpu"),
    )
    steps_per_loop: int = _field(20, "Steps between returns to Python and log lines.", at_least=1)
    summary_interval_steps: int = _field(
        20, "Steps between scalars in TensorBoard and metrics.jsonl.", at_least=1
    )
    image_interval_steps: int = _field(
        1000, "Steps between pictures in TensorBoard; 0: none.", at_least=0
    )
    checkpoint_interval_steps: int = _field(1000, "Steps between checkpoints.", at_least=1)
    keep_checkpoints: int = _field(3, "Newest checkpoints kept.", at_least=1)
    eval_interval_steps: int = _field(
        0, "Steps between evaluations in training; 0: none.", at_least=0
    )
    profile_steps: Tuple[int, ...] = _field(
        (), "First,last step to record for TensorBoard's profiler; empty: none."
    )
    seed: int = _field(
        0, "Seed of initialisation, data order, augmentation and sampling.", at_least=0
    )
    train_cpu_threads: int = _field(0, "CPU threads for TensorFlow; 0: all.", at_least=0)


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation."""

    eval_batch_size: int = _field(1, "Images per evaluation batch.", at_least=1)
    max_images: int = _field(0, "Evaluate only this many images; 0: all.", at_least=0)
    semantic_flip: bool = _field(
        False,
        "Evaluate the semantic branch also on the mirror image, and average its probabilities."
        " Costs one more pass through backbone, FPN and semantic branch for each of"
        " --semantic_scales.",
    )
    semantic_scales: Tuple[float, ...] = _field(
        (1.0,),
        "Evaluate the semantic branch at these multiples of the input size, and average its "
        "probabilities, e.g. 0.75,1,1.25. Costs a pass through backbone, FPN and semantic branch "
        "for each, in proportion to the square of the scale; scale 1 alone is free.",
    )


@dataclasses.dataclass(frozen=True)
class Export:
    """The exported SavedModel."""

    max_image_pixels: int = _field(
        40_000_000, "Larger images are refused before they are decoded.", at_least=1
    )
    max_segments: int = _field(
        256, "Width of the segment table in the exported signatures.", at_least=1
    )
    network_batch_pixels: int = _field(
        1_000_000,
        "Images of one padded size go through the network together up to this many pixels, larger "
        "ones alone; two such groups are under way at a time. One photo nearly keeps a CPU's cores "
        "busy; with a GPU raise it, e.g. to 8000000.",
        at_least=1,
    )
    allowed_batch_sizes: Tuple[int, ...] = _field(
        (1, 2, 4),
        "Batch sizes to which the server fills up what it joins of waiting requests; the last is "
        "the largest. The export holds a warm-up request for each.",
    )
    for_gpu: bool = _field(
        False,
        "The server has a GPU: the labels of pixels are computed on it, in few large operations. An"
        " export with or without this answers rightly on any processor and GPU.",
    )
    batch_timeout_micros: int = _field(
        5000, "Microseconds that the server waits for a batch to fill.", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings. Build with `Config()`, `replace` or `from_mapping`; never edited in place."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()

    def flat(self) -> Dict[str, Any]:
        """All settings as one dict, flag name to value."""
        return {
            field.name: getattr(group, field.name)
            for _, group in self.groups()
            for field in dataclasses.fields(group)
        }

    def groups(self):
        """(group name, group) pairs in order."""
        return [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]

    def replace(self, **settings) -> "Config":
        """A validated copy with some settings changed, by flag name.

        Raises:
          UserError: a name is unknown (the nearest is suggested) or a value is not allowed.
        """
        return from_mapping({**self.flat(), **settings})

    def to_json(self) -> str:
        return (
            json.dumps({name: dataclasses.asdict(group) for name, group in self.groups()}, indent=2)
            + "\n"
        )


def all_fields() -> Dict[str, dataclasses.Field]:
    """Flag name to dataclass field, over all groups."""
    return {f.name: f for _, group in Config().groups() for f in dataclasses.fields(group)}


def from_mapping(settings: Mapping[str, Any]) -> Config:
    """A validated `Config` from flag names and values; what is not named keeps its default.

    Raises:
      UserError: every problem found, one a line.
    """
    fields = all_fields()
    unknown = [name for name in settings if name not in fields]
    if unknown:
        raise UserError("\n".join(_unknown_setting(name, fields) for name in unknown))
    groups = {}
    for group_name, group in Config().groups():
        values = {}
        for f in dataclasses.fields(group):
            if f.name in settings:
                value = settings[f.name]
                values[f.name] = tuple(value) if isinstance(value, list) else value
        groups[group_name] = dataclasses.replace(group, **values)
    config = Config(**groups)
    validate(config)
    return config


def from_json(text: str) -> Config:
    """The inverse of `Config.to_json`, for texts of other versions, too.

    Settings that the text lacks keep their default; those that this version lacks are left out
    with a warning.

    Raises:
      UserError: the text is no JSON of settings, or a value is not allowed.
    """
    try:
        settings = {name: v for group in json.loads(text).values() for name, v in group.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"not the JSON of a config ({error}).") from None
    unknown = settings.keys() - all_fields().keys()
    if unknown:
        logging.warning(
            "Left out settings that this version does not have: %s.", ", ".join(sorted(unknown))
        )
    return from_mapping({name: v for name, v in settings.items() if name not in unknown})


def validate(config: Config) -> None:
    """Checks every rule at once.

    Raises:
      UserError: all problems, one a line; each names the flag, its value, what is allowed and a
        value that would work.
    """
    problems: List[str] = []
    for name, f in all_fields().items():
        problems += _field_problems(name, config.flat()[name], f)
    if not problems:
        problems = _cross_problems(config)
    if problems:
        raise UserError("\n".join(problems))


def _unknown_setting(name, fields):
    near = difflib.get_close_matches(name, fields, n=1)
    hint = f" Did you mean --{near[0]}?" if near else ""
    return f"--{name} is not a setting.{hint}"


def _field_problems(name, value, f):
    meta = f.metadata
    default = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    try_default = f"The default is {default!r}."
    if meta["choices"] and value not in meta["choices"]:
        near = difflib.get_close_matches(str(value), map(str, meta["choices"]), n=1)
        hint = f" Did you mean {near[0]}?" if near else f" {try_default}"
        choices = ", ".join(map(str, meta["choices"]))
        return [f"--{name}={value} must be one of {choices}.{hint}"]
    if isinstance(value, tuple):
        bad = [
            v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool) and v < 0
        ]
        return (
            [f"--{name}={','.join(map(str, value))} must not hold negative numbers. {try_default}"]
            if bad
            else []
        )
    if isinstance(f.default, (int, float)) and not isinstance(f.default, bool):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return [f"--{name}={value!r} must be a number. {try_default}"]
        for limit, ok, words in (
            ("at_least", lambda a, b: a >= b, "at least"),
            ("above", lambda a, b: a > b, "above"),
            ("at_most", lambda a, b: a <= b, "at most"),
        ):
            if meta[limit] is not None and not ok(value, meta[limit]):
                return [f"--{name}={value} must be {words} {meta[limit]}. {try_default}"]
    return []


def _cross_problems(config):
    data, model, train = config.data, config.model, config.train
    problems = []
    if data.size_divisor % 32:
        problems.append(
            f"--size_divisor={data.size_divisor} must be a multiple of 32, the stride of c5; use "
            f"{(data.size_divisor // 32 + 1) * 32}."
        )
    if not data.train_min_sides:
        problems.append("--train_min_sides is empty; give at least one side, e.g. 800.")
    elif max(data.train_min_sides) > data.train_max_side:
        problems.append(
            f"--train_min_sides holds {max(data.train_min_sides)}, more than --train_max_side="
            f"{data.train_max_side}; raise the latter to at least {max(data.train_min_sides)}."
        )
    if data.eval_min_side > data.eval_max_side:
        problems.append(
            f"--eval_min_side={data.eval_min_side} is more than "
            f"--eval_max_side={data.eval_max_side}; "
            f"raise the latter to at least {data.eval_min_side}."
        )
    if data.random_scale and (
        len(data.random_scale) != 2 or not 0 < data.random_scale[0] <= data.random_scale[1]
    ):
        problems.append(
            f"--random_scale={data.random_scale} must be two numbers, low,high with 0 < low <= "
            "high; e.g. 0.5,2.0."
        )
    if data.crop_size and (len(data.crop_size) != 2 or min(data.crop_size) < 32):
        problems.append(
            f"--crop_size={data.crop_size} must be height,width of at least 32 each; e.g. 512,1024."
        )
    for name in ("pixel_mean", "pixel_std"):
        value = getattr(data, name)
        if len(value) != 3 or (name == "pixel_std" and min(value) <= 0):
            problems.append(
                f"--{name}={value} must be three numbers, "
                f"R,G,B{', above 0' if name == 'pixel_std' else ''}."
            )
    if len(model.anchor_sizes) != len(LEVELS):
        problems.append(
            f"--anchor_sizes has {len(model.anchor_sizes)} sizes for the {len(LEVELS)} levels "
            f"{', '.join(LEVELS)}; e.g. 32,64,128,256,512."
        )
    if not model.anchor_aspect_ratios or min(model.anchor_aspect_ratios, default=0) <= 0:
        problems.append(
            "--anchor_aspect_ratios must be positive numbers (height / width), e.g. 0.5,1,2."
        )
    problems += _variant_problems(data, model, train)
    if model.backbone_recompute and model.backbone_norm == "sync_bn":
        problems.append(
            "--backbone_recompute with --backbone_norm=sync_bn would update the running statistics "
            "twice a step; use --backbone_norm=group_norm, or --nobackbone_recompute."
        )
    if train.xla and not data.static_shapes:
        problems.append(
            "--xla compiles anew for every image size, and there are hundreds; add --static_shapes."
        )
    if train.xla and model.task != "semantic" and model.roi_sampling_ratio == 0:
        problems.append(
            "--xla cannot compile --roi_sampling_ratio=0, where each RoI takes as many samples as "
            "it has feature cells; use --roi_sampling_ratio=2, or --noxla."
        )
    if model.rpn_negative_iou > model.rpn_positive_iou:
        problems.append(
            f"--rpn_negative_iou={model.rpn_negative_iou} is above "
            f"--rpn_positive_iou={model.rpn_positive_iou}; "
            "use 0.3 and 0.7."
        )
    if model.fpn_channels % 32 and model.head_norm == "group_norm":
        problems.append(
            f"--fpn_channels={model.fpn_channels} must be divisible by the 32 groups of "
            "--head_norm=group_norm; use 256."
        )
    if model.semantic_channels % 32:
        problems.append(
            f"--semantic_channels={model.semantic_channels} must be divisible by the 32 groups of "
            "its "
            "GroupNorm; use 64, 128 or 256."
        )
    sizes = config.export.allowed_batch_sizes
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        problems.append(
            f"--allowed_batch_sizes={','.join(map(str, sizes))} must be one or more whole numbers "
            "from 1 on that rise; e.g. 1,2,4."
        )
    scales = config.eval.semantic_scales
    if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
        problems.append(
            f"--semantic_scales={','.join(map(str, scales))} must be different numbers above 0;"
            " e.g. 0.75,1,1.25."
        )
    if train.profile_steps and (
        len(train.profile_steps) != 2 or train.profile_steps[0] > train.profile_steps[1]
    ):
        problems.append(
            f"--profile_steps={train.profile_steps} must be two steps, first,last; e.g. 10,14."
        )
    if train.restored_lr_factor != 1 and not train.init_weights:
        problems.append(
            f"--restored_lr_factor={train.restored_lr_factor} slows what --init_weights gives; give"
            " --init_weights too, or leave the factor at 1."
        )
    if list(train.lr_decay_steps) != sorted(set(train.lr_decay_steps)):
        problems.append(f"--lr_decay_steps={train.lr_decay_steps} must rise; e.g. 60000,80000.")
    if train.lr_decay_steps and train.lr_decay_steps[0] <= train.warmup_steps:
        problems.append(
            f"--lr_decay_steps={','.join(map(str, train.lr_decay_steps))} must come after "
            f"--warmup_steps={train.warmup_steps}; lower --warmup_steps to "
            f"{train.lr_decay_steps[0] - 1} or less."
        )
    return problems


def _variant_problems(data, model, train):
    """The network's variants exclude one another here and there."""
    problems = []
    if model.decoder != "fpn" and model.task != "semantic":
        problems.append(
            f"--decoder={model.decoder} has no levels of equal width for an instance branch; use "
            f"--task=semantic, or --decoder=fpn with --task={model.task}."
        )
    if model.output_stride != 32 and model.decoder != "none":
        problems.append(
            f"--output_stride={model.output_stride} changes the strides that "
            f"--decoder={model.decoder} expects; use --decoder=none, or --output_stride=32."
        )
    if (model.decoder == "none") != (model.semantic_head == "deeplabv3"):
        problems.append(
            f"--decoder={model.decoder} does not go with --semantic_head={model.semantic_head}; use"
            " fpn or symmetric with fpn, or none with deeplabv3."
        )
    if model.fpn_groups == 2 and (model.decoder != "fpn" or model.task != "panoptic"):
        problems.append(
            "--fpn_groups=2 gives each branch its half of the pyramid, so it needs --task=panoptic"
            f" and --decoder=fpn, not {model.task} and {model.decoder}."
        )
    if model.fpn_channels % model.fpn_groups:
        problems.append(
            f"--fpn_channels={model.fpn_channels} must be divisible by "
            f"--fpn_groups={model.fpn_groups}; use 256."
        )
    if train.alternate_losses and model.task != "panoptic":
        problems.append(
            f"--alternate_losses has nothing to alternate with --task={model.task}; use "
            "--task=panoptic."
        )
    if data.crop_bootstrap and not data.crop_size:
        problems.append(
            f"--crop_bootstrap={data.crop_bootstrap} needs --crop_size, e.g. --crop_size=512,1024."
        )
    return problems
