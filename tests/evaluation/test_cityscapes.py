"""Cityscapes' metrics: the numbers of cityscapesscripts, run as its command line runs it, on the
same files.
"""

import copy
import json
import os
import pathlib

import cv2
import numpy as np
import pytest

from pfpn_tf.data import panoptic_png
from pfpn_tf.data.predictions import PredictionWriter, instance_results
from pfpn_tf.evaluation import cityscapes, output_folder
from tests import processes

pixels = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
instances = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")

EVALUATED = [label for label in pixels.labels if not label.ignoreInEval]
IMAGE_IDS = ["aachen_000000_000019", "aachen_000001_000019", "zurich_000002_000019"]
HW = (60, 90)


def scene(i):
    """[h, w] instance ids: road, sky, two cars, a person, a group of cars, something ignored,
    void.
    """
    ids = np.full(HW, 7, np.uint16)
    ids[: 20 + i] = 23
    ids[25:45, 5 : 25 + i] = 26000
    ids[30:50, 40:60] = 26001
    ids[22:52, 70:80] = 24000 if i != 1 else 7
    ids[50:58, 10:35] = 26
    ids[2:10, 60:85] = 5
    ids[:2] = 0
    return ids


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "gtFine" / "val"
    for i, image_id in enumerate(IMAGE_IDS):
        ids = scene(i)
        path = folder / image_id.split("_")[0]
        path.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path / f"{image_id}_gtFine_instanceIds.png"), ids)
        cv2.imwrite(
            str(path / f"{image_id}_gtFine_labelIds.png"),
            np.where(ids < 1000, ids, ids // 1000).astype(np.uint8),
        )
    return folder


def write_predictions(folder, train_ids=False):
    """The scenes a little off, a car too many and one that is only half found."""
    category_of = {label.id: label.trainId if train_ids else label.id for label in EVALUATED}
    categories = [
        {"id": category_of[label.id], "name": label.name, "isthing": int(label.hasInstances)}
        for label in EVALUATED
    ]
    classes = list(category_of.values())
    rng = np.random.default_rng(0)
    with PredictionWriter(folder, categories, semantic_category_ids=classes) as writer:
        for i, image_id in enumerate(IMAGE_IDS):
            ids = np.roll(scene(i), (2, 1 + i), (0, 1)).astype(np.uint32)
            ids[40:48, 60:69] = 26009
            ids[36:52, 41:62][ids[36:52, 41:62] == 26001] = 7
            ids[np.isin(ids, [0, 5, 26])] = 0
            segments, labels = [], np.full(HW, len(classes))
            for k in np.unique(ids[ids > 0]).tolist():
                category_id = category_of[k if k < 1000 else k // 1000]
                segments.append({"id": k, "category_id": category_id})
                labels[ids == k] = classes.index(category_id)
            writer.add_panoptic(image_id, ids, segments)
            writer.add_semantic(image_id, labels)
            things = [s for s in segments if s["id"] > 1000]
            masks = [ids == s["id"] for s in things]
            scores = rng.random(len(things)).round(1)
            if i != 2:  # Nothing is found in the last image.
                category_ids = [s["category_id"] for s in things]
                boxes = np.zeros((len(things), 4))
                writer.add_instances(instance_results(image_id, boxes, scores, category_ids, masks))
    return folder


def score(truth, folder, **kwargs):
    paths = {
        "panoptic_json": str(folder / "panoptic.json"),
        "panoptic_dir": str(folder / "panoptic"),
        "instances_json": str(folder / "instances.json"),
    }
    output_dir = kwargs.pop("output_dir", "")
    return cityscapes.CityscapesScorer(str(truth), **paths, **kwargs).score(output_dir)


def write_json(value, path):
    """In place of cityscapesscripts' own, which stumbles over NumPy 2's numbers."""

    def plain(x):
        return x.item() if isinstance(x, np.generic) else vars(x)

    pathlib.Path(path).write_text(json.dumps(value, default=plain))


def run_cityscapesscripts(truth, results, monkeypatch, tmp_path):
    """Both of its result dicts, from its own search for files to its own averages."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(instances, "writeDict2JSON", write_json)
    found = []
    for module, kind, level in (
        (pixels, "labelIds", output_folder.PIXEL_LEVEL),
        (instances, "instanceIds", output_folder.INSTANCE_LEVEL),
    ):
        args = copy.copy(module.args)
        args.predictionPath, args.predictionWalk = str(results / level), None
        args.JSONOutput, args.quiet = False, True
        args.gtInstancesFile = str(tmp_path / "work/gtInstances.json")
        truths = sorted(str(p) for p in truth.glob(f"*/*_gtFine_{kind}.png"))
        order = (lambda gt: (args, gt)) if module is pixels else (lambda gt: (gt, args))
        found.append(
            module.evaluateImgLists(
                [module.getPrediction(*order(gt)) for gt in truths], truths, args
            )
        )
    return found


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_numbers_are_those_of_cityscapesscripts(truth, tmp_path, monkeypatch):
    ours = score(truth, write_predictions(tmp_path / "pred"), output_dir=str(tmp_path / "kept"))
    pixel, instance = run_cityscapesscripts(truth, tmp_path / "kept", monkeypatch, tmp_path)
    assert ours["miou"] == pixel["averageScoreClasses"] and 0.2 < ours["miou"] < 0.99
    assert ours["iiou"] == pixel["averageScoreInstClasses"] and 0.2 < ours["iiou"] < 0.99
    assert ours["miou_categories"] == pixel["averageScoreCategories"]
    assert ours["iiou_categories"] == pixel["averageScoreInstCategories"]
    assert ours["AP"] == instance["averages"]["allAp"] and 0.05 < ours["AP"] < 0.99
    assert ours["AP50"] == instance["averages"]["allAp50%"]
    assert len(ours["per_class"]) == 19 and ours["num_images"] == 3
    for name, row in ours["per_class"].items():
        theirs = {"iou": pixel["classScores"][name], "iiou": pixel["classInstScores"][name]}
        if name in instance["averages"]["classes"]:
            found = instance["averages"]["classes"][name]
            theirs.update(AP=found["ap"], AP50=found["ap50%"])
        assert row == {key: None if np.isnan(value) else value for key, value in theirs.items()}


def test_train_ids_and_semantic_maps_give_the_same(truth, tmp_path):
    expected = score(truth, write_predictions(tmp_path / "label"))
    folder = write_predictions(tmp_path / "train", train_ids=True)
    assert score(truth, folder) == expected
    scorer = cityscapes.CityscapesScorer(
        str(truth),
        instances_json=str(folder / "instances.json"),
        semantic_dir=str(folder / "semantic"),
        categories_json=str(folder / "panoptic.json"),
    )
    assert scorer.score() == expected


def test_nothing_is_left_behind(truth, tmp_path, monkeypatch):
    folder = write_predictions(tmp_path / "pred")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(work))
    before = [dict(vars(module.args)) for module in (pixels, instances)]
    files = sorted(tmp_path.rglob("*"))
    score(truth, folder)
    assert sorted(tmp_path.rglob("*")) == files
    assert repr([vars(module.args) for module in (pixels, instances)]) == repr(before)


def test_only_what_is_predicted(truth, tmp_path):
    folder = write_predictions(tmp_path / "pred")
    content = json.loads((folder / "panoptic.json").read_text())
    content["annotations"].pop(1)
    (folder / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"Image {IMAGE_IDS[1]}: not in"):
        score(truth, folder)
    some = [IMAGE_IDS[0], IMAGE_IDS[2], "another"]
    assert score(truth, folder, image_ids=some)["num_images"] == 2


def test_maps_of_an_earlier_evaluation_do_not_count(truth, tmp_path):
    """Only the images of this evaluation do, whatever the folder holds; nor are they submitted."""
    folder = write_predictions(tmp_path / "pred")
    options = {"semantic_dir": str(folder / "semantic"), "image_ids": IMAGE_IDS[:2]}
    expected = score(truth, folder, output_dir=str(folder), **options)
    stale = folder / f"semantic/{IMAGE_IDS[2]}.png"
    cv2.imwrite(str(stale), np.full(HW, 7, np.uint8))
    (folder / "pixel_level/old_labelIds.png").write_bytes(stale.read_bytes())
    found = score(truth, folder, output_dir=str(folder), **options)
    assert found == expected and found["num_images"] == 2
    assert len(list((folder / "pixel_level").iterdir())) == 2


def rename(old, new):
    """A damage of panoptic.json."""

    def damage(folder, truth):
        path = folder / "panoptic.json"
        path.write_text(path.read_text().replace(old, new))

    return damage


def smaller_png(folder, truth):
    path = folder / f"panoptic/{IMAGE_IDS[0]}.png"
    cv2.imwrite(str(path), cv2.imread(str(path))[1:])


def first_instance(change=None, **new):
    """A damage of instances.json."""

    def damage(folder, truth):
        path = folder / "instances.json"
        content = json.loads(path.read_text())
        content[0].update(new)
        (change or dict)(content[0])
        path.write_text(json.dumps(content))

    return damage


def truth_png(kind, content):
    """A damage of the first PNG of a kind of the ground truth; no content: it is missing."""

    def damage(folder, truth):
        path = truth / f"aachen/{IMAGE_IDS[0]}_gtFine_{kind}.png"
        path.unlink() if content is None else path.write_bytes(content)

    return damage


UNKNOWN_LABEL = panoptic_png.encode_grey(np.full(HW, 200, np.uint8))


@pytest.mark.parametrize(
    "damage, words",
    [
        (rename('"sky"', '"heaven"'), ["panoptic.json", "'heaven' is no class"]),
        (rename('"categories"', '"classes"'), ["panoptic.json", "no categories"]),
        (rename('"category_id": 23', '"category_id": 99'), [IMAGE_IDS[0], "99"]),
        (smaller_png, [IMAGE_IDS[0], "59 x 90", "60 x 90"]),
        (
            lambda folder, truth: os.unlink(folder / f"panoptic/{IMAGE_IDS[0]}.png"),
            [IMAGE_IDS[0], "No such file"],
        ),
        (first_instance(lambda r: r.pop("segmentation")), [IMAGE_IDS[0], "instance 0", "RLE"]),
        (
            first_instance(lambda r: r["segmentation"].update(size=[90, 60])),
            [IMAGE_IDS[0], "[60, 90]"],
        ),
        (first_instance(category_id=7000), [IMAGE_IDS[0], "7000"]),
        (first_instance(image_id=5), ["instances.json", "entry 0", "image_id"]),
        (first_instance(lambda r: r.pop("score")), ["instances.json", "entry 0", "score"]),
        (truth_png("instanceIds", None), ["instanceIds.png does not exist"]),
        (truth_png("labelIds", b""), ["labelIds.png", "no readable"]),
        (
            truth_png("labelIds", UNKNOWN_LABEL),
            ["cityscapesscripts stopped: Unknown label with id 200"],
        ),
    ],
)
def test_errors_name_what_is_wrong(truth, tmp_path, damage, words):
    folder = write_predictions(tmp_path / "pred")
    damage(folder, truth)
    with pytest.raises(ValueError) as error:
        score(truth, folder)
    for word in words:
        assert word in str(error.value)


def test_wrong_folder_is_named(truth, tmp_path):
    with pytest.raises(ValueError, match="give the folder of one split, e.g. gtFine/val"):
        score(truth.parent, write_predictions(tmp_path / "pred"))


def test_tool_scores_ground_truth_of_the_real_layout(test_data, tmp_path):
    """The panoptic files of createPanopticImgs as prediction: every pixel right but what they leave
    out.
    """
    root = test_data("data/cityscapes_like/gtFine")
    flags = [f"--cityscapes_gt_dir={root}/val"]
    flags += [f"--pred_panoptic_json={root}/cityscapes_panoptic_val_trainId.json"]
    flags += [f"--output_dir={tmp_path}/out", f"--metrics_json={tmp_path}/m.json"]
    done = processes.call("tools/eval.py", *flags)
    metrics = json.loads((tmp_path / "m.json").read_text())["cityscapes"]
    assert metrics["miou"] == 1.0 and metrics["iiou"] == 1.0 and metrics["num_images"] == 5
    assert "AP" not in metrics
    assert len(list((tmp_path / "out/pixel_level").iterdir())) == 5
    assert "Cityscapes" in done.stdout and "100.00" in done.stdout
