"""The benchmark of scoring files: it times what gives the same PQ, on files as large as COCO's."""

import json

import pytest

from pfpn_tf.benchmark.panoptic_quality import benchmark_panoptic_quality


@pytest.mark.parametrize("processes", [1, 2])
def test_drawn_scenes(monkeypatch, processes):
    pytest.importorskip("panopticapi")
    monkeypatch.setattr("pfpn_tf.benchmark.panoptic_quality._NUM_DRAWN", 2)
    monkeypatch.setattr("pfpn_tf.evaluation.score_files._IMAGES_PER_BLOCK", 2)
    result = benchmark_panoptic_quality(5, processes, repeats=1)
    assert result["equal"] and result["num_images"] == 5 and result["processes"] == processes
    assert result["images"] == "2 drawn, sides of 480 to 640 pixels"
    assert processes > 1 or 0 < result["ours"]["median_ms"] < result["panopticapi"]["median_ms"]
    assert result["speedup"] == pytest.approx(
        result["panopticapi"]["median_ms"] / result["ours"]["median_ms"], rel=0.02
    )
    json.dumps(result)


def test_bad_arguments_are_named(monkeypatch):
    with pytest.raises(ValueError, match="--repeats=0"):
        benchmark_panoptic_quality(1, 1, 0)
    found = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name))
    with pytest.raises(ValueError, match="pip install panopticapi-lite"):
        benchmark_panoptic_quality(1, 1, 1)
    assert found == ["panopticapi"]
