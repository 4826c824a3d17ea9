"""Where the time of an answer or of a training step goes, by component, beside its floor.

TensorFlow's profiler tells when each operation ran, and its name has the name scopes of the layer
or function that it comes from. Operations run side by side: each moment is shared equally between
those that run in it, and a moment in which none runs belongs to the rest. So the components' times
add up to the whole. An operation that waits for the thread pool counts as running.

The floor is the time that the multiply-adds of the network's convolutions and matrix products would
take at the rate of a 3x3 convolution, measured in the same process. The backward pass counts.
"""

import glob
import os
import re
import tempfile
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Tuple, Union

import tensorflow as tf

from pfpn_tf.benchmark import measure
from pfpn_tf.ops import convolution
from pfpn_tf.utils import scopes, tables
from pfpn_tf.utils.errors import UserError

COMPONENTS = {
    "decode_and_resize": "decode and resize",
    "backbone": "backbone",
    "fpn": "FPN",
    "symmetric_decoder": "FPN",
    "rpn_head": "RPN",
    "rpn": "RPN",
    "targets": "targets",
    "roi_align": "RoIAlign",
    "box_head": "box head",
    "detections": "box head",
    "mask_head": "mask head",
    "semantic_head": "semantic branch",
    "labels": "labels",
    "fusion": "fusion",
    "png": "PNG",
    "losses": "losses",
    "optimizer": "optimizer",
}
"""Name scope to component, in the order of the data flow."""

REST = "the rest"

# Functions and loops: what they call has events of its own.
_CALLS = re.compile(r"(Stateful|Stateless)?(PartitionedCall|While|If)")
_OPERATION = re.compile(r"(?P<name>[^:\s]+):(?P<type>[A-Za-z_]\w*)")
_RATE_SHAPE, _RATE_CHANNELS = (100, 168), 256
_RUN = "measured_run"

Event = Tuple[str, float, float]
"""Component, start and end in ms."""


class Breakdown(NamedTuple):
    """Means over the profiled calls.

    Attributes:
      whole_ms: of one call.
      ms: component to its share of that; with `REST`, they add up to `whole_ms`.
    """

    whole_ms: float
    ms: Dict[str, float]


def component_of(name: str) -> str:
    """The component of an operation by its name: that of the innermost scope that has one."""
    parts = [re.sub(r"_\d+$", "", part) for part in name.split("/")]  # TensorFlow numbers repeats
    found = next((COMPONENTS[part] for part in reversed(parts) if part in COMPONENTS), REST)
    return f"{found}, backward" if scopes.GRADIENTS in parts and found != REST else found


def profile(function: Callable[[], Any], repeats: int) -> Breakdown:
    """Calls `function`, which must have been traced, and tells what its operations took.

    Args:
      function: what to profile; it must return only when its work is done.
      repeats: profiled calls.

    Raises:
      UserError: there is a GPU, whose work operations only start.
    """
    if tf.config.list_physical_devices("GPU"):
        raise UserError(
            "--breakdown measures CPUs: set CUDA_VISIBLE_DEVICES= for that. What a GPU does,"
            " tools/train.py --profile_steps= records for TensorBoard."
        )
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
        tf.profiler.experimental.start(folder, options)
        for _ in range(repeats):
            with tf.profiler.experimental.Trace(_RUN):
                function()
        tf.profiler.experimental.stop()
        (path,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
        events, runs = _read(path)
    begin, end = runs[0][1], runs[-1][2]
    whole = end - begin
    inside = [(name, max(a, begin), min(b, end)) for name, a, b in events if a < end and b > begin]
    times = shares(inside)
    times[REST] = times.get(REST, 0.0) + whole - sum(times.values())
    return Breakdown(whole / repeats, {name: ms / repeats for name, ms in times.items()})


def shares(events: Iterable[Event]) -> Dict[str, float]:
    """Component to ms, each moment shared equally between the events that it is part of."""
    borders: List[Tuple[float, int, str]] = []
    for component, start, end in events:
        borders += [(start, 1, component), (end, -1, component)]
    running: Dict[str, int] = {}
    times: Dict[str, float] = {}
    before = 0.0
    for moment, change, component in sorted(borders):
        total = sum(running.values())
        for name, count in running.items():
            if count:
                times[name] = times.get(name, 0.0) + (moment - before) * count / total
        running[component] = running.get(component, 0) + change
        before = moment
    return times


def _read(path) -> Tuple[List[Event], List[Event]]:
    """The operations, and the calls, of a file that the profiler wrote."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with open(path, "rb") as f:
        space = xplane_pb2.XSpace.FromString(f.read())
    (host,) = [plane for plane in space.planes if plane.name == "/host:CPU"]
    events, runs = [], []
    for line in host.lines:
        for event in line.events:
            name = host.event_metadata[event.metadata_id].name
            start = line.timestamp_ns / 1e6 + event.offset_ps / 1e9
            end = start + event.duration_ps / 1e9
            operation = _OPERATION.fullmatch(name)
            if name == _RUN:
                runs.append((name, start, end))
            elif operation and not _CALLS.fullmatch(operation["type"]):
                events.append((component_of(operation["name"]), start, end))
    return events, runs


def multiply_adds(function: Callable[..., Any], *args) -> Dict[str, int]:
    """Component to the multiply-adds of its convolutions and matrix products.

    Args:
      function: to trace and run; what loops and nested functions compute does not count.
      *args: tensors for it.
    """
    names: List[str] = []

    @tf.function(autograph=False)
    def run():
        results = [x for x in tf.nest.flatten(function(*args)) if x is not None]
        counts = []
        for op in _needed_for(results):
            count = of_operation(op)
            if isinstance(count, tf.Tensor) or count:
                names.append(component_of(op.name))
                counts.append(tf.cast(count, tf.int64))
        return counts, results

    counts: Dict[str, int] = {}
    for name, count in zip(names, run()[0]):
        counts[name] = counts.get(name, 0) + int(count)
    return counts


def _needed_for(results):
    """The operations that compute the results: TensorFlow leaves out others, as the gradient with
    respect to the images.
    """
    found, new = set(), [tf.convert_to_tensor(x).op for x in results]
    while new:
        op = new.pop()
        if op not in found:
            found.add(op)
            new += [x.op for x in op.inputs] + op.control_inputs
    # As they stand in the graph, inputs first.
    return [op for op in tf.compat.v1.get_default_graph().get_operations() if op in found]


def of_operation(op: tf.Operation) -> Union[int, tf.Tensor]:
    """The multiply-adds of an operation; a scalar tensor where its shapes are not known yet."""
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        return _size(op.outputs[0]) * _side(op.inputs[0], -2 if transposed else -1)
    if op.type not in ("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter"):
        return 0
    # [k, k, in / groups, out]: each output number is the sum of k * k * in / groups products.
    kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
    outputs = op.outputs[0] if op.type == "Conv2D" else op.inputs[2]
    height, width, inputs, _ = kernel.shape
    return _size(outputs) * (height * width * inputs // convolution.groups_in_one_kernel(op.name))


def _size(tensor):
    return tensor.shape.num_elements() or tf.size(tensor, tf.int64)


def _side(tensor, axis):
    return tensor.shape[axis] or tf.shape(tensor, tf.int64)[axis]


def convolution_rate(dtype: tf.DType) -> float:
    """Multiply-adds per ms of a 3x3 convolution of 256 channels on this machine."""
    channels = _RATE_CHANNELS
    x = tf.random.normal([1, *_RATE_SHAPE, channels])
    kernel = tf.random.normal([3, 3, channels, channels])
    x, kernel = tf.cast(x, dtype), tf.cast(kernel, dtype)
    convolve = tf.function(lambda: tf.nn.conv2d(x, kernel, 1, "SAME"), autograph=False)
    took = measure.timed(lambda: convolve()[0, 0, 0, 0].numpy(), 5)["median_ms"]
    return 9 * channels**2 * _RATE_SHAPE[0] * _RATE_SHAPE[1] / took


def measured(
    function: Callable[[], Any],
    repeats: int,
    unprofiled: Mapping[str, Any],
    counts: Mapping[str, int],
    dtype: str,
) -> Dict[str, Any]:
    """Profiles `function` and measures the floor.

    Args:
      function, repeats: as in `profile`.
      unprofiled: what `measure.timed` returned for it.
      counts: from `multiply_adds`; empty: not known.
      dtype: type of the convolutions.

    Returns:
      "components": name to ms, share of the whole and floor_ms; whole_ms, what one call takes with
      the profiler, unprofiled_ms without; floor_ms; gflops, the rate of the 3x3 convolution.
    """
    rate = convolution_rate(tf.as_dtype(dtype))
    found = profile(function, repeats)
    order = list(dict.fromkeys(COMPONENTS.values()))
    order = [*order, *(f"{name}, backward" for name in order), REST]
    floor = {name: count / rate for name, count in counts.items()}
    return {
        "components": {
            name: {
                "ms": round(found.ms[name], 2),
                "share": round(found.ms[name] / found.whole_ms, 4),
                "floor_ms": round(floor.get(name, 0.0), 2),
            }
            for name in order
            if name in found.ms
        },
        "whole_ms": round(found.whole_ms, 2),
        "unprofiled_ms": unprofiled["median_ms"],
        "floor_ms": round(sum(floor.values()), 2),
        "gflops": round(2e-6 * rate, 1),
    }


def table(breakdown: Dict[str, Any]) -> str:
    """What `measured` returned as text."""
    whole = {"ms": breakdown["whole_ms"], "share": 1.0, "floor_ms": breakdown["floor_ms"]}
    rows = [
        [name, f"{row['ms']:.1f}", f"{row['share']:.1%}", f"{row['floor_ms']:.1f}"]
        for name, row in [*breakdown["components"].items(), ("the whole", whole)]
    ]
    told = f"Without the profiler the whole takes {breakdown['unprofiled_ms']:.1f} ms"
    if breakdown["floor_ms"]:
        ratio = breakdown["unprofiled_ms"] / breakdown["floor_ms"]
        told += (
            f", {ratio:.2f} times its floor:\nits multiply-adds at the"
            f" {breakdown['gflops']} GFLOP/s of a 3x3 convolution here"
        )
    return f"{tables.aligned(['component', 'ms', 'share', 'floor ms'], rows)}\n\n{told}."
