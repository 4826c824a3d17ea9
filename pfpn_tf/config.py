"""Every setting of the project, written once.

`Config` holds five frozen groups. Each field carries its default, its help text and its limits;
`flags.py` derives the command-line flag from it, and `config.json` in a run directory is its dump.
Defaults are the paper's Panoptic FPN with ResNet-50 on COCO, 1x schedule.

Sizes are (height, width). `_px` are pixels of the image named in the help text.
"""

import dataclasses
import difflib
import functools
import json
from typing import Any, Dict, Mapping, Set, Tuple, Union

from absl import logging

from pfpn_tf import config_checks
from pfpn_tf.utils.errors import UserError

TASKS = ("panoptic", "instance", "semantic")
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


def _field(
    default,
    help_text,
    choices=None,
    at_least=None,
    above=None,
    at_most=None,
    lengths=(),
    may_change=False,
):
    """A setting.

    Args:
      default: its default.
      help_text: of its flag.
      choices: what it may be, if not everything.
      at_least, above, at_most: limits of a number, or of each number in a list.
      lengths: how many numbers a list may hold, if not any number.
      may_change: whether it may differ when a run is continued: the next step computes the same.
    """
    limits = {"choices": choices, "at_least": at_least, "above": above, "at_most": at_most}
    metadata = {"help": help_text, **limits, "lengths": lengths, "may_change": may_change}
    return dataclasses.field(default=default, metadata=metadata)


# Whole numbers from 1; parts of a whole, with and without 0.
_count = functools.partial(_field, at_least=1)
_fraction = functools.partial(_field, at_least=0.0, at_most=1.0)
_positive_fraction = functools.partial(_field, above=0.0, at_most=1.0)
_SOME = range(1, 1000)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the examples are and what is done to them."""

    train_records: str = _field(
        "", "Glob of the training TFRecords, e.g. data/coco/train-*.tfrecord.", may_change=True
    )
    eval_records: str = _field("", "Glob of the evaluation TFRecords.", may_change=True)
    dataset_info: str = _field(
        "",
        "Path of dataset_info.json. Empty: the file of that name beside the TFRecords.",
        may_change=True,
    )
    train_min_sides: Tuple[int, ...] = _field(
        (640, 672, 704, 736, 768, 800),
        "Shorter image side in training, drawn from this list (the paper's scale jitter, 640 to "
        "800).",
        at_least=1,
        lengths=_SOME,
    )
    train_max_side: int = _field(1333, "Longest image side in training.", at_least=32)
    eval_min_side: int = _field(
        800, "Shorter image side at inference.", at_least=32, may_change=True
    )
    eval_max_side: int = _field(
        1333, "Longest image side at inference.", at_least=32, may_change=True
    )
    random_scale: Tuple[float, ...] = _field(
        (),
        "Two numbers: scale each training image by a factor drawn between them, instead of "
        "--train_min_sides (the paper's Cityscapes recipe: 0.5,2.0).",
        above=0.0,
        lengths=(0, 2),
    )
    crop_size: Tuple[int, ...] = _field(
        (),
        "Height,width of a random crop after scaling (the paper's Cityscapes recipe: 512,1024).",
        at_least=32,
        lengths=(0, 2),
    )
    crop_bootstrap: float = _fraction(
        0.0,
        "Share of the random crops that must hold a pixel of a class drawn among those of the"
        " image, all equally likely (the paper's crop bootstrapping).",
    )
    repeat_factor_threshold: float = _field(
        0.0,
        "Show an image more often if it holds a class that is in less than this share of the"
        " training images, e.g. 0.01: sqrt(threshold / share) times an epoch, for the rarest of its"
        " classes (repeat factors, as LVIS defines them). 0: every image once.",
        at_least=0.0,
        at_most=1.0,
    )
    random_flip: bool = _field(True, "Flip half of the training images from left to right.")
    color_jitter: bool = _field(
        False, "Random brightness, contrast, saturation and hue (the paper's color augmentation)."
    )
    pixel_mean: Tuple[float, ...] = _field(
        (123.675, 116.28, 103.53),
        "Mean of the R, G, B channels, subtracted before the network.",
        lengths=(3,),
    )
    pixel_std: Tuple[float, ...] = _field(
        (1.0, 1.0, 1.0),
        "R, G, B divisors after the mean; 1,1,1 for Caffe-style ImageNet weights.",
        above=0.0,
        lengths=(3,),
    )
    resize: str = _field(
        "pillow",
        "How photos are resized. pillow: antialiased (Detectron2); opencv: not, and in a few sizes"
        " a pixel apart (MMDetection).",
        choices=("pillow", "opencv"),
    )
    size_divisor: int = _field(
        32,
        "Padded sizes are multiples of this; 32 is the stride of the deepest feature map.",
        at_least=32,
    )
    max_instances: int = _count(
        100, "Most ground-truth instances used per training image; the largest are kept."
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
        "panoptic: Panoptic FPN; instance: Mask R-CNN with FPN; semantic: Semantic FPN. Training"
        " takes what the records hold unless this is given.",
        choices=TASKS,
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
        may_change=True,
    )
    fpn_channels: int = _count(256, "Channels of every pyramid level.")
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
        above=0.0,
        lengths=(len(LEVELS),),
    )
    anchor_aspect_ratios: Tuple[float, ...] = _field(
        (0.5, 1.0, 2.0),
        "Anchor height divided by width (the same convention as Detectron2).",
        above=0.0,
        lengths=_SOME,
    )
    rpn_pre_nms_top_k_train: int = _count(2000, "Proposals kept per level before NMS, training.")
    rpn_pre_nms_top_k_eval: int = _count(
        1000, "Proposals kept per level before NMS, inference.", may_change=True
    )
    rpn_post_nms_top_k: int = _count(1000, "Proposals kept per image after NMS.")
    rpn_nms_threshold: float = _positive_fraction(0.7, "IoU above which NMS drops a proposal.")
    rpn_positive_iou: float = _positive_fraction(0.7, "Anchors at or above this IoU are positive.")
    rpn_negative_iou: float = _fraction(0.3, "Anchors below this IoU are negative.")
    rpn_samples_per_image: int = _count(256, "Anchors sampled per image for the RPN losses.")
    rpn_positive_fraction: float = _positive_fraction(0.5, "Largest share of positives among them.")
    roi_samples_per_image: int = _count(512, "RoIs sampled per image for the heads' losses.")
    roi_positive_fraction: float = _positive_fraction(
        0.25, "Largest share of foreground among them."
    )
    roi_positive_iou: float = _positive_fraction(0.5, "RoIs at or above this IoU are foreground.")
    roi_sampling_ratio: int = _field(
        2,
        "RoIAlign samples per bin and axis; 0: adaptive, ceil(RoI size / output size).",
        at_least=0,
    )
    roi_level_rule: str = _field(
        "detectron2",
        "Whose rounding decides which level a RoI with a side of 112, 224 or 448 is pooled from.",
        choices=("detectron2", "mmdetection"),
    )
    clamp_small_deltas: bool = _field(
        False, "dh and dw are clamped from below as they are from above (MMDetection)."
    )
    box_fc_channels: int = _count(1024, "Width of the box head's two fully connected layers.")
    mask_channels: int = _count(256, "Width of the mask head's convolutions.")
    semantic_channels: int = _count(128, "Width of the semantic branch (Table 1c: 64, 128, 256).")
    semantic_aggregation: str = _field(
        "sum", "How the semantic branch merges its levels (Table 1d).", choices=("sum", "concat")
    )
    semantic_convs_per_stage: int = _count(
        1,
        "3x3 convolutions of the semantic branch before each upsampling (2: the COCO-Stuff 2017 "
        "entry of Table 1b).",
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
    score_threshold: float = _fraction(0.05, "Lowest score of a detection.", may_change=True)
    nms_threshold: float = _positive_fraction(
        0.5, "IoU above which per-class NMS drops a detection.", may_change=True
    )
    class_agnostic_nms: bool = _field(
        False,
        "A better detection of any class drops one that it overlaps (MMDetection).",
        may_change=True,
    )
    nms_by_offset: bool = _field(
        False,
        "NMS keeps classes and levels apart by moving their boxes, which rounds (MMDetection).",
        may_change=True,
    )
    max_detections: int = _count(100, "Detections kept per image.", may_change=True)
    fusion_score_threshold: float = _fraction(
        0.5, "Instances below this score do not enter the panoptic map.", may_change=True
    )
    fusion_overlap_threshold: float = _fraction(
        0.5,
        "An instance is dropped if more than this share of it is already taken.",
        may_change=True,
    )
    fusion_stuff_area_threshold_px: int = _field(
        4096,
        "Stuff segments smaller than this, in pixels of the original image, are dropped.",
        at_least=0,
        may_change=True,
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """Losses, schedule and the loop."""

    global_batch_size: int = _count(16, "Images per step over all replicas.")
    train_steps: int = _count(90000, "Steps of the whole run.", may_change=True)
    learning_rate: float = _field(0.02, "Learning rate after warm-up.", above=0.0)
    base_batch_size: int = _field(
        0,
        "If positive, --learning_rate is meant for this batch size and scaled linearly to "
        "--global_batch_size.",
        at_least=0,
    )
    warmup_steps: int = _field(1000, "Steps of linear warm-up.", at_least=0)
    warmup_factor: float = _fraction(0.001, "Share of the learning rate at step 0.")
    lr_decay_steps: Tuple[int, ...] = _field(
        (60000, 80000), "Steps at which the learning rate drops.", at_least=0
    )
    lr_decay_factor: float = _positive_fraction(0.1, "Factor of each drop.")
    momentum: float = _fraction(0.9, "SGD momentum.")
    weight_decay: float = _field(
        1e-4,
        "L2 weight decay on weights and biases; norm scales and shifts have none.",
        at_least=0.0,
    )
    gradient_clip_norm: float = _field(
        0.0, "Clip the global gradient norm to this; 0: no clipping.", at_least=0.0
    )
    gradient_accumulation_steps: int = _count(
        1,
        "Parts into which each replica cuts its share of the batch, one after the other to save "
        "memory; their gradients are averaged.",
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
        "Weights to start from: a run directory, a checkpoint, a .pkl or .pth file, the name of a"
        " published model (see tools/convert_weights.py --list), or imagenet (Keras' ResNets). The"
        " last two are downloaded. Of predictors, the rows of classes with the same name are taken."
        " Empty: from scratch.",
        may_change=True,
    )
    restored_lr_factor: float = _positive_fraction(
        1.0,
        "Share of the learning rate for what starts from --init_weights, e.g. 0.1; what starts at"
        " random has all of it.",
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
        may_change=True,
    )
    distribution: str = _field(
        "mirrored",
        "mirrored: all GPUs of this machine, else its CPU; one_device; cpu; multi_worker: several "
        "machines by TF_CONFIG.",
        choices=("mirrored", "multi_worker", "one_device", "cpu"),
        may_change=True,
    )
    steps_per_loop: int = _count(
        20, "Steps between returns to Python and log lines.", may_change=True
    )
    summary_interval_steps: int = _count(
        20, "Steps between scalars in TensorBoard and metrics.jsonl.", may_change=True
    )
    image_interval_steps: int = _field(
        1000, "Steps between pictures in TensorBoard; 0: none.", at_least=0, may_change=True
    )
    checkpoint_interval_steps: int = _count(1000, "Steps between checkpoints.", may_change=True)
    keep_checkpoints: int = _count(3, "Newest checkpoints kept.", may_change=True)
    eval_interval_steps: int = _field(
        0, "Steps between evaluations in training; 0: none.", at_least=0, may_change=True
    )
    eval_losses: bool = _field(
        False,
        "Compute the losses on --eval_records, too, in each evaluation in training, not augmented.",
        may_change=True,
    )
    early_stop_evals: int = _field(
        0,
        "End the training when PQ (mIoU or mask AP, where there is no PQ) has not risen for this"
        " many evaluations; 0: never.",
        at_least=0,
        may_change=True,
    )
    profile_steps: Tuple[int, ...] = _field(
        (),
        "First,last step to record for TensorBoard's profiler; empty: none.",
        at_least=0,
        lengths=(0, 2),
        may_change=True,
    )
    seed: int = _field(
        0, "Seed of initialisation, data order, augmentation and sampling.", at_least=0
    )
    train_cpu_threads: int = _field(
        0, "CPU threads for TensorFlow; 0: all.", at_least=0, may_change=True
    )


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation. All of it may change when a run is continued."""

    eval_batch_size: int = _count(1, "Images per evaluation batch.")
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
        above=0.0,
        lengths=_SOME,
    )


@dataclasses.dataclass(frozen=True)
class Export:
    """The exported SavedModel. All of it may change when a run is continued."""

    max_image_pixels: int = _count(40_000_000, "Larger images are refused before they are decoded.")
    max_segments: int = _count(256, "Width of the segment table in the exported signatures.")
    max_request_images: int = _count(
        64, "Requests with more images are refused; at least the largest of --allowed_batch_sizes."
    )
    network_batch_pixels: int = _count(
        1_000_000,
        "Images of one padded size go through the network together up to this many pixels, larger "
        "ones alone; two such groups are under way at a time. One photo nearly keeps a CPU's cores "
        "busy; with a GPU raise it, e.g. to 8000000.",
    )
    allowed_batch_sizes: Tuple[int, ...] = _field(
        (1, 2, 4),
        "Batch sizes to which the server fills up what it joins of waiting requests; the last is "
        "the largest. The export holds a warm-up request for each.",
        at_least=1,
        lengths=_SOME,
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
        return {name: v for group in vars(self).values() for name, v in vars(group).items()}

    def replace(self, **settings) -> "Config":
        """A validated copy with some settings changed, by flag name.

        Raises:
          UserError: a name is unknown (the nearest is suggested) or a value is not allowed.
        """
        return from_mapping({**self.flat(), **settings})

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def all_fields() -> Dict[str, dataclasses.Field]:
    """Flag name to dataclass field, over all groups."""
    return {f.name: f for group in vars(Config()).values() for f in dataclasses.fields(group)}


def fixed_settings() -> Set[str]:
    """Names of the settings that must stay as they are when a run is continued."""
    used_in_training = (
        dataclasses.fields(Data) + dataclasses.fields(Model) + dataclasses.fields(Train)
    )
    return {field.name for field in used_in_training if not field.metadata["may_change"]}


def from_mapping(settings: Mapping[str, Any]) -> Config:
    """A validated `Config` from flag names and values; what is not named keeps its default.

    Raises:
      UserError: every problem found, one a line; each names the flag, its value, what is allowed
        and a value that would work.
    """
    fields = all_fields()
    problems = []
    for name in settings.keys() - fields.keys():
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f" Did you mean --{near[0]}?" if near else ""
        problems.append(f"--{name} is not a setting.{hint}")
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
    groups = {}
    for group_name, group in vars(Config()).items():
        own = {f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values}
        groups[group_name] = dataclasses.replace(group, **own)
    config = Config(**groups)
    problems += config_checks.problems(fields, config.flat())
    if problems:
        raise UserError("\n".join(problems))
    return config


def from_json(text: Union[str, bytes]) -> Config:
    """The inverse of `Config.to_json`, for texts of other versions, too.

    Settings that the text lacks keep their default; those that this version lacks are left out
    with a warning.

    Raises:
      UserError: the text is no JSON of settings, or a value is not allowed.
    """
    try:
        settings = {name: v for group in json.loads(text).values() for name, v in group.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"not the JSON of a config ({error}).") from None
    unknown = settings.keys() - all_fields().keys()
    if unknown:
        logging.warning(
            "Left out settings that this version does not have: %s.", ", ".join(sorted(unknown))
        )
    return from_mapping({name: v for name, v in settings.items() if name not in unknown})
