"""Which files make a dataset: instances and class maps joined, the choice, the split, the task."""

import os

import numpy as np
import pytest
from PIL import Image

from pfpn_tf.config import Config
from pfpn_tf.data import categories, convert, joined, pipeline, sources, statistics
from pfpn_tf.data.record import Instance
from pfpn_tf.utils.errors import UserError
from tests.data.exports import HW, NAMES, VALUES, fiftyone

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
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        Image.fromarray(VALUES).save(tmp_path / f"labels/{name}.png")
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
            words = f"--task={task} .*dataset_info.json.* --task={held}, or leave"
            with pytest.raises(UserError, match=words):
                pipeline.load_info(config)
    assert pipeline.config_for_records({}) == Config()
