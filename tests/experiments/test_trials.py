"""Trials and sweeps: what is run, once, and what is reported. Trainings are stand-ins."""

import json
import re
import signal
import textwrap

import cv2
import pytest

from pfpn_tf import config as config_lib
from pfpn_tf.experiments import queue, trials
from pfpn_tf.utils import cli
from tests import processes
from tests.test_configs import ROOT, parse_flagfile

SCHEDULE = {"train_steps": 4, "warmup_steps": 1, "lr_decay_steps": (3,)}
CONFIG = config_lib.Config().replace(eval_records="x", **SCHEDULE)
STAND_IN = """
    import json, os, sys
    flags = dict(arg[2:].split("=", 1) for arg in sys.argv[1:])
    tool, name = os.path.basename(sys.argv[0]), os.path.basename(flags["run_dir"])
    print(tool, name, flush=True)
    if name == "bad":
        sys.exit(1)
    if tool == "eval.py":
        folder = os.path.join(flags["run_dir"], "eval", "4")
        os.makedirs(folder)
        metrics = {"semantic_branch": {"miou": 0.5 + int(name[-1]) / 100, "fwiou": 0.6}}
        json.dump(metrics, open(os.path.join(folder, "metrics.json"), "w"))
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Scripts of no weight in place of tools/train.py and tools/eval.py; a folder for the
    output.
    """
    for name in ("train.py", "eval.py"):
        (tmp_path / name).write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(queue, "_TOOLS", str(tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_what_is_done_is_not_done_again(stand_ins):
    runs = {f"run{i}": CONFIG.replace(seed=i) for i in (1, 2)}
    expected = {"run1": {"mIoU": 51.0, "fwIoU": 60.0}, "run2": {"mIoU": 52.0, "fwIoU": 60.0}}
    assert queue.run_all({"run1": runs["run1"]}, str(stand_ins)) == {"run1": expected["run1"]}
    assert queue.run_all(runs, str(stand_ins)) == expected
    assert (stand_ins / "run1.log").read_text() == "train.py run1\neval.py run1\n"
    assert (stand_ins / "run2.log").read_text() == "train.py run2\neval.py run2\n"
    assert parse_flagfile(stand_ins / "run2.flags")[1] == runs["run2"]


def test_a_failed_training_leaves_the_others_alone(stand_ins, caplog):
    results = queue.run_all({"bad": CONFIG, "run1": CONFIG}, str(stand_ins))
    assert results["bad"] is None and results["run1"]["mIoU"] == 51.0
    assert (stand_ins / "bad.log").read_text() == "train.py bad\n"
    assert "train.py failed with exit code 1" in caplog.text


def test_a_directory_of_another_run_is_refused(stand_ins):
    run_dir = stand_ins / "run1"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(CONFIG.replace(learning_rate=0.5).to_json())
    info = (ROOT / "configs/coco/dataset_info.json").read_text()
    (run_dir / "dataset_info.json").write_text(info)
    with pytest.raises(ValueError, match=r"run1 holds a run with other settings \(learning_rate\)"):
        queue.run_all({"run1": CONFIG}, str(stand_ins))
    with pytest.raises(ValueError, match="--eval_records is required"):
        queue.run_all({"run2": CONFIG.replace(eval_records="")}, str(stand_ins))
    stopping = CONFIG.replace(early_stop_evals=2, eval_interval_steps=1)
    with pytest.raises(ValueError, match="--early_stop_evals=2: .* same number of steps; use 0"):
        queue.run_all({"run2": stopping}, str(stand_ins))


@pytest.mark.parametrize(
    "number, handler, ends",
    [
        (signal.SIGTERM, cli._terminate, SystemExit),
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
    ],
)
def test_a_signal_reaches_the_training_once_and_ends_all(stand_ins, number, handler, ends):
    """By the exceptions of `cli.command`, which tell the exit code."""
    (stand_ins.parent / "train.py").write_text(textwrap.dedent("""
            import os, signal, sys, time
            def save(n, frame):
                print("saved", flush=True)
                sys.exit(128 + n)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, save)
            os.kill(os.getppid(), NUMBER)
            time.sleep(600)
            """).replace("NUMBER", str(int(number))))
    before = signal.signal(number, handler)
    try:
        with pytest.raises(ends, match="143" if ends is SystemExit else None):
            queue.run_all(dict.fromkeys(["run1", "run2"], CONFIG), str(stand_ins))
    finally:
        signal.signal(number, before)
    assert (stand_ins / "run1.log").read_text() == "saved\n"
    assert not (stand_ins / "run2.log").exists()


def test_trials_of_a_recipe():
    (row,) = trials.rows(CONFIG.replace(seed=3), [], 3)
    seeds = {name: config.train.seed for name, config in row.trials.items()}
    assert seeds == {"seed_3": 3, "seed_4": 4, "seed_5": 5}


def test_the_rows_of_all_sweeps():
    rows = trials.rows(CONFIG.replace(semantic_loss_weight=0.5), list(trials.SWEEPS), 2)
    assert [row.label for row in rows] == [
        *trials.LAMBDAS, *trials.LAMBDAS, "sum", "concat", "alternate", "combine"
    ]  # fmt: skip
    by_label = {(row.sweep, row.label): list(row.trials.values())[0] for row in rows}
    # Sixteen rows, thirteen trainings with two seeds each: lambda_s = lambda_i = 1 and the recipe
    # itself come up twice or three times.
    assert len(trials.experiments_of(rows)) == 26
    assert list(rows[1].trials) == ["i1_s0.1_sum_seed_0", "i1_s0.1_sum_seed_1"]
    assert by_label["lambda_s", 1.0] == by_label["lambda_i", 1.0]
    recipe = by_label["lambda_s", 0.5]
    assert recipe == by_label["aggregation", "sum"] == by_label["losses", "combine"]
    assert by_label["lambda_s", 0.0].model.task == "instance"
    assert by_label["lambda_i", 0.0].model.task == "semantic"
    half = by_label["lambda_i", 0.25]
    assert (half.train.instance_loss_weight, half.train.semantic_loss_weight) == (0.25, 1.0)
    alternate = by_label["losses", "alternate"]
    assert alternate.train.alternate_losses
    assert (alternate.train.train_steps, alternate.train.lr_decay_steps) == (8, (6,))
    assert by_label["aggregation", "concat"].model.semantic_aggregation == "concat"


def test_a_sweep_by_name():
    assert [row.label for row in trials.rows(CONFIG, ["losses"], 1)] == ["alternate", "combine"]
    with pytest.raises(ValueError, match="--sweep=lambda_x"):
        trials.rows(CONFIG, ["lambda_x"], 1)
    with pytest.raises(ValueError, match="--task=semantic"):
        trials.rows(CONFIG.replace(task="semantic"), ["losses"], 1)


@pytest.mark.parametrize(
    "recipe", ["coco/panoptic_fpn_r50_1x", "cityscapes/panoptic_fpn_r50"], ids=str
)
def test_the_reproduction_table_names_every_run_of_table_2(recipe):
    """And where it names a recipe beside a run, both are the same training."""
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert re.search(
        rf"run_trials.py --flagfile=configs/{recipe}.flags .*\n.*lambda_s,lambda_i", text
    )
    rows = trials.rows(
        parse_flagfile(ROOT / f"configs/{recipe}.flags")[1], ["lambda_s", "lambda_i"], 1
    )
    for name, config in trials.experiments_of(rows).items():
        run = name.removesuffix("_seed_0")
        assert f"`{run}`" in text, f"no row of Table 2 names {run}"
        beside = re.search(rf"`{re.escape(run)}`, `({recipe.split('/')[0]}/\w+)`", text)
        if beside:
            assert parse_flagfile(ROOT / f"configs/{beside[1]}.flags")[1] == config


def test_the_schedule_scales_with_the_steps():
    config = config_lib.Config()
    shrunken = trials.with_steps(config, 900)
    assert shrunken.train.train_steps == 900
    assert (shrunken.train.warmup_steps, shrunken.train.lr_decay_steps) == (10, (600, 800))
    assert trials.with_steps(config, 0) == config
    assert trials.with_steps(config, 1).train.train_steps == 1


def test_the_report_of_trials(tmp_path):
    """Of 4 trials one failed; the median is that of the others."""
    (row,) = rows = trials.rows(CONFIG, [], 4)
    results = {
        "seed_0": {"PQ": 57.0, "mIoU": 75.5},
        "seed_1": {"PQ": 58.5, "mIoU": 75.0},
        "seed_2": None,
        "seed_3": {"PQ": 57.5, "mIoU": 75.1},
    }
    text = trials.write_report(rows, results, str(tmp_path), "Title")
    assert text.splitlines() == [
        "# Title",
        "",
        "| trials | finished | PQ | mIoU |",
        "| --- | ---: | ---: | ---: |",
        "| recipe | 3 of 4 | 57.50 (57.00 to 58.50) | 75.10 (75.00 to 75.50) |",
    ]
    (content,) = json.loads((tmp_path / "trials.json").read_text())
    expected = {"median": 57.5, "min": 57.0, "max": 58.5, "num_trials": 3}
    assert content["statistics"]["PQ"] == expected and content["trials"] == results
    assert (tmp_path / "trials.md").read_text() == text


def test_the_report_of_sweeps(tmp_path):
    rows = trials.rows(CONFIG, ["lambda_s", "losses"], 1)
    results = {
        name: {"PQ": 10.0 + i, "mIoU": 20.0, "mask_AP": 5.0}
        for i, name in enumerate(trials.experiments_of(rows))
    }
    results[list(rows[0].trials)[0]] = None  # failed
    text = trials.write_report(rows, results, str(tmp_path), "Title")
    for part in ("| 0.0 | 0 of 1 | - | - | - |", "| 0.1 | 1 of 1 | 11.00 | 20.00 | 5.00 |"):
        assert part in text
    assert "| combine |" in text and "aggregation" not in text
    content = json.loads((tmp_path / "trials.json").read_text())
    assert [row["label"] for row in content] == [*trials.LAMBDAS, "alternate", "combine"]
    assert cv2.imread(str(tmp_path / "trials.png")).std() > 10


def test_the_tool_asks_for_what_is_missing():
    done = processes.call("tools/run_trials.py", expect=2)
    assert "--output_dir is required" in done.stderr
