"""Networks side by side: the paper's Figure 4, Table 1a and the two networks of Table 3a.

A comparison is a list of `Row`s: what to build, which of its components count, and what the paper
says. Everything is counted by `model_cost`, and on request measured.
"""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure, model_cost
from pfpn_tf.benchmark.model_cost import Cost
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.utils.files import atomic_write

PYRAMID = "backbone and decoder"
WHOLE = "whole network"


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
    """A row with its figures; `measured` is what `measure_inference` returns, or None."""

    row: Row
    cost: Cost
    measured: Optional[Dict[str, Any]] = None


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
    rows: Sequence[Row],
    num_thing_classes: int,
    num_semantic_classes: int,
    image_hw: Tuple[int, int],
    measure_repeats: int = 0,
) -> List[Result]:
    """Counts every row; measures it as well if `measure_repeats` is positive.

    Args:
      rows: what to compare.
      num_thing_classes, num_semantic_classes: of the dataset.
      image_hw: size of the padded input, multiples of 32.
      measure_repeats: timed runs of each row, in a process of its own.

    Raises:
      ValueError: the size is not a multiple of 32.
    """
    model_cost.check_size(image_hw)
    classes = num_thing_classes, num_semantic_classes
    counted, results = {}, []
    for row in rows:
        cost = Cost()
        for network in row.networks:
            if network not in counted:
                counted[network] = model_cost.count(network, *classes, image_hw)
            components = model_cost.PYRAMID_COMPONENTS if row.part == PYRAMID else ()
            cost += model_cost.total(counted[network], components)
        measured = None
        if measure_repeats:
            measured = measure.in_fresh_process(
                measure_inference, row.networks, row.part, *classes, image_hw, measure_repeats
            )
        results.append(Result(row, cost, measured))
    return results


def measure_inference(
    networks: Sequence[config_lib.Model],
    part: str,
    num_thing_classes: int,
    num_semantic_classes: int,
    image_hw: Tuple[int, int],
    repeats: int,
) -> Dict[str, Any]:
    """Time and peak memory of one image through the networks, one after the other.

    Meant for a fresh process, since the peak is that of the process.

    Args:
      networks: which; their weights are random.
      part: `PYRAMID` or `WHOLE`.
      num_thing_classes, num_semantic_classes: of the dataset.
      image_hw: size of the padded input.
      repeats: timed runs.

    Returns:
      What `measure.timed` returns, and `peak_memory_mib` of the GPU if there is one, else of the
      process with TensorFlow and weights.
    """
    models = [
        panoptic_fpn.build_model(network, num_thing_classes, num_semantic_classes)
        for network in networks
    ]
    images = tf.random.stateless_uniform([1, *image_hw, 3], (0, 0), -100.0, 100.0)

    def forward(model, images):
        if part == PYRAMID:
            return model.fpn(model.backbone(images))
        return model(images, tf.constant([image_hw]))

    functions = [
        tf.function(lambda images, model=model: forward(model, images), autograph=False)
        for model in models
    ]

    def run():
        for function in functions:
            outputs = [x for x in tf.nest.flatten(function(images)) if x is not None]
            outputs[-1].numpy()  # waits for the device

    result = measure.timed(run, repeats)
    if tf.config.list_physical_devices("GPU"):
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    else:
        peak = measure.peak_memory_mib()
    return {**result, "peak_memory_mib": round(peak, 1)}


def table(results: Sequence[Result]) -> str:
    """A text table: what was counted, the paper's figures beside it, and what was measured."""
    header = ["Network", "conv MACs/1e12", "paper", "conv outputs/1e9", "paper", "parameters/1e6"]
    is_measured = any(result.measured for result in results)
    if is_measured:
        header += ["ms", "peak MiB"]
    rows = []
    for row, cost, measured in results:
        paper = ["-", "-"] if row.paper is None else [f"{value:g}" for value in row.paper]
        cells = [row.label, f"{cost.conv_multiply_adds / 1e12:.3f}", paper[0]]
        cells += [f"{cost.conv_activations / 1e9:.3f}", paper[1], f"{cost.parameters / 1e6:.1f}"]
        if is_measured:
            cells += [f"{measured['median_ms']:,.0f}", f"{measured['peak_memory_mib']:,.0f}"]
        rows.append(cells)
    return model_cost.aligned(header, rows)


def as_json(results: Sequence[Result]) -> List[Dict[str, Any]]:
    """The results for a JSON file, in whole numbers."""
    return [
        {
            "label": row.label,
            "part": row.part,
            "backbones": [network.backbone for network in row.networks],
            **cost._asdict(),
            "paper": row.paper,
            "measured": measured,
        }
        for row, cost, measured in results
    ]


def draw(results: Sequence[Result], path: str, title: str) -> None:
    """Writes a picture: a bar for each row in multiply-adds, activations and what was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("multiply-adds / $10^{12}$", [r.cost.conv_multiply_adds / 1e12 for r in results]),
        ("activations / $10^{9}$", [r.cost.conv_activations / 1e9 for r in results]),
    ]
    if all(r.measured for r in results):
        panels.append(("seconds", [r.measured["median_ms"] / 1e3 for r in results]))
        peaks = [r.measured["peak_memory_mib"] / 1024 for r in results]
        panels.append(("peak memory / GiB", peaks))
    height = 1.2 + 0.45 * len(results)
    figure, axes = pyplot.subplots(
        1, len(panels), sharey=True, figsize=(2.2 + 3.2 * len(panels), height), layout="constrained"
    )
    labels = [r.row.label for r in results]
    for axis, (name, values), color in zip(axes, panels, ("C0", "C1", "C2", "C3")):
        bars = axis.barh(labels, values, color=color)
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.set_xlabel(name)
        axis.set_xlim(0, 1.18 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.suptitle(title)
    with atomic_write(path, "wb") as f:
        figure.savefig(f, format=os.path.splitext(path)[1][1:], dpi=120)
    pyplot.close(figure)
