"""A run that is killed and started again ends like one that was not."""

from tests.training import kill_and_resume, train_process


def test_a_killed_run_ends_like_one_that_was_not(tiny_config, tmp_path):
    """Killed in the middle of its second save, after more lines of the log than the first one
    covers, and, as it looks, in the middle of a line. kill_and_resume.py does more, on the whole
    network.
    """
    config = tiny_config.replace(
        task="semantic",
        train_steps=9,
        ema_decay=0.9,
        summary_interval_steps=2,
        checkpoint_interval_steps=3,
    )
    killed, log = tmp_path / "killed", tmp_path / "killed.log"
    alone = train_process.start(config, tmp_path / "alone", tmp_path / "alone.log")
    (left,) = kill_and_resume.train_with_kills(config, killed, log, ["save 2"])
    assert alone.wait() == 0, (tmp_path / "alone.log").read_text()
    assert "ckpt-3.index" in left and any(name.endswith("_temp") for name in left)
    assert not list((killed / "checkpoints").glob("*_temp"))
    assert "Continuing from" in log.read_text()
    assert list(kill_and_resume.curve(killed)) == [2, 4, 6, 8, 9]
    assert kill_and_resume.largest_difference(tmp_path / "alone", killed, 9) == (0, 0)
