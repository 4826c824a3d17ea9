"""A run that is killed and started again ends like one that was not."""

import os
import random

from tests.training import runs

KILLS = int(os.environ.get("PFPN_TF_TEST_KILLS", 1))


def test_a_killed_run_ends_like_one_that_was_not(tiny_config, tmp_path):
    """Killed in the middle of its second save, after more lines of the log than the first one
    covers, and, as it looks, in the middle of a line. With PFPN_TF_TEST_KILLS=20 it is the whole
    network, killed 19 times more: before a step or in a save, at random.
    """
    config = tiny_config.replace(
        task="semantic" if KILLS == 1 else "panoptic",
        train_steps=9 * KILLS,
        ema_decay=0.9,
        summary_interval_steps=2,
        checkpoint_interval_steps=3,
    )
    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    alone = runs.start(config, tmp_path / "alone", tmp_path / "alone.log")
    moments = [f"{random.choice(('step', 'save'))} {random.randint(1, 2)}" for _ in range(KILLS)]
    for moment in ["save 2", *moments[1:]]:
        runs.kill_when_stopped(runs.start(config, killed, log, **{runs.STOP_AT: moment}))
        left = os.listdir(killed / "checkpoints")
        assert moment.startswith("step") or any(name.endswith("_temp") for name in left), moments
        assert "ckpt-3.index" in left or KILLS > 1
    with open(killed / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 7, "lo')
    assert runs.start(config, killed, log).wait() == 0, log.read_text()
    assert alone.wait() == 0, (tmp_path / "alone.log").read_text()
    assert not list((killed / "checkpoints").glob("*_temp"))
    assert "Continuing from" in log.read_text()
    last = 9 * KILLS
    assert list(runs.curve(killed)) == sorted({*range(2, last + 1, 2), last})
    assert runs.largest_difference(tmp_path / "alone", killed, last) == (0, 0)
