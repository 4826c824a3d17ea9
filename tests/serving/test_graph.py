"""What the graph of an export consists of."""

import collections
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

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
    assert len(list(all_nodes(meta_graph.graph_def))) < 6_000
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


def test_restores_the_variables_and_does_not_save_them(saved_model):
    used = {node.op for node in all_nodes(read(saved_model).graph_def)}
    assert "RestoreV2" in used
    assert not used & {"SaveV2", "MergeV2Checkpoints"}


@pytest.fixture
def small(tmp_path):
    """A function of a vector with much to leave out, and what saving it wrote: (function, path)."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def function(x):
        def body(i, y):
            return i + 1, y * tf.constant(2.0) + tf.cast(tf.constant(2), tf.float32)

        _, y = tf.while_loop(lambda i, _: i < tf.constant(2), body, (0, x))
        with tf.control_dependencies([tf.debugging.Assert(tf.size(x) > 0, ["x is empty"])]):
            checked = tf.identity(x)
        first, last = (
            tf.cond(tf.reduce_sum(v) > 0, lambda v=v: v * 3.0, lambda v=v: v + 1.0)
            for v in (x, tf.stop_gradient(tf.identity(y)))
        )
        tf.reshape(x, [-1, 1])  # for nobody
        return {
            "y": y + tf.constant(2.0) - tf.constant(2.0),
            "two": tf.constant(2.0),
            "x": tf.identity(x),
            "checked": checked,
            "sizes": tf.stack([tf.shape(x)[0], tf.shape(x)[0], tf.shape(y)[0]]),
            "branches": first + last,
        }

    directory = str(tmp_path / "model")
    tf.saved_model.save(tf.Module(), directory, signatures=function.get_concrete_function())
    return function, directory


@pytest.mark.both_stacks
def test_reduced_graph_gives_the_same_answers(small):
    function, directory = small
    graph.reduce(directory)
    reduced = tf.saved_model.load(directory).signatures["serving_default"]
    for x in ([1.0, -3.0], [-2.0], [0.5, 0.25, 7.0]):
        answer = reduced(tf.constant(x))
        expected = function(tf.constant(x))
        assert set(answer) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(answer[name], value)
    with pytest.raises(tf.errors.InvalidArgumentError, match="x is empty"):
        reduced(tf.constant([], tf.float32))


@pytest.mark.both_stacks
def test_of_equal_nodes_one_remains(small):
    _, directory = small
    before = read(directory)
    graph.reduce(directory)
    after = read(directory)

    def constants(meta_graph):
        """Constants by type and value, and how often each is in one function at most."""
        most = collections.Counter()
        for function in meta_graph.graph_def.library.function:
            counts = collections.Counter(
                (str(node.attr["dtype"]), str(node.attr["value"]))
                for node in function.node_def
                if node.op == "Const" and not node.input
            )
            most |= counts
        return most

    assert max(constants(before).values()) >= 2
    assert set(constants(before)) >= set(constants(after))
    assert set(constants(after).values()) == {1}

    def count(meta_graph, op):
        return sum(node.op == op for node in all_nodes(meta_graph.graph_def))

    assert count(before, "Shape") == 3 and count(after, "Shape") == 2
    assert count(before, "StopGradient") == 1 and count(after, "StopGradient") == 0
    assert count(before, "Reshape") == 1 and count(after, "Reshape") == 0


@pytest.mark.both_stacks
def test_of_equal_functions_one_remains(small):
    _, directory = small

    def branches():
        nodes = all_nodes(read(directory).graph_def)
        ifs = [node for node in nodes if node.op in ("If", "StatelessIf")]
        return [
            node.attr[side].func.name for node in ifs for side in ("then_branch", "else_branch")
        ]

    assert len(set(branches())) == 4
    graph.reduce(directory)
    assert len(branches()) == 4 and len(set(branches())) == 2
    library = {f.signature.name for f in read(directory).graph_def.library.function}
    assert set(branches()) <= library


@pytest.mark.both_stacks
def test_calls_give_way_to_what_they_call(tmp_path):
    """Equal random operations stay apart, a call for its effect keeps it, names do not clash."""

    @tf.function(autograph=False)
    def checked(x):
        tf.debugging.Assert(tf.size(x) > 0, ["x is empty"])
        return 2.0 * x

    @tf.function(autograph=False)
    def erf_of_double(x):
        return tf.math.erf(2.0 * x)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)], autograph=False)
    def function(x):
        checked(x)
        with tf.name_scope("PartitionedCall/"):  # as the call below is named
            erf = tf.math.erf(x, name="Erf")
        noise = tf.random.uniform([8]) - tf.random.uniform([8])
        return {
            "erf": erf,
            "called": erf_of_double(x),
            "apart": tf.reduce_any(noise != 0.0),
        }

    directory = str(tmp_path / "model")
    tf.saved_model.save(tf.Module(), directory, signatures=function.get_concrete_function())
    graph.reduce(directory)
    library = read(directory).graph_def.library.function
    ops = [node.op for node in all_nodes(read(directory).graph_def)]
    assert not any(f.signature.name.startswith("__inference_checked") for f in library)
    assert ops.count("RandomUniform") == 2 and ops.count("Erf") == 2
    reduced = tf.saved_model.load(directory).signatures["serving_default"]
    x = tf.constant([0.1, -0.7])
    answer = reduced(x)
    assert answer["apart"]
    np.testing.assert_array_equal(answer["erf"], tf.math.erf(x))
    np.testing.assert_array_equal(answer["called"], tf.math.erf(2.0 * x))
    with pytest.raises(tf.errors.InvalidArgumentError, match="x is empty"):
        reduced(tf.constant([], tf.float32))
