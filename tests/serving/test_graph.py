"""What the graph of an export consists of."""

import collections
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from pfpn_tf.serving import graph

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
    assert len(list(all_nodes(meta_graph.graph_def))) < 8_000
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


def test_restores_the_variables_and_does_not_save_them(saved_model):
    used = {node.op for node in all_nodes(read(saved_model).graph_def)}
    assert "RestoreV2" in used
    assert not used & {"SaveV2", "MergeV2Checkpoints"}


@pytest.mark.both_stacks
def test_merged_constants_change_no_answer(tmp_path):
    """Constants of equal value but different type stay apart; one is returned as it is."""
    directory = str(tmp_path / "model")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def function(x):
        def body(i, y):
            return i + 1, y * tf.constant(2.0) + tf.cast(tf.constant(2), tf.float32)

        _, y = tf.while_loop(lambda i, _: i < tf.constant(2), body, (0, x))
        return {"y": y + tf.constant(2.0) - tf.constant(2.0), "two": tf.constant(2.0)}

    tf.saved_model.save(tf.Module(), directory, signatures=function.get_concrete_function())
    x = tf.constant([1.0, -3.0])
    expected = function(x)
    before = read(directory)
    graph.reduce(directory)
    after = read(directory)
    merged = tf.saved_model.load(directory).signatures["serving_default"](x)
    for name, value in expected.items():
        np.testing.assert_array_equal(merged[name], value)

    kept = {function.signature.name for function in after.graph_def.library.function}

    def constants(meta_graph):
        counts = collections.Counter()
        for function in meta_graph.graph_def.library.function:
            if function.signature.name not in kept:
                continue
            for node in function.node_def:
                if node.op == "Const" and not node.input:
                    key = tuple(sorted((k, str(v)) for k, v in node.attr.items()))
                    counts[function.signature.name, key] += 1
        return counts

    assert max(constants(before).values()) >= 2
    assert set(constants(before)) == set(constants(after))
    assert set(constants(after).values()) == {1}
