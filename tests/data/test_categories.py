import dataclasses
import json

import numpy as np
import pytest

from pfpn_tf.data.categories import DatasetInfo, class_differences, distinct_colors
from pfpn_tf.utils.errors import UserError

# Deliberately unsorted, with gaps, things and stuff mixed: sky 3 (stuff), cat 5, grass 7 (stuff),
# car 20.
COCO = [
    {"id": 20, "name": "car", "isthing": 1},
    {"id": 3, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 7, "name": "grass", "isthing": 0},
    {"id": 5, "name": "cat", "isthing": 1},
]


@pytest.fixture
def info():
    return DatasetInfo.from_coco_categories(COCO)


def test_numberings_with_gaps(info):
    assert [c.id for c in info.categories] == [3, 5, 7, 20]
    assert info.thing_category_ids.tolist() == [5, 20]
    assert info.category_to_class_id == {5: 0, 20: 1}
    assert info.thing_names == ["cat", "car"]
    assert info.num_semantic_classes("other") == 3 and info.num_semantic_classes("all") == 4
    assert info.semantic_category_ids("other").tolist() == [0, 3, 7]
    assert info.semantic_category_ids("all").tolist() == [3, 5, 7, 20]
    assert info.semantic_is_thing("other").tolist() == [True, False, False]
    assert info.semantic_names("other") == ["things", "sky", "grass"]


def test_semantic_lookup(info):
    other, every = info.semantic_lookup("other"), info.semantic_lookup("all")
    assert other[:4].tolist() == [1, 0, 2, 0]
    assert every[:4].tolist() == [0, 1, 2, 3]
    assert (other[4:] == 255).all() and (every[4:] == 255).all()


def test_save_and_load(info, tmp_path):
    path = tmp_path / "dataset_info.json"
    info = info.with_split("train", {"images": 2}).with_split("val", {"images": 1})
    info = dataclasses.replace(info, task="instance")
    info.save(path)
    loaded = DatasetInfo.load(path)
    assert loaded == info and loaded.splits["val"] == {"images": 1}
    assert len(path.read_text().splitlines()) == 13  # one category or split a line
    assert json.loads(path.read_text())["categories"][0]["color"] == [1, 2, 3]
    path.write_text(path.read_text().replace('"task": "instance",', ""))  # Of earlier versions.
    assert DatasetInfo.load(path).task == "panoptic"
    path.write_text(path.read_text().replace('"splits"', '"task": "boxes", "splits"'))
    with pytest.raises(UserError, match="task must be one of panoptic, .* not 'boxes'"):
        DatasetInfo.load(path)


def test_classes_do_not_differ_by_colours_and_counts(info):
    recoloured = DatasetInfo.from_coco_categories([{**c, "color": [9, 9, 9]} for c in COCO])
    assert class_differences(info, recoloured.with_split("x", {})) == []
    assert class_differences(info, DatasetInfo.from_coco_categories(COCO[:3]))


def test_colours_are_distinct():
    colors = np.array(distinct_colors(254))
    assert len(np.unique(colors, axis=0)) == 254
    near = np.abs(colors[1:] - colors[:-1]).sum(-1)
    assert near.min() > 100


def test_no_things_or_no_stuff():
    stuff = DatasetInfo.from_coco_categories([COCO[1]])
    assert stuff.num_thing_classes == 0 and stuff.thing_names == []
    things = DatasetInfo.from_coco_categories([COCO[0]])
    assert things.num_semantic_classes("other") == 1


@pytest.mark.parametrize(
    "categories, words",
    [
        ([], "at least one"),
        ([{"id": 1, "name": "a"}], "panoptic"),
        ([{"id": 1, "name": "a", "isthing": 2}], "must be 0 or 1, not 2"),
        ([{"id": "one", "name": "a", "isthing": 1}], '"id" must be .*, not "one"'),
        ([{"id": True, "name": "a", "isthing": 1}], '"id" must be .*, not true'),
        ([{"id": 2**31, "name": "a", "isthing": 1}], "from 0 to 2147483647, not 2147483648"),
        ([{"id": 1, "name": ["a"], "isthing": 1}], '"name" must be a text'),
        ([{"id": 1, "name": "a", "isthing": 1, "color": 7}], "#rrggbb, not 7"),
        ([{"id": 1, "name": "a", "isthing": 1}] * 2, "occurs twice"),
        ([{"id": 1, "name": "a", "isthing": 1, "color": [1, 2]}], "color"),
        ([{"id": i, "name": "a", "isthing": 1} for i in range(255)], "at most 254"),
    ],
)
def test_bad_categories_are_named(categories, words):
    with pytest.raises(ValueError, match=words) as error:
        DatasetInfo.from_coco_categories(categories, source="set.json")
    assert "set.json" in str(error.value)


def test_values_are_read_as_what_they_are():
    info = DatasetInfo.from_coco_categories(
        [
            {"id": "65536", "name": 7, "isthing": "0", "color": "#2080c0"},
            {"id": 2.0, "name": "b", "isthing": True, "color": ["1", 2.0, 3]},
            {"id": 2**31 - 1, "isthing": 1.0, "color": None},
        ]
    )
    assert [c[:3] for c in info.categories] == [
        (2, "b", True),
        (65536, "7", False),
        (2**31 - 1, "2147483647", True),
    ]
    assert [c.color for c in info.categories[:2]] == [(1, 2, 3), (0x20, 0x80, 0xC0)]
    assert info.thing_category_ids.tolist() == [2, 2**31 - 1]


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "dataset_info.json"
    with pytest.raises(ValueError, match="create_tfrecords"):
        DatasetInfo.load(path)
    good = '{"categories": [{"id": 1, "name": "a", "isthing": 0}], "splits": %s}'
    for text in ("{", "[]", '{"categories": [], "splits": {}}', good % "[]", good % '{"val": 5}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="dataset_info.json"):
            DatasetInfo.load(path)
