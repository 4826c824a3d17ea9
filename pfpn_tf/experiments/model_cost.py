"""What networks cost, side by side: the paper's Figure 4, Table 1a and the networks of Table 3a.

A comparison is a list of `Row`s: what to build, which of its components count, and what the paper
says. As there, the multiply-adds are those of convolutions, the activations are the outputs of
convolutions, both for one image. Matrix products (the box head's layers, the mask head's last ones)
are counted on their own. Nothing is computed for that: the network is built and traced at the given
size, and every convolution of the graph says its shapes. On request networks are also measured.
"""

import dataclasses
import functools
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import breakdown, measure, training
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from pfpn_tf.utils import tables
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

PYRAMID = "backbone and decoder"
WHOLE = "whole network"
INFERENCE = "inference"
TRAINING = "training"
_PYRAMID_COMPONENTS = ("backbone", "fpn", "symmetric_decoder", "backbone_levels")
_NUM_INSTANCES = 10  # of the image that is drawn for training


class Example(NamedTuple):
    """The one image that costs are counted and measured for.

    Attributes:
      num_thing_classes, num_semantic_classes: of its dataset.
      image_hw: size of the padded input, multiples of 32.
    """

    num_thing_classes: int
    num_semantic_classes: int
    image_hw: Tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one component costs for one image.

    Attributes:
      conv_multiply_adds: of its convolutions.
      conv_activations: numbers in the outputs of its convolutions.
      dense_multiply_adds: of its matrix products.
      parameters: all of its variables, norm statistics included.
    """

    conv_multiply_adds: int = 0
    conv_activations: int = 0
    dense_multiply_adds: int = 0
    parameters: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Cost(*(a + b for a, b in pairs))


class Row(NamedTuple):
    """One bar of a comparison.

    Attributes:
      label: its name.
      networks: settings of the networks that one needs for it, mostly one.
      part: `PYRAMID`, what the paper calls the backbone architecture, or `WHOLE`.
      paper: what the paper says, if it gives numbers: (multiply-adds / 1e12, activations / 1e9).
    """

    label: str
    networks: Sequence[config_lib.Model]
    part: str = WHOLE
    paper: Optional[Tuple[float, float]] = None


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


@functools.lru_cache
def count(config: config_lib.Model, example: Example) -> Dict[str, Cost]:
    """The cost of each component of a network at inference.

    Returns:
      Component name to `Cost`, in the order of the data flow.
    """
    num_thing_classes, num_semantic_classes, image_hw = example
    model = panoptic_fpn.build_model(config, num_thing_classes, num_semantic_classes)
    costs = {layer.name: Cost(parameters=layer.count_params()) for layer in model.layers}
    function = tf.function(lambda images, hw: model(images, hw), autograph=False)
    specs = tf.TensorSpec([1, *image_hw, 3]), tf.TensorSpec([1, 2], tf.int32)
    for op in function.get_concrete_function(*specs).graph.get_operations():
        component = next((part for part in op.name.split("/") if part in costs), None)
        if component:
            costs[component] += operation_cost(op)
    return costs


def operation_cost(op: tf.Operation) -> Cost:
    """The cost of one node of a graph; zero for all but convolutions and matrix products."""
    count = breakdown.of_operation(op)
    if isinstance(count, tf.Tensor):
        raise AssertionError(f"{op.name}: its shapes are not known when traced")
    if op.type == "Conv2D":
        return Cost(count, op.outputs[0].shape.num_elements())
    return Cost(dense_multiply_adds=count)


def compare(
    rows: Sequence[Row], example: Example, works: Sequence[str] = (), repeats: int = 5
) -> List[Dict[str, Any]]:
    """Counts every row, and measures it at the given works.

    Args:
      rows: what to compare.
      example: the image.
      works: which of `INFERENCE` and `TRAINING` to measure.
      repeats: timed runs of each network.

    Returns:
      Of each row label, part, backbones and paper, the counts of `Cost`, and `measured`: by work
      what `measure_row` returns.
    """
    results = []
    for row in rows:
        cost = Cost()
        for network in row.networks:
            for name, of_component in count(network, example).items():
                if row.part == WHOLE or name in _PYRAMID_COMPONENTS:
                    cost += of_component
        result = {
            "label": row.label,
            "part": row.part,
            "backbones": [network.backbone for network in row.networks],
            **dataclasses.asdict(cost),
            "paper": row.paper,
            "measured": {work: measure_row(row, example, work, repeats) for work in works},
        }
        results.append(result)
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


def table(results: Sequence[Dict[str, Any]]) -> str:
    """A text table of labels and counts, and of the paper's figures beside them if it has some."""
    header = ["Network", "conv MACs/1e9", "conv outputs/1e6", "dense MACs/1e9", "parameters/1e6"]
    units = dict(zip((field.name for field in dataclasses.fields(Cost)), (1e9, 1e6, 1e9, 1e6)))
    rows = [
        [result["label"], *(f"{result[name] / unit:,.2f}" for name, unit in units.items())]
        for result in results
    ]
    if any(result.get("paper") for result in results):
        header.append("paper: MACs/1e12, outputs/1e9")
        for row, result in zip(rows, results):
            row.append("{:g}, {:g}".format(*result["paper"]) if result["paper"] else "-")
    return tables.aligned(header, rows)


def measured_table(results: Sequence[Dict[str, Any]]) -> str:
    """A text table of what was measured, in ms and MiB."""
    header = ["Network", "work", "ms", "networks MiB", "TensorFlow MiB", "peak MiB"]
    names = ["median_ms", "network_memory_mib", "import_memory_mib", "peak_memory_mib"]
    rows = [
        [result["label"], work, *(f"{result['measured'][work][name]:,.0f}" for name in names)]
        for work in (INFERENCE, TRAINING)
        for result in results
        if work in result["measured"]
    ]
    return tables.aligned(header, rows)


def draw(results: Sequence[Dict[str, Any]], path: str, title: str) -> None:
    """Writes a PNG: a bar for each row in multiply-adds, activations and what was measured.

    A bar of memory ends at the peak: what the networks take, in colour, then TensorFlow, in grey.
    """
    from matplotlib.figure import Figure

    none = [0.0] * len(results)
    panels = [
        ("multiply-adds / $10^{12}$", [r["conv_multiply_adds"] / 1e12 for r in results], none),
        ("activations / $10^{9}$", [r["conv_activations"] / 1e9 for r in results], none),
    ]
    for work in results[0]["measured"]:
        measured = [r["measured"][work] for r in results]
        panels.append((f"{work}: seconds", [m["median_ms"] / 1e3 for m in measured], none))
        memory = [m["network_memory_mib"] / 1024 for m in measured]
        started = [m["import_memory_mib"] / 1024 for m in measured]
        name = "networks + TensorFlow" if any(started) else "networks"
        panels.append((f"{work}: GiB, {name}", memory, started))
    size = 2.2 + 3.2 * len(panels), 1.2 + 0.45 * len(results)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    labels = [r["label"] for r in results]
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
        figure.savefig(f, format="png", dpi=120)


def parse_size(text: str) -> Tuple[int, int]:
    """ "1024x2048" -> (1024, 2048), height and width.

    Raises:
      UserError: it is no such text, or not a multiple of 32.
    """
    match = re.fullmatch("([0-9]+)x([0-9]+)", text.lower())
    image_hw = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(image_hw) < 32 or any(side % 32 for side in image_hw):
        raise UserError(
            f"--image_size={text} must be HEIGHTxWIDTH in pixels, multiples of 32, as the network"
            " pads its input; e.g. 1024x2048."
        )
    return image_hw
