"""The drawn dataset obeys COCO's format and is what it says it is."""

import cv2
import numpy as np
import pytest

from pfpn_tf.data import scenes, synthetic
from tests import tiny

NUM_TRAIN, NUM_VAL = 12, 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("drawn")
    synthetic.make_dataset(directory, NUM_TRAIN, NUM_VAL, seed=3, sides=(40, 72))
    return directory


@pytest.mark.parametrize("split, num_images", [("train", NUM_TRAIN), ("val", NUM_VAL)])
def test_files_agree_and_instances_are_the_visible_things(dataset, split, num_images):
    """The reader compares photos, maps, areas and boxes; it notes what differs."""
    given, visible = (tiny.open_drawn(dataset, split, instances) for instances in (True, False))
    assert len(given) == num_images and not given.notes.lines()
    for position in range(num_images):
        record, other = given.read(position), visible.read(position)
        assert not record.notes.lines() and not other.notes.lines()
        for ours, segment in zip(record.instances, other.instances, strict=True):
            assert (ours.category_id, ours.iscrowd) == (segment.category_id, segment.iscrowd)
            assert (ours.area, list(ours.bbox_xywh)) == (segment.area, list(segment.bbox_xywh))
            np.testing.assert_array_equal(ours.mask, segment.mask)


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
        {path.read_bytes() for path in (dataset / split).iterdir()} for split in ("train", "val")
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
