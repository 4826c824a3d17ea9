"""Odd and broken prediction files: the reference's numbers where it gives any, else one clear
error.
"""

import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.data import panoptic_png
from pfpn_tf.evaluation.score_files import PanopticFiles
from tests.reference import panoptic_quality as reference

CATEGORIES = [
    {"id": 3, "name": "ball", "isthing": 1},
    {"id": 5, "name": "boat", "isthing": 1},
    {"id": 9, "name": "sand", "isthing": 0},
]
SIZES = [(24, 31), (17, 40), (30, 22)]
# Image 1 (the second) is the one that gets changed.
PRED_PNG = "pred/1.png"


@pytest.fixture
def folder(tmp_path):
    """gt.json, gt/, pred.json, pred/: three images, four segments each, boundaries a little off."""
    for name, shift in (("gt", 0), ("pred", 2)):
        content = {"images": [], "annotations": [], "categories": CATEGORIES}
        (tmp_path / name).mkdir()
        for i, (height, width) in enumerate(SIZES):
            ids = np.zeros((height, width), np.uint32)
            ids[2:, : width // 2 + shift] = 70000
            ids[height // 2 + shift :, 3:] = 300
            ids[4 : 9 + shift, 5 : 14 + shift] = 2**24 - 1
            ids[12 + shift :, width - 8 :] = 1
            categories = {70000: 9, 300: 3, 2**24 - 1: 3 if shift else 5, 1: 5}
            segments = [
                {
                    "id": k,
                    "category_id": c,
                    "area": int((ids == k).sum()),
                    "iscrowd": int(k == 1 and i == 2 and not shift),
                }
                for k, c in categories.items()
            ]
            (tmp_path / name / f"{i}.png").write_bytes(panoptic_png.encode_ids(ids))
            content["images"].append(
                {"id": i, "height": height, "width": width, "file_name": f"{i}.jpg"}
            )
            content["annotations"].append(
                {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
            )
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def files(folder):
    return [str(folder / name) for name in ("gt.json", "gt", "pred.json", "pred")]


def edit(name, change):
    """A damage: `change` applied to the content of a JSON file, or to its annotation number 1."""

    def damage(folder):
        content = json.loads((folder / f"{name}.json").read_text())
        change(content)
        (folder / f"{name}.json").write_text(json.dumps(content))

    return damage


def pred(change):
    return edit("pred", lambda content: change(content["annotations"][1]))


def segment(**new):
    """A damage of the first predicted segment, 70000."""
    return pred(lambda a: a["segments_info"][0].update(new))


def without(entry, key):
    del entry[key]


def save(mode):
    """A damage: the PNG in another mode of Pillow."""
    return lambda folder: Image.open(folder / PRED_PNG).convert(mode).save(folder / PRED_PNG)


def save_16_bit(folder):
    cv2.imwrite(str(folder / PRED_PNG), cv2.imread(str(folder / PRED_PNG)).astype(np.uint16) * 257)


def move(new_name):
    def damage(folder):
        target = folder / "pred" / new_name
        target.parent.mkdir(exist_ok=True)
        (folder / PRED_PNG).rename(target)
        pred(lambda a: a.update(file_name=new_name))(folder)

    return damage


def set_pixel(value):
    def damage(folder):
        ids = reference.read_ids(folder / PRED_PNG)
        ids[5, 7] = value
        (folder / PRED_PNG).write_bytes(panoptic_png.encode_ids(ids))

    return damage


def rewrite(change, name=PRED_PNG):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def same_number_of_other_type(folder):
    edit("pred", lambda c: [a.update(image_id=float(a["image_id"])) for a in c["annotations"]])(
        folder
    )
    segment(id=70000.0, category_id=9.0)(folder)


def all_string_ids(folder):
    for name in ("gt", "pred"):
        edit(
            name, lambda c: [a.update(image_id=f"city_{a['image_id']}") for a in c["annotations"]]
        )(folder)


def void_listed_as_segment(folder):
    pred(lambda a: a["segments_info"].append({"id": 0, "category_id": 9}))(folder)


def worse_then_better(content):
    """The image twice: first with a wrong class, then as it was."""
    wrong = json.loads(json.dumps(content["annotations"][1]))
    wrong["segments_info"][0]["category_id"] = 5
    content["annotations"].insert(0, wrong)


NUMBERS = {
    "as it is": lambda folder: None,
    "RGBA": save("RGBA"),
    "interlaced and trailing bytes": rewrite(lambda png: png + b"\0" * 100),
    "only id and category": pred(
        lambda a: [[s.pop("area"), s.pop("iscrowd")] for s in a["segments_info"]]
    ),
    "predicted areas are nonsense": pred(
        lambda a: [s.update(area="many") for s in a["segments_info"]]
    ),
    "predicted crowd": segment(iscrowd=1),
    "segment listed twice, last counts": pred(
        lambda a: a["segments_info"].append({**a["segments_info"][0], "category_id": 5})
    ),
    "image twice, last counts": edit("pred", worse_then_better),
    "images in another order": edit("pred", lambda c: c["annotations"].reverse()),
    "more images": edit("pred", lambda c: c["annotations"].append({"image_id": 77})),
    "whole numbers as floats": same_number_of_other_type,
    "string image ids": all_string_ids,
    "file name with a folder": move("sub/1.png"),
    "PNG by another extension": move("1.panoptic"),
    "void listed as a segment": void_listed_as_segment,
    "prediction's categories differ": edit(
        "pred", lambda c: c.update(categories=[{"id": 3, "name": "sand", "isthing": 0}])
    ),
    "no categories in the prediction": edit("pred", lambda c: c.pop("categories")),
    "empty image": lambda folder: (
        (folder / PRED_PNG).write_bytes(panoptic_png.encode_ids(np.zeros(SIZES[1]))),
        pred(lambda a: a.update(segments_info=[]))(folder),
    ),
    "ground-truth area missing where nothing overlaps": edit(
        "gt",
        lambda c: [
            without(s, "area") for a in c["annotations"] for s in a["segments_info"] if s["iscrowd"]
        ],
    ),
    "ground-truth category unknown": edit(
        "gt", lambda c: c["annotations"][1]["segments_info"][0].update(category_id=8)
    ),
    "ground-truth id over 24 bits": edit(
        "gt", lambda c: c["annotations"][1]["segments_info"][0].update(id=2**24 + 5)
    ),
    "ground-truth areas twice as large": edit(
        "gt",
        lambda c: [
            s.update(area=2.0 * s["area"]) for a in c["annotations"] for s in a["segments_info"]
        ],
    ),
    "categories twice, last counts": edit(
        "gt", lambda c: c["categories"].append({"id": 5, "name": "boat", "isthing": 0})
    ),
    "no things": edit("gt", lambda c: [x.update(isthing=0) for x in c["categories"]]),
    "no images": edit("gt", lambda c: c.update(annotations=[])),
}
# What is wrong, and what its message has to name.
ERRORS = {
    "PNG missing": (
        lambda folder: (folder / PRED_PNG).unlink(),
        ["Image 1", PRED_PNG, "No such file"],
    ),
    "PNG is a folder": (
        lambda folder: ((folder / PRED_PNG).unlink(), (folder / PRED_PNG).mkdir()),
        ["Image 1", PRED_PNG, "directory"],
    ),
    "PNG empty": (rewrite(lambda png: b""), ["Image 1", PRED_PNG, "not a PNG"]),
    "PNG cut off": (rewrite(lambda png: png[: len(png) // 2]), ["Image 1", PRED_PNG, "damaged"]),
    "PNG with a flipped bit": (
        rewrite(lambda png: png[:80] + bytes([png[80] ^ 16]) + png[81:]),
        ["Image 1", PRED_PNG],
    ),
    "PNG claims 2 Gpixels": (
        rewrite(lambda png: png[:16] + b"\0\0\xff\xff\0\0\xff\xff" + png[24:]),
        ["Image 1", PRED_PNG, "damaged"],
    ),
    "PNG of another size": (
        lambda folder: (folder / PRED_PNG).write_bytes((folder / "pred/0.png").read_bytes()),
        ["Image 1", PRED_PNG, "24 x 31", "17 x 40"],
    ),
    "16 bits": (save_16_bit, ["Image 1", PRED_PNG, "bit depth 16"]),
    "grey": (save("L"), ["Image 1", PRED_PNG, "8-bit RGB"]),
    "grey with alpha": (save("LA"), ["Image 1", PRED_PNG, "8-bit RGB"]),
    "palette": (save("P"), ["Image 1", PRED_PNG, "8-bit RGB", "palette"]),
    "one bit": (save("1"), ["Image 1", PRED_PNG, "8-bit RGB"]),
    "wrong extension": (
        pred(lambda a: a.update(file_name="1.jpg")),
        ["Image 1", "pred/1.jpg", "No such file"],
    ),
    "file name is a number": (
        pred(lambda a: a.update(file_name=1)),
        ["Image 1", "pred.json", "file_name"],
    ),
    "no file name": (
        pred(lambda a: without(a, "file_name")),
        ["Image 1", "pred.json", "file_name"],
    ),
    "pixel not listed": (
        set_pixel(4711),
        ["Image 1", PRED_PNG, "segment 4711", "not in segments_info"],
    ),
    "listed without a pixel": (
        pred(lambda a: a["segments_info"].append({"id": 8, "category_id": 3})),
        ["Image 1", PRED_PNG, "segment 8 is in segments_info"],
    ),
    "id over 24 bits": (segment(id=2**24 + 5), ["Image 1", PRED_PNG, "segment"]),
    "only a listed id over 24 bits": (
        pred(lambda a: a["segments_info"].append({"id": 2**24, "category_id": 3})),
        ["Image 1", PRED_PNG, "segment 16777216", "below 16777216"],
    ),
    "negative id": (
        pred(lambda a: a["segments_info"].append({"id": -1, "category_id": 3})),
        ["Image 1", "segment -1"],
    ),
    "text as id": (segment(id="7000o"), ["Image 1", "pred.json", '"7000o"', "whole number"]),
    "half an id": (segment(id=0.5), ["Image 1", "pred.json", "0.5", "whole number"]),
    "no id": (
        pred(lambda a: without(a["segments_info"][0], "id")),
        ["Image 1", "pred.json", '"id"'],
    ),
    "unknown category": (
        segment(category_id=4),
        ["Image 1", PRED_PNG, "segment 70000", "category_id 4"],
    ),
    "text as category": (
        segment(category_id="nine"),
        ["Image 1", "pred.json", "segment 70000", '"category_id"', '"nine"'],
    ),
    "no category": (
        pred(lambda a: without(a["segments_info"][0], "category_id")),
        ["Image 1", "pred.json", "segment 70000", "category_id"],
    ),
    "category is a list": (segment(category_id=[9]), ["Image 1", "segment 70000", "category_id"]),
    "no segments_info": (
        pred(lambda a: without(a, "segments_info")),
        ["Image 1", "pred.json", "segments_info"],
    ),
    "segments_info is null": (
        pred(lambda a: a.update(segments_info=None)),
        ["Image 1", "pred.json", "segments_info"],
    ),
    "segment is a number": (
        pred(lambda a: a["segments_info"].append(5)),
        ["Image 1", "pred.json", "segments_info"],
    ),
    "image missing": (edit("pred", lambda c: c["annotations"].pop(1)), ["Image 1", "pred.json"]),
    "no predictions": (
        edit("pred", lambda c: c.update(annotations=[])),
        ["Image 0 and 2 more", "pred.json"],
    ),
    "annotation without image": (
        edit("pred", lambda c: without(c["annotations"][1], "image_id")),
        ["pred.json", "annotations[1]"],
    ),
    "image id is a list": (
        pred(lambda a: a.update(image_id=[1])),
        ["pred.json", "annotations[1]", "image_id"],
    ),
    "annotation is a string": (
        edit("pred", lambda c: c["annotations"].append("x")),
        ["pred.json", "annotations[3]"],
    ),
    "no annotations": (
        edit("pred", lambda c: without(c, "annotations")),
        ["pred.json", '"annotations"'],
    ),
    "JSON is a list": (rewrite(lambda _: b"[]", "pred.json"), ["pred.json", "It is a list"]),
    "JSON cut off": (rewrite(lambda text: text[:-9], "pred.json"), ["pred.json", "not valid JSON"]),
    "JSON is no text": (
        rewrite(lambda text: b"\xff\xfe\0" + text, "pred.json"),
        ["pred.json", "not valid JSON"],
    ),
    "JSON missing": (lambda folder: (folder / "pred.json").unlink(), ["pred.json", "No such file"]),
    "ground truth without areas": (
        edit(
            "gt",
            lambda c: [without(s, "area") for a in c["annotations"] for s in a["segments_info"]],
        ),
        ["Image 0", "pred/0.png", "ground-truth segment 1,", "area"],
    ),
    "ground-truth area is null": (
        edit("gt", lambda c: c["annotations"][1]["segments_info"][0].update(area=None)),
        ["Image 1", PRED_PNG, "segment 70000", "area"],
    ),
    "no categories": (edit("gt", lambda c: without(c, "categories")), ["gt.json", "categories"]),
    "no isthing": (
        edit("gt", lambda c: without(c["categories"][1], "isthing")),
        ["gt.json", "isthing", "boat"],
    ),
    "ground-truth PNG missing": (
        lambda folder: (folder / "gt/1.png").unlink(),
        ["Image 1", "gt/1.png", "ground-truth"],
    ),
}
# Files that panopticapi would score, from the high bytes of the pixels or whatever decodes.
REFUSED_BY_US_ALONE = {"16 bits", "PNG with a flipped bit"}


def assert_equal(ours, theirs):
    if theirs is None:
        assert ours is None
    else:
        assert [ours[k] for k in ("pq", "sq", "rq")] == pytest.approx(
            theirs[:3], abs=1e-12
        ) and ours["n"] == theirs[3]


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_the_reference_s(folder, case):
    NUMBERS[case](folder)
    expected = reference.score_files(*files(folder))
    metrics = PanopticFiles(*files(folder)).score()
    for group, theirs in zip(("All", "Things", "Stuff"), expected):
        assert_equal(metrics["panoptic"][group], theirs)


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_is_wrong(folder, case):
    damage, words = ERRORS[case]
    damage(folder)
    if case not in REFUSED_BY_US_ALONE:
        with pytest.raises(Exception):
            reference.score_files(*files(folder))
    with pytest.raises(ValueError) as error:
        PanopticFiles(*files(folder)).score()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "case, words",
    [
        ("image twice, last counts", "1 predictions are for an image listed before"),
        ("more images", "1 predicted images are not in the ground truth"),
        ("prediction's categories differ", "Category 3 is 'sand' in the prediction"),
        ("no things", "Things is null"),
        ("segment listed twice, last counts", "1 predicted segments are listed more than once"),
        ("categories twice, last counts", "is listed more than once"),
        ("ground-truth category unknown", "1 ground-truth segments do not count"),
        ("no images", "All is null"),
        ("ground-truth areas twice as large", "11 ground-truth segments have another area"),
    ],
)
def test_notes(folder, case, words):
    NUMBERS[case](folder)
    assert any(words in note for note in PanopticFiles(*files(folder)).score()["notes"])


def test_image_ids_as_texts_are_the_same_images(folder):
    expected = PanopticFiles(*files(folder)).score()
    edit("pred", lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]])(
        folder
    )
    assert PanopticFiles(*files(folder)).score() == expected


def test_areas_that_contradict_the_pixels(folder):
    """PQ is panopticapi's, 10 times too high; the note tells the one by the pixels."""
    true = 100 * PanopticFiles(*files(folder)).score()["panoptic"]["All"]["pq"]

    def shrink(content):
        for segment in (s for a in content["annotations"] for s in a["segments_info"]):
            segment["area"] //= 10

    edit("gt", shrink)(folder)
    metrics = PanopticFiles(*files(folder)).score()
    wrong = 100 * metrics["panoptic"]["All"]["pq"]
    assert wrong > 100 > true
    (note,) = metrics["notes"]
    assert f"panopticapi does: {wrong:.2f}; by the pixels it would be {true:.2f}" in note
    assert "Image 0" in note and "segment" in note


def test_random_damage_gives_the_reference_s_answer(folder):
    """Pixels, ids, categories, crowds and areas changed at random: the same number, or both
    refuse.
    """
    rng = np.random.default_rng(0)
    original = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "pred")}
    scored = refused = 0
    for _ in range(150):
        for name, content in original.items():
            content = json.loads(json.dumps(content))
            for annotation, size in zip(content["annotations"], SIZES):
                ids = reference.read_ids(folder / name / annotation["file_name"])
                y, x = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
                ids[y : y + 6, x : x + 6] = rng.choice([0, 1, 300, 70000, 2**24 - 1] * 5 + [4711])
                annotation["file_name"] = f"random_{annotation['file_name']}"
                (folder / name / annotation["file_name"]).write_bytes(panoptic_png.encode_ids(ids))
                visible = np.unique(ids)
                annotation["segments_info"] = [
                    s for s in annotation["segments_info"] if s["id"] in visible
                ]
                for entry in annotation["segments_info"]:
                    kind = rng.random()
                    if kind < 0.2:
                        entry["category_id"] = int(rng.choice([3, 5, 9]))
                    elif kind < 0.3 and name == "gt":
                        entry["iscrowd"] = 1
                    elif kind < 0.4 and name == "gt":
                        entry["area"] = int(rng.integers(1, 400))
                    elif kind < 0.41 and name == "gt":
                        entry["id"] = 2
            (folder / f"random_{name}.json").write_text(json.dumps(content))
        paths = [str(folder / p) for p in ("random_gt.json", "gt", "random_pred.json", "pred")]
        try:
            expected = reference.score_files(*paths)
        except reference.Refused:
            refused += 1
            with pytest.raises(ValueError, match="Image"):
                PanopticFiles(*paths).score()
        else:
            scored += 1
            metrics = PanopticFiles(*paths).score()["panoptic"]
            for group, theirs in zip(("All", "Things", "Stuff"), expected):
                assert_equal(metrics[group], theirs)
    assert scored > 50 and refused > 5


def test_tool_writes_nothing_after_an_error(folder):
    ERRORS["unknown category"][0](folder)
    names = ("gt_panoptic_json", "gt_panoptic_dir", "pred_panoptic_json", "pred_panoptic_dir")
    tool = pathlib.Path(__file__).parents[2] / "tools/eval.py"
    before = sorted(folder.rglob("*"))
    command = [sys.executable, str(tool), *(f"--{n}={p}" for n, p in zip(names, files(folder)))]
    done = subprocess.run(
        [*command, f"--metrics_json={folder}/m.json"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr.startswith("Error: Image 1")
        and "Traceback" not in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            "--gt_panoptic_json=gt.json --pred_panoptic_json=pred.json --checkpoint=5",
            "--checkpoint",
        ),
        ("--gt_panoptic_json=gt.json --pred_panoptic_json=pred.json --seed=5", "--seed"),
        ("--gt_panoptic_json=gt.json --pred_panoptic_json=pred.json --max_images=-1", "at least 0"),
        ("--gt_panoptic_json=gt.json --pred_panoptic_json=pred.json --metrics_json=gt", "a folder"),
        ("--gt_instances_json=gt.json --pred_instances_json=pred.json --semantic", "--semantic"),
        ("--run_dir=gt --num_processes=2", "--num_processes"),
    ],
)
def test_tool_refuses_what_has_no_effect(folder, arguments, message):
    tool = pathlib.Path(__file__).parents[2] / "tools/eval.py"
    command = [sys.executable, str(tool), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr
