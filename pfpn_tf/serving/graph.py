"""Makes the graph of a saved model smaller without changing what it computes."""

import os

from tensorflow.core.protobuf import saved_model_pb2

from pfpn_tf.utils.files import atomic_write


def reduce(saved_model_dir: str) -> None:
    """Takes out of a SavedModel what answers do not need.

    Tracing makes a new constant for every axis and every bound of a slice: a third of all nodes.
    Of equal ones in a function one remains. The part that saves the variables goes; that which
    restores them stays. Loading and the first answer take their time node by node.

    Args:
      saved_model_dir: with saved_model.pb, which is written anew. The fingerprint of the old one is
        removed; loaders do without.
    """
    path = os.path.join(saved_model_dir, "saved_model.pb")
    with open(path, "rb") as f:
        saved_model = saved_model_pb2.SavedModel.FromString(f.read())
    for meta_graph in saved_model.meta_graphs:
        _drop_saving(meta_graph)
        for function in meta_graph.graph_def.library.function:
            _merge_in(function)
    with atomic_write(path, "wb") as f:
        f.write(saved_model.SerializeToString(deterministic=True))
    fingerprint = os.path.join(saved_model_dir, "fingerprint.pb")
    if os.path.exists(fingerprint):
        os.unlink(fingerprint)


def _drop_saving(meta_graph):
    """Removes the call that saves the variables, and the function that it calls."""
    graph = meta_graph.graph_def
    name = meta_graph.saver_def.save_tensor_name.partition(":")[0]
    functions = {node.attr["f"].func.name for node in graph.node if node.name == name}
    _keep(graph.node, lambda node: node.name != name)
    _keep(graph.library.function, lambda function: function.signature.name not in functions)


def _keep(messages, condition):
    """Removes from a repeated field what does not meet the condition."""
    for i in reversed(range(len(messages))):
        if not condition(messages[i]):
            del messages[i]


def _merge_in(function):
    """Merges the constants of one FunctionDef in place."""
    first, replacement, kept = {}, {}, []
    for node in function.node_def:
        if node.op == "Const" and not node.input:
            attributes = {
                name: value.SerializeToString(deterministic=True)
                for name, value in node.attr.items()
            }
            key = (node.device, tuple(sorted(attributes.items())))
            if key in first:
                replacement[node.name] = first[key]
                continue
            first[key] = node.name
        kept.append(node)
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = _renamed(name, replacement)
    for output, name in function.ret.items():
        function.ret[output] = _renamed(name, replacement)
    kept = [node.SerializeToString() for node in kept]
    del function.node_def[:]
    for node in kept:
        function.node_def.add().ParseFromString(node)


def _renamed(name, replacement):
    """An input (node:output:index, or ^node for order) with its node replaced."""
    control = "^" if name.startswith("^") else ""
    node, colon, output = name.removeprefix("^").partition(":")
    return control + replacement.get(node, node) + colon + output
