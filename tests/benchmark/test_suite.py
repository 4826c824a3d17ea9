import pytest

from pfpn_tf.benchmark import suite
from tests import tiny


def test_step_alone():
    settings = {**tiny.SETTINGS, "task": "semantic", "crop_size": (64, 96)}
    options = suite.Options(repeats=2, num_instances=3, breakdown=True)
    report = suite.run("step", settings, options)
    assert report["image_hw"] == [64, 96]
    assert report["losses"]["loss/total"] > 0
    assert report["images_per_second"] == pytest.approx(2e3 / report["step"]["median_ms"], abs=0.01)
    assert report["compile_ms"] == pytest.approx(
        report["first_step_ms"] - report["step"]["median_ms"], abs=0.2
    )
    assert report["compile_ms"] > 0
    found = check_breakdown(report)
    for name in ("backbone", "FPN", "semantic branch", "losses"):
        assert found[name]["ms"] > 0 and found[f"{name}, backward"]["ms"] > 0
    assert found["optimizer"]["ms"] > 0
    # The images need no gradient, which saves the first convolution, here most of the backbone,
    # one product of three.
    backward = found["backbone, backward"]["floor_ms"] / found["backbone"]["floor_ms"]
    assert 1 < backward < 1.7


def check_breakdown(report):
    """The components of a breakdown that adds up and is what the tool prints."""
    found = report["breakdown"]
    parts = found["components"]
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(found["whole_ms"], abs=0.2)
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=0.002)
    assert sum(part["floor_ms"] for part in parts.values()) == pytest.approx(
        found["floor_ms"], abs=0.2
    )
    text = suite.breakdown_table(report)
    assert all(name in text for name in parts) and f"{found['whole_ms']:.1f}" in text
    return parts


def test_input_alone(tiny_records):
    records = f"{tiny_records}/train-*.tfrecord"
    settings = {**tiny.SETTINGS, "train_records": records, "train_min_sides": (64,)}
    report = suite.run("input", settings, suite.Options(repeats=2))
    batch = report["batch"]
    assert batch["repeats"] == 8
    assert 2e3 / batch["max_ms"] <= report["images_per_second"] <= 2e3 / batch["min_ms"]


def test_inference_of_a_random_network():
    options = suite.Options(repeats=1, serving_batch_size=2, breakdown=True)
    report = suite.run("inference", {**tiny.SETTINGS, "precision": "bfloat16"}, options)
    assert report["precision"] == "bfloat16"
    assert report["batch_size"] == 2
    assert report["panoptic"]["median_ms"] > 0 and report["serving_default"]["median_ms"] > 0
    assert report["load_ms"] > 0 and report["peak_memory_mib"] > 100
    found = check_breakdown(report)
    names = "decode and resize, backbone, FPN, RPN, RoIAlign, box head, mask head, semantic branch"
    for name in f"{names}, labels, fusion, PNG".split(", "):
        assert found[name]["ms"] > 0, name


@pytest.mark.parametrize(
    "name, settings, options, message",
    [
        ("nothing", {}, {}, "--what=nothing must be one of inference"),
        ("pq", {}, {"breakdown": True}, "--breakdown is for --what=inference, train or step"),
        ("pq", {}, {"repeats": 0}, "--repeats=0 must be at least 1"),
        ("serving_memory", {}, {}, "--saved_model is required"),
        ("inference", {}, {"saved_model": "no/such"}, "no/such holds no saved_model.pb"),
        ("serving_memory", {}, {"saved_model": "no/such"}, "--saved_model=no/such holds no"),
        ("step", {"crop_size": (8, 8)}, {}, "--crop_size"),
    ],
)
def test_what_cannot_be_measured(name, settings, options, message):
    with pytest.raises(ValueError, match=message):
        suite.run(name, settings, suite.Options(**options))
