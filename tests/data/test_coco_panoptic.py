import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from pfpn_tf.data import photos
from pfpn_tf.data.coco_panoptic import CocoImages, DataError
from pfpn_tf.data.given import Given
from tests.data import tiny
from tests.data.tiny import open_dataset, open_panoptic

IMAGES = [
    (20, 30, [(5, 0, 2, 3, 9, 12), (20, 1, 10, 20, 15, 28)]),  # a cat and a crowd of cars
    (16, 12, []),
]


@pytest.fixture
def folder(tmp_path):
    tiny.make(tmp_path / "d", IMAGES)
    return tmp_path / "d"


def test_reads_a_record(folder):
    dataset = open_dataset(folder)
    assert len(dataset) == 2 and not dataset.has_string_ids
    record = dataset.read(0)
    assert (record.image_id, record.file_name) == (10, "0.png")
    assert (record.image_format, record.hw) == ("png", (20, 30))
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
    # Columns 5 and 6, over the cat.
    column = {"size": [20, 30], "counts": [20 * 5, 20 * 2, 20 * 23]}
    content = json.loads((folder / "instances.json").read_text())
    cat, car = content["annotations"]
    cat.update(area=63.5)
    car.update(bbox=[5, 0, 2, 20], segmentation=column)
    del car["area"]
    (folder / "instances.json").write_text(json.dumps(content))
    cat, car = open_dataset(folder, instances=True).read(0).instances
    expected = np.zeros((20, 30), np.uint8)
    expected[2:9, 3:12] = 1
    np.testing.assert_array_equal(cat.mask, expected)
    assert cat.area == 63.5
    expected = np.zeros((20, 30), np.uint8)
    expected[:, 5:7] = 1
    np.testing.assert_array_equal(car.mask, expected)
    assert car.area == 40 and car.iscrowd


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
    bad = "truncated.jpg", "corrupt.png", "claims_60000x60000.png", "header_only.jpg"
    for name in (*bad, "animated.gif"):
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
    images = json.loads((folder / "panoptic.json").read_text())["images"]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}]}
    (folder / "info.json").write_text(json.dumps(content))
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
        record = open_panoptic(base.with_suffix(".json"), base, folder).read(0)
        assert record.file_name == f"{record.image_id}_leftImg8bit.png"
    missing = "gtFine_leftImg8bit.png: no such image .nor cambridgero_000006.*_leftImg8bit.png in"
    with pytest.raises(DataError, match=missing):
        open_panoptic(base.with_suffix(".json"), base, root / "gtFine").read(0)


def test_coco_photos_with_instances(test_data):
    root = test_data("data/coco_samples/panoptic")
    dataset = open_panoptic(
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
