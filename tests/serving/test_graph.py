"""What the graph of an export consists of."""

import os
import pathlib

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

LISTED = pathlib.Path(__file__).parents[1] / "testdata" / "serving_ops.txt"
PYTHON = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "NumpyFunction"}


def read(directory):
    with open(os.path.join(directory, "saved_model.pb"), "rb") as f:
        (meta_graph,) = saved_model_pb2.SavedModel.FromString(f.read()).meta_graphs
    return meta_graph


def all_nodes(graph_def):
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def listed_ops():
    lines = (line.partition("#")[0] for line in LISTED.read_text().splitlines())
    return {name for line in lines for name in line.split()}


def test_operations_are_the_listed_ones(saved_model):
    meta_graph = read(saved_model)
    functions = {function.signature.name for function in meta_graph.graph_def.library.function}
    used = {node.op for node in all_nodes(meta_graph.graph_def)} - functions
    assert not used & PYTHON
    assert used <= listed_ops(), (
        f"{sorted(used - listed_ops())} in the export: an operation must be one that a stock "
        f"TensorFlow Serving has; if it is, add it to {LISTED.name}"
    )


def test_small_and_without_paths(saved_model, run_dir):
    meta_graph = read(saved_model)
    assert len(list(all_nodes(meta_graph.graph_def))) < 10_000
    content = meta_graph.SerializeToString()
    for path in (os.getcwd(), os.path.dirname(run_dir), os.path.dirname(saved_model)):
        assert path.encode() not in content
    strings = [
        value
        for node in all_nodes(meta_graph.graph_def)
        if node.op == "Const" and node.attr["dtype"].type == tf.string.as_datatype_enum
        for value in node.attr["value"].tensor.string_val
    ]
    assert strings and not [value for value in strings if value.startswith(b"/")]
    (asset,) = meta_graph.asset_file_def
    assert asset.filename == "metadata.json"


def test_no_attribute_that_an_operation_does_not_have(saved_model):
    """A loader logs an error for each."""
    meta_graph = read(saved_model)
    functions = {function.signature.name for function in meta_graph.graph_def.library.function}
    for node in all_nodes(meta_graph.graph_def):
        if node.op not in functions:
            known = {attribute.name for attribute in op_def_registry.get(node.op).attr}
            assert not [name for name in node.attr if name not in known and name[0] != "_"], node
