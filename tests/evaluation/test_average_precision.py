"""AP of all images at once and collected image by image against pycocotools."""

import contextlib
import io
import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pfpn_tf.evaluation import average_precision as ap
from pfpn_tf.evaluation import counts
from tests.evaluation.test_instance_files import two_balls

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def by_image(gt, results, kind, parts=1):
    """Parts travel as bytes, as those of several workers do."""
    accumulators = [ap.AveragePrecision(gt["categories"], kind) for _ in range(parts)]
    places = {i: n for n, i in enumerate(sorted(image["id"] for image in gt["images"]))}
    for n, image in enumerate(reversed(gt["images"])):
        accumulators[n % parts].update(
            {places[image["id"]]: image},
            [a for a in gt["annotations"] if a["image_id"] == image["id"]],
            [r for r in results if r["image_id"] == image["id"]],
        )
    for other in accumulators[1:]:
        accumulators[0].merge(pickle.loads(pickle.dumps(other)))
    assert accumulators[0].result() == accumulators[0].result()
    return accumulators[0].result()


def pycocotools(gt, results, kind):
    """pycocotools' twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(gt))  # pycocotools writes into both.
        truth.createIndex()
        found = truth.loadRes(json.loads(json.dumps(results)))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, evaluation.stats.tolist()))


def assert_pycocotools(ours, gt, results, kind):
    expected = pycocotools(gt, results, kind)
    assert {name: ours[name] for name in STATS} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("string_ids", [False, True])
def test_crowds_and_ties_equal_pycocotools(kind, string_ids):
    """Images listed in another order than their ids, many equal scores, a fourth of the objects
    crowds, categories and images that nothing belongs to.
    """
    rng = np.random.default_rng(0)
    hw, names = (60, 80), (lambda i: f"town_{i:03d}") if string_ids else (lambda i: 7 * i)
    gt = {
        "images": [{"id": names(int(i)), "height": 60, "width": 80} for i in rng.permutation(40)],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in (9, 2, 40)],
    }
    results = []

    def described(image_id, box):
        y, x, height, width = (int(v) for v in box)
        mask = np.zeros(hw, np.uint8, order="F")
        mask[y : y + height, x : x + width] = 1
        rle = mask_utils.encode(mask)
        rle["counts"] = rle["counts"].decode()
        return {
            "image_id": image_id,
            "category_id": int(rng.choice([9, 2])),
            **({"bbox": [x, y, width, height]} if kind == "bbox" else {"segmentation": rle}),
        }

    for image in gt["images"][:-3]:
        for _ in range(5):
            box = rng.integers([0, 0, 3, 3], [20, 30, 40, 50])
            number = {"id": len(gt["annotations"]) + 1, "area": int(box[2] * box[3])}
            crowd = {"iscrowd": int(rng.random() < 0.25)}
            gt["annotations"].append({**described(image["id"], box), **number, **crowd})
            for _ in range(3):
                near = np.maximum(box + rng.integers(-2, 3, 4), [0, 0, 1, 1])
                score = float(rng.integers(1, 5) / 4)
                results.append({**described(image["id"], near), "score": score})
    whole = ap.AveragePrecision(gt["categories"], kind)
    places = dict(enumerate(sorted(gt["images"], key=lambda image: image["id"])))
    whole.update(places, gt["annotations"], results)
    assert_pycocotools(whole.result(), gt, results, kind)
    ours = by_image(gt, results, kind, parts=4)
    assert_pycocotools(ours, gt, results, kind)
    assert 0.1 < ours["AP"] < 0.9 and ours["per_class"]["40"]["AP"] is None


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_perfect_and_no_detections(kind):
    gt, results = two_balls()
    gt["annotations"][1]["iscrowd"] = 1
    perfect = by_image(gt, results[:1], kind)
    assert perfect["AP"] == pytest.approx(1.0) and perfect["AR"] == pytest.approx(1.0)
    assert perfect["APl"] == -1
    assert by_image(gt, [], kind)["AP"] == 0.0


def test_images_whose_ids_are_no_numbers_come_after_all_others():
    """By position, out of the way of every id that is a number."""
    ids = [3, "007", 2**40, "a", -1, 2**70, 0]
    places = [counts._place(image_id, position) for position, image_id in enumerate(ids)]
    assert len(set(places)) == len(ids)
    assert sorted(places) == [0, 3, 2**40, *(places[i] for i in (1, 3, 4, 5))]
    precision = ap.AveragePrecision([{"id": 1, "name": "cat"}], "bbox")
    box = {"image_id": "a", "category_id": 1, "bbox": [0, 0, 9, 9]}
    image = {"id": "a", "height": 9, "width": 9}
    precision.update({places[3]: image}, [{**box, "id": 1, "area": 81}], [{**box, "score": 1.0}])
    assert precision.result()["AP"] == pytest.approx(1.0)
