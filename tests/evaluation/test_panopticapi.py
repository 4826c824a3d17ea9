"""PQ against panopticapi itself, where it is installed (extra `panopticapi`)."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import test_given_cases as given
from tests.evaluation.test_panoptic_quality import CATEGORIES, distort, random_scene

evaluation = pytest.importorskip("panopticapi.evaluation")


def assert_equal(folder):
    """gt.json, gt/, pred.json and pred/ of the folder score to panopticapi's numbers."""
    gt, pred = (json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "pred"))
    predictions = {a["image_id"]: a for a in pred["annotations"]}
    pairs = [(a, predictions[a["image_id"]]) for a in gt["annotations"]]
    categories = {c["id"]: c for c in gt["categories"]}
    theirs = evaluation.pq_compute_single_core(
        0, pairs, str(folder / "gt"), str(folder / "pred"), categories
    )
    ours = given.score(folder)["panoptic"]
    for category_id in categories:
        row, stat = ours["per_class"][str(category_id)], theirs[category_id]
        assert (row["tp"], row["fp"], row["fn"]) == (stat.tp, stat.fp, stat.fn)
        assert row["iou_sum"] == pytest.approx(stat.iou, abs=1e-12)
    average, _ = theirs.pq_average(categories, isthing=None)
    assert ours["All"] == pytest.approx(average, abs=1e-12)
    return ours


@pytest.mark.parametrize("case", given.PANOPTIC)
def test_given_cases(test_data, case):
    assert_equal(test_data(f"{given.ROOT}/panoptic/{case}"))


def test_drawn_scenes(tmp_path):
    rng = np.random.default_rng(3)
    contents = {name: {"categories": CATEGORIES, "annotations": []} for name in ("gt", "pred")}
    for name in contents:
        (tmp_path / name).mkdir()
    for i in range(30):
        gt_ids, gt = random_scene(rng, (50, 70), 9)
        pred_ids, pred = distort(rng, gt_ids, gt)
        for name, ids, segments in (("gt", gt_ids, gt), ("pred", pred_ids, pred)):
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / name / f"{i}.png")
            contents[name]["annotations"].append(
                {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
            )
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = assert_equal(tmp_path)["per_class"].values()
    assert all(sum(row[k] for row in rows) > 10 for k in ("tp", "fp", "fn"))
