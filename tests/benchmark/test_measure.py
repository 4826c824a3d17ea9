import os
import time

import pytest

from pfpn_tf.benchmark import measure


def test_timed_calls_after_warm_up():
    calls = []
    result = measure.timed(lambda: calls.append(0), repeats=3, warmup=2)
    assert len(calls) == 5
    assert (result["repeats"], result["warmup"]) == (3, 2)
    assert 0 <= result["min_ms"] <= result["median_ms"] <= result["max_ms"]


def test_median_of_known_times():
    result = measure.summary([0.003, 0.001, 0.010], warmup=1)
    assert (result["min_ms"], result["median_ms"], result["max_ms"]) == (1.0, 3.0, 10.0)


def _allocate(mebibytes):
    block = bytearray(mebibytes * 2**20)  # noqa: F841
    return os.getpid(), measure.peak_memory_mib()


def test_a_fresh_process_has_memory_of_its_own():
    _, little = measure.in_fresh_process(_allocate, 1)
    pid, much = measure.in_fresh_process(_allocate, 101)
    assert pid != os.getpid()
    assert 90 < much - little < 110
    assert little < 100  # TensorFlow, which this process has loaded, is not in it


def _fail():
    raise ValueError("said the other process")


def test_errors_come_back():
    with pytest.raises(ValueError, match="said the other process"):
        measure.in_fresh_process(_fail)


def test_memory_that_grows_is_seen(monkeypatch):
    assert measure.watched(lambda: None)["memory_mib"][0] > 10  # as the system tells it
    read = []

    def memory(key):
        assert key == "RssAnon"
        read.append(100.0 + len(read))
        return read[-1]

    def run():
        while len(read) < 30:
            time.sleep(0.001)

    monkeypatch.setattr(measure, "_memory", memory)
    found = measure.watched(run, every_seconds=0.001)
    parts = found["memory_mib"]
    assert len(parts) == 10 and parts == sorted(parts)
    assert parts[0] < 110 and parts[-1] > read[-1] - len(read) / 10
    assert found["growth_percent"] == pytest.approx(100 * (parts[-1] / parts[5] - 1), abs=0.1)
    assert found["growth_percent"] > 5
