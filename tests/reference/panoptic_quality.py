"""Panoptic quality of files by panopticapi's own code."""

import json

import pytest


def score_files(gt_json, gt_dir, pred_json, pred_dir):
    """Averages of all classes, of things and of stuff, each None where no class occurs; and the
    counts of each category. The test is skipped without panopticapi.

    Raises:
      Exception: whatever a malformed file leads to; KeyError for a segment that panopticapi
        refuses.
    """
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="needs the extra panopticapi")
    with open(gt_json) as f:
        gt = json.load(f)
    with open(pred_json) as f:
        predictions = {a["image_id"]: a for a in json.load(f)["annotations"]}
    pairs = [(a, predictions[a["image_id"]]) for a in gt["annotations"]]
    categories = {c["id"]: c for c in gt["categories"]}
    counts = evaluation.pq_compute_single_core(0, pairs, gt_dir, pred_dir, categories)

    def average(isthing):
        try:
            return counts.pq_average(categories, isthing)[0]
        except ZeroDivisionError:
            return None

    return [average(isthing) for isthing in (None, True, False)], counts
