"""A log holds lines and no carriage returns."""

import logging as python_logging

from absl import logging

from pfpn_tf.utils import progress


def test_a_log_gets_lines(monkeypatch, caplog, capfd):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    caplog.set_level(python_logging.INFO, logger=logging.get_absl_logger().name)
    with progress.Bar("Evaluating", 3, "image") as bar:
        for _ in range(3):
            bar.update()
    assert list(progress.Bar("Drawing", None, "frame", iter([0, 1]))) == [0, 1]
    assert caplog.text.count("Evaluating: 3 of 3, ") == 1
    assert "Drawing: 2 frame" in caplog.text
    assert "\r" not in caplog.text + capfd.readouterr().err


def test_the_rate_of_a_slow_job():
    text = progress.Bar.format_meter(n=1, total=2, elapsed=3.0, unit=" image")
    assert "3.00s/image" in text


def test_a_short_job_logs_nothing(caplog):
    caplog.set_level(python_logging.INFO, logger=logging.get_absl_logger().name)
    assert list(progress.Bar("Drawing", 2, "image", range(2))) == [0, 1]
    assert not caplog.text
