import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pfpn_tf.data import photos
from pfpn_tf.data.coco_panoptic import CocoImages, DataError
from pfpn_tf.data.given import Given
from tests.data import tiny

IMAGES = [
    (20, 30, [(5, 0, 2, 3, 9, 12), (20, 1, 10, 20, 15, 28)]),  # a cat and a crowd of cars
    (16, 12, []),
]


@pytest.fixture
def folder(tmp_path):
    tiny.make(tmp_path / "d", IMAGES)
    return tmp_path / "d"


def open_dataset(folder, **kwargs):
    return tiny.open_panoptic(
        folder / "panoptic.json", folder / "panoptic", folder / "images", **kwargs
    )


def edit(folder, change, name="panoptic.json"):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def annotation(change):
    """A damage of the first image's annotation."""
    return lambda folder: edit(folder, lambda content: change(content["annotations"][0]))


def segment(i, **new):
    """A damage of its segment i."""
    return annotation(lambda a: a["segments_info"][i].update(new))


def test_reads_a_record(folder):
    dataset = open_dataset(folder)
    assert len(dataset) == 2 and not dataset.has_string_ids
    record = dataset.read(0)
    assert (record.image_id, record.file_name, record.image_format, record.hw) == (
        10,
        "0.png",
        "png",
        (20, 30),
    )
    expected = np.zeros((20, 30), np.uint8)  # category indices: sky 0, cat 1, grass 2, car 3
    expected[10:] = 2
    expected[19] = 255
    expected[2:9, 3:12] = 1
    expected[10:15, 20:28] = 3
    np.testing.assert_array_equal(record.category_map, expected)
    cat, car = record.instances
    assert (cat.category_id, cat.iscrowd, cat.area, cat.bbox_xywh) == (5, False, 63, [3, 2, 9, 7])
    assert (car.category_id, car.iscrowd, car.bbox_xywh) == (20, True, [20, 10, 8, 5])
    np.testing.assert_array_equal(cat.mask, expected == 1)
    assert [s.id for s in record.segments] == [1, 2, 1300, 2300]
    assert record.segments[0].bbox_xywh == [0, 0, 30, 10]  # not in the JSON: computed
    assert dataset.read(1).instances == []


def test_instances_json_gives_overlaps_polygons_and_rle(folder):
    polygon = [[3, 2, 12, 2, 12, 9, 3, 9]]  # the same pixels as the cat
    # Columns 5 and 6, over the cat.
    column = {"size": [20, 30], "counts": [20 * 5, 20 * 2, 20 * 23]}
    cat = {"id": 1, "category_id": 5, "bbox": [3, 2, 9, 7], "iscrowd": 0, "area": 63.5}
    car = {"id": 2, "category_id": 20, "bbox": [5, 0, 2, 20], "iscrowd": 1}
    annotations = [
        {**cat, "image_id": 10, "segmentation": polygon},
        {**car, "image_id": 10, "segmentation": column},
    ]
    content = {
        "images": json.loads((folder / "panoptic.json").read_text())["images"],
        "categories": [{"id": 5, "name": "cat"}, {"id": 20, "name": "car"}],
        "annotations": annotations,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    cat, car = open_dataset(folder, instances_json=folder / "instances.json").read(0).instances
    expected = np.zeros((20, 30), np.uint8)
    expected[2:9, 3:12] = 1
    np.testing.assert_array_equal(cat.mask, expected)
    assert cat.area == 63.5
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 5:7] = 1
    np.testing.assert_array_equal(car.mask, expected)
    assert car.area == 40 and car.iscrowd

    def broken(change, words):
        edit(folder, change, "instances.json")
        with pytest.raises(DataError, match=words):
            open_dataset(folder, instances_json=folder / "instances.json").read(0)
        (folder / "instances.json").write_text(json.dumps(content))

    broken(lambda c: c["annotations"][0].update(bbox=[1, 2]), "annotation 1: .bbox. must be four")
    broken(lambda c: c["annotations"][0].update(category_id=3), "annotation 1 has category 3")


BROKEN = {
    "missing png": (lambda f: (f / "panoptic/0.png").unlink(), ["panoptic/0.png", "image 10"]),
    "missing photo": (lambda f: (f / "images/0.png").unlink(), ["images/0.png", "image 10"]),
    "unreadable photo": (
        lambda f: (f / "images/0.png").write_bytes(b"<html>"),
        ["images/0.png", "not a readable image"],
    ),
    "empty photo": (lambda f: (f / "images/0.png").write_bytes(b""), ["images/0.png", "0 bytes"]),
    "photo of another size": (
        lambda f: cv2.imwrite(str(f / "images/0.png"), np.zeros((30, 20, 3), np.uint8)),
        ["images/0.png", "20x30", "30x20"],
    ),
    "png of another size": (
        lambda f: tiny.save_ids(f / "panoptic/0.png", tiny.id_map(20, 31, [])),
        ["panoptic/0.png", "31x20", "image 10"],
    ),
    "grey png": (
        lambda f: cv2.imwrite(str(f / "panoptic/0.png"), np.zeros((20, 30), np.uint8)),
        ["panoptic/0.png", "RGB"],
    ),
    "id not in the png": (
        lambda f: tiny.save_ids(f / "panoptic/0.png", tiny.id_map(20, 30, [])),
        ["panoptic/0.png", "image 10", "segment 1300"],
    ),
    "id not in the json": (
        annotation(lambda a: a["segments_info"].pop(0)),
        ["panoptic/0.png", "segment 1 ", "image 10"],
    ),
    "unknown category": (
        segment(0, category_id=99),
        ["image 10", "segment 1 ", "unknown category 99"],
    ),
    "a text as id": (segment(0, id="one"), ["Image 10", "panoptic.json", "id"]),
    "a short box": (segment(0, bbox=[1, 2]), ["Image 10", "panoptic.json", "bbox"]),
    "a text as area": (segment(0, area="many"), ["Image 10", "panoptic.json", "area"]),
    "segment that is no object": (
        annotation(lambda a: a["segments_info"].insert(0, 5)),
        ["Image 10", "segments_info[0]", "must be an object"],
    ),
    "no list of segments": (
        annotation(lambda a: a.update(segments_info=None)),
        ["Image 10", 'no list "segments_info"'],
    ),
    "segment listed twice": (segment(1, id=1), ["image 10", "segment 1 ", "twice"]),
    "segment 0": (segment(1, id=0), ["image 10", "segment 0 ", "void"]),
    "no annotation": (
        lambda f: edit(f, lambda c: c["annotations"].pop(0)),
        ["image 10", "no annotation"],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_named(folder, case):
    damage, words = BROKEN[case]
    damage(folder)
    dataset = open_dataset(folder)
    with pytest.raises(DataError) as error:
        dataset.read(0)
    for word in words:
        assert word in str(error.value)
    dataset.read(1)  # the other image is as good as before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.pop("images"), "images"),
        (lambda c: c["images"][0].pop("height"), r'images\[0\] has no "height"'),
        (lambda c: c["images"][1].update(id=10), "occurs twice"),
        (lambda c: c["annotations"][1].update(image_id=10), "two annotations"),
        (lambda c: c["annotations"][1].update(image_id=77), "image 77"),
    ],
)
def test_broken_json_is_named(folder, change, words):
    edit(folder, change)
    with pytest.raises(ValueError, match=words) as error:
        open_dataset(folder)
    assert "panoptic.json" in str(error.value)


def test_missing_and_malformed_files(folder):
    with pytest.raises(ValueError, match="no such folder"):
        tiny.open_panoptic(folder / "panoptic.json", folder / "nowhere", folder / "images")
    (folder / "panoptic.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        open_dataset(folder)


def test_odd_photos(test_data):
    """Formats that TensorFlow cannot decode are kept without loss; damaged photos are refused."""
    photos_dir = test_data("data/bad_and_odd_images")
    for name, hw, kind in (
        ("photo.bmp", (107, 160), "png"),
        ("photo.webp", (214, 320), "png"),
        ("jpeg_inside.png", (427, 640), "jpeg"),
        ("gray.jpg", (427, 640), "jpeg"),
    ):
        data = (photos_dir / name).read_bytes()
        kept, image_format, _, note = photos.upright_photo(name, data, hw)
        assert image_format == kind and note == ""
        assert (kept == data) == (name.split(".")[1] not in ("bmp", "webp"))
    for name in (
        "truncated.jpg",
        "corrupt.png",
        "claims_60000x60000.png",
        "header_only.jpg",
        "animated.gif",
    ):
        with pytest.raises(DataError, match=name):
            photos.upright_photo(name, (photos_dir / name).read_bytes(), (427, 640))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix, tolerance", [("png", 0), ("jpeg", 3), ("tiff", 0), ("webp", 0)])
def test_photos_are_turned_once(orientation, suffix, tolerance):
    stored = Image.fromarray(
        np.kron(np.arange(6).reshape(2, 3, 1) * 40, np.ones((8, 8, 3))).astype("u1")
    )
    exif, file = Image.Exif(), io.BytesIO()
    options = {"jpeg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    exif[0x112] = orientation
    stored.save(file, suffix, exif=exif.tobytes(), **options)
    upright = np.array(ImageOps.exif_transpose(Image.open(file)))

    def result(hw):
        kept, image_format, _, note = photos.upright_photo("x", file.getvalue(), hw)
        assert image_format == (suffix if suffix == "jpeg" else "png")
        as_it_is = orientation == 1 and suffix in ("png", "jpeg")
        assert (kept == file.getvalue()) == as_it_is
        assert Image.open(io.BytesIO(kept)).getexif().get(0x112, 1) == 1
        return np.array(Image.open(io.BytesIO(kept))).astype(int), note

    pixels, note = result(upright.shape[:2])
    np.testing.assert_allclose(pixels, upright, atol=tolerance)
    assert note == ("" if orientation == 1 else photos.TURNED)
    if orientation >= 5:  # Annotated without regard to EXIF: what the annotations fit is kept.
        pixels, note = result((16, 24))
        np.testing.assert_allclose(pixels, np.array(stored), atol=tolerance)
        assert note == photos.KEPT_AS_STORED


def test_images_without_annotations(folder):
    content = json.loads((folder / "panoptic.json").read_text())
    (folder / "info.json").write_text(
        json.dumps({"images": content["images"], "categories": [{"id": 1, "name": "x"}]})
    )
    info = open_dataset(folder).info
    given = Given(image_info_json=str(folder / "info.json"), image_dir=str(folder / "images"))
    dataset = CocoImages(given, info)
    assert len(dataset) == 2 and dataset.info is info
    record, annotated = dataset.read(1), open_dataset(folder).read(1)
    assert (record.panoptic_png, record.segments, record.instances) == (b"", [], [])
    assert record[:5] == annotated[:5]
    np.testing.assert_array_equal(record.category_map, np.full((16, 12), 255))
    one = CocoImages(given._replace(image_ids=["11"]), info)
    assert [image["id"] for image in one.images] == [11]
    (folder / "images/1.png").unlink()
    with pytest.raises(DataError, match="images/1.png.*info.json lists it as image 11"):
        dataset.read(1)
    (folder / "info.json").write_text("[]")
    with pytest.raises(ValueError, match="info.json must be an object with a list .images"):
        CocoImages(given, info)


def test_cityscapes_photos_are_found_from_every_folder(test_data):
    root = test_data("data/cityscapes_like")
    base = root / "gtFine/cityscapes_panoptic_train"
    for folder in (root / "leftImg8bit/train", root / "leftImg8bit"):
        assert (
            tiny.open_panoptic(base.with_suffix(".json"), base, folder)
            .read(0)
            .file_name.endswith("_leftImg8bit.png")
        )
    with pytest.raises(
        DataError,
        match="gtFine_leftImg8bit.png: no such image .nor cambridgero_000006.*_leftImg8bit.png in",
    ):
        tiny.open_panoptic(base.with_suffix(".json"), base, root / "gtFine").read(0)


def test_cityscapes_layout(test_data):
    root = test_data("data/cityscapes_like")
    for suffix, road in (("", 7), ("_trainId", 0)):
        base = root / f"gtFine/cityscapes_panoptic_val{suffix}"
        dataset = tiny.open_panoptic(base.with_suffix(".json"), base, root / "leftImg8bit/val")
        assert dataset.has_string_ids and len(dataset) == 5
        records = [dataset.read(i) for i in range(5)]
        assert all(r.file_name == f"{r.image_id}_leftImg8bit.png" for r in records)
        assert dataset.info.by_id[road].name == "road"
        assert sum(i.iscrowd for r in records for i in r.instances) == 5


def test_coco_photos_with_instances(test_data):
    root = test_data("data/coco_samples/panoptic")
    dataset = tiny.open_panoptic(
        root / "annotations/panoptic_val2017.json",
        root / "annotations/panoptic_val2017",
        root / "val2017",
        root / "annotations/instances_val2017.json",
    )
    records = [dataset.read(i) for i in range(3)]
    assert (
        sum(len(r.instances) for r in records) == 49 and sum(len(r.segments) for r in records) == 56
    )
    for record in records:
        for instance in record.instances:
            assert instance.mask.sum() == pytest.approx(instance.area, rel=0.1, abs=20)
