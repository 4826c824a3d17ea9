"""What annotation tools and users do to a dataset: read as meant, said, or refused clearly."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.data import coco_instances, coco_panoptic, convert, photos, tfrecord
from pfpn_tf.utils.errors import UserError
from tests.data import tiny
from tests.data.edits import (
    PHOTO,
    PNG,
    again,
    along_rows,
    as_floats,
    as_texts,
    backslashes,
    edit,
    entry,
    every,
    first,
    ids_are,
    instances,
    mask_rle,
    panoptic,
    rewrite,
    segment,
    to_corners,
    turn,
    upright_with_a_tag,
)

IMAGES = [
    (40, 60, [(5, 0, 4, 6, 18, 24), (20, 0, 20, 40, 30, 56)]),
    (32, 24, [(20, 0, 3, 2, 15, 12)]),
    (32, 24, []),
]


@pytest.fixture
def folder(tmp_path):
    tiny.make(tmp_path / "d", IMAGES)
    return tmp_path / "d"


# Damage -> the records are those of the good files.
MEANT = {
    "annotation ids are texts": every("id", lambda i: f"5f2c0d1e-{i}"),
    "annotation ids are too large": every("id", lambda i: i + 2**63),
    "area is null": every("area", lambda _: None),
    "area is missing": instances(lambda c: [a.pop("area") for a in c["annotations"]]),
    "box is empty": every("bbox", lambda _: []),
    "iscrowd is a text": every("iscrowd", str),
    "iscrowd is false": every("iscrowd", bool),
    "image ids of instances are texts": every("image_id", str),
    "numbers are texts": panoptic(as_texts),
    "whole numbers are floats": panoptic(as_floats),
    "byte order mark": rewrite("panoptic.json", lambda b: b"\xef\xbb\xbf" + b),
    "UTF-16": rewrite("instances.json", lambda b: b.decode().encode("utf-16")),
    "Windows line ends": rewrite("panoptic.json", lambda b: b.replace(b", ", b",\r\n")),
    "backslashes": backslashes,
    "alpha": lambda f: Image.open(f / PNG).convert("RGBA").save(f / PNG),
    "unused root category": panoptic(lambda c: c["categories"].insert(0, {"id": 0, "name": "all"})),
    "unused root category of instances": instances(
        lambda c: c["categories"].insert(0, {"id": 0, "name": "all"})
    ),
    "instances list no image without instances": instances(lambda c: c["images"].pop()),
    "instances of more images": instances(
        lambda c: (
            c["images"].append({"id": 99}),
            c["annotations"].append({**c["annotations"][0], "image_id": 99}),
        )
    ),
    "RLE": mask_rle(),
    "RLE of floats": mask_rle(size=[40.0, "60"]),
    "boxes are rounded": every("bbox", lambda b: [b[0] + 0.4, b[1] - 1, b[2], b[3] + 1.3]),
}
# Damage -> the records are those of the good files, and this is said.
MENDED = {
    "boxes are corners": (every("bbox", to_corners), coco_instances.OTHER_BOX, 3),
    "in 60ths": (every("bbox", lambda b: [v / 60 for v in b]), coco_instances.OTHER_BOX, 3),
    "box is negative": (first(bbox=[24, 18, -18, -14]), coco_instances.OTHER_BOX, 1),
    "box has no height": (first(bbox=[6, 4, 18, 0]), coco_instances.OTHER_BOX, 1),
    "box is outside": (first(bbox=[100, 100, 9, 9]), coco_instances.OTHER_BOX, 1),
    "area of other pixels": (first(area=25), coco_instances.OTHER_AREA, 1),
    "area of a segment": (segment(0, area=7), coco_instances.OTHER_AREA, 1),
    "box of a segment": (segment(0, bbox=[0, 0, 1, 1]), coco_instances.OTHER_BOX, 1),
    "upside down": (lambda f: turn(f, 3, lambda p: p[::-1, ::-1]), photos.TURNED, 1),
    "portrait": (lambda f: turn(f, 6, lambda p: np.rot90(p)), photos.TURNED, 1),
    "annotated as stored": (lambda f: turn(f, 6, lambda p: p), photos.KEPT_AS_STORED, 1),
}
POLYGON = [6, 4, 24, 4, 24, 18, 6, 18]
# Damage -> what the error names.
REFUSED = {
    "box of two numbers": (first(bbox=[1, 2]), ["annotation 1", '"bbox" must be four numbers']),
    "instance of stuff": (first(category_id=3), ["annotation 1 has category 3"]),
    "iscrowd is 2": (first(iscrowd=2), ["annotation 1", '"iscrowd" must be 0 or 1, not 2']),
    "iscrowd is a word": (first(iscrowd="no"), ["annotation 1", '"iscrowd"', '"no"']),
    "isthing is a word": (
        entry("categories", 1, isthing="yes"),
        ["categories[1] (cat)", '"isthing"'],
    ),
    "height is half": (entry("images", 0, height=40.5), ["images[0]", '"height"', "40.5"]),
    "no height": (panoptic(lambda c: c["images"][0].pop("height")), ['images[0] has no "height"']),
    "size is 0": (entry("images", 0, width=0), ["images[0]", '"width"']),
    "image id is a list": (
        entry("images", 0, id=[1]),
        ["images[0]", '"id" must be a whole number or a text'],
    ),
    "image id as number and text": (entry("images", 1, id="10"), ["image id 10 occurs twice"]),
    "file name is null": (entry("annotations", 0, file_name=None), ["Image 10", '"file_name"']),
    "no images": (panoptic(lambda c: c.pop("images")), ["panoptic.json", "images"]),
    "no annotation": (
        panoptic(lambda c: c["annotations"].pop(0)),
        ["panoptic.json", "image 10", "no annotation"],
    ),
    "two annotations": (
        entry("annotations", 1, image_id=10),
        ["panoptic.json", "image 10 has two annotations"],
    ),
    "unknown category": (segment(0, category_id=99), ["image 10", "segment 1 ", "category 99"]),
    "a short box": (segment(0, bbox=[1, 2]), ["Image 10", "panoptic.json", "bbox"]),
    "a text as area": (segment(0, area="many"), ["Image 10", "panoptic.json", "area"]),
    "segment listed twice": (segment(1, id=1), ["image 10", "segment 1 ", "twice"]),
    "segment 0": (segment(1, id=0), ["image 10", "segment 0 ", "void"]),
    "id not in the JSON": (
        panoptic(lambda c: c["annotations"][0]["segments_info"].pop(0)),
        [PNG, "segment 1 ", "image 10"],
    ),
    "id not in the PNG": (ids_are(40, 60), [PNG, "image 10", "segment 1300"]),
    "PNG of another size": (ids_are(40, 61), [PNG, "61x40", "image 10"]),
    "PNG missing": (lambda f: os.unlink(f / PNG), [PNG, "image 10"]),
    "no folder of PNGs": (lambda f: (f / "panoptic").rename(f / "maps"), ["no such folder"]),
    "photo missing": (lambda f: os.unlink(f / PHOTO), [PHOTO, "image 10"]),
    "photo is a page": (rewrite(PHOTO, lambda _: b"<html>"), [PHOTO, "not a readable image"]),
    "photo is empty": (rewrite(PHOTO, lambda _: b""), [PHOTO, "0 bytes"]),
    "photo of another size": (
        lambda f: Image.new("RGB", (40, 60)).save(f / PHOTO),
        [PHOTO, "40x60", "60x40"],
    ),
    "number of 9999 digits": (
        rewrite("panoptic.json", lambda b: b.replace(b'"id": 10', b'"id": ' + b"9" * 9999)),
        ["panoptic.json is not valid JSON"],
    ),
    "nested without end": (
        rewrite("instances.json", lambda b: b"[" * 100000),
        ["instances.json is not valid JSON"],
    ),
    "far outside": (
        first(segmentation=[[-160, -220, 2.1e8, 3.5e8, 230, 240]]),
        ["annotation 1", "3.5e+08", "10 sizes outside"],
    ),
    "NaN": (first(segmentation=[[*POLYGON[:-1], float("nan")]]), ["annotation 1", "NaN"]),
    "infinity": (first(segmentation=[[*POLYGON[:-1], 1e999]]), ["annotation 1", "Infinity"]),
    "two points": (first(segmentation=[[1, 2, 3, 4]]), ["annotation 1", "at least three"]),
    "stray point": (first(segmentation=[POLYGON, [9, 9]]), ["annotation 1", "at least three"]),
    "points are pairs": (
        first(segmentation=[[[1, 2], [3, 4], [5, 2]]]),
        ["annotation 1", "in one list", "[3, 4]"],
    ),
    "points on a line": (
        first(segmentation=[[6, 4, 15, 11, 24, 18]]),
        ["annotation 1", "no pixel, but its bbox is [6"],
    ),
    "no segmentation": (first(segmentation=[]), ["annotation 1", "polygons or RLE, not []"]),
    "segmentation is null": (first(segmentation=None), ["annotation 1", "not null"]),
    "outside the image": (
        first(segmentation=[[v + 200 for v in POLYGON]]),
        ["annotation 1", "no pixel in the image"],
    ),
    "RLE of the box alone": (mask_rle(counts=[0, 252]), ["annotation 1", "add up to its size"]),
    "RLE of too much": (mask_rle(counts=[0, 2400, 9]), ["annotation 1", "add up to its size"]),
    "RLE with a negative run": (mask_rle(counts=[3000, -600]), ["annotation 1", "no RLE"]),
    "RLE of garbage": (mask_rle(counts="@@@~~"), ["annotation 1", "no RLE"]),
    "RLE of half a character": (mask_rle(counts="\ud800"), ["annotation 1", "no RLE"]),
    "RLE cut off": (mask_rle(counts="PPYo"), ["annotation 1", "no RLE"]),
    "RLE without a pixel": (mask_rle(counts=[2400]), ["annotation 1", "no pixel"]),
    "RLE of another size": (mask_rle(size=[60, 40]), ["annotation 1", "[60, 40]", "[40, 60]"]),
    "RLE along rows": (along_rows, ["annotation 1", "along the rows"]),
    "WebP": (lambda f: Image.open(f / PNG).save(f / PNG, "WebP", lossless=True), ["not a PNG"]),
    "BMP": (lambda f: Image.open(f / PNG).save(f / PNG, "BMP"), [PNG, "not a PNG"]),
    "categories of instances": (
        instances(lambda c: c["categories"][0].update(name="dog")),
        ["instances.json", "dog", "there 'cat'"],
    ),
}
# Contradictions that --allow_mismatch permits, each with what is said of it.
MISMATCHES = {
    "orientation that does not hold": (upright_with_a_tag, photos.FITS_AS_STORED),
    "unlisted images": (every("image_id", lambda i: i + 1000), coco_instances.ORPHANS),
    "one unlisted image": (first(image_id=1000), coco_instances.ORPHANS),
    "unlisted panoptic annotation": (
        panoptic(lambda c: c["annotations"].append({"image_id": 5})),
        coco_panoptic.UNLISTED,
    ),
    "instances of other images": (
        instances(
            lambda c: [e.update(id=e["id"] + 1000) for e in c["images"]]
            + [e.update(image_id=e["image_id"] + 1000) for e in c["annotations"]]
        ),
        coco_instances.ELSEWHERE,
    ),
    "things without instances": (
        instances(
            lambda c: (c["images"].clear(), c["annotations"].pop(0), c["annotations"].pop(0))
        ),
        coco_instances.UNLISTED,
    ),
    "every object is a crowd": (every("iscrowd", lambda _: 1), convert.ONLY_CROWDS),
    "no instances": (instances(lambda c: c["annotations"].clear()), convert.NO_INSTANCES),
    "another resolution": (
        every("segmentation", lambda s: [[1.35 * v for v in s[0]]]),
        coco_instances.BESIDE,
    ),
    "shifted": (
        every("segmentation", lambda s: [[v + 14 * (i % 2) for i, v in enumerate(s[0])]]),
        coco_instances.BESIDE,
    ),
    "other size in the instances JSON": (
        instances(lambda c: c["images"][0].update(height=80, width=120)),
        coco_instances.OTHER_SIZE,
    ),
}


def read_all(folder):
    dataset = tiny.open_dataset(folder, instances=True)
    return dataset, [dataset.read(i) for i in range(len(dataset))]


def converted(folder, allow_mismatch=False, **settings):
    dataset = tiny.open_dataset(folder, instances=True, allow_mismatch=allow_mismatch)
    return convert.convert(dataset, str(folder / "out"), "train", num_workers=1, **settings)


def assert_same(records, expected):
    for record, good in zip(records, expected, strict=True):
        assert (record.image_id, record.hw) == (good.image_id, good.hw)
        np.testing.assert_array_equal(record.category_map, good.category_map)
        assert [s[:3] for s in record.segments] == [s[:3] for s in good.segments]
        for instance, its in zip(record.instances, good.instances, strict=True):
            assert (instance.category_id, instance.iscrowd) == (its.category_id, its.iscrowd)
            assert instance.area == its.area
            np.testing.assert_allclose(instance.bbox_xywh, its.bbox_xywh, atol=2)
            np.testing.assert_array_equal(instance.mask, its.mask)


@pytest.mark.parametrize("case", MEANT)
def test_read_as_meant(folder, case):
    expected = read_all(folder)[1]
    MEANT[case](folder)
    dataset, records = read_all(folder)
    assert_same(records, expected)
    assert [line for r in records for line in r.notes.lines()] + dataset.notes.lines() == []


@pytest.mark.parametrize("case", MENDED)
def test_mended_and_said(folder, case):
    damage, what, count = MENDED[case]
    expected = read_all(folder)[1]
    pixels = tiny.read_rgb(folder / PHOTO)
    damage(folder)
    records = read_all(folder)[1]
    assert_same(records, expected)
    assert sum(r.notes.count(what) for r in records) == count
    photo = cv2.imdecode(np.frombuffer(records[0].image_bytes, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(photo, pixels)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_words(folder, case):
    damage, words = REFUSED[case]
    damage(folder)
    with pytest.raises(UserError) as error:
        read_all(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("case", MISMATCHES)
def test_contradictions_are_errors_unless_allowed(folder, case, caplog):
    damage, what = MISMATCHES[case]
    damage(folder)
    with pytest.raises(UserError, match="--allow_mismatch") as error:
        converted(folder)
    assert what in str(error.value) and not list((folder / "out").glob("*"))
    assert converted(folder, allow_mismatch=True)["images"] == 3
    assert what in caplog.text


@pytest.mark.parametrize(
    "damage, skipped",
    [
        (first(segmentation=[POLYGON, [9, 9]]), 0),  # A good part is left.
        (first(segmentation=[[1, 2]]), 1),
        (first(segmentation={"size": [40, 60], "counts": [7]}), 1),
        (first(bbox=["x"]), 1),
    ],
)
def test_a_broken_instance_costs_no_image(folder, damage, skipped):
    damage(folder)
    counts = converted(folder, skip_bad=True)
    assert (counts["images"], counts["skipped"]) == (3, 0)
    assert (counts["instances"], counts["skipped_instances"]) == (3 - skipped, skipped)


@pytest.mark.parametrize(
    "damages, what",
    [
        ([again("panoptic.json", "images", id=99)], coco_panoptic.SAME_PHOTO),
        (
            [
                again("panoptic.json", "images", id=99),
                again("panoptic.json", "annotations", image_id=99),
            ],
            coco_panoptic.SAME_MAP,
        ),
        ([again("instances.json", "annotations", id=99)], coco_instances.REPEATED),
    ],
)
def test_what_is_there_twice_is_told(folder, damages, what):
    for damage in damages:
        damage(folder)
    dataset = tiny.open_dataset(folder, instances=True, allow_mismatch=True)
    assert dataset.notes.count(what) + dataset.read(0).notes.count(what) == 1


def test_warnings_are_counted_and_shown_once(folder, caplog):
    every("bbox", to_corners)(folder)
    converted(folder)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("3 boxes") and warning.count("annotation 1:") == 1


def test_objects_without_a_pixel_are_left_out(folder):
    first(segmentation=[[6.1, 4.1, 6.2, 4.1, 6.2, 4.2]], bbox=[6.1, 4.1, 0.1, 0.1])(folder)
    record = read_all(folder)[1][0]
    assert len(record.instances) == 1 and record.notes.count(coco_instances.NO_PIXEL) == 1


def test_polygons_in_fractions_are_no_small_objects(folder):
    def as_fractions(content):
        for annotation in content["annotations"]:
            annotation.pop("bbox")
            annotation["segmentation"] = [[0.1, 0.1, 0.4, 0.1, 0.4, 0.5]]

    instances(as_fractions)(folder)
    with pytest.raises(UserError, match="more than half; are segmentation and bbox in pixels"):
        converted(folder)


def test_classes_of_one_name_are_told(folder, caplog):
    def rename(content):
        stuff = [one for one in content["categories"] if not one["isthing"]]
        stuff[0]["name"], stuff[1]["name"] = "water", "Water "

    panoptic(rename)(folder)
    converted(folder)
    assert "1 classes have the name of another one" in caplog.text


@pytest.mark.parametrize("ids", [[7, 2**70, -3], ["1", "01", "001"], ["²", "a/b", "a b"]])
def test_image_ids_of_any_kind_survive(folder, ids):
    from pfpn_tf.evaluation.counts import read_truth

    def rename(content):
        for image, image_id in zip(content["images"], ids):
            image["id"] = image_id
        for annotation in content["annotations"]:
            annotation["image_id"] = ids[annotation["image_id"] - 10]

    for name in ("panoptic.json", "instances.json"):
        edit(name, rename)(folder)
    dataset, records = read_all(folder)
    assert [r.image_id for r in records] == ids
    for record in records:
        feature = tfrecord.decode_example(tfrecord.encode_example(record, dataset.info))
        example = {"source_id": feature["image/source_id"].numpy(), "panoptic_png": b""}
        example.update(original_hw=record.hw, instance_mask_png=[])
        example.update({f"segment_{k}": [] for k in ("ids", "category_ids", "areas", "iscrowd")})
        assert read_truth(example, dataset.has_string_ids).image_id == record.image_id
