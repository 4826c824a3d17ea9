"""Counted costs: by hand on small layers, and the paper's numbers on its networks."""

import dataclasses
import functools
import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.benchmark import measure
from pfpn_tf.config import Config
from pfpn_tf.experiments import model_cost
from pfpn_tf.model import layers, panoptic_fpn
from tests import processes

PAPER = model_cost.Example(8, 19, (1024, 2048))
SMALL = PAPER._replace(image_hw=(64, 96))
count_once = functools.lru_cache(model_cost.count)


def costs_of(function, *shapes):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    graph = tf.function(function, autograph=False).get_concrete_function(*specs).graph
    return sum(map(model_cost.operation_cost, graph.get_operations()), model_cost.Cost())


@pytest.mark.parametrize(
    "conv, hw_out, products",
    [
        (dict(filters=8, kernel_size=3), (6, 10), 3 * 3 * 4),
        (dict(filters=8, kernel_size=7, strides=2), (3, 5), 7 * 7 * 4),
        (dict(filters=8, kernel_size=3, groups=2), (6, 10), 3 * 3 * 2),
        (dict(filters=8, kernel_size=3, dilation=2), (6, 10), 3 * 3 * 4),
    ],
)
def test_a_convolution(conv, hw_out, products):
    layer = layers.Conv(**conv)
    layer(tf.zeros([1, 6, 10, 4]))
    cost = costs_of(layer, [1, 6, 10, 4])
    outputs = hw_out[0] * hw_out[1] * 8
    assert cost == model_cost.Cost(outputs * products, outputs)


@pytest.mark.parametrize("transpose_a", [False, True])
def test_a_matrix_product(transpose_a):
    shape = [3, 5] if transpose_a else [5, 3]
    cost = costs_of(lambda a, b: tf.matmul(a, b, transpose_a=transpose_a), shape, [3, 7])
    assert cost == model_cost.Cost(dense_multiply_adds=5 * 3 * 7)


@pytest.fixture
def cached(monkeypatch):
    monkeypatch.setattr(model_cost, "count", count_once)


def tiny(**settings):
    return Config().replace(
        backbone="resnet_tiny", fpn_channels=32, semantic_channels=32, freeze_stages=0, **settings
    )


def test_components_of_a_small_network():
    """Counted by hand at 64x96: FPN and semantic branch."""
    costs = model_cost.count(tiny(task="semantic").model, SMALL)
    assert list(costs) == ["backbone", "fpn", "semantic_head"]
    pixels = {2: 16 * 24, 3: 8 * 12, 4: 4 * 6, 5: 2 * 3}
    fpn = costs["fpn"]
    assert fpn.conv_multiply_adds == sum(
        n * (4 * 2**level * 32 + 9 * 32 * 32) for level, n in pixels.items()
    )
    assert fpn.conv_activations == sum(2 * 32 * n for n in pixels.values())
    assert fpn.parameters == sum(4 * 2**level * 32 + 9 * 32 * 32 + 2 * 32 for level in pixels)
    head = costs["semantic_head"]
    convs = pixels[2] + pixels[3] + (pixels[4] + pixels[3]) + (pixels[5] + pixels[4] + pixels[3])
    assert head.conv_activations == 32 * convs + 19 * pixels[2]
    assert head.conv_multiply_adds == 9 * 32 * 32 * convs + 32 * 19 * pixels[2]


def test_two_networks_need_the_backbone_twice(cached):
    """Table 3a: the same accuracy at half the compute."""
    rows = model_cost.two_networks(tiny(semantic_loss_weight=0.5))
    names = [field.name for field in dataclasses.fields(model_cost.Cost)]
    joint, separate, whole, whole_separate = [
        np.array([result[name] for name in names]) for result in model_cost.compare(rows, SMALL)
    ]
    np.testing.assert_array_equal(separate, 2 * joint)
    assert whole[0] + joint[0] == whole_separate[0]  # multiply-adds of convolutions


def test_table_1a(cached, zero_weights):
    """0.5 and 0.8, 0.8 and 1.4, 1.9 and 1.9 in the paper."""
    rows = model_cost.table_1a(Config())
    results = model_cost.compare(rows, PAPER)
    found = {
        r["label"]: (
            round(r["conv_multiply_adds"] / 1e12, 3),
            round(r["conv_activations"] / 1e9, 3),
        )
        for r in results
    }
    assert found == {
        "Semantic FPN ResNet-101": (0.498, 0.780),
        "Semantic FPN ResNeXt-101 64x4d": (0.827, 1.428),
        "DeepLabV3 ResNet-101-D8": (1.926, 1.947),
    }
    deeplab = model_cost.table(results).splitlines()[2]
    assert "1,926.02" in deeplab and deeplab.endswith("1.9, 1.9")


def test_figure_4(cached, zero_weights):
    """What the paper reads off its figure."""
    rows = model_cost.figure_4(Config().replace(backbone="resnet101"))
    costs = {
        r["label"]: np.array([r["conv_multiply_adds"], r["conv_activations"]], float)
        for r in model_cost.compare(rows, PAPER)
    }
    plain, fpn = costs["resnet101"], costs["FPN"]
    assert (plain < fpn).all()
    # "FPN at output scale 1/4 is similar computationally to dilation-16"
    np.testing.assert_allclose(fpn, costs["dilation-16"], rtol=0.1)
    # "Increasing resolution to 1/8 via dilation uses a further ~3x more compute and memory."
    np.testing.assert_allclose(costs["dilation-8"] / costs["dilation-16"], [3, 3], rtol=0.2)
    # "~2x more efficient than the symmetric encoder-decoder"
    np.testing.assert_allclose(costs["symmetric decoder"] / fpn, [2, 2], rtol=0.2)


def test_figure_4_of_a_panoptic_recipe_with_groups():
    """The comparison changes the settings that its rows are about, whatever the recipe."""
    rows = model_cost.figure_4(tiny(fpn_groups=2))
    assert [row.networks[0].decoder for row in rows] == ["none"] * 3 + ["symmetric", "fpn"]
    assert [row.networks[0].output_stride for row in rows] == [32, 16, 8, 32, 32]


@pytest.mark.parametrize("text", ["1024", "1024x", "1000x2048", "0x32", "axb"])
def test_a_bad_image_size(text):
    with pytest.raises(ValueError, match="--image_size=.*multiples of 32.*e.g. 1024x2048"):
        model_cost.parse_size(text)


def test_the_tool_counts_and_measures_one_network(tmp_path):
    flags = ["--backbone=resnet_tiny", "--measure", "--image_size=64x96", "--task=instance"]
    flags += ["--measure_repeats=1", "--rpn_post_nms_top_k=20", f"--output_dir={tmp_path}"]
    done = processes.call("tools/profile_model.py", *flags)
    assert "mask_head" in done.stdout and "instance resnet_tiny" in done.stdout
    content = json.loads((tmp_path / "profile.json").read_text())
    assert content["image_hw"] == [64, 96]
    assert content["components"]["box_head"]["dense_multiply_adds"] > 0
    (network,) = content["networks"]
    measured = network["measured"]["inference"]
    assert measured["median_ms"] > 0
    assert measured["import_memory_mib"] > 100 and measured["network_memory_mib"] > 0
    parts = measured["import_memory_mib"] + measured["network_memory_mib"]
    assert measured["peak_memory_mib"] == pytest.approx(parts, abs=0.2)


@pytest.mark.parametrize("part", [model_cost.PYRAMID, model_cost.WHOLE])
@pytest.mark.parametrize("work", [model_cost.INFERENCE, model_cost.TRAINING])
def test_what_is_measured_runs(part, work):
    """Training ends with the loss, after a gradient of each weight that can be trained."""
    task = "semantic" if work == model_cost.INFERENCE else "panoptic"
    config = tiny(rpn_post_nms_top_k=20, semantic_loss_weight=0.5, task=task)
    network = config.replace(freeze_stages=1).model
    is_pyramid = part == model_cost.PYRAMID
    outputs = model_cost.function_of(network, part, SMALL, work)()
    if work == model_cost.INFERENCE:
        assert (outputs["p2"] if is_pyramid else outputs.semantic_logits).shape[:3] == (1, 16, 24)
        return
    gradients, loss = outputs
    assert np.isfinite(loss) and loss > 0
    model = panoptic_fpn.build_model(network, *SMALL[:2])
    parts = [model.backbone, model.fpn] if is_pyramid else [model]
    shapes = [weight.shape for x in parts for weight in x.trainable_variables]
    assert [gradient.shape for gradient in gradients] == shapes
    assert np.any(gradients[0])  # the loss reaches the first trained layer


def test_time_and_memory_of_two_networks_are_those_of_two_processes(monkeypatch):
    figures = {"median_ms": 7.0, "peak_memory_mib": 160.0}
    monkeypatch.setattr(measure, "in_fresh_process", lambda function, *arguments: figures)
    one, two = [
        model_cost.measure_row(row, SMALL, "inference", repeats=1)
        for row in model_cost.two_networks(Config())[:2]
    ]
    assert one == figures
    assert two == {"median_ms": 14.0, "peak_memory_mib": 320.0}


MEASURED = {"median_ms": 20.0, "peak_memory_mib": 1024.0}
MEASURED |= {"import_memory_mib": 512.0, "network_memory_mib": 512.0}
COSTS = dataclasses.asdict(model_cost.Cost(5, 6, 7, 8))


@pytest.mark.parametrize("works", [(), ("inference",), ("inference", "training")])
@pytest.mark.parametrize("of_tensorflow", [512.0, 0.0])  # on a CPU, on a GPU
def test_the_picture(tmp_path, works, of_tensorflow):
    measured = dict.fromkeys(works, {**MEASURED, "import_memory_mib": of_tensorflow})
    path = tmp_path / "profile.png"
    model_cost.draw([{"label": "a network", **COSTS, "measured": measured}] * 2, path, "title")
    assert cv2.imread(str(path)).std() > 10


def test_the_table_of_what_was_measured():
    measured = {"inference": MEASURED, "training": {**MEASURED, "median_ms": 50.0}}
    results = [{"label": "a network", "measured": measured}]
    lines = model_cost.measured_table(results).splitlines()
    assert lines[2].split() == ["a", "network", "inference", "20", "512", "512", "1,024"]
    assert lines[3].split() == ["a", "network", "training", "50", "512", "512", "1,024"]
