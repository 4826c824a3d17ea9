"""AP collected image by image against pycocotools on the whole set."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from pfpn_tf.evaluation import average_precision as ap

CASES = [
    "01_coco",
    "02_coco_ties_few_images",
    "04_coco_over_100_per_image",
    "06_camvid_class_without_gt",
]


def by_image(gt, results, kind, parts=1):
    accumulators = [ap.AveragePrecision(gt["categories"], kind) for _ in range(parts)]
    for n, image in enumerate(reversed(gt["images"])):
        accumulators[n % parts].update(
            image,
            [a for a in gt["annotations"] if a["image_id"] == image["id"]],
            [r for r in results if r["image_id"] == image["id"]],
        )
    for other in accumulators[1:]:
        accumulators[0].merge(other)
    return accumulators[0].result()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("case", CASES)
def test_image_by_image_equals_all_at_once(test_data, case, kind):
    folder = test_data(f"data/pq_cases/given/instances/{case}")
    gt = json.loads((folder / "gt.json").read_text())
    results = json.loads((folder / f"detections_{kind}.json").read_text())
    assert by_image(gt, results, kind, parts=3) == ap.average_precision(gt, results, kind)


def toy():
    """Two images of 20 x 30; one object each, the second a crowd."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:12, 3:23] = 1
    rle = mask_utils.encode(mask)
    rle["counts"] = rle["counts"].decode()
    annotation = {"category_id": 4, "area": 200, "bbox": [3, 2, 20, 10], "segmentation": rle}
    gt = {
        "images": [{"id": i, "height": 20, "width": 30} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "iscrowd": 0, **annotation},
            {"id": 2, "image_id": 2, "iscrowd": 1, **annotation},
        ],
        "categories": [{"id": 4}, {"id": 9}],
    }
    result = {
        "image_id": 1,
        "category_id": 4,
        "bbox": [3, 2, 20, 10],
        "segmentation": rle,
        "score": 0.9,
    }
    return gt, result


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_and_no_detections(kind):
    gt, result = toy()
    for score in (ap.average_precision, by_image):
        perfect = score(gt, [result], kind)
        assert perfect["AP"] == pytest.approx(1.0) and perfect["AR"] == pytest.approx(1.0)
        assert perfect["APl"] == -1 and perfect["per_class"]["9"]["AP"] is None
        assert score(gt, [], kind)["AP"] == 0.0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 77}, "image 77"),
        ({"score": float("nan")}, "entry 0 .image 1.: score"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"segmentation": {"size": [30, 20], "counts": "0"}}, "the mask has size"),
    ],
)
def test_bad_results_are_named(change, message):
    gt, result = toy()
    with pytest.raises(ValueError, match=message):
        ap.check_results([{**result, **change}], gt, "results.json")


def test_missing_key_is_named():
    gt, result = toy()
    del result["score"]
    with pytest.raises(ValueError, match='entry 0 has no "score"'):
        ap.check_results([result], gt, "results.json")
