"""The benchmark of scoring files: it times what gives the same PQ, on files as large as COCO's."""

import json

import pytest

from pfpn_tf.benchmark.panoptic_quality import benchmark_panoptic_quality


def test_drawn_scenes(monkeypatch):
    pytest.importorskip("panopticapi")
    monkeypatch.setattr("pfpn_tf.benchmark.panoptic_quality._NUM_DRAWN", 2)
    result = benchmark_panoptic_quality(5, repeats=1)
    assert result["equal"] and result["num_images"] == 5
    assert result["images"] == "2 drawn, sides of 480 to 640 pixels"
    assert 0 < result["one_thread"]["median_ms"] < result["panopticapi"]["median_ms"]
    assert 0 < result["all_cores"]["median_ms"] < result["panopticapi"]["median_ms"]
    assert result["speedup"] == pytest.approx(
        result["panopticapi"]["median_ms"] / result["one_thread"]["median_ms"], rel=0.02
    )
    json.dumps(result)


def test_bad_arguments_are_named(monkeypatch):
    with pytest.raises(ValueError, match="--repeats=0"):
        benchmark_panoptic_quality(1, 0)
    found = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name))
    with pytest.raises(ValueError, match="pip install panopticapi-lite"):
        benchmark_panoptic_quality(1, 1)
    assert found == ["panopticapi"]
