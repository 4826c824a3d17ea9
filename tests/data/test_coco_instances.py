"""COCO instances as annotation tools leave them."""

import json

import numpy as np
import pytest

from pfpn_tf.data import categories, coco_instances, convert, joined, photo_folder, sources
from pfpn_tf.utils.errors import UserError
from tests.data.edits import edit
from tests.data.exports import (
    BOXES,
    HW,
    TOOLS,
    cvat,
    fiftyone,
    mask_of,
    photos,
    roboflow,
    write,
)


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
    edit("labels.json", change)(tmp_path)
    with pytest.raises(UserError, match=words):
        sources.open_dataset(sources.Given(instances_json=str(path))).read(0)


def test_the_end_of_a_name_finds_no_photo_of_another_image(tmp_path):
    photos(tmp_path / "photos/1", "a.png")
    folder = photo_folder.PhotoFolder(tmp_path, ["cam/1/a.png"])
    assert folder.find("cam/1/a.png") == (str(tmp_path / "photos/1/a.png"), False)
    photos(tmp_path / "photos/1", "e\u0301.PNG")  # As macOS writes it.
    folder = photo_folder.PhotoFolder(tmp_path, ["\u00e9.png"])
    assert folder.find("\u00e9.png")[0].endswith("e\u0301.PNG")
    folder = photo_folder.PhotoFolder(tmp_path, ["cam/1/a.png", "cam/2/a.png"])
    with pytest.raises(UserError, match="no such image"):
        folder.find("cam/2/a.png")
