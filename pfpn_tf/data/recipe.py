"""recipe.flags: settings for a dataset that nobody has looked at yet, by rules from its statistics.

Each rule stands in a function that returns a section: the reason, written as a comment, and the
settings. The flagfile needs no other file, so it works where there is no clone of the project.
"""

import os
import shlex
import textwrap
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from pfpn_tf import config_checks
from pfpn_tf.config import Config
from pfpn_tf.data import anchor_fit, pipeline
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.statistics import Statistics
from pfpn_tf.utils.files import atomic_write

FILE_NAME = "recipe.flags"

# Of the paper: what photos of COCO are trained at, and the crops of Cityscapes.
MOST_SHORT, MOST_LONG = 800, 1333
CROP_PIXELS = 512 * 1024
JITTER = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # 640 to 800
STUFF_LIMIT = 4096 / (480 * 640)  # of a photo of COCO
# At four cells of the finest level an object still has a form. A tenth of the objects may be less.
SMALL_OBJECT_PX, SMALL_SHARE = 16, 0.1
LARGEST_EVAL_PIXELS = 8_000_000
SEMANTIC_PIXELS = 1024 * 2048  # of Cityscapes: what class maps alone are worth
# What one GPU of 16 GB holds in training: four photos at the paper's size.
BATCH_PIXELS = 4 * MOST_SHORT * MOST_LONG
# Images that a network from scratch sees in training; fewer teach it too little, and more than
# these epochs teach it the images by heart.
SEEN_IMAGES, EPOCHS = 400_000, (36, 300)
FEWEST_STEPS = 1500
LOST_STUFF = 0.05


class Section(NamedTuple):
    """Settings, and why."""

    reason: str
    settings: Dict[str, Any]


class Sizes(NamedTuple):
    """At which size the network sees the images.

    Attributes:
      section: for the recipe.
      train_hw: of a typical training input.
      short: shorter side in the middle of what training draws, of a whole image.
      long: the longest side then allowed.
    """

    section: Section
    train_hw: Tuple[float, float]
    short: float
    long: float


def task_of(statistics: Statistics, info: DatasetInfo) -> str:
    """The task that fits what the annotations hold; `info.task` is the most that they may have."""
    counts = statistics.counts
    stuff = sum(counts["pixels", category.id] for category in info.stuff)
    if counts["instances"]:
        return "panoptic" if stuff else "instance"
    return "semantic"


def suggest(
    statistics: Statistics,
    info: DatasetInfo,
    train_records: str = "",
    eval_records: str = "",
    epochs: float = 0,
) -> List[Section]:
    """The sections of a recipe.

    Args:
      statistics: of the training split.
      info: the dataset's categories.
      train_records: glob of the training records.
      eval_records: of the records to evaluate on.
      epochs: how often to see each image; 0: by the number of images.
    """
    task = task_of(statistics, info)
    sizes = image_sizes(statistics)
    sections = [
        Section("", {"train_records": train_records, "eval_records": eval_records}),
        _task(statistics, info, task),
        sizes.section,
    ]
    if task != "semantic":
        sections += [anchors(statistics, sizes), _detections(statistics, info)]
    if task == "panoptic":
        sections.append(stuff_limit(statistics))
    return sections + [FROM_SCRATCH, schedule(statistics, sizes, epochs)]


def config_of(sections: List[Section]) -> Config:
    """The settings, checked.

    Raises:
      UserError: they do not go together.
    """
    return Config().replace(**{n: value for s in sections for n, value in s.settings.items()})


def write(
    folder: str, splits: Mapping[str, Statistics], info: DatasetInfo, epochs: float = 0
) -> Optional[Config]:
    """Writes recipe.flags for the records in a folder and returns its settings; without a split
    that can be trained on, returns None.
    """
    if not roles(splits):
        return None
    train, evaluated = roles(splits)
    folder = os.path.abspath(folder)
    globs = [f"{os.path.join(folder, s)}-?????-of-?????.tfrecord" for s in (train, evaluated)]
    sections = suggest(splits[train], info, globs[0], globs[1], epochs)
    config = config_of(sections)
    if evaluated == train:
        sections[0] = sections[0]._replace(
            reason="There are no other images yet: evaluation tells what was learnt by heart."
        )
    path = os.path.join(folder, FILE_NAME)
    with atomic_write(path) as f:
        f.write(_text(path, splits[train].counts["images"], sections))
    return config


def roles(splits: Mapping[str, Statistics]) -> Tuple[str, ...]:
    """(split to train on, split to evaluate on) of those with annotations; () without any."""
    usable = {name: s for name, s in splits.items() if s.is_annotated()}
    if not usable:
        return ()
    by_size = sorted(usable, key=lambda name: (-usable[name].counts["images"], name))
    train = "train" if "train" in usable else by_size[0]
    others = [name for name in by_size if name != train] or [train]
    likely = [name for name in ("val", "valid", "validation", "test") if name in others]
    return train, (likely or others)[0]


# -- the rules --------------------------------------------------------------------------------


def _task(statistics, info, task):
    counts = statistics.counts
    what = {
        "panoptic": "Instances and stuff: Panoptic FPN.",
        "instance": "Instances alone: Mask R-CNN with FPN.",
        "semantic": "Class maps without instances: Semantic FPN.",
    }[task]
    settings = pipeline.settings_of_task(task)
    if task == "semantic" and any(counts["pixels", c.id] for c in info.things):
        what += " All classes are learnt, also those that are called things."
        settings["semantic_targets"] = "all"
    return Section(what, settings)


def image_sizes(statistics: Statistics) -> Sizes:
    """The median size, but not more than the paper has; beyond that crops, if shrinking would lose
    the small objects.
    """
    hw = np.array(statistics.images.rows(), float)[:, :2]
    short, long = np.median(hw.min(1)), np.median(hw.max(1))
    boxes = np.array(statistics.boxes.rows(), float).reshape(-1, 4)
    reason = f"The median image has {short:.0f} x {long:.0f} pixels"
    small = np.inf  # what a tenth of the objects is smaller than, in the median image
    if len(boxes):
        share = np.sqrt(boxes[:, 0] * boxes[:, 1]) / boxes[:, 2:].min(1)
        small = short * max(np.quantile(share, SMALL_SHARE), 1e-6)
        factor = min(1.0, SMALL_OBJECT_PX / small)
        reason += f", where a tenth of the objects is smaller than {small:.0f}"
    else:
        factor = min(1.0, np.sqrt(SEMANTIC_PIXELS / (short * long)))
    most = min(MOST_SHORT, MOST_LONG * short / long)
    if short > most and factor * short > 1.1 * most:
        return _crops(hw, short, long, factor, reason)
    side = _multiple(min(short, most))
    reason += ". Training draws the shorter side as the paper does."
    if small * side / short < SMALL_OBJECT_PX:
        more = min(2.0, SMALL_OBJECT_PX * short / (small * side))
        reason += (
            f" With all four sizes and the anchors multiplied, for example by {more:.1f}, the"
            " network may find more of the small objects, at the cost of time."
        )
    aspect = np.quantile(hw.max(1) / hw.min(1), 0.95)
    longest = int(np.ceil(side * max(min(aspect, 2.5), long / short, MOST_LONG / MOST_SHORT)))
    sides = tuple(dict.fromkeys(max(32, round(side * factor)) for factor in JITTER))
    middle = float(np.median(sides))
    settings = {
        "train_min_sides": sides,
        "train_max_side": longest,
        "eval_min_side": side,
        "eval_max_side": longest,
    }
    return Sizes(Section(reason, settings), (middle, middle * long / short), middle, longest)


def _crops(hw, short, long, factor, reason):
    """Crops from images at `factor` of their size or nearly, and inference at that size."""
    factor = min(factor, np.sqrt(LARGEST_EVAL_PIXELS / (short * long)))
    factor = 1.0 if factor > 0.8 else float(f"{factor:.1g}")
    height, width = np.median(hw, axis=0) * factor
    part = min(1.0, np.sqrt(CROP_PIXELS / (height * width)))
    crop = tuple(_multiple(side * part) for side in (height, width))
    side = _multiple(factor * short)
    settings = {
        "random_scale": (0.5 * factor, 2.0 * factor),
        "crop_size": crop,
        "eval_min_side": side,
        "eval_max_side": int(np.ceil(side * max(long / short, MOST_LONG / MOST_SHORT))),
    }
    reason += (
        ": shrinking it as the paper shrinks COCO would lose too much. Training takes crops, as the"
        " paper does on Cityscapes; inference sees whole images."
    )
    return Sizes(Section(reason, settings), crop, factor * short, np.inf)


def anchors(statistics: Statistics, sizes: Sizes) -> Section:
    """Anchors by k-means, and what they match."""
    boxes = np.array(statistics.boxes.rows(), float)
    shorter, longer = boxes[:, 2:].min(1), boxes[:, 2:].max(1)
    scale = np.minimum(sizes.short / shorter, sizes.long / longer)
    boxes_hw = boxes[:, :2] * scale[:, np.newaxis]
    default = Config().model
    fixed = default.anchor_sizes, default.anchor_aspect_ratios
    told = []
    for chosen in (anchor_fit.fit(boxes_hw), fixed):
        shares = anchor_fit.matched(boxes_hw, *chosen)
        told.append(
            (
                sum(shares),
                "{:.0%} of the boxes at IoU 0.5 and {:.0%} at 0.7".format(*shares),
                chosen,
            )
        )
    fitted, paper = told
    at = f"at the training size, where the shorter side has {sizes.short:.0f} pixels"
    if fitted[0] > paper[0]:
        reason = (
            f"Anchors by k-means of the boxes' sides {at}. They match {fitted[1]}; the paper's"
            f" anchors {paper[1]}."
        )
    else:
        reason = (
            f"The paper's anchors match {paper[1]} {at}; k-means of their sides finds no better."
        )
    anchor_sizes, ratios = max(told, key=lambda found: found[0])[2]
    reason += " Of a box that none matches at 0.7, the best anchor learns."
    return Section(reason, {"anchor_sizes": anchor_sizes, "anchor_aspect_ratios": ratios})


def _detections(statistics, info):
    most = statistics.max_instances
    detections = min(max(100, -(-3 * most // 20) * 10), 1000)
    settings = {"max_detections": detections}
    if detections > 100:
        settings["max_instances"] = min(most, 300)
    if detections > 250:
        settings.update(rpn_pre_nms_top_k_eval=2 * detections, rpn_post_nms_top_k=4 * detections)
    needed = detections + len(info.stuff) + 1
    if needed > Config().export.max_segments:
        settings["max_segments"] = needed
    return Section(f"An image has at most {most} objects.", settings)


def stuff_limit(statistics: Statistics) -> Section:
    """The paper's limit, scaled to the images; less where true segments are that small."""
    stuff = np.array(statistics.stuff.rows(), float)
    pixels = np.median(np.prod(np.array(statistics.images.rows(), float)[:, :2], 1))
    scaled = STUFF_LIMIT * pixels
    area = stuff[:, 1] / (stuff[:, 2] * stuff[:, 3]) * pixels
    _, index, counts = np.unique(stuff[:, 0], return_inverse=True, return_counts=True)
    order = np.argsort(area)
    below = np.cumsum(1 / counts[index[order]] / len(counts))
    small = area[order][min(np.searchsorted(below, LOST_STUFF), len(area) - 1)]
    limit = int(min(scaled, small))
    reason = (
        f"The paper's limit of 4096 pixels for stuff on COCO is {int(scaled)} at this image size."
        f" {LOST_STUFF:.0%} of the true segments, averaged over the classes, are below {small:.0f}."
    )
    return Section(reason, {"fusion_stuff_area_threshold_px": limit})


FROM_SCRATCH = Section(
    "From scratch, without a download: GroupNorm everywhere, nothing frozen. Trained weights need a"
    " third of the steps, and are better where images are few. To start from those of ImageNet, or"
    " of a network that tools/convert_weights.py --list names, add: --init_weights=imagenet"
    " --backbone_norm=frozen_bn --head_norm=none --freeze_stages=2",
    {
        "backbone": "resnet50",
        "backbone_norm": "group_norm",
        "head_norm": "group_norm",
        "freeze_stages": 0,
        "gradient_clip_norm": 10,
    },
)


def schedule(statistics: Statistics, sizes: Sizes, epochs: float = 0) -> Section:
    """Batch, learning rate and steps for a number of epochs."""
    images = statistics.counts["images"]
    fitting = BATCH_PIXELS / (sizes.train_hw[0] * sizes.train_hw[1])
    batch = int(2 ** np.floor(np.log2(min(max(fitting, 2), 16, max(images / 4, 2)))))
    chosen = epochs or min(max(SEEN_IMAGES / images, EPOCHS[0]), EPOCHS[1])
    steps = max(1, round(chosen * images / batch))
    if not epochs:
        steps = max(steps, FEWEST_STEPS)
    warmup = min(1000, steps // 8)
    rate = 0.02 * min(1.0, batch / 4)
    settings = {
        "global_batch_size": batch,
        "learning_rate": rate,
        "warmup_steps": warmup,
        "train_steps": steps,
        "lr_decay_steps": sorted({s for s in (steps * 2 // 3, steps * 8 // 9) if s > warmup}),
        "checkpoint_interval_steps": min(1000, max(1, steps // 4)),
        "eval_interval_steps": min(5000, max(1, steps // 4)),
    }
    reason = (
        f"{images} images, {steps * batch / images:.3g} epochs (--epochs of create_tfrecords.py"
        f" chooses others). The batch is what one GPU of 16 GB holds; with less memory halve"
        " --global_batch_size and --learning_rate and double all steps."
    )
    return Section(reason, settings)


# -- the file ---------------------------------------------------------------------------------


def _multiple(side):
    """The nearest multiple of 32, the largest stride: padding then costs little."""
    return max(32, 32 * round(side / 32))


def _text(path, num_images, sections):
    flagfile = shlex.quote(f"--flagfile={path}")
    blocks = [
        f"# Suggested for the {num_images} training images beside this file by their statistics.\n"
        "# Each conversion writes it anew: copy it before you change it.\n#\n"
        f"#   python tools/train.py {flagfile} --run_dir=RUN\n"
        "#   python tools/predict.py --run_dir=RUN --images='PHOTOS/*.jpg' --output_dir=OUT\n#\n"
        "# With a GPU add --xla --static_shapes. Where you move the records, change their paths."
    ]
    for reason, settings in sections:
        lines = [f"# {line}" for line in textwrap.wrap(reason, 96, break_on_hyphens=False)]
        lines += [f"--{name}={config_checks.text_of(value)}" for name, value in settings.items()]
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"
