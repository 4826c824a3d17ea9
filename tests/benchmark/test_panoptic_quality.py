"""The benchmark of scoring files: it times what gives the same PQ, on files as large as COCO's."""

import json

import pytest

from pfpn_tf.benchmark.panoptic_quality import benchmark_panoptic_quality
from tests.data.test_predictions import write_dataset


def test_drawn_scenes(monkeypatch):
    pytest.importorskip("panopticapi")
    monkeypatch.setattr("pfpn_tf.benchmark.panoptic_quality._NUM_DRAWN", 2)
    result = benchmark_panoptic_quality(3, processes=1, repeats=1)
    assert (
        result["equal"] and result["num_images"] == 3 and result["images"] == "2 drawn, 640 x 480"
    )
    assert 0 < result["ours"]["median_ms"] < result["panopticapi"]["median_ms"]
    assert result["speedup"] == pytest.approx(
        result["panopticapi"]["median_ms"] / result["ours"]["median_ms"], rel=0.02
    )
    json.dumps(result)


def test_files_of_a_folder_on_two_processes(tmp_path, monkeypatch):
    pytest.importorskip("panopticapi")
    monkeypatch.setattr("pfpn_tf.evaluation.score_files._IMAGES_PER_BLOCK", 2)
    write_dataset(tmp_path / "written", 2)
    for name in ("gt", "pred"):
        (tmp_path / "written" / name / "panoptic").rename(tmp_path / name)
        (tmp_path / "written" / name / "panoptic.json").rename(tmp_path / f"{name}.json")
    result = benchmark_panoptic_quality(5, processes=2, repeats=1, directory=str(tmp_path))
    assert result["equal"] and result["processes"] == 2 and result["images"] == str(tmp_path)


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--repeats=0"):
        benchmark_panoptic_quality(1, 1, 0)
    found = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name))
    with pytest.raises(ValueError, match="pip install panopticapi-lite"):
        benchmark_panoptic_quality(1, 1, 1)
    assert found == ["panopticapi"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(ValueError, match="no folder gt"):
        benchmark_panoptic_quality(1, 1, 1, str(tmp_path))
