"""Panoptic PNGs and JSON files: what is written can be read, what is wrong is named."""

import json

import numpy as np
import pytest

from pfpn_tf.data import panoptic_png, predictions
from pfpn_tf.evaluation.score_files import PanopticFiles

CATEGORIES = [{"id": 3, "name": "ball", "isthing": 1}, {"id": 9, "name": "sand", "isthing": 0}]
IDS = np.array([[0, 1, 255, 256], [65535, 65536, 2**24 - 1, 7], [7, 7, 7, 7]], np.uint32)


def test_png_round_trip():
    png = panoptic_png.encode_ids(IDS)
    np.testing.assert_array_equal(panoptic_png.decode_ids(png, "x.png"), IDS)


def write_dataset(directory, num_images=3):
    """Ground truth and an equal prediction, by `PredictionWriter`."""
    for name in ("gt", "pred"):
        with predictions.PredictionWriter(directory / name, CATEGORIES, instances=False) as writer:
            for i in range(num_images):
                ids = np.kron([[5, 6], [6, 0]], np.ones((4 + i, 7))).astype(np.uint32)
                writer.add_panoptic(i, ids, segments_of(ids))


def segments_of(ids):
    return [
        {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": 0}
        for i, c in ((5, 3), (6, 9))
    ]


def score(directory, **kwargs):
    paths = str(directory / "gt/panoptic.json"), "", str(directory / "pred/panoptic.json"), ""
    return PanopticFiles(*paths).score(**kwargs)


def test_written_files_score_perfectly(tmp_path):
    write_dataset(tmp_path)
    metrics = score(tmp_path)
    assert metrics["panoptic"]["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}
    assert metrics["semantic"]["miou"] == 1.0 and metrics["notes"] == []


def test_number_of_threads_changes_nothing(tmp_path):
    write_dataset(tmp_path, 7)
    expected = score(tmp_path, num_threads=1)
    for threads in (0, 3):
        assert score(tmp_path, num_threads=threads) == expected


def test_failed_writer_leaves_no_json(tmp_path):
    with pytest.raises(RuntimeError):
        with predictions.PredictionWriter(tmp_path, CATEGORIES) as writer:
            writer.add_instances([{"image_id": 1}])
            raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["panoptic"]


def test_empty_writer_writes_valid_json(tmp_path):
    with predictions.PredictionWriter(tmp_path, CATEGORIES):
        pass
    assert json.loads((tmp_path / "instances.json").read_text()) == []
    assert json.loads((tmp_path / "panoptic.json").read_text()) == {
        "annotations": [],
        "categories": CATEGORIES,
    }


def test_semantic_maps_refuse_category_ids_that_do_not_fit(tmp_path):
    predictions.PredictionWriter(tmp_path, [], semantic_category_ids=[None, 65534])
    with pytest.raises(ValueError, match="Category id 65536 .*65534"):
        predictions.PredictionWriter(tmp_path, [], semantic_category_ids=[65536])


def test_images_are_listed_where_they_are_given(tmp_path):
    png = panoptic_png.encode_ids(IDS)
    with predictions.PredictionWriter(
        tmp_path, CATEGORIES, instances=False, panoptic_name="predictions"
    ) as writer:
        for i in (1, 2):
            image = {"file_name": f"{i}.jpg", "height": 3, "width": 4}
            writer.add_panoptic(i, png, [], file_name=f"{i}.png", image=image)
        with pytest.raises(ValueError, match="1.png would hold the maps of two images"):
            writer.add_panoptic("1", png, [], file_name="1.png")
    content = json.loads((tmp_path / "predictions.json").read_text())
    assert [i["id"] for i in content["images"]] == [a["image_id"] for a in content["annotations"]]
    assert (tmp_path / "predictions/2.png").read_bytes() == png


def test_two_images_never_share_a_file(tmp_path):
    """Neither panoptic nor semantic maps; 1 and "000000000001" cannot be ids of one dataset."""
    ids = [1, -1, 2**40, "01", "001", "a/b", "a b", "a_b", "a%2Fb", "²", "2", ".a", ".."]
    ids += ["A" * 300, "A" * 301]
    with predictions.PredictionWriter(tmp_path, [], semantic_category_ids=[3]) as writer:
        for image_id in ids:
            writer.add_panoptic(image_id, np.zeros((2, 2)), [])
            writer.add_semantic(image_id, np.zeros((2, 2), int))
        for kind in ("panoptic", "semantic"):
            names = [path.name for path in (tmp_path / kind).iterdir()]
            assert len(names) >= len(ids) and "000000000001.png" in names
            assert all(len(name) < 200 and not name.startswith(".") for name in names)
        with pytest.raises(ValueError, match="maps of two images"):
            writer.add_semantic("000000000001", np.zeros((2, 2), int))
