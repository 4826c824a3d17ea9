"""Memory of an evaluation, on a handful of images."""

import numpy as np
import pytest

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import evaluator
from pfpn_tf.benchmark.inference import coco_like_info
from pfpn_tf.evaluation.counts import EvaluationMetrics


def test_counting_drawn_images():
    run = evaluator.count_images(5, (60, 80), 9)
    assert run["num_images"] == 5 and run["peak_mib"] > 50 and run["images_per_second"] > 0


def test_drawn_predictions_are_neither_all_right_nor_all_wrong():
    info = coco_like_info()
    accumulators = EvaluationMetrics(config_lib.Config().model, info)
    truth, outputs = evaluator._draw(np.random.default_rng(0), info, (120, 160), 20)
    scores = np.linspace(0.9, 0.1, 20, dtype=np.float32)
    outputs = outputs._replace(detections=outputs.detections._replace(scores=scores))
    photo = np.zeros((120, 160, 3), np.uint8)
    accumulators.add(0, outputs, truth, (120, 160), lambda: photo)
    metrics = accumulators.result()
    assert 0.2 < metrics["panoptic"]["All"]["pq"] < 1
    assert 0.02 < metrics["bbox"]["AP"] < 1 and 0.02 < metrics["segm"]["AP"] < 1


def test_growth_is_per_image(monkeypatch):
    monkeypatch.setattr(
        evaluator.measure,
        "in_fresh_process",
        lambda function, n, hw, num_detections: {"num_images": n, "peak_mib": 500 + n / 64},
    )
    found = evaluator.benchmark_evaluator_memory((100, 1700))
    assert found["kib_per_image"] == 16.0
    assert [run["num_images"] for run in found["runs"]] == [100, 1700]


@pytest.mark.parametrize("num_images", [(), (5,), (5, 5), (9, 5), (0, 5)])
def test_lengths_that_say_nothing(num_images):
    with pytest.raises(ValueError, match="two or more rising numbers"):
        evaluator.benchmark_evaluator_memory(num_images)
