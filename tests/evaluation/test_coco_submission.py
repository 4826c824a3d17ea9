"""The zip files for COCO's servers: names, content, and that what is in them scores."""

import json
import pathlib
import zipfile

import numpy as np
import pytest

from pfpn_tf.data.predictions import PredictionWriter, instance_results
from pfpn_tf.evaluation import coco_submission
from pfpn_tf.evaluation.score_files import PanopticFiles

CATEGORIES = [{"id": 3, "name": "ball", "isthing": 1}, {"id": 9, "name": "sand", "isthing": 0}]


def write_predictions(folder, image_ids, **kinds):
    with PredictionWriter(folder, CATEGORIES, **kinds) as writer:
        for image_id in image_ids:
            ids = np.kron([[5, 6], [6, 0]], np.ones((4, 7))).astype(np.uint32)
            if writer.panoptic_json:
                segments = [
                    {"id": k, "category_id": c, "area": int((ids == k).sum()), "iscrowd": 0}
                    for k, c in ((5, 3), (6, 9))
                ]
                writer.add_panoptic(image_id, ids, segments)
            if writer.instances_json:
                writer.add_instances(
                    instance_results(image_id, np.array([[0, 0, 4, 7]]), [0.9], [3], [ids == 5])
                )
    return str(folder)


def test_zips_hold_what_the_server_wants(tmp_path):
    folder = write_predictions(tmp_path / "p", [1, 2, 99])
    # Images 2 and 99 of before have PNGs, but do not count.
    write_predictions(tmp_path / "p", [1, 581929])
    panoptic, detections = coco_submission.write(folder, "test-dev", "My R-50 (FPN)/3x")
    name = "panoptic_test-dev2017_MyR-50FPN3x_results"
    assert pathlib.Path(panoptic) == tmp_path / f"p/{name}.zip"
    assert pathlib.Path(detections).name == "detections_test-dev2017_MyR-50FPN3x_results.zip"
    with zipfile.ZipFile(panoptic) as archive:
        assert archive.testzip() is None
        pngs = [f"{name}/{image_id:012d}.png" for image_id in (1, 581929)]
        assert archive.namelist() == [f"{name}.json", *pngs]
        archive.extractall(tmp_path / "server")
    with zipfile.ZipFile(detections) as archive:
        assert archive.namelist() == ["detections_test-dev2017_MyR-50FPN3x_results.json"]
        results = json.loads(archive.read(archive.namelist()[0]))
        assert [result["image_id"] for result in results] == [1, 581929]
    submitted = str(tmp_path / "server" / f"{name}.json")
    metrics = PanopticFiles(str(tmp_path / "p/panoptic.json"), "", submitted, "").score()
    assert metrics["panoptic"]["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 2}


def test_one_task_gives_one_zip(tmp_path):
    for kind, split, method, name in (
        ("panoptic", "test-dev", "", "detections_test-dev2017_pfpn_results.zip"),
        ("instances", "test-challenge", "a", "panoptic_test-challenge2017_a_results.zip"),
    ):
        folder = write_predictions(tmp_path / kind, [1], **{kind: False})
        (path,) = coco_submission.write(folder, split, method)
        assert pathlib.Path(path).name == name


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no panoptic.json or instances.json"):
        coco_submission.write(str(tmp_path), "test-dev", "a")
    folder = write_predictions(tmp_path / "p", [1])
    (tmp_path / "p/panoptic/000000000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="000000000001.png"):
        coco_submission.write(folder, "test-dev", "a")
    assert not list((tmp_path / "p").glob("*.zip"))
