"""The drawn dataset obeys COCO's format and is what it says it is."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pfpn_tf.data import scenes, synthetic

NUM_TRAIN, NUM_VAL = 12, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("drawn")
    synthetic.make_dataset(directory, NUM_TRAIN, NUM_VAL, seed=3, sides=(40, 72))
    return directory


def read(dataset, name, split):
    return json.loads((dataset / "annotations" / f"{name}_{split}.json").read_text())


def read_ids(path):
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.int64)
    return bgr[..., 2] + 256 * bgr[..., 1] + 65536 * bgr[..., 0]


@pytest.mark.parametrize("split, num_images", [("train", NUM_TRAIN), ("val", NUM_VAL)])
def test_segments_match_the_png(dataset, split, num_images):
    panoptic = read(dataset, "panoptic", split)
    assert len(panoptic["images"]) == len(panoptic["annotations"]) == num_images
    known = {category["id"] for category in panoptic["categories"]}
    for image, annotation in zip(panoptic["images"], panoptic["annotations"]):
        assert image["id"] == annotation["image_id"]
        photo = cv2.imread(str(dataset / split / image["file_name"]))
        ids = read_ids(dataset / "annotations" / f"panoptic_{split}" / annotation["file_name"])
        assert photo.shape == (image["height"], image["width"], 3) == ids.shape + (3,)
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        for segment_id, segment in segments.items():
            y, x = np.nonzero(ids == segment_id)
            box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert segment["bbox"] == box
            assert segment["area"] == len(y)
            assert segment["category_id"] in known


def test_instances_are_the_visible_things(dataset):
    panoptic, instances = read(dataset, "panoptic", "train"), read(dataset, "instances", "train")
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    masks = {}
    for instance in instances["annotations"]:
        mask = coco_mask.decode(instance["segmentation"]).astype(bool)
        assert mask.sum() == instance["area"]
        masks.setdefault(instance["image_id"], []).append(
            (instance["category_id"], instance["iscrowd"], mask)
        )
    for annotation in panoptic["annotations"]:
        ids = read_ids(dataset / "annotations" / "panoptic_train" / annotation["file_name"])
        segments = [s for s in annotation["segments_info"] if s["category_id"] in things]
        given = masks.get(annotation["image_id"], [])
        assert len(given) == len(segments)
        for segment, (category_id, iscrowd, mask) in zip(segments, given):
            assert (segment["category_id"], segment["iscrowd"]) == (category_id, iscrowd)
            np.testing.assert_array_equal(mask, ids == segment["id"])


def test_same_seed_same_scene_other_seed_other_scene():
    first, again, other = (scenes.draw_scene((seed, 0, 1), (40, 72)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.panoptic_ids, again.panoptic_ids)
    assert first.segments_info == again.segments_info
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_several_processes_write_the_same_files(dataset, tmp_path):
    synthetic.make_dataset(
        tmp_path / "drawn", NUM_TRAIN, NUM_VAL, seed=3, sides=(40, 72), num_workers=2
    )
    names, again = (
        sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
        for root in (dataset, tmp_path / "drawn")
    )
    assert names == again and len(names) == 2 * (NUM_TRAIN + NUM_VAL) + 4
    for name in names:
        assert (tmp_path / "drawn" / name).read_bytes() == (dataset / name).read_bytes(), name


def test_splits_share_no_scene(dataset):
    train, val = (
        {
            (dataset / split / image["file_name"]).read_bytes()
            for image in read(dataset, "panoptic", split)["images"]
        }
        for split in ("train", "val")
    )
    assert len(train) == NUM_TRAIN and len(val) == NUM_VAL
    assert not train & val


def test_scenes_cover_the_cases_that_code_forgets():
    """Every category, crowd, void patch, no things, hidden things, all three orientations."""
    drawn = [scenes.draw_scene((0, 0, i), (48, 80)) for i in range(80)]
    things = {c["id"] for c in scenes.CATEGORIES if c["isthing"]}
    segments = [segment for scene in drawn for segment in scene.segments_info]
    assert {s["category_id"] for s in segments} == {c["id"] for c in scenes.CATEGORIES}
    assert any(s["iscrowd"] for s in segments)
    assert any(all(s["category_id"] not in things for s in scene.segments_info) for scene in drawn)
    assert all((scene.panoptic_ids == 0).any() for scene in drawn)  # the borders
    assert any(
        (cv2.erode((scene.panoptic_ids == 0).astype(np.uint8), np.ones((4, 4)))).any()
        for scene in drawn
    )
    orientation = {int(np.sign(np.subtract(*scene.panoptic_ids.shape))) for scene in drawn}
    assert orientation == {-1, 0, 1}


def test_colour_and_label_agree():
    """The label of a ball lies on the ball: no channel or axis is swapped between the two."""
    image = np.zeros((40, 64, 3))
    pixels = scenes._paint(np.random.default_rng(0), image, "ball", np.array([12.0, 40.0]), 8.0)
    lit = image.sum(-1) > 0
    y, x = np.mgrid[:40, :64] + 0.5
    inside = np.hypot(y - 12, x - 40)
    assert pixels[inside < 7.3].all() and not pixels[inside > 8.7].any()
    assert lit[pixels].all() and not lit[inside > 9.5].any()


def test_refuses_to_mix_with_what_is_there(dataset):
    with pytest.raises(ValueError, match="already holds train/"):
        synthetic.make_dataset(dataset, 1, 1)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_failure_leaves_nothing_behind(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(synthetic.progress.Bar, "update", lambda bar: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic.make_dataset(tmp_path / "drawn", 9, 1, sides=(40, 72), num_workers=num_workers)
    assert list((tmp_path / "drawn").iterdir()) == []


@pytest.mark.both_stacks
def test_drawing_prints_nothing(tmp_path, capfd):
    """OpenCV writes a warning for each file whose format lacks a setting."""
    synthetic.make_dataset(tmp_path, 1, 1, sides=(40, 48))
    assert capfd.readouterr() == ("", "")
