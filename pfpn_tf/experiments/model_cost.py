"""Multiply-adds, activations and parameters of a network, counted in its traced graph.

As in the paper's Figure 4 and Table 1a: the multiply-adds are those of convolutions, the
activations are the outputs of convolutions, both for one image. Matrix products (the box head's
layers, the mask head's last ones) are counted on their own. Nothing is computed: the network is
built and traced at the given size, and every convolution of the graph says its shapes.
"""

import dataclasses
from typing import Dict, NamedTuple, Sequence, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import breakdown
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.utils import tables
from pfpn_tf.utils.errors import UserError

PYRAMID_COMPONENTS = ("backbone", "fpn", "symmetric_decoder", "backbone_levels")
"""Layers up to the pyramid: what the paper calls the backbone architecture."""


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


def count(config: config_lib.Model, example: Example) -> Dict[str, Cost]:
    """The cost of each component of a network at inference.

    Returns:
      Component name to `Cost`, in the order of the data flow.
    """
    num_thing_classes, num_semantic_classes, image_hw = example
    model = panoptic_fpn.build_model(config, num_thing_classes, num_semantic_classes)
    costs = {layer.name: Cost(parameters=layer.count_params()) for layer in model.layers}
    for op in trace(model, image_hw).get_operations():
        parts = op.name.split("/")
        component = next((part for part in parts if part in costs), None)
        if component:
            costs[component] += operation_cost(op)
    return costs


def trace(model: panoptic_fpn.PanopticFPN, image_hw: Tuple[int, int]) -> tf.Graph:
    """The inference graph of a network for one image of a fixed size."""
    function = tf.function(lambda images, hw: model(images, hw), autograph=False)
    specs = tf.TensorSpec([1, *image_hw, 3]), tf.TensorSpec([1, 2], tf.int32)
    return function.get_concrete_function(*specs).graph


def operation_cost(op: tf.Operation) -> Cost:
    """The cost of one node of a graph; zero for all but convolutions and matrix products."""
    count = breakdown.of_operation(op)
    if isinstance(count, tf.Tensor):
        raise AssertionError(f"{op.name}: its shapes are not known when traced")
    if op.type == "Conv2D":
        return Cost(count, op.outputs[0].shape.num_elements())
    return Cost(dense_multiply_adds=count)


def total(costs: Dict[str, Cost], components: Sequence[str] = ()) -> Cost:
    """The sum over some components, or over all."""
    chosen = [cost for name, cost in costs.items() if not components or name in components]
    return sum(chosen, Cost())


def table(costs: Dict[str, Cost]) -> str:
    """A text table of the components and their sum, in units of 1e9, 1e6, 1e9 and 1e6."""
    header = ["Component", "conv MACs/1e9", "conv outputs/1e6", "dense MACs/1e9", "parameters/1e6"]
    rows = [[name, *_in_units(cost)] for name, cost in costs.items()]
    rows.append(["Total", *_in_units(total(costs))])
    return tables.aligned(header, rows)


def parse_size(text: str) -> Tuple[int, int]:
    """ "1024x2048" -> (1024, 2048), height and width.

    Raises:
      UserError: it is no such text, or not a multiple of 32.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"--image_size={text} must be HEIGHTxWIDTH in pixels, e.g. 1024x2048.")
    image_hw = int(parts[0]), int(parts[1])
    if min(image_hw) < 32 or any(side % 32 for side in image_hw):
        nearest = "x".join(str(max(32, round(side / 32) * 32)) for side in image_hw)
        raise UserError(
            f"--image_size={text} must be multiples of 32, as the network "
            f"pads its input; e.g. {nearest}."
        )
    return image_hw


def _in_units(cost):
    units = (1e9, 1e6, 1e9, 1e6)
    return [f"{value / unit:,.2f}" for value, unit in zip(dataclasses.astuple(cost), units)]
