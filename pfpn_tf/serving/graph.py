"""Makes the graph of a saved model smaller without changing what it computes."""

import collections
import os

from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import saved_model_pb2

from pfpn_tf.utils.files import atomic_write

_PURE = frozenset("""
    Abs AddV2 All Any ArgMax BatchMatMulV2 Cast Ceil ConcatV2 Const Equal Exp ExpandDims Fill Floor
    FloorDiv FloorMod GatherNd GatherV2 Greater GreaterEqual Identity Less LessEqual LogicalAnd
    LogicalNot LogicalOr Max Maximum Min Minimum Mul Neg NotEqual Pack Prod Range RealDiv Reshape
    Select SelectV2 Shape Size Slice Split SplitV Sqrt Square Squeeze StopGradient StridedSlice Sub
    Sum Tile Transpose Unpack ZerosLike
    """.split())
"""Operations that give the same for the same inputs, and do nothing else."""

_PASSING = frozenset(["Identity", "StopGradient"])
"""Those of them that give what they take."""

_CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])

_SMALL = 200
"""Nodes of a function that is copied to where it is called, more than once if need be."""


def reduce(saved_model_dir: str) -> None:
    """Takes out of a SavedModel what answers do not need.

    Tracing makes a new constant for every axis and every bound of a slice and computes the same
    shapes again and again; Keras makes a function of each branch. Of equal nodes, and of equal
    functions, one remains. Functions that are small or called once take the place of their calls.
    The part that saves the variables goes; that which restores them stays. Loading and the first
    answer take their time, and memory, node by node.

    Args:
      saved_model_dir: with saved_model.pb, which is written anew. The fingerprint of the old one is
        removed; loaders do without.
    """
    path = os.path.join(saved_model_dir, "saved_model.pb")
    with open(path, "rb") as f:
        saved_model = saved_model_pb2.SavedModel.FromString(f.read())
    for meta_graph in saved_model.meta_graphs:
        _drop_saving(meta_graph)
        _inline_calls(meta_graph)
        for function in meta_graph.graph_def.library.function:
            _merge_in(function)
            _drop_unused(function)
            _drop_hints(function)
        _share_functions(meta_graph)
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


def _inline_calls(meta_graph):
    """Puts functions that are small, or called once, in the place of the calls.

    Each takes all variables as arguments and, when Python loads it, a copy of every function below
    it: the layers from a signature to the network cost more than what they hold.
    """
    library = meta_graph.graph_def.library
    functions = {function.signature.name: function for function in library.function}
    calls = collections.Counter(
        called.name for function in library.function for called in calls_in(function)
    )

    def fits(node):
        if node.op not in _CALLS or any(name.startswith("^") for name in node.input):
            return False
        callee = functions[node.attr["f"].func.name]
        alone = calls[callee.signature.name] == 1
        stays = "_noinline" in callee.attr and callee.attr["_noinline"].b
        return not stays and (alone or len(callee.node_def) < _SMALL)

    done = set()

    def inline_in(function):
        if function.signature.name not in done:
            done.add(function.signature.name)
            for called in list(calls_in(function)):
                inline_in(functions[called.name])  # the innermost first
            for node in [node for node in function.node_def if fits(node)]:
                _inline(function, node.name, functions[node.attr["f"].func.name])

    for function in library.function:
        inline_in(function)
    used = {called.name for node in meta_graph.graph_def.node for called in calls_of(node)}
    used |= set(meta_graph.object_graph_def.concrete_functions)
    waiting = [functions[name] for name in used if name in functions]
    while waiting:
        for called in calls_in(waiting.pop()):
            if called.name not in used:
                used.add(called.name)
                waiting.append(functions[called.name])
    _keep(library.function, lambda function: function.signature.name in used)


def _inline(function, call, callee):
    """Puts the nodes of a FunctionDef in the place of the node `call` of another, in place."""
    (caller,) = (node for node in function.node_def if node.name == call)
    scope = call
    while any(node.name.startswith(f"{scope}/") for node in function.node_def):
        scope += "_"
    given = dict(zip((argument.name for argument in callee.signature.input_arg), caller.input))

    def outside(name):
        """An input inside the callee, as it is called outside."""
        control = "^" if name.startswith("^") else ""
        name = name.removeprefix("^")
        name = given[name] if name in given else f"{scope}/{name}"
        return control + (name.partition(":")[0] if control else name)

    outputs = [outside(callee.ret[output.name]) for output in callee.signature.output_arg]
    effects = [outside(callee.control_ret[name]) for name in callee.signature.control_output]
    ends = dict.fromkeys([*effects, *(output.partition(":")[0] for output in outputs)])

    def replaced(names):
        for name in names:
            if name == f"^{call}":
                yield from (f"^{end}" for end in ends)
            elif name.startswith(f"{call}:"):
                yield outputs[int(name.rpartition(":")[2])]
            else:
                yield name

    nodes = []
    for node in function.node_def:
        if node.name == call:
            for inner in callee.node_def:
                inlined = type(inner)()
                inlined.CopyFrom(inner)
                inlined.name = f"{scope}/{inner.name}"
                inlined.input[:] = [outside(name) for name in inner.input]
                nodes.append(inlined)
        else:
            node.input[:] = list(replaced(node.input))
            nodes.append(node)
    nodes = [node.SerializeToString() for node in nodes]
    del function.node_def[:]
    for node in nodes:
        function.node_def.add().ParseFromString(node)
    for output, name in list(function.ret.items()):
        (function.ret[output],) = replaced([name])
    for name, node in list(function.control_ret.items()):
        if node == call:
            del function.control_ret[name]
            function.signature.control_output.remove(name)
            for effect in effects:
                function.control_ret[effect] = effect
                function.signature.control_output.append(effect)


def _keep(messages, condition):
    """Removes from a repeated field what does not meet the condition."""
    for i in reversed(range(len(messages))):
        if not condition(messages[i]):
            del messages[i]


def _merge_in(function):
    """Merges equal nodes of one FunctionDef in place, and takes out those that only pass on."""
    merged = True
    effects = set(function.control_ret.values())
    while merged:  # once more: what was different before may be equal now
        first, equal, passed = {}, {}, {}
        for node in function.node_def:
            _rename_inputs(node, equal, passed)
            if node.name in effects:
                continue
            if node.op in _PASSING and len(node.input) == 1:
                passed[node.name] = node.input[0]
            elif node.op in _PURE:
                attributes = [
                    (name, value.SerializeToString(deterministic=True))
                    for name, value in sorted(node.attr.items())
                ]
                key = (node.op, node.device, *node.input, *attributes)
                if key in first:
                    equal[node.name] = first[key]
                else:
                    first[key] = node.name
        for node in function.node_def:
            _rename_inputs(node, equal, passed)
        for output, name in list(function.ret.items()):
            function.ret[output] = _renamed(name, equal, passed)
        _keep(function.node_def, lambda node: node.name not in equal and node.name not in passed)
        merged = bool(equal or passed)


def _rename_inputs(node, equal, passed):
    for i, name in enumerate(node.input):
        node.input[i] = _renamed(name, equal, passed)


def _renamed(name, equal, passed):
    """An input with its node replaced: NODE:OUTPUT:INDEX, ARGUMENT, or ^NODE for order only.

    Args:
      name: of the input.
      equal: node name to that of an equal node.
      passed: node name to the input that it passes on.
    """
    control = "^" if name.startswith("^") else ""
    name = name.removeprefix("^")
    node = name.partition(":")[0]
    while node in equal or node in passed:
        name = passed[node] if node in passed else equal[node] + name[len(node) :]
        node = name.partition(":")[0]
    return control + (node if control else name)


def _drop_unused(function):
    """Removes nodes of one FunctionDef, in place, that no result and no effect depends on."""
    nodes = {node.name: node for node in function.node_def}
    waiting = [*function.ret.values(), *function.control_ret.values()]
    waiting += [node.name for node in function.node_def if node.op not in _PURE]
    used = set()
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in used:
            used.add(name)
            waiting += nodes[name].input
    _keep(function.node_def, lambda node: node.name in used)


def _drop_hints(function):
    """Removes from one FunctionDef, in place, what only the process that traced it had use for.

    Shapes are inferred again when it is loaded; those of its results stay, and those of calls, from
    which nothing can be inferred. Gradients of its own are not in an export.
    """
    results = {name.partition(":")[0] for name in function.ret.values()}
    for node in function.node_def:
        node.attr.pop("_gradient_op_type", None)
        if node.name not in results and node.op not in _CALLS:
            node.attr.pop("_output_shapes", None)
    for index, argument in enumerate(function.signature.input_arg):
        if argument.type == types_pb2.DT_RESOURCE:
            function.arg_attr.pop(index, None)


def _share_functions(meta_graph):
    """Keeps one of the functions that differ in names only: bodies of equal branches and loops."""
    library = meta_graph.graph_def.library
    named = set(meta_graph.object_graph_def.concrete_functions)
    shared = True
    while shared:  # once more: callers of what was different before may be equal now
        first, shared = {}, {}
        for function in library.function:
            name = function.signature.name
            if name not in named:
                kept = first.setdefault(_without_names(function), name)
                if kept != name:
                    shared[name] = kept
        _keep(library.function, lambda function: function.signature.name not in shared)
        for function in library.function:
            for called in calls_in(function):
                called.name = shared.get(called.name, called.name)


def calls_in(function):
    """References to other functions in the nodes of a FunctionDef."""
    for node in function.node_def:
        yield from calls_of(node)


def calls_of(node):
    """References to functions in one node."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func
        yield from value.list.func


def _without_names(function):
    """A FunctionDef as bytes, with numbers in the place of the names in it."""
    copy = type(function)()
    copy.CopyFrom(function)
    copy.signature.name = ""
    for attributes in copy.arg_attr.values():
        attributes.attr.pop("_user_specified_name", None)
    number = {}
    for message in (*copy.signature.input_arg, *copy.node_def):
        number[message.name] = message.name = f"{len(number)}"
    for node in copy.node_def:
        node.ClearField("experimental_debug_info")
        for i, name in enumerate(node.input):
            control = "^" if name.startswith("^") else ""
            source, colon, output = name.removeprefix("^").partition(":")
            node.input[i] = f"{control}{number[source]}{colon}{output}"
    copy.ret.clear()
    copy.control_ret.clear()
    results = []
    for i, result in enumerate(copy.signature.output_arg):
        source, colon, output = function.ret[result.name].partition(":")
        results.append(f"{number[source]}{colon}{output}")
        result.name = f"{i}"
    order = [number[function.control_ret[name]] for name in copy.signature.control_output]
    del copy.signature.control_output[:]
    return copy.SerializeToString(deterministic=True), *results, "^", *order
