"""A run that is stopped and started again ends like one that was not."""

import random
import shutil

from pfpn_tf.training import run, summaries
from tests.training import kill_and_resume


def test_a_run_killed_after_step_3_ends_like_one_that_was_not(tiny_config, tmp_path):
    config = tiny_config.replace(
        train_steps=6, summary_interval_steps=2, checkpoint_interval_steps=3
    )
    run.train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints").glob("ckpt-6.*"):
        path.unlink()
    with open(tmp_path / "parts" / summaries.METRICS, "a", encoding="utf-8") as f:
        f.write('{"step": 7, "lo')  # the line that the kill cut short
    run.train(config, str(tmp_path / "parts"))
    values, states = kill_and_resume.largest_difference(tmp_path / "whole", tmp_path / "parts", 6)
    assert values < 1e-6 and states < 1e-7
    assert list(kill_and_resume.curve(tmp_path / "parts")) == [2, 4, 6]


def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tiny_config, tmp_path):
    """Three kills, two of them in the middle of a save; kill_and_resume.py does more."""
    config = tiny_config.replace(
        task="semantic",
        train_steps=30,
        ema_decay=0.9,
        summary_interval_steps=2,
        checkpoint_interval_steps=3,
    )
    alone = kill_and_resume.train_process.start(config, tmp_path / "alone", tmp_path / "alone.log")
    moments = ["save", "step", "save"]
    rng = random.Random(7)
    left = kill_and_resume.train_with_kills(
        config, tmp_path / "killed", tmp_path / "killed.log", moments, rng
    )
    assert alone.wait() == 0
    assert any(name.endswith("_temp") for name in left[0] | left[2])
    assert not list((tmp_path / "killed" / "checkpoints").glob("*_temp"))
    assert kill_and_resume.largest_difference(tmp_path / "alone", tmp_path / "killed", 30) == (0, 0)
