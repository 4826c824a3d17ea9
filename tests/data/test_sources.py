"""Datasets as annotation tools and users leave them."""

import json
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pfpn_tf.config import Config
from pfpn_tf.data import (
    categories,
    class_list,
    class_maps,
    coco_instances,
    convert,
    joined,
    photo_folder,
    pipeline,
    sources,
    statistics,
)
from pfpn_tf.data.record import Instance
from pfpn_tf.utils.errors import UserError
from tests.data import tiny

HW = 24, 32
BOXES = {"a": ("cat", 4, 6, 14, 20), "b": ("dog", 2, 3, 10, 12)}  # photo -> class, y1, x1, y2, x2


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(len(path.name)).randint(0, 256, (*HW, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def photos(folder, *names):
    for name in names:
        photo(folder / name)


def mask_of(name):
    _, y1, x1, y2, x2 = BOXES[name]
    mask = np.zeros(HW, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def runs(mask):
    """RLE as a list, down the columns."""
    columns = mask.T.ravel()
    edges = np.flatnonzero(np.diff(columns)) + 1
    return np.diff([0, *edges, columns.size]).tolist()


def coco(category_ids, names, image_ids=(0, 1), supercategory=None):
    """The two photos under their `names`, with a polygon each."""
    images, annotations, categories = [], [], []
    kinds = zip(category_ids, names, image_ids, BOXES.values())
    for n, (category_id, name, image_id, (category, *box)) in enumerate(kinds):
        images.append({"id": image_id, "file_name": name, "height": HW[0], "width": HW[1]})
        ids = {"id": n, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
        annotations.append({**ids, **tiny.shape(*box)})
        categories.append({"id": category_id, "name": category, "supercategory": supercategory})
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": {}, "licenses": [], **lists}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def roboflow(folder):
    names = ["a_png.rf.0a1b.png", "b_png.rf.99ff.png"]
    photos(folder / "train", *names)
    content = coco((1, 2), names, supercategory="pets")
    content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
    return write(folder / "train/_annotations.coco.json", content)


def cvat(folder):
    photos(folder / "images/default/day 1", "a.png", "b.png")
    content = coco((1, 2), ["day 1/a.png", "day 1/b.png"], (1, 2), "")
    for annotation, name in zip(content["annotations"], "ab"):
        annotation["segmentation"] = {"counts": runs(mask_of(name)), "size": list(HW)}
        annotation["attributes"] = {"occluded": False, "rotation": 0.0}
    return write(folder / "annotations/instances_default.json", content)


def label_studio(folder):
    names = ["cb0618f6-a.png", "0a0b0c0d-b.png"]
    photos(folder / "images", *names)
    upload = "..\\..\\label-studio\\label-studio\\media\\upload\\4\\"
    content = coco((0, 1), [upload + name for name in names])
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["area"]
        annotation["ignore"] = 0
    return write(folder / "result.json", content)


def label_studio_local_files(folder):
    photos(folder / "photos", "a.png", "b.png")
    content = coco((0, 1), ["data/local-files/?d=my%20disk/a.png", "images/1/11112222-b.png"])
    for image in content["images"]:
        image.update(height=None, width=None)
    for category in content["categories"]:
        del category["supercategory"]
    return write(folder / "result.json", content)


def labelme2coco(folder):
    photos(folder / "labelme", "a.png", "b.png")
    content = coco((0, 1), ["labelme/a.png", "labelme/b.png"], (1, 2))
    for category in content["categories"]:
        category["supercategory"] = category["name"]
    return write(folder / "runs/dataset.json", content), folder


def fiftyone(folder):
    photos(folder / "data", "a.png", "b.png")
    return write(folder / "labels.json", coco((0, 1), ["a.png", "b.png"], (1, 2)))


def ids_of_other_kinds(folder):
    photos(folder, "a.PNG", "b.PNG", "__MACOSX/a.png")
    content = coco((7.0, "30"), ["a.png", "b.png"], ("5f2c-1", "5f2c-2"))
    first, second = content["annotations"]
    first.update(id="5f2c-3", segmentation=[[], *first["segmentation"]])
    second.update(segmentation=second["segmentation"][0])
    return write(folder / "export.json", content)


TOOLS = [
    roboflow, cvat, label_studio, label_studio_local_files, labelme2coco, fiftyone,
    ids_of_other_kinds,
]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_exports_are_read_as_they_come(tmp_path, tool):
    made = tool(tmp_path)
    path, image_dir = made if isinstance(made, tuple) else (made, "")
    given = sources.Given(instances_json=str(path), image_dir=str(image_dir))
    dataset = sources.open_dataset(given)
    assert "a COCO instances JSON alone, 2 images, 2 classes of things" in sources.saw(
        given, dataset
    )
    assert [c.name for c in dataset.info.things] == ["cat", "dog"] and not dataset.info.stuff
    assert dataset.info.task == "instance"
    said = dataset.notes.lines()
    for position, (name, (category, y1, x1, y2, x2)) in enumerate(BOXES.items()):
        record = dataset.read(position)
        said += record.notes.lines()
        assert record.hw == HW and record.image_format == "png"
        (instance,) = record.instances
        np.testing.assert_array_equal(instance.mask, mask_of(name))
        assert dataset.info.by_id[instance.category_id].name == category
        assert list(instance.bbox_xywh) == [x1, y1, x2 - x1, y2 - y1] and not instance.iscrowd
        index = dataset.info.category_to_index[instance.category_id]
        expected = np.where(mask_of(name), index, categories.VOID)
        np.testing.assert_array_equal(record.category_map, expected)
    allowed = (joined.ROOT, photo_folder.ELSEWHERE)
    assert all(any(what in line for what in allowed) for line in said)
    assert (tool is roboflow) == any(joined.ROOT in line for line in said)


def test_masks_are_objects_if_the_user_says_so(tmp_path):
    path = cvat(tmp_path)
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    given = sources.Given(instances_json=str(path))
    dataset = sources.open_dataset(given)
    assert dataset.read(0).notes.count(coco_instances.CVAT_CROWD) == 1
    with pytest.raises(UserError, match="2 objects are all crowds.*--nocrowds"):
        convert.convert(dataset, str(tmp_path / "out"), "train", num_workers=1)
    dataset = sources.open_dataset(given._replace(crowds=False))
    assert not dataset.read(0).instances[0].iscrowd


def test_polygons_of_stuff_lie_below_things(tmp_path):
    path = fiftyone(tmp_path)
    content = json.loads(path.read_text())
    content["categories"].append({"id": 5, "name": "Grass"})
    grass = {**content["annotations"][0], "id": 9, "category_id": 5, "bbox": [], "area": None}
    grass["segmentation"] = [[0, 0, 32, 0, 32, 20, 0, 20]]
    content["annotations"].append(grass)
    write(path, content)
    dataset = sources.open_dataset(sources.Given(instances_json=str(path), things=["Cat", "dog"]))
    assert dataset.info.task == "panoptic" and [c.name for c in dataset.info.stuff] == ["Grass"]
    record = dataset.read(0)
    expected = np.full(HW, 255)
    expected[:20] = 2
    expected[mask_of("a") > 0] = 0
    np.testing.assert_array_equal(record.category_map, expected)
    assert [i.category_id for i in record.instances] == [0]
    assert sorted((s.category_id, s.iscrowd) for s in record.segments) == [(0, False), (5, False)]


def first(key, **new):
    """A change of the first entry of a list."""
    return lambda content: content[key][0].update(new)


REFUSED = {
    "boxes alone": (
        lambda c: [a.update(segmentation=[]) for a in c["annotations"]],
        "2 boxes and no segmentation. Boxes alone cannot train masks",
    ),
    "a box among masks": (
        first("annotations", segmentation=[]),
        "annotation 0: .* not \\[\\]; a box alone cannot train masks",
    ),
    "panoptic": (
        first("annotations", segments_info=[]),
        "is a panoptic one; give it as --panoptic_json",
    ),
    "nothing": (lambda c: c["annotations"].clear(), "labels.json: has no annotation"),
    "list for a supercategory": (
        lambda c: [k.update(supercategory=["pet"], id=[7]) for k in c["categories"]],
        '"id" must be a whole number',
    ),
    "category id twice": (first("categories", id=1), "category id 1 occurs twice"),
    "image id twice": (first("images", id=2), "image id 2 occurs twice"),
    "unlisted category": (
        first("annotations", category_id=8),
        "annotation 0 has category 8, which is not listed",
    ),
    "name of no file": (
        first("images", file_name="../"),
        r'images.0.: "file_name" names no file: "../"',
    ),
    "address": (
        first("images", file_name="http://[a/z.png?b=1"),
        "z.png.b=1: no such image",
    ),
    "photo missing": (first("images", file_name="z.png"), "z.png: no such image"),
    "name in two folders": (
        first("images", file_name="twin.png"),
        "twin.png: no such image, but 2 of this name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_instances_that_cannot_be_used(tmp_path, case):
    change, words = REFUSED[case]
    path = fiftyone(tmp_path)
    photos(tmp_path, "x/twin.png", "y/twin.png")
    content = json.loads(path.read_text())
    change(content)
    write(path, content)
    with pytest.raises(UserError, match=words):
        sources.open_dataset(sources.Given(instances_json=str(path))).read(0)


def test_the_end_of_a_name_finds_no_photo_of_another_image(tmp_path):
    photo(tmp_path / "photos/1/a.png")
    folder = photo_folder.PhotoFolder(tmp_path, ["cam/1/a.png"])
    assert folder.find("cam/1/a.png") == (str(tmp_path / "photos/1/a.png"), False)
    photo(tmp_path / "photos/1/e\u0301.PNG")  # As macOS writes it.
    folder = photo_folder.PhotoFolder(tmp_path, ["\u00e9.png"])
    assert folder.find("\u00e9.png")[0].endswith("e\u0301.PNG")
    folder = photo_folder.PhotoFolder(tmp_path, ["cam/1/a.png", "cam/2/a.png"])
    with pytest.raises(UserError, match="no such image"):
        folder.find("cam/2/a.png")


# -- class maps -------------------------------------------------------------------------------

NAMES = ["sky", "grass", "cat"]
VALUES = np.zeros(HW, np.uint8)
VALUES[10:] = 1
VALUES[4:14, 6:20] = 2
COLORS = np.array([[128, 128, 128], [0, 200, 0], [200, 0, 0]], np.uint8)
TABLE = "name, r, g, b\nsky,128,128,128\ngrass,0,200,0\ncat,200,0,0\n"


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
}


def maps(folder, encode=ENCODINGS["grey"], names=(), **given):
    """The photo a.png in photos/, its map in labels/, opened."""
    photo(folder / "photos/a.png")
    (folder / "labels").mkdir(exist_ok=True)
    encode(folder / "labels/a.png")
    return sources.open_dataset(
        sources.Given(
            image_dir=str(folder / "photos"),
            class_map_dir=str(folder / "labels"),
            class_names=names or NAMES,
            **given,
        )
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_class_maps_of_every_kind(tmp_path, encoding):
    names = NAMES
    if encoding == "colours":
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
    dataset = maps(tmp_path, names=[*NAMES, "dog", "cow"])
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


def grey(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(VALUES).save(path)


def paired(tmp_path, names, labels, image_dir="p", map_dir="m"):
    photos(tmp_path / image_dir, *names)
    for name in labels:
        grey(tmp_path / map_dir / name)
    given = sources.Given(
        image_dir=str(tmp_path / image_dir),
        class_map_dir=str(tmp_path / map_dir),
        class_names=NAMES,
    )
    return sources.open_dataset(given)


def test_maps_go_with_the_photos_of_their_names(tmp_path):
    for n, (names, labels, *folders) in enumerate(
        [
            (["a.jpg", "s/b.jpg"], ["s/b.png", "a.png"]),
            (["1/a.jpg", "2/a.jpg"], ["2/a.png", "1/a.png"]),
            (["x/a.jpg"], ["y/a.png"]),
            (["a.jpg", "a_1.jpg"], ["a_mask.png", "a_1_mask.png"]),
            (["a.jpg"], ["a.png"], "one", "one"),
            (["a.png"], ["a.png"], "p", "p/masks"),
        ]
    ):
        dataset = paired(tmp_path / str(n), names, labels, *folders)
        assert len(dataset) == len(names) and dataset.notes.lines() == []
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
        paired(tmp_path, names, labels)


def test_missing_maps_and_photos_are_counted(tmp_path, caplog):
    dataset = paired(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], ["a.png", "z.png"])
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
        ("labelmap.txt", "sky:1,2,3::\ncat:1,2", "expected name:r,g,b::"),
    ],
)
def test_lists_of_classes_that_cannot_be_read(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        class_list.read_classes([str(tmp_path / name)])
    with pytest.raises(UserError, match="nowhere.txt cannot be read"):
        class_list.read_classes(["nowhere.txt"])


# -- both -------------------------------------------------------------------------------------

INFO = categories.DatasetInfo.from_coco_categories(
    [{"id": i, "name": name, "isthing": i == 2} for i, name in enumerate([*NAMES[:2], "cat"])]
)


def instance(y1, x1, y2, x2, number=1, category_id=2, iscrowd=False):
    mask = np.zeros(HW, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return Instance(number, category_id, mask.sum(), [x1, y1, x2 - x1, y2 - y1], iscrowd, mask)


def test_instances_lie_on_the_map():
    # The cat of the map, 10 x 14 pixels, is two cats, one in front, but for its last two columns.
    back, front = instance(4, 6, 14, 18), instance(6, 8, 8, 10, 2)
    crowd = instance(0, 0, 2, 4, 3, iscrowd=True)
    made = joined.join(VALUES, [front, back, crowd], INFO)
    assert (made.ids[front.mask > 0] == 1).all() and (made.ids == 2).sum() == 120 - 4
    expected = VALUES.copy()
    expected[:2, :4] = 2
    np.testing.assert_array_equal(made.category_map, expected)
    assert (made.disagreeing, made.uncovered, made.beside) == (8, 20, 1)
    assert {(s.category_id, s.area, s.iscrowd) for s in made.segments} == {
        (0, np.count_nonzero(expected == 0), False),
        (1, np.count_nonzero(expected == 1), False),
        (2, 4, False),
        (2, 116, False),
        (2, 8, True),  # The crowd.
        (2, 20, True),  # What no instance covers.
    }
    assert VALUES[0, 0] == 0  # The map is not changed.


def join_files(tmp_path, names, **given):
    path = fiftyone(tmp_path)
    for name in ("a", "b"):
        grey(tmp_path / f"labels/{name}.png")
    return sources.Given(
        instances_json=str(path),
        image_dir=str(tmp_path / "data"),
        class_map_dir=str(tmp_path / "labels"),
        class_names=names,
        **given,
    )


def test_instances_and_maps_are_joined(tmp_path, caplog):
    given = join_files(tmp_path, ["sky", "grass", "CAT"])
    dataset = sources.open_dataset(given)
    assert "joined into panoptic truth; where they disagree" in sources.saw(given, dataset)
    # Cat is in both lists in other letters; dog, whose id 1 is grass here, comes on top.
    kinds = [(c.id, c.name, c.is_thing) for c in dataset.info.categories]
    assert kinds == [(0, "sky", False), (1, "grass", False), (2, "CAT", True), (3, "dog", True)]
    assert dataset.notes.count(joined.ADDED) == 1 and dataset.info.task == "panoptic"
    cat, dog = dataset.read(0), dataset.read(1)
    np.testing.assert_array_equal(cat.category_map, VALUES)
    assert cat.notes.lines() == []
    assert dog.notes.count(joined.DISAGREE) == 72 and [i.category_id for i in dog.instances] == [3]
    assert dog.notes.count(joined.UNCOVERED) == 140 - 6 * 6
    found = statistics.Statistics()
    found.add(dog, dataset.info)
    assert found.counts["crowds"] == 0 and found.counts["crowd_segments"] == 1
    with pytest.raises(UserError, match="half"):
        wrong = sources.open_dataset(given._replace(class_names=["cat", "dog", "sky"]))
        convert.convert(wrong, str(tmp_path / "out"), "train", num_workers=1)


def test_things_are_named_once(tmp_path):
    given = join_files(tmp_path, ["sky", "grass", "cat"], things=["cat", "Grass"])
    info = sources.open_dataset(given).info
    assert [c.name for c in info.things] == ["grass", "cat"]
    with pytest.raises(UserError, match="--things=bus is none of the classes: sky, grass, cat"):
        sources.open_dataset(given._replace(things=["bus"]))


# -- the choice, the split, the task ----------------------------------------------------------


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, "--panoptic_json, --instances_json, --class_map_dir with"),
        ({"image_info_json": "a", "instances_json": "b"}, "without annotations; leave out --inst"),
        ({"image_info_json": "a", "panoptic_json": "b"}, "--image_info_json is for images without"),
        ({"panoptic_json": "a", "class_map_dir": "b"}, "has stuff.*leave out --class_map_dir"),
        ({"panoptic_json": "a", "things": ["b"]}, "leave out --things"),
        ({"class_map_dir": "a", "image_dir": "b"}, "--class_map_dir needs --class_names"),
        ({"instances_json": "a", "class_names": ["b"]}, "--class_names needs --class_map_dir"),
        ({"class_map_dir": "a", "class_names": ["b"]}, "--image_dir is required"),
    ],
)
def test_files_that_do_not_go_together(given, words):
    with pytest.raises(UserError, match=words):
        sources.open_dataset(sources.Given(**given))


class Names:
    """A dataset of names alone."""

    def __init__(self, names):
        self.images = [{"file_name": name} for name in names]

    def __len__(self):
        return len(self.images)

    def part(self, positions):
        return [self.images[position]["file_name"] for position in positions]


def test_a_name_goes_to_one_side_whatever_else_there_is():
    names = [f"{i:04}.jpg" for i in range(1000)]
    split = sources.by_name(Names(names), 0.1)
    assert sorted(split["train"] + split["val"]) == names and 70 < len(split["val"]) < 130
    assert "0016.jpg" in split["val"]  # Of every version of this program.
    fewer = sources.by_name(Names(names[::2]), 0.1)["val"]
    assert fewer == [name for name in split["val"] if name in names[::2]]
    assert set(split["val"]) < set(sources.by_name(Names(names), 0.3)["val"])
    versions = [f"{i:04}_jpg.rf.{v}.jpg" for i in range(100) for v in ("0aF", "1b")]
    sides = sources.by_name(Names(versions), 0.3)["val"]
    assert {s[:4] for s in sides if ".0aF." in s} == {s[:4] for s in sides if ".1b." in s} != set()
    with pytest.raises(UserError, match="--val_fraction=0.001 puts none of the 3 images into val"):
        sources.by_name(Names(names[:3]), 0.001)


@pytest.mark.parametrize("held", categories.TASKS)
def test_training_does_what_the_records_hold(tmp_path, held):
    info = categories.DatasetInfo(INFO.categories, task=held)
    info.save(tmp_path / "dataset_info.json")
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    settings = {"train_records": os.path.join(tmp_path, "train-*")}
    config = pipeline.config_for_records(settings)
    weights = config.train.instance_loss_weight, config.train.semantic_loss_weight
    expected = {"panoptic": (1, 0.5), "instance": (1, 0), "semantic": (0, 1)}
    assert (config.model.task, weights) == (held, expected[held])
    assert pipeline.load_info(config) == info
    for task in categories.TASKS:
        config = pipeline.config_for_records({**settings, "task": task})
        assert config.model.task == task
        if held not in ("panoptic", task):
            with pytest.raises(UserError, match=f"--task={task} does not fit"):
                pipeline.load_info(config)
    assert pipeline.config_for_records({}) == Config()


def test_records_of_another_task_stay_apart(tmp_path):
    dataset = maps(tmp_path)
    convert.convert(dataset, str(tmp_path / "out"), "train", num_workers=1)
    dataset.info = categories.DatasetInfo(dataset.info.categories)
    with pytest.raises(UserError, match="belongs to records for --task=semantic, these are for"):
        convert.convert(dataset, str(tmp_path / "out"), "val", num_workers=1)
