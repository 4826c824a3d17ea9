"""Memory: the peak of this process, and an estimate for a training step before there is one."""

from typing import Callable, Dict, Iterable, List

import tensorflow as tf

from pfpn_tf.utils import process

# They share their input's memory.
_VIEWS = ("Identity", "StopGradient", "Reshape", "ExpandDims", "Squeeze")
_NO_ACTIVATIONS = ("Const", "Placeholder", "ReadVariableOp", "VarHandleOp")


def peak() -> Dict[str, int]:
    """Peak bytes of this process so far, by place: "main memory", "GPU:0", ..."""
    kibi = process.memory_kib("VmHWM")
    found = {} if kibi is None else {"main memory": kibi * 1024}
    for device in tf.config.list_logical_devices("GPU"):
        used = tf.config.experimental.get_memory_info(device.name)["peak"]
        found[device.name.rpartition("device:")[2]] = used
    return found


def size_of(variables: Iterable[tf.Variable]) -> int:
    """Bytes of variables."""
    return sum(v.shape.num_elements() * v.dtype.size for v in variables)


def kept_for_gradients(
    loss: Callable, variables: List[tf.Variable], batch_spec: Dict[str, tf.TensorSpec]
) -> int:
    """Bytes that wait between the forward and the backward pass, once the forward pass is done.

    Counts the tensors of the forward pass that the backward pass reads, in the graph of both. It
    runs nothing. What loops keep inside is not counted, nor what an operation needs while it runs.

    Args:
      loss: function of a batch that returns a scalar.
      variables: what the gradients are of.
      batch_spec: name -> spec of static shape.
    """
    first = {}

    def step(batch):
        with tf.GradientTape() as tape:
            value = loss(batch)
        first["backward"] = len(tf.compat.v1.get_default_graph().get_operations())
        tape.gradient(value, variables)

    traced = tf.function(step, autograph=False).get_concrete_function(batch_spec)
    operations = traced.graph.get_operations()
    forward = set(operations[: first["backward"]])
    kept = {}
    for operation in operations[first["backward"] :]:
        for tensor in operation.inputs:
            while tensor.op.type in _VIEWS:
                tensor = tensor.op.inputs[0]
            if tensor.op in forward and tensor.op.type not in _NO_ACTIVATIONS:
                kept[tensor.ref()] = (tensor.shape.num_elements() or 0) * tensor.dtype.size
    return sum(kept.values())
