"""What a run does around its steps: dry run, interrupted evaluations, logs, profiles, checks."""

import math

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import order
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints
from pfpn_tf.training import checks, dry_run, logs, train, trainer
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import detectron2
from tests import tiny
from tests.training.runs import metrics, tensors
from tests.training.test_trainer import FOLDERS


@pytest.fixture
def evaluations(monkeypatch):
    """The steps evaluated so far; `evaluations.scores` gives PQ of each step, None for nothing to
    score.
    """

    class Steps(list):
        scores = {step: 5.0 * step for step in range(50)}

    steps = Steps()

    def found(evaluator, averages, run_dir, step, log, losses):
        steps.append(step)
        of_losses = {"losses": losses()} if losses else {}
        return {"step": step, "num_images": 2, **of_losses}

    def flat_scalars(metrics):
        score = steps.scores[metrics["step"]]
        losses = {f"eval_loss/{name}": v for name, v in metrics.get("losses", {}).items()}
        return {**({} if score is None else {"eval/PQ": score}), **losses}

    monkeypatch.setattr(train, "_metrics", found)
    monkeypatch.setattr(train.report, "flat_scalars", flat_scalars)
    monkeypatch.setattr(train.report, "table", str)
    return steps


def logged(run_dir, tag):
    return {line["step"]: line[tag] for line in metrics(run_dir) if tag in line}


@pytest.mark.parametrize("train_steps", [2, 4])  # killed in the last evaluation, or in one before
def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(
    toy, tmp_path, monkeypatch, evaluations, train_steps
):
    config = toy.config.replace(
        train_steps=train_steps, eval_interval_steps=2, checkpoint_interval_steps=2
    )
    with monkeypatch.context() as patch:
        patch.setattr(train, "_metrics", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(config, str(tmp_path))
    assert train.train(config, str(tmp_path)) == 0
    assert logged(tmp_path, "eval/PQ") == {
        step: 5.0 * step for step in range(2, train_steps + 1, 2)
    }
    (best,) = checkpoints.saved_prefixes(str(tmp_path / "checkpoints" / "best"))
    assert checkpoints.step_of(best) == train_steps
    assert train.train(config, str(tmp_path)) == 0
    assert evaluations == list(range(2, train_steps + 1, 2))  # nothing twice


def test_an_evaluation_with_nothing_to_score_says_so_and_goes_on(
    toy, tmp_path, evaluations, caplog
):
    evaluations.scores = dict.fromkeys(range(5))
    config = toy.config.replace(train_steps=4, eval_interval_steps=2)
    assert train.train(config, str(tmp_path)) == 0
    assert caplog.text.count("had nothing to score: --eval_records hold no annotations") == 2
    assert train.train(config, str(tmp_path)) == 0
    assert evaluations == [2, 4]  # nothing twice


def test_early_stop(toy, tmp_path, evaluations, caplog):
    """PQ rises at steps 1, 2 and 7; at step 4 there is nothing to score, at step 5 it is NaN."""
    evaluations.scores = dict(enumerate([0, 10, 20, 20, None, math.nan, 15, 30, 5, 5, 5]))
    config = toy.config.replace(
        train_steps=20, eval_interval_steps=1, early_stop_evals=2, summary_interval_steps=20
    )

    def run(**settings):
        caplog.clear()
        with caplog.at_level("INFO", logger="absl"):
            assert train.train(config.replace(**settings), str(tmp_path)) == 0
        saved, best = (checkpoints.saved_prefixes(f"{tmp_path}/{folder}")[0] for folder in FOLDERS)
        return checkpoints.step_of(saved), checkpoints.step_of(best)

    assert run() == (5, 2)
    told = "2 evaluations have not risen above 20.00 of step 2, which is kept in"
    assert "Stopped early at step 5" in caplog.text and told in caplog.text
    assert run() == (5, 2) and told in caplog.text  # nothing is done again
    assert evaluations == [1, 2, 3, 4, 5]
    # A larger number continues, and what was before still counts: steps 3, 5 and 6.
    assert run(early_stop_evals=3) == (6, 2)
    assert evaluations == [1, 2, 3, 4, 5, 6]
    assert run(early_stop_evals=0, train_steps=8) == (8, 7)
    assert "Stopped early" not in caplog.text
    assert list(logged(tmp_path, "eval/num_images")) == list(range(1, 9))


def test_validation_losses_leave_the_training_as_it_is(toy, tmp_path, evaluations):
    """Weights, losses and the order of the data are the same to the last bit."""
    config = toy.config.replace(eval_interval_steps=2, checkpoint_interval_steps=2)
    found = []
    for name, eval_losses in (("with", True), ("without", False)):
        run_dir = tmp_path / name
        assert train.train(config.replace(eval_losses=eval_losses), str(run_dir)) == 0
        found.append((tensors(run_dir, 6), logged(run_dir, "loss/total")))
    tf.nest.map_structure(np.testing.assert_array_equal, *found)
    losses = logged(tmp_path / "with", "eval_loss/total")
    assert list(losses) == [2, 4, 6] and losses[2] > losses[4] > losses[6] > 0
    assert not logged(tmp_path / "without", "eval_loss/total")


@pytest.mark.parametrize(
    "profile_steps, train_steps, expected",
    [((1, 2), 6, ["start 1", "stop 3"]), ((4, 9), 6, ["start 4", "stop 6"]), ((9, 9), 6, [])],
)
def test_the_profiler_records_the_steps_asked_for(
    toy, tmp_path, monkeypatch, profile_steps, train_steps, expected
):
    calls, steps = [], []
    real_step = trainer.Trainer.train_step

    def step(self, iterator):
        steps.append(1)
        return real_step(self, iterator)

    profiler = tf.profiler.experimental
    monkeypatch.setattr(trainer.Trainer, "train_step", step)
    monkeypatch.setattr(profiler, "start", lambda folder: calls.append(f"start {len(steps)}"))
    monkeypatch.setattr(profiler, "stop", lambda: calls.append(f"stop {len(steps)}"))
    train.train(
        toy.config.replace(profile_steps=profile_steps, train_steps=train_steps), str(tmp_path)
    )
    assert calls == expected


def test_a_log_that_cannot_be_written_is_reported_with_its_path(toy, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "open", fail, raising=False)
    with pytest.raises(
        OSError, match=r"Cannot write .*metrics.jsonl at step 1 \(No space left on device\)"
    ):
        train.train(toy.config, str(tmp_path))


def test_a_dry_run_says_everything_and_writes_nothing(tiny_config, tmp_path, tmp_path_factory):
    config = tiny_config.replace(
        task="semantic", gradient_accumulation_steps=2, ema_decay=0.9, train_steps=6
    )
    model = panoptic_fpn.build_model(config.model, 1, 2)
    weights = str(tmp_path_factory.mktemp("weights") / "model.pkl")
    detectron2.write(weights, detectron2.to_detectron2(model))
    config = config.replace(init_weights=weights)
    text = dry_run.describe(config, str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())
    for line in ("--global_batch_size=2", "backbone", "total", "1 replica(s)", "4 thing classes"):
        assert line in text, text
    for line in (
        "Starts at random: semantic_head/predictor/bias ((2,) there, ",
        "step         4: 0.01",
    ):
        assert line in text, text
    largest = text.partition("Largest batch of a replica:")[2]
    for line in ("images          (2, 96, 96, 3) ", "gt_masks        (2, 100, 96, 96) "):
        assert line in largest, largest
    sizes = {
        name: float(number)
        for name, number in (line.split()[:2] for line in largest.splitlines() if "MiB" in line)
    }
    assert list(sizes) == ["weights", "optimizer", "gradients", "batch", "activations"]
    assert sizes["activations"] > 0
    run_dir = tmp_path / "run"
    train.run_directory.prepare(str(run_dir), config, dry_run.pipeline.load_info(config))
    with pytest.raises(ValueError, match="--learning_rate: 0.01 there, 0.5 here"):
        dry_run.describe(config.replace(learning_rate=0.5), str(run_dir))


HW = np.array([[20, 30], [40, 25], [33, 33], [60, 20]], np.int32)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [96, 96]),  # 96 x 32 and 48 x 72 meet in a batch of two
        ({"global_batch_size": 1}, [64, 96]),  # the third, 64 x 64, is smaller, the last is 96 x 32
        ({"crop_size": (40, 50)}, [64, 64]),
        ({"random_scale": (0.5, 3.0), "crop_size": (100, 40)}, [128, 64]),
        ({"static_shapes": True}, [96, 96]),
    ],
)
def test_the_largest_batch(settings, expected):
    config = tiny.config("").replace(
        **{"train_min_sides": (40, 48), "train_max_side": 96, **settings}
    )
    assert order.largest_padded_hw(config, HW).tolist() == expected
    drawn = order.training_examples(config, HW).take(40).as_numpy_iterator()
    assert max(int(example["padded_hw"].prod()) for example in drawn) <= np.prod(expected)


@pytest.mark.parametrize("flag", ["train_records", "eval_records"])
def test_records_of_other_classes(tiny_config, tmp_path, flag):
    info = checks.pipeline.load_info(tiny_config)
    categories = info.coco_categories()
    categories[0]["name"] = "thing X"
    type(info).from_coco_categories(categories).save(tmp_path / "dataset_info.json")
    (tmp_path / "more.tfrecord").touch()
    records = f"{getattr(tiny_config.data, flag)},{tmp_path}/more.tfrecord"
    with pytest.raises(UserError, match=f"--{flag}=.*holds other classes.*\n.*there, thing X"):
        checks.check(tiny_config.replace(**{flag: records}), 1)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_instances_of_a_dataset_without_things(tiny_config, task):
    with pytest.raises(UserError, match=f"--task={task} needs thing classes.*--task=semantic"):
        panoptic_fpn.build_model(tiny_config.replace(task=task).model, 0, 5)


def test_a_schedule_longer_than_the_training_is_told(tiny_config, caplog):
    checks.check(tiny_config.replace(train_steps=5, warmup_steps=1, lr_decay_steps=(3,)), 1)
    assert "schedule" not in caplog.text
    checks.check(tiny_config.replace(train_steps=5, warmup_steps=1, lr_decay_steps=(3, 8)), 1)
    assert "--train_steps=5 ends before the schedule" in caplog.text
    assert "--warmup_steps=1, --lr_decay_steps=3,8" in caplog.text
