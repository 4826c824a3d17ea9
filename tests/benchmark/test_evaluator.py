"""Memory of an evaluation, on a handful of images."""

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import evaluator
from pfpn_tf.data import scenes
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation.counts import EvaluationMetrics


def test_counting_drawn_images(monkeypatch):
    def watched(count):
        count()
        return {"seconds": 2.0, "memory_mib": [100.0, 101.0, 102.0, 102.5]}

    monkeypatch.setattr(evaluator.measure, "watched", watched)
    run = evaluator.count_images(5)
    assert run["num_images"] == 5 and run["peak_memory_mib"] > 50
    assert run["images_per_second"] == 2.5 and run["kib_per_image"] == 0.5 * 1024 / 2.5


def test_drawn_predictions_are_neither_all_right_nor_all_wrong():
    info = DatasetInfo.from_coco_categories(scenes.CATEGORIES)
    accumulators = EvaluationMetrics(config_lib.Config().model, info)
    photo, truth, outputs = evaluator._draw(np.random.default_rng(0), info)
    scores = np.linspace(0.9, 0.1, 50, dtype=np.float32)
    outputs = outputs._replace(detections=outputs.detections._replace(scores=scores))
    annotations = [{**annotation, "image_id": 0} for annotation in truth.annotations]
    truth = truth._replace(annotations=annotations)
    accumulators.add(0, outputs, truth, lambda: photo)
    metrics = accumulators.result()
    assert 0.2 < metrics["panoptic"]["All"]["pq"] < 1
    assert 0.2 < metrics["semantic_branch"]["miou"] <= 1
    assert 0.02 < metrics["bbox"]["AP"] < 1 and 0.02 < metrics["segm"]["AP"] < 1
