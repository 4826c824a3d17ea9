"""Networks side by side: the paper's Figure 4, Table 1a and the two networks of Table 3a.

A comparison is a list of `Row`s: what to build, which of its components count, and what the paper
says. Everything is counted by `model_cost`, and on request measured.
"""

import dataclasses
import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure, training
from pfpn_tf.experiments import model_cost
from pfpn_tf.experiments.model_cost import Cost, Example
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from pfpn_tf.utils import tables
from pfpn_tf.utils.files import atomic_write

PYRAMID = "backbone and decoder"
WHOLE = "whole network"
INFERENCE = "inference"
TRAINING = "training"
_NUM_INSTANCES = 10  # of the image that is drawn for training


class Row(NamedTuple):
    """One bar of a comparison.

    Attributes:
      label: its name.
      networks: settings of the networks that one needs for it, mostly one.
      part: `PYRAMID` or `WHOLE`.
      paper: what the paper says, if it gives numbers: (multiply-adds / 1e12, activations / 1e9).
    """

    label: str
    networks: Sequence[config_lib.Model]
    part: str = WHOLE
    paper: Optional[Tuple[float, float]] = None


class Result(NamedTuple):
    """A row with its figures.

    Attributes:
      row: see there.
      cost: what was counted.
      measured: what `measure_row` returns, by the work that was measured.
    """

    row: Row
    cost: Cost
    measured: Mapping[str, Dict[str, float]] = {}


def figure_4(base: config_lib.Config) -> List[Row]:
    """Ways to raise the resolution of a backbone's features: dilation, symmetric decoder, FPN."""

    def row(label, **settings):
        model = base.replace(task="semantic", fpn_groups=1, **settings).model
        return Row(label, [model], PYRAMID)

    plain = {"decoder": "none", "semantic_head": "deeplabv3"}
    pyramid = {"output_stride": 32, "semantic_head": "fpn"}
    return [
        row(base.model.backbone, output_stride=32, **plain),
        row("dilation-16", output_stride=16, **plain),
        row("dilation-8", output_stride=8, **plain),
        row("symmetric decoder", decoder="symmetric", **pyramid),
        row("FPN", decoder="fpn", **pyramid),
    ]


def table_1a(base: config_lib.Config) -> List[Row]:
    """The rows of Table 1a that are built here, whole."""

    def row(label, paper, **settings):
        settings = {"decoder": "fpn", "semantic_head": "fpn", "output_stride": 32, **settings}
        model = base.replace(task="semantic", fpn_groups=1, **settings).model
        return Row(label, [model], WHOLE, paper)

    dilated = {"decoder": "none", "semantic_head": "deeplabv3", "output_stride": 8}
    return [
        row("DeepLabV3 ResNet-101-D8", (1.9, 1.9), backbone="resnet101", **dilated),
        row("Semantic FPN ResNet-101", (0.5, 0.8), backbone="resnet101"),
        row(
            "Semantic FPN ResNeXt-101 64x4d",
            (0.8, 1.4),
            backbone="resnext101_64x4d",
            stride_in_1x1=False,
        ),
    ]


def two_networks(base: config_lib.Config) -> List[Row]:
    """Panoptic FPN against a network for things and another for stuff (Table 3a)."""
    panoptic, instance, semantic = (
        base.replace(task=task, fpn_groups=1, alternate_losses=False).model
        for task in ("panoptic", "instance", "semantic")
    )
    return [
        Row(f"{label}, {part}", networks, part)
        for part in (PYRAMID, WHOLE)
        for label, networks in (
            ("Panoptic FPN", [panoptic]),
            ("Mask R-CNN + Semantic FPN", [instance, semantic]),
        )
    ]


COMPARISONS = {"figure4": figure_4, "table1a": table_1a, "two_networks": two_networks}


def compare(
    rows: Sequence[Row], example: Example, works: Sequence[str] = (), repeats: int = 5
) -> List[Result]:
    """Counts every row, and measures it at the given works.

    Args:
      rows: what to compare.
      example: the image.
      works: which of `INFERENCE` and `TRAINING` to measure.
      repeats: timed runs of each network.
    """
    counted, results = {}, []
    for row in rows:
        cost = Cost()
        for network in row.networks:
            if network not in counted:
                counted[network] = model_cost.count(network, example)
            components = model_cost.PYRAMID_COMPONENTS if row.part == PYRAMID else ()
            cost += model_cost.total(counted[network], components)
        measured = {work: measure_row(row, example, work, repeats) for work in works}
        results.append(Result(row, cost, measured))
    return results


def measure_row(row: Row, example: Example, work: str, repeats: int) -> Dict[str, float]:
    """Time and memory of one image through all networks of a row, the sums of theirs.

    Each network has a process of its own. So the time is that of the networks one after the other,
    and the memory what they take while all of them work at the same time, as two served models or
    two trainings do: their peaks may coincide.

    Args:
      row: the networks; their weights are random.
      example: the image.
      work: `INFERENCE`, or `TRAINING`: a forward pass and the gradients of the trained weights. The
        loss is the network's with drawn labels, or for `PYRAMID` the mean square of the features.
        There is no optimizer: momentum would add the trained weights once more.
      repeats: timed runs.

    Returns:
      median_ms, and in MiB:
      peak_memory_mib: of resident memory; with a GPU of its allocator.
      import_memory_mib: what the processes held before they built a network: TensorFlow and its
        libraries, of which a machine keeps one copy. 0 with a GPU.
      network_memory_mib: the difference of the two: weights, activations and, in training,
        gradients, with what TensorFlow needs to compute them.
    """
    each = [
        measure.in_fresh_process(_measure_network, network, row.part, example, work, repeats)
        for network in row.networks
    ]
    return {name: round(sum(figures[name] for figures in each), 1) for name in each[0]}


def _measure_network(network, part, example, work, repeats):
    """What `measure_row` returns, of one network in this process."""
    tf.zeros([]).numpy()  # starts TensorFlow
    started = measure.memory_mib()
    function = function_of(network, part, example, work)

    def run():
        outputs = [x for x in tf.nest.flatten(function()) if x is not None]
        outputs[-1].numpy()  # waits for the device

    median_ms = measure.timed(run, repeats)["median_ms"]
    peak = measure.peak_gpu_memory_mib()
    if peak is None:
        peak = measure.peak_memory_mib()
    else:
        started = 0.0
    return {
        "median_ms": median_ms,
        "peak_memory_mib": peak,
        "import_memory_mib": started,
        "network_memory_mib": peak - started,
    }


def function_of(
    network: config_lib.Model, part: str, example: Example, work: str
) -> Callable[[], Any]:
    """What `measure_row` runs of one network: a function that takes nothing.

    Returns:
      Of `INFERENCE` the pyramid or the network's outputs, of `TRAINING` (gradients of the trained
      weights, loss).
    """
    # How long a whole network takes depends on what its weights detect, and by chance that doubled
    # from one process to the next. Seeded, networks have the same weights in what they share.
    tf.keras.utils.set_random_seed(0)
    num_thing_classes, num_semantic_classes, image_hw = example
    model = panoptic_fpn.PanopticFPN(network, num_thing_classes, num_semantic_classes)
    if part == PYRAMID:
        model.fpn(model.backbone(tf.zeros([1, 64, 64, 3])))  # their weights, and none of the heads
    else:
        model.build()
    training.calm(model)
    function = _inference if work == INFERENCE else _training
    return tf.function(function(model, part, image_hw), autograph=False)


def _inference(model, part, image_hw):
    images = tf.random.stateless_uniform([1, *image_hw, 3], (0, 0), -100.0, 100.0)
    if part == PYRAMID:
        return lambda: model.fpn(model.backbone(images))
    return lambda: model(images, tf.constant([image_hw]))


def _training(model, part, image_hw):
    classes = model.num_thing_classes, model.num_semantic_classes
    drawn = training.drawn_batch(1, image_hw, _NUM_INSTANCES, *classes)
    batch = {name: tf.constant(value) for name, value in drawn.items()}
    images = batch["images"]
    config = dataclasses.replace(config_lib.Config(), model=model.config)

    def loss():
        if part == PYRAMID:
            pyramid = model.fpn(model.backbone(images, training=True), training=True)
            return tf.add_n([tf.reduce_mean(tf.square(x)) for x in pyramid.values()])
        labels = GroundTruth(*(batch[f"gt_{name}"] for name in GroundTruth._fields))
        outputs = model(images, batch["image_hw"], labels, batch["seed"], training=True)
        return panoptic_fpn_losses(outputs, labels, config)["total"]

    def gradients():
        with tf.GradientTape() as tape:
            value = loss()
        parts = [model.backbone, model.fpn] if part == PYRAMID else [model]
        weights = [weight for x in parts for weight in x.trainable_variables]
        return tape.gradient(value, weights), value

    return gradients


def table(results: Sequence[Result]) -> str:
    """A text table: what was counted, with the paper's figures beside it."""
    header = ["Network", "conv MACs/1e12", "paper", "conv outputs/1e9", "paper", "parameters/1e6"]
    rows = []
    for row, cost, _ in results:
        paper = ["-", "-"] if row.paper is None else [f"{value:g}" for value in row.paper]
        cells = [row.label, f"{cost.conv_multiply_adds / 1e12:.3f}", paper[0]]
        cells += [f"{cost.conv_activations / 1e9:.3f}", paper[1], f"{cost.parameters / 1e6:.1f}"]
        rows.append(cells)
    return tables.aligned(header, rows)


def measured_table(results: Sequence[Result]) -> str:
    """A text table of what was measured, in ms and MiB; empty if nothing was."""
    header = ["Network", "work", "ms", "networks MiB", "TensorFlow MiB", "peak MiB"]
    names = ["median_ms", "network_memory_mib", "import_memory_mib", "peak_memory_mib"]
    rows = [
        [result.row.label, work, *(f"{result.measured[work][name]:,.0f}" for name in names)]
        for work in (INFERENCE, TRAINING)
        for result in results
        if work in result.measured
    ]
    return tables.aligned(header, rows) if rows else ""


def as_json(results: Sequence[Result]) -> List[Dict[str, Any]]:
    """The results for a JSON file; the counts are not scaled."""
    return [
        {
            "label": row.label,
            "part": row.part,
            "backbones": [network.backbone for network in row.networks],
            **dataclasses.asdict(cost),
            "paper": row.paper,
            "measured": measured,
        }
        for row, cost, measured in results
    ]


def draw(results: Sequence[Result], path: str, title: str) -> None:
    """Writes a picture: a bar for each row in multiply-adds, activations and what was measured.

    A bar of memory ends at the peak: what the networks take, in colour, then TensorFlow, in grey.
    """
    from matplotlib.figure import Figure

    none = [0.0] * len(results)
    panels = [
        ("multiply-adds / $10^{12}$", [r.cost.conv_multiply_adds / 1e12 for r in results], none),
        ("activations / $10^{9}$", [r.cost.conv_activations / 1e9 for r in results], none),
    ]
    for work in (INFERENCE, TRAINING):
        if not all(work in r.measured for r in results):
            continue
        measured = [r.measured[work] for r in results]
        panels.append((f"{work}: seconds", [m["median_ms"] / 1e3 for m in measured], none))
        memory = [m["network_memory_mib"] / 1024 for m in measured]
        started = [m["import_memory_mib"] / 1024 for m in measured]
        name = "networks + TensorFlow" if any(started) else "networks"
        panels.append((f"{work}: GiB, {name}", memory, started))
    size = 2.2 + 3.2 * len(panels), 1.2 + 0.45 * len(results)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    labels = [r.row.label for r in results]
    for i, (axis, (name, values, more)) in enumerate(zip(axes, panels)):
        axis.barh(labels, values, color=f"C{i}")
        bars = axis.barh(labels, more, left=values, color="0.8")
        texts = [f"{a:.3g} + {b:.3g}" if b else f"{a:.3g}" for a, b in zip(values, more)]
        axis.bar_label(bars, texts, padding=3)
        axis.set_xlabel(name)
        axis.set_xlim(0, (1.5 if any(more) else 1.18) * max(map(sum, zip(values, more))))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    with atomic_write(path, "wb") as f:
        figure.savefig(f, format=os.path.splitext(path)[1][1:], dpi=120)
