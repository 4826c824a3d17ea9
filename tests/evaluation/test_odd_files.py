"""Odd and broken prediction files: the reference's numbers where it gives any, else one clear
error.
"""

import json

import numpy as np
import pytest

from pfpn_tf.data import panoptic_png
from pfpn_tf.evaluation.score_files import PanopticFiles
from tests import processes
from tests.evaluation.edits import (
    PRED_PNG,
    annotations,
    both,
    edit,
    every,
    gt_segment,
    move,
    one_more,
    pred,
    remove,
    rewrite,
    save,
    save_16_bit,
    save_with_alpha,
    segment,
    set_pixel,
    worse_then_better,
)
from tests.reference import panoptic_quality as reference

CATEGORIES = [
    {"id": 3, "name": "ball", "isthing": 1},
    {"id": 5, "name": "boat", "isthing": 1},
    {"id": 9, "name": "sand", "isthing": 0},
]
SIZES = [(24, 31), (17, 40), (30, 22)]


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


EMPTY = panoptic_png.encode_ids(np.zeros(SIZES[1]))
NUMBERS = {
    "true image twice, each counts": edit(
        "gt", lambda c: c["annotations"].append(c["annotations"][1])
    ),
    "as it is": lambda folder: None,
    "alpha": save_with_alpha,
    "interlaced and trailing bytes": rewrite(lambda png: png + b"\0" * 100),
    "only id and category": every("pred", lambda s: [s.pop("area"), s.pop("iscrowd")]),
    "predicted areas are nonsense": every("pred", lambda s: s.update(area="many")),
    "predicted crowd": segment(iscrowd=1),
    "segment listed twice, last counts": one_more({"id": 70000, "category_id": 5}),
    "image twice, last counts": edit("pred", worse_then_better),
    "images in another order": edit("pred", lambda c: c["annotations"].reverse()),
    "more images": edit("pred", lambda c: c["annotations"].append({"image_id": 77})),
    "whole numbers as floats": both(
        annotations("pred", lambda a: a.update(image_id=float(a["image_id"]))),
        segment(id=70000.0, category_id=9.0),
    ),
    "string image ids": both(
        *(
            annotations(name, lambda a: a.update(image_id=f"city_{a['image_id']}"))
            for name in ("gt", "pred")
        )
    ),
    "file name with a folder": move("sub/1.png"),
    "PNG by another extension": move("1.panoptic"),
    "void listed as a segment": one_more({"id": 0, "category_id": 9}),
    "prediction's categories differ": edit(
        "pred", lambda c: c.update(categories=[{"id": 3, "name": "sand", "isthing": 0}])
    ),
    "no categories in the prediction": edit("pred", lambda c: c.pop("categories")),
    "empty image": both(rewrite(lambda _: EMPTY), pred(segments_info=[])),
    "ground-truth area missing where nothing overlaps": every(
        "gt", lambda s: s["iscrowd"] and s.pop("area")
    ),
    "ground-truth category unknown": gt_segment(category_id=8),
    "ground-truth id over 24 bits": gt_segment(id=2**24 + 5),
    "ground-truth areas twice as large": every("gt", lambda s: s.update(area=2.0 * s["area"])),
    "categories twice, last counts": edit(
        "gt", lambda c: c["categories"].append({"id": 5, "name": "boat", "isthing": 0})
    ),
    "no things": edit("gt", lambda c: [x.update(isthing=0) for x in c["categories"]]),
    "no images": edit("gt", lambda c: c.update(annotations=[])),
}
# What is wrong, and what its message has to name: of a PNG besides image and file, of an image of
# the JSON besides image and JSON.
PNG_ERRORS = {
    "PNG missing": (remove(PRED_PNG), ["No such file"]),
    "PNG is a folder": (
        both(remove(PRED_PNG), lambda folder: (folder / PRED_PNG).mkdir()),
        ["directory"],
    ),
    "PNG empty": (rewrite(lambda png: b""), ["not a PNG"]),
    "JPEG": (rewrite(lambda png: b"\xff\xd8\xff\xe0" + png), ["not a PNG"]),
    "PNG cut off": (rewrite(lambda png: png[: len(png) // 2]), ["damaged"]),
    "PNG with a flipped bit": (
        rewrite(lambda png: png[:80] + bytes([png[80] ^ 16]) + png[81:]),
        [],
    ),
    "PNG claims 2 Gpixels": (
        rewrite(lambda png: png[:16] + b"\0\0\xff\xff\0\0\xff\xff" + png[24:]),
        ["damaged"],
    ),
    "PNG of another size": (
        lambda folder: (folder / PRED_PNG).write_bytes((folder / "pred/0.png").read_bytes()),
        ["24 x 31", "17 x 40"],
    ),
    "16 bits": (save_16_bit, ["must be an 8-bit RGB PNG", "bit depth 16"]),
    "grey": (save("L"), ["8-bit RGB"]),
    "grey with alpha": (save("LA"), ["8-bit RGB"]),
    "palette": (save("P"), ["8-bit RGB", "palette"]),
    "one bit": (save("1"), ["8-bit RGB"]),
    "pixel not listed": (set_pixel(4711), ["segment 4711", "not in segments_info"]),
    "listed without a pixel": (
        one_more({"id": 8, "category_id": 3}),
        ["segment 8 is in segments_info"],
    ),
    "id over 24 bits": (segment(id=2**24 + 5), ["segment"]),
    "only a listed id over 24 bits": (
        one_more({"id": 2**24, "category_id": 3}),
        ["segment 16777216", "below 16777216"],
    ),
    "unknown category": (segment(category_id=4), ["segment 70000", "category_id 4"]),
    "ground-truth area is null": (gt_segment(area=None), ["segment 70000", "area"]),
}
IMAGE_ERRORS = {
    "file name is a number": (pred(file_name=1), ["file_name"]),
    "no file name": (pred(lambda a: a.pop("file_name")), ["file_name"]),
    "text as id": (segment(id="7000o"), ['"7000o"', "whole number"]),
    "half an id": (segment(id=0.5), ["0.5", "whole number"]),
    "no id": (segment(lambda s: s.pop("id")), ['"id"']),
    "text as category": (segment(category_id="nine"), ["segment 70000", '"category_id"', '"nine"']),
    "no category": (segment(lambda s: s.pop("category_id")), ["segment 70000", "category_id"]),
    "category is a list": (segment(category_id=[9]), ["segment 70000", "category_id"]),
    "no segments_info": (pred(lambda a: a.pop("segments_info")), ['no list "segments_info"']),
    "segments_info is null": (pred(segments_info=None), ['no list "segments_info"']),
    "segment is a number": (one_more(5), ["segments_info[4]", "must be an object"]),
    "image missing": (edit("pred", lambda c: c["annotations"].pop(1)), []),
}
OTHER_ERRORS = {
    "wrong extension": (pred(file_name="1.jpg"), ["Image 1", "pred/1.jpg", "No such file"]),
    "negative id": (one_more({"id": -1, "category_id": 3}), ["Image 1", "segment -1"]),
    "no predictions": (
        edit("pred", lambda c: c.update(annotations=[])),
        ["Image 0 and 2 more", "pred.json"],
    ),
    "annotation without image": (
        pred(lambda a: a.pop("image_id")),
        ["pred.json", "annotations[1]"],
    ),
    "image id is a list": (pred(image_id=[1]), ["pred.json", "annotations[1]", "image_id"]),
    "annotation is a string": (
        edit("pred", lambda c: c["annotations"].append("x")),
        ["pred.json", "annotations[3]"],
    ),
    "no annotations": (
        edit("pred", lambda c: c.pop("annotations")),
        ["pred.json", '"annotations"'],
    ),
    "JSON is a list": (rewrite(lambda _: b"[]", "pred.json"), ["pred.json", "It is a list"]),
    "JSON cut off": (rewrite(lambda text: text[:-9], "pred.json"), ["pred.json", "not valid JSON"]),
    "JSON is no text": (
        rewrite(lambda text: b"\xff\xfe\0" + text, "pred.json"),
        ["pred.json", "not valid JSON"],
    ),
    "JSON missing": (remove("pred.json"), ["pred.json", "No such file"]),
    "ground truth without areas": (
        every("gt", lambda s: s.pop("area")),
        ["Image 0", "pred/0.png", "ground-truth segment 1,", "area"],
    ),
    "no categories": (edit("gt", lambda c: c.pop("categories")), ["gt.json", "categories"]),
    "no isthing": (
        edit("gt", lambda c: c["categories"][1].pop("isthing")),
        ["gt.json", "isthing", "boat"],
    ),
    "ground-truth PNG missing": (remove("gt/1.png"), ["Image 1", "gt/1.png", "ground-truth"]),
}
ERRORS = {
    **{
        name: (damage, ["Image 1", PRED_PNG, *words])
        for name, (damage, words) in PNG_ERRORS.items()
    },
    **{
        name: (damage, ["Image 1", "pred.json", *words])
        for name, (damage, words) in IMAGE_ERRORS.items()
    },
    **OTHER_ERRORS,
}
# Files that panopticapi would score, from the high bytes of the pixels or whatever decodes.
REFUSED_BY_US_ALONE = {"16 bits", "PNG with a flipped bit"}


def assert_equal(metrics, expected):
    for group, theirs in zip(("All", "Things", "Stuff"), expected):
        assert metrics["panoptic"][group] == (theirs and pytest.approx(theirs, abs=1e-12))


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_the_reference_s(folder, case):
    NUMBERS[case](folder)
    expected, _ = reference.score_files(*files(folder))
    assert_equal(PanopticFiles(*files(folder)).score(), expected)


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_is_wrong(folder, case):
    damage, words = ERRORS[case]
    damage(folder)
    with pytest.raises(ValueError) as error:
        PanopticFiles(*files(folder)).score()
    for word in words:
        assert word in str(error.value)
    if case not in REFUSED_BY_US_ALONE:
        with pytest.raises(Exception):
            reference.score_files(*files(folder))


@pytest.mark.parametrize(
    "case, words",
    [
        ("image twice, last counts", "1 predictions are for an image listed before"),
        ("true image twice, each counts", "1 ground-truth annotations are for an image listed"),
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
    annotations("pred", lambda a: a.update(image_id=str(a["image_id"])))(folder)
    assert PanopticFiles(*files(folder)).score() == expected


def test_areas_that_contradict_the_pixels(folder):
    """PQ is panopticapi's, 10 times too high; the note tells the one by the pixels."""
    true = 100 * PanopticFiles(*files(folder)).score()["panoptic"]["All"]["pq"]
    every("gt", lambda s: s.update(area=s["area"] // 10))(folder)
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
                ids = panoptic_png.read(str(folder / name), annotation["file_name"], 0, "")
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
            expected, _ = reference.score_files(*paths)
        except KeyError:
            refused += 1
            with pytest.raises(ValueError, match="Image"):
                PanopticFiles(*paths).score()
        else:
            scored += 1
            assert_equal(PanopticFiles(*paths).score(), expected)
    assert scored > 50 and refused > 5


def test_tool_writes_nothing_after_an_error(folder):
    ERRORS["unknown category"][0](folder)
    names = ("gt_panoptic_json", "gt_panoptic_dir", "pred_panoptic_json", "pred_panoptic_dir")
    before = sorted(folder.rglob("*"))
    flags = [f"--{name}={path}" for name, path in zip(names, files(folder))]
    done = processes.call("tools/eval.py", *flags, f"--metrics_json={folder}/m.json", expect=2)
    assert done.stderr.startswith("Error: Image 1") and done.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


BOTH = "--gt_panoptic_json=gt.json --pred_panoptic_json=pred.json"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (f"{BOTH} --checkpoint=5", "--checkpoint"),
        (f"{BOTH} --seed=5", "--seed"),
        (f"{BOTH} --max_images=-1", "at least 0"),
        (f"{BOTH} --metrics_json=gt", "a folder"),
        ("--gt_instances_json=gt.json --pred_instances_json=pred.json --semantic", "--semantic"),
        ("--run_dir=gt --num_threads=2", "--num_threads"),
    ],
)
def test_tool_refuses_what_has_no_effect(folder, arguments, message):
    done = processes.call("tools/eval.py", *arguments.split(), expect=2, cwd=folder)
    assert done.stderr.count("\n") == 1 and message in done.stderr
