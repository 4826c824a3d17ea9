"""Odd and broken files of instances: right numbers where there are any, else one clear error."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from pfpn_tf.evaluation.instance_files import InstanceFiles


def two_balls():
    """A ground truth with one ball on each of two images, and exact results."""
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[2:12, 3:23] = 1
    rle = mask_utils.encode(mask)
    rle["counts"] = rle["counts"].decode()
    ball = {"category_id": 3, "bbox": [3, 2, 20, 10], "segmentation": rle}
    gt = {
        "images": [{"id": i, "height": 20, "width": 30} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "area": 200, "iscrowd": 0, **ball} for i in (1, 2)
        ],
        "categories": [{"id": 3, "name": "ball"}],
    }
    return gt, [{"image_id": i, "score": 0.5, **ball} for i in (1, 2)]


@pytest.fixture
def instances(tmp_path):
    """Paths of the files of two balls."""
    paths = tmp_path / "gt.json", tmp_path / "pred.json"
    for path, content in zip(paths, two_balls()):
        path.write_text(json.dumps(content))
    return paths


def score(paths):
    return InstanceFiles(*map(str, paths)).score()


def change_file(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_results(paths, change):
    change_file(paths[1], change)


def change_truth(paths, change):
    change_file(paths[0], change)


def uncompressed(results):
    results[1]["segmentation"] = {"size": [20, 30], "counts": [62, 10, 528]}


EITHER = {"bbox", "segm"}
ODD_RESULTS = {
    "as they are": (lambda r: None, EITHER, 1.0),
    "empty": (lambda r: r.clear(), EITHER, 0.0),
    "empty boxes": (lambda r: [x.update(bbox=[]) for x in r], {"segm"}, 1.0),
    "one without box": (lambda r: r[0].pop("bbox"), {"segm"}, 1.0),
    "one without mask": (lambda r: r[0].pop("segmentation"), {"bbox"}, 1.0),
    "captions": (lambda r: [x.update(caption="a ball", keypoints=[]) for x in r], EITHER, 1.0),
    "class unknown": (lambda r: r[1].update(category_id=77), EITHER, 51 / 101),
    "scores": (lambda r: r[1].update(score=-3, extra=None), EITHER, 1.0),
    "empty box": (lambda r: r.append({**r[1], "bbox": [0, 0, 0, 0], "score": 0.1}), EITHER, 1.0),
    "numbers as texts": (
        lambda r: r[1].update(image_id="2", category_id=3.0, score="0.5"),
        EITHER,
        1.0,
    ),
}


@pytest.mark.parametrize("case", ODD_RESULTS)
def test_odd_results(instances, case):
    change, kinds, expected = ODD_RESULTS[case]
    change_results(instances, change)
    metrics = score(instances)
    notes = metrics.pop("notes", [])
    told = any("1 results do not count" in note and "(77)" in note for note in notes)
    assert told == (case == "class unknown")
    missing = {"one without box": "no box AP", "one without mask": "no mask AP"}.get(case)
    assert bool(missing) == any("1 of 2 results have no" in note for note in notes)
    assert not missing or missing in notes[0]
    assert set(metrics) == kinds
    for kind in kinds:
        assert metrics[kind]["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.append(None), ["pred.json", "entry 2"]),
        (lambda r: r[1].update(image_id=77), ["entry 1", "image 77", "no such image"]),
        (lambda r: r[1].update(image_id="two"), ["entry 1", "no such image"]),
        (lambda r: [x.update(category_id=0) for x in r], ["category_id 0", "class ids"]),
        (lambda r: r[1].pop("score"), ["entry 1", '"score"']),
        (lambda r: r[1].update(score="half"), ["entry 1 (image 2)", '"half"']),
        (lambda r: r[1].update(score=float("nan")), ["entry 1 (image 2)", "finite"]),
        (lambda r: r[1].pop("category_id"), ["entry 1", '"category_id"']),
        (lambda r: r[1].update(category_id=[3]), ["entry 1 (image 2)", "category_id"]),
        (lambda r: [r[1].pop("bbox"), r[1].pop("segmentation")], ["entry 1 (image 2)", "neither"]),
        (lambda r: [r[0].pop("bbox"), r[1].pop("segmentation")], ["every entry"]),
        (lambda r: r[1].update(bbox=[1, 2, 3, None]), ["entry 1 (image 2)", "four numbers"]),
        (uncompressed, ["entry 1 (image 2)", "compressed RLE"]),
        (
            lambda r: r[1].update(segmentation=[[3, 2, 23, 2, 23, 12]]),
            ["entry 1 (image 2)", "polygons"],
        ),
        (
            lambda r: r[1]["segmentation"].update(size=[30, 20]),
            ["entry 1 (image 2)", "[30, 20]", "[20, 30]"],
        ),
        (lambda r: r[1]["segmentation"].update(counts="n1:"), ["entry 1 (image 2)", "add up"]),
        (
            lambda r: r[1]["segmentation"].update(counts="~~~~~~~~~~~~~~"),
            ["entry 1 (image 2)", "no RLE"],
        ),
        (lambda r: r[1]["segmentation"].pop("size"), ["entry 1 (image 2)", '"size"']),
    ],
)
def test_broken_results_are_named(instances, change, words):
    change_results(instances, change)
    with pytest.raises(ValueError) as error:
        score(instances)
    for word in words:
        assert word in str(error.value)


def test_results_must_be_a_list(instances):
    instances[1].write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="pred.json.*list of results"):
        score(instances)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"area": None}, ['has no "area"']),
        ({"area": "many"}, ['"area"', "finite", "many"]),
        ({"area": -200}, ["area -200 is negative"]),
        ({"iscrowd": "yes"}, ['"iscrowd"', "0 or 1", "yes"]),
        ({"bbox": [1, 2, 3]}, ["[1, 2, 3]", "four numbers"]),
        ({"bbox": [1, 2, -3, 4]}, ["negative"]),
        ({"segmentation": []}, ["polygons"]),
        ({"segmentation": [[3, 2, 23, 2]]}, ["three x, y pairs"]),
        ({"segmentation": [[3, 2, 23, 2, float("nan"), 12]]}, ["coordinate NaN"]),
        ({"segmentation": [[3, 2, 1e9, 2, 23, 12]]}, ["outside the image"]),
        ({"segmentation": {"size": [20, 30], "counts": "n1:"}}, ["add up"]),
    ],
)
def test_broken_ground_truth_is_named(instances, change, words):
    change_truth(instances, lambda gt: gt["annotations"][1].update(change))
    with pytest.raises(ValueError) as error:
        score(instances)
    for word in ["ground-truth instances JSON", "annotation 2 (image 2)", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("ids", [[0, 1], [7, 7], ["a", "b"], [None, 2.5]])
def test_annotation_ids_do_not_count(instances, ids):
    """pycocotools takes the annotation with id 0 for none, and those with one id for one."""

    def change(gt):
        for annotation, i in zip(gt["annotations"], ids):
            texts = {key: str(annotation[key]) for key in ("area", "image_id")}
            annotation.update(id=i, **texts)

    change_truth(instances, change)
    metrics = score(instances)
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == pytest.approx(1.0)


def test_annotations_that_belong_nowhere_are_told(instances):
    change_truth(instances, lambda gt: gt["annotations"][1].update(image_id=5))
    (note,) = score(instances)["notes"]
    assert "1 entries do not count" in note and "annotation 2 (image 5)" in note


def test_boxes_that_are_no_boxes_are_told(instances):
    """A box beside its mask in the ground truth; corners instead of sizes in the results."""
    change_truth(instances, lambda gt: gt["annotations"][1].update(bbox=[9, 2, 20, 10]))
    (note,) = score(instances)["notes"]
    assert "1 entries have another box" in note and "annotation 2 (image 2)" in note
    change_results(instances, lambda r: r[0].update(bbox=[13, 5, 23, 15]))
    assert any("entry 0" in note for note in score(instances)["notes"])


def fractions(entry):
    entry.update(bbox=[v / 60 for v in entry["bbox"]])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda gt: [a.update(iscrowd="1") for a in gt["annotations"]], "AP is -1"),
        (lambda gt: gt["annotations"][1].update(area=3200), "1 entries have an area"),
        (lambda gt: gt["annotations"][1].update(area=0), "1 entries have an area"),
        (lambda gt: gt["annotations"].append(gt["annotations"][0]), "1 entries repeat an object"),
        (
            lambda gt: [(a.pop("segmentation"), fractions(a)) for a in gt["annotations"]],
            "all boxes (bbox) lie within the first pixel",
        ),
    ],
)
def test_odd_ground_truth_is_told(instances, change, words):
    change_truth(instances, change)
    change_results(instances, lambda r: [x.pop("segmentation") for x in r])
    notes = score(instances)["notes"]
    assert [words in note for note in notes].count(True) == 1


def test_results_in_fractions_are_told(instances):
    change_results(instances, lambda r: [fractions(x) for x in r])
    (note,) = score(instances)["notes"]
    assert "first pixel" in note and "pred.json" in note


@pytest.mark.parametrize(
    "mask",
    [
        [[12, 8, 92, 8, 92, 48]],  # of a larger picture
        [[5, 5, 8, 8, 11, 11]],  # on a line
        {"size": [20, 30], "counts": [63, 20, 10, 20, 10, 20, 457]},
    ],
)
def test_masks_that_contradict_their_boxes_are_told(instances, mask):
    """Also where the results have masks alone."""
    change_truth(instances, lambda gt: gt["annotations"][1].update(segmentation=mask))
    change_results(instances, lambda r: [x.pop("bbox") for x in r])
    notes = score(instances)["notes"]
    assert any("1 entries have another box" in note for note in notes)


def test_masks_of_any_shape_add_up(instances):
    """The sum of runs is right for long and for negative differences."""
    rng = np.random.default_rng(0)
    content, _ = two_balls()
    for height, width, pixels in (
        (1, 1, 1),
        (400, 700, 3),
        (400, 700, 100000),
        (37, 11, 200),
        (2000, 3000, 40),
    ):
        mask = np.zeros(height * width, np.uint8)
        mask[rng.integers(0, mask.size, pixels)] = 1
        rle = mask_utils.encode(np.asfortranarray(mask.reshape(height, width)))
        rle["counts"] = rle["counts"].decode()
        content["images"][0].update(height=height, width=width)
        content["annotations"][0]["segmentation"] = rle
        instances[0].write_text(json.dumps(content))
        change_results(instances, lambda r: r[0].update(segmentation=rle))
        assert score(instances)["bbox"]["AP"] == 1.0
        change_results(instances, lambda r: r[0]["segmentation"].update(counts=rle["counts"] + "1"))
        with pytest.raises(ValueError, match="add up"):
            score(instances)
