"""Two worker processes train like one process with two replicas, also when one is killed."""

import pytest

from tests import processes
from tests.training import runs


def start_workers(config, run_dir, log_dir, **environment_of_the_first):
    """Starts two workers that log to LOG_DIR/worker-N.log."""
    config = config.replace(distribution="multi_worker")
    first, second = processes.cluster_of_workers(2)
    log = log_dir / "worker-0.log"
    chief = runs.start(config, run_dir, log, TF_CONFIG=first, **environment_of_the_first)
    return chief, runs.start(config, run_dir, log_dir / "worker-1.log", TF_CONFIG=second)


def test_two_workers_step_like_two_replicas_and_come_back_after_a_kill(tiny_config, tmp_path):
    """The losses of the first step agree to the last bit but one, as a + b = b + a: only the
    optimiser's constant folding rounds differently in a graph that holds both replicas (without it
    they agree bit for bit). Gradients agree to rounding, and the small learning rate keeps that
    from growing from step to step."""
    config = tiny_config.replace(
        train_steps=9,
        checkpoint_interval_steps=3,
        ema_decay=0.9,
        learning_rate=1e-4,
    )
    alone = runs.start(
        config, tmp_path / "alone", tmp_path / "alone.log", **{runs.TWO_REPLICAS: "1"}
    )
    run_dir = tmp_path / "workers"
    chief, other = start_workers(config, run_dir, tmp_path, **{runs.STOP_AT: "step 6"})
    runs.kill_when_stopped(chief)
    assert other.wait(timeout=1000) == 138
    log = (tmp_path / "worker-1.log").read_text()
    assert "Worker 1 of 2 stops, as another one is gone" in log and "Traceback" not in log

    (tmp_path / "temporary").mkdir()
    workers = start_workers(config, run_dir, tmp_path, TMPDIR=str(tmp_path / "temporary"))
    codes = [worker.wait() for worker in workers]
    assert not list((tmp_path / "temporary").iterdir())
    log = (tmp_path / "worker-0.log").read_text()
    assert codes == [0, 0], log
    assert "Continuing from" in log
    assert alone.wait() == 0, (tmp_path / "alone.log").read_text()
    first, same = (
        {name: value for name, value in runs.curve(folder)[1].items() if "loss/" in name}
        for folder in (tmp_path / "alone", run_dir)
    )
    assert len(first) == 7 and first == pytest.approx(same, rel=2.0**-22)
    values, states = runs.largest_difference(tmp_path / "alone", run_dir, 9)
    assert values < 1e-4 and states < 1e-4
