"""Maps of classes and lists of classes as users leave them."""

import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.data import categories, class_list, class_maps, convert, sources
from pfpn_tf.utils.errors import UserError
from tests.data.exports import COLORS, NAMES, TABLE, VALUES, photos


def save_palette(path, values, bits=8):
    picture = Image.fromarray(values, "P")
    picture.putpalette([7] * 768)  # All of one colour, which does not count.
    picture.save(path, bits=bits)


def save_bits(path, values, bits):
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""
    digits = np.unpackbits(values[..., None], axis=-1)[..., -bits:]
    packed = np.packbits(digits.reshape(len(values), -1), axis=-1)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(png)


ENCODINGS = {
    "grey": lambda p: Image.fromarray(VALUES).save(p),
    "palette": lambda p: save_palette(p, VALUES),
    "palette of 2 bits": lambda p: save_palette(p, VALUES, 2),
    "2 bits": lambda p: save_bits(p, VALUES, 2),
    "4 bits": lambda p: save_bits(p, VALUES, 4),
    "16 bits": lambda p: Image.fromarray(VALUES.astype(np.uint16)).save(p),
    "grey with alpha": lambda p: Image.fromarray(np.stack([VALUES, VALUES + 9], -1), "LA").save(p),
    "grey as RGB": lambda p: Image.fromarray(np.repeat(VALUES[..., None], 3, -1)).save(p),
    "BMP": lambda p: Image.fromarray(VALUES).save(p, "BMP"),
    "TIFF": lambda p: Image.fromarray(VALUES).save(p, "TIFF"),
    "colours": lambda p: Image.fromarray(COLORS[VALUES]).save(p),
    "colours in a palette": lambda p: Image.fromarray(COLORS[VALUES]).quantize(8).save(p),
}


def maps(
    folder,
    encode=ENCODINGS["grey"],
    class_names=NAMES,
    names=("a.png",),
    labels=("a.png",),
    folders=("photos", "labels"),
    **given,
):
    """Photos and maps of these names, opened."""
    image_dir, map_dir = (folder / name for name in folders)
    photos(image_dir, *names)
    for name in labels:
        (map_dir / name).parent.mkdir(parents=True, exist_ok=True)
        encode(map_dir / name)
    given.update(image_dir=str(image_dir), class_map_dir=str(map_dir), class_names=class_names)
    return sources.open_dataset(sources.Given(**given))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_class_maps_of_every_kind(tmp_path, encoding):
    names = NAMES
    if encoding.startswith("colours"):
        (tmp_path / "class_dict.csv").write_text(TABLE)
        names = [str(tmp_path / "class_dict.csv")]
    dataset = maps(tmp_path, ENCODINGS[encoding], names)
    record = dataset.read(0)
    np.testing.assert_array_equal(record.category_map, VALUES)
    assert [c.name for c in dataset.info.stuff] == NAMES and dataset.info.task == "semantic"
    assert (record.image_id, record.instances, len(record.segments)) == ("a", [], 3)


BAD_MAPS = {
    "JPEG": (lambda p: Image.fromarray(VALUES).save(p, "JPEG"), "a JPEG, whose compression"),
    "lossy WebP": (lambda p: Image.fromarray(COLORS[VALUES]).save(p, "WebP"), "is a WebP"),
    "of another size": (lambda p: Image.fromarray(VALUES.T).save(p), "32x24.*annotated as 24x32"),
    "value without a class": (
        lambda p: Image.fromarray(VALUES + 1).save(p),
        "labels/a.png: 140 pixels have the value 3.*0 sky, 1 grass, 2 cat.*--ignore=255,3",
    ),
    "colours without names": (
        lambda p: Image.fromarray(COLORS[VALUES]).save(p),
        "in colours, and --class_names tells no colours",
    ),
    "16 bits a colour": (
        lambda p: cv2.imwrite(str(p), np.repeat(VALUES[..., None].astype(np.uint16), 3, -1)),
        "has 16 bits a colour",
    ),
    "text": (lambda p: p.write_bytes(b"<html>"), "not a readable class map .6 bytes"),
    "cut off": (
        lambda p: (Image.fromarray(VALUES).save(p), p.write_bytes(p.read_bytes()[:60])),
        "not a readable class map .60 bytes",
    ),
}


@pytest.mark.parametrize("case", BAD_MAPS)
def test_class_maps_that_cannot_be_used(tmp_path, case):
    encode, words = BAD_MAPS[case]
    with pytest.raises(UserError, match=words):
        maps(tmp_path, encode).read(0)


def test_colours_must_be_those_of_the_list(tmp_path):
    (tmp_path / "c.csv").write_text(TABLE)
    mixed = COLORS[VALUES]
    mixed[0, 0] = 64, 64, 64
    dataset = maps(tmp_path, lambda p: Image.fromarray(mixed).save(p), [str(tmp_path / "c.csv")])
    with pytest.raises(UserError, match=r"1 pixels have the colour \(64, 64, 64\)"):
        dataset.read(0)
    (tmp_path / "c.csv").write_text(TABLE + "dog,200,0,0\n")
    dataset = maps(tmp_path, ENCODINGS["colours"], [str(tmp_path / "c.csv")])
    with pytest.raises(UserError, match="the colour .200, 0, 0., which two classes"):
        dataset.read(0)


def test_classes_that_no_map_has_are_told(tmp_path, caplog):
    dataset = maps(tmp_path, class_names=[*NAMES, "dog", "cow"])
    convert.convert(dataset, str(tmp_path / "o"), "train", num_workers=1)
    assert "2 classes have no pixel in the split" in caplog.text and "dog, cow" in caplog.text
    dataset = maps(tmp_path, lambda p: Image.fromarray(VALUES * 0 + 255).save(p))
    with pytest.raises(UserError, match="no pixel of 1 images has a class"):
        convert.convert(dataset, str(tmp_path / "p"), "train", num_workers=1)


def test_splits_are_written_together_or_not_at_all(tmp_path):
    good = maps(tmp_path / "good")
    bad = maps(tmp_path / "bad", lambda p: p.write_bytes(b""))
    with pytest.raises(UserError, match="not a readable class map"):
        convert.convert_splits({"train": good, "val": bad}, str(tmp_path / "o"), num_workers=1)
    assert os.listdir(tmp_path / "o") == []


def test_ignored_values_and_classes_are_void(tmp_path):
    values = VALUES.copy()
    values[0] = 200
    dataset = maps(tmp_path, lambda p: Image.fromarray(values).save(p), ignore=["200", "Sky"])
    record = dataset.read(0)
    assert [c.name for c in dataset.info.categories] == ["grass", "cat"]
    np.testing.assert_array_equal(record.category_map == 255, (VALUES == 0))
    with pytest.raises(UserError, match="--ignore=street is neither a value nor the name"):
        maps(tmp_path, ignore=["street"])


@pytest.mark.parametrize(
    "given",
    [
        {"names": ["a.jpg", "s/b.jpg"], "labels": ["s/b.png", "a.png"]},
        {"names": ["1/a.jpg", "2/a.jpg"], "labels": ["2/a.png", "1/a.png"]},
        {"names": ["x/a.jpg"], "labels": ["y/a.png"]},
        {"names": ["a.jpg", "a_1.jpg"], "labels": ["a_mask.png", "a_1_mask.png"]},
        {"names": ["a.jpg"], "folders": ("one", "one")},
        {"names": ["a.png"], "folders": ("p", "p/masks")},
    ],
)
def test_maps_go_with_the_photos_of_their_names(tmp_path, given):
    dataset = maps(tmp_path, **given)
    assert len(dataset) == len(given["names"]) and dataset.notes.lines() == []
    for position in range(len(dataset)):
        np.testing.assert_array_equal(dataset.read(position).category_map, VALUES)


@pytest.mark.parametrize(
    "names, labels, words",
    [
        (["a.jpg", "a.png"], ["a.png"], "a.jpg and a.png are photos of one name"),
        (["a.jpg"], ["a.png", "a.bmp"], "photo a.jpg has 2 class maps: a.bmp, a.png"),
        (["a.jpg"], ["x/a.png", "y/a.png"], "photo a.jpg has 2 class maps"),
        (["1/a.jpg", "2/a.jpg"], ["a.png"], "a.png belongs to two photos, 1/a.jpg and 2/a.jpg"),
        (["a.jpg"], ["z.png"], "for none of the 1 photos.*such as a.png; here is z.png"),
        ([], ["z.png"], "no such folder|has no photo"),
    ],
)
def test_maps_that_fit_no_photo_or_two(tmp_path, names, labels, words):
    with pytest.raises(UserError, match=words):
        maps(tmp_path, names=names, labels=labels)


def test_missing_maps_and_photos_are_counted(tmp_path, caplog):
    dataset = maps(tmp_path, names=["a.jpg", "b.jpg", "c.jpg"], labels=["a.png", "z.png"])
    assert dataset.notes.count(class_maps.NO_PHOTO) == 1
    with pytest.raises(UserError, match="b.jpg: has no class map in .*, nor have 1 other photos"):
        dataset.read(1)
    counts = convert.convert(dataset, str(tmp_path / "o"), "train", num_workers=1, skip_bad=True)
    assert (counts["images"], counts["skipped"]) == (1, 2)
    assert categories.DatasetInfo.load(tmp_path / "o/dataset_info.json").task == "semantic"


LISTS = {
    "names.txt": "sky\ngrass\ncat\n\n",
    "names.json": '["sky", "grass", "cat"]',
    "id2label.json": '{"0": "sky", "1": "grass", "2": "cat"}',
    "label2id.json": '{"cat": 2, "sky": 0, "grass": 1}',
    "ids.csv": "id,name\n2,cat\n0,sky\n1,grass\n",
    "coco.json": '{"categories": [{"id": 2, "name": "cat"}, {"id": 0, "name": "sky"},'
    ' {"id": 1, "name": "grass", "color": [0, 200, 0]}]}',
    "class_dict.csv": TABLE,
    "labelmap.txt": "# label:color_rgb:parts:actions\nsky:128,128,128::\ngrass:0,200,0::\n"
    "cat:200,0,0::\n",
    "numbered.txt": "2 cat\n0: sky\n1,grass\n",
    "commented.names": "# classes\nsky\ngrass\ncat\n",
    "labels.txt": "__ignore__\nsky\ngrass\ncat\n",
    "data.yaml": "nc: 3\nnames:\n- sky\n- grass\n- cat\n",
    "numbers.yml": "names: {0: sky, 1: grass, 2: cat}\n",
    "flow.yaml": "{names: [sky, grass, cat]}\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_classes(tmp_path, name):
    (tmp_path / name).write_text("\ufeff" + LISTS[name], encoding="utf-8")
    classes = class_list.read_classes([str(tmp_path / name)])
    assert [(c.value, c.name) for c in classes] == list(enumerate(NAMES))
    if name in ("class_dict.csv", "labelmap.txt"):
        assert [c.color for c in classes] == [tuple(c) for c in COLORS.tolist()]


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.txt", "sky\n\ncat", "line 2 is empty"),
        ("a.txt", "sky\nSky", "classes 0 .sky. and 1 .Sky. have the same name"),
        ("a.json", '{"sky": "grass"}', '"id" must be a whole number'),
        ("a.json", "3", "expected a list of names"),
        ("a.csv", "r,g,b\n1,2,3", "must name the columns"),
        ("a.csv", "name,r,g,b\nsky,1,2,300", "three whole numbers 0 to 255"),
        ("a.csv", "name,r,g,b\nsky,1,2", "line 2 has 3 of 4 columns"),
        ("a.csv", 'name\n"sky\ncat\n', "is no CSV"),
        ("a.csv", "value,name\nx,sky\n", 'line 2: "value" must be a whole number'),
        ("a.txt", "sk\ty\ncat", 'a.txt: class 0: "name" must be a text'),
        ("a.yaml", "names: [sky", "is no YAML"),
        ("a.yaml", "names: sky", "expected a list of names"),
        ("labelmap.txt", "sky:1,2,3::\ncat:1,2", "expected name:r,g,b::"),
    ],
)
def test_lists_of_classes_that_cannot_be_read(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        class_list.read_classes([str(tmp_path / name)])
    with pytest.raises(UserError, match="nowhere.names cannot be read"):
        class_list.read_classes(["nowhere.names"])


def test_records_of_another_task_stay_apart(tmp_path):
    dataset = maps(tmp_path)
    convert.convert(dataset, str(tmp_path / "out"), "train", num_workers=1)
    dataset.info = categories.DatasetInfo(dataset.info.categories)
    with pytest.raises(UserError, match="belongs to records for --task=semantic, these are for"):
        convert.convert(dataset, str(tmp_path / "out"), "val", num_workers=1)
