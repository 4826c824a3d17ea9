"""The loop: what a run leaves behind, how it stops, and what it refuses to start."""

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.training import checkpoints, run_directory, summaries, trainer

LOSSES = [f"loss/{name}" for name in trainer.LOSSES["panoptic"]]


def metrics(run_dir):
    with open(os.path.join(run_dir, summaries.METRICS), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def test_a_run_leaves_everything_behind(tiny_config, tmp_path, caplog):
    run_dir = str(tmp_path / "run")
    with caplog.at_level("INFO"):
        assert trainer.train(tiny_config, run_dir) == 0
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(LOSSES) <= line.keys()
        assert line["loss/total"] == pytest.approx(sum(line[n] for n in LOSSES[:-1]), rel=1e-5)
        assert line["loss/total"] > 0 and line["gradient_norm"] > 0 and line["images_per_second"] > 0
        assert 0 <= line["positive_anchors"] <= 16 and 0 <= line["foreground_rois"] <= 4
        assert 0 <= line["input_wait"] <= 1
    # Warm-up: after step s the rate of the next step, 0.01 * (0.001 + 0.999 s / 4).
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [0.01 * (0.001 + 0.999 * s / 4) for s in (1, 2, 3)], rel=1e-5
    )
    assert checkpoints.load_run(run_dir)[0] == tiny_config
    for name in (run_directory.RECIPE, run_directory.VERSIONS, "checkpoints/ckpt-3.index"):
        assert os.path.exists(os.path.join(run_dir, name)), name
    assert any("tfevents" in f for f in os.listdir(os.path.join(run_dir, summaries.TENSORBOARD)))
    for text in ("first step compiles", "step 2/3 | rpn_objectness", "step 3/3", " left", "Peak memory", "backbone"):
        assert text in caplog.text, text
    for noise in ("WARNING", "retrac", "steps/sec"):
        assert noise not in caplog.text, caplog.text


def test_a_finished_run_does_nothing(tiny_config, tmp_path):
    trainer.train(tiny_config.replace(train_steps=1), str(tmp_path))
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    assert trainer.train(tiny_config.replace(train_steps=1), str(tmp_path)) == 0
    assert sorted(os.listdir(tmp_path / "checkpoints")) == before


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_the_other_tasks_train(tiny_config, tmp_path, task):
    trainer.train(tiny_config.replace(task=task, train_steps=1), str(tmp_path))
    (line,) = metrics(tmp_path)
    assert {n for n in line if n.startswith("loss/")} == {f"loss/{n}" for n in trainer.LOSSES[task]}


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, trainer.TERMINATED), (signal.SIGINT, trainer.INTERRUPTED)]
)
def test_a_signal_saves_and_stops(tiny_config, tmp_path, monkeypatch, number, code):
    real_step = trainer.Trainer.train_step

    def step_with_signal(self, iterator):
        result = real_step(self, iterator)
        if int(self.global_step) == 2:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(trainer.Trainer, "train_step", step_with_signal)
    config = tiny_config.replace(train_steps=50, steps_per_loop=50, summary_interval_steps=50)
    assert trainer.train(config, str(tmp_path)) == code
    assert [checkpoints.step_of(p) for p in checkpoints.saved_prefixes(str(tmp_path / "checkpoints"))] == [2]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_non_finite_loss_stops_at_its_step_and_harms_nothing(tiny_config, tmp_path, monkeypatch):
    real_losses = trainer.panoptic_fpn_losses

    def bad_at_step_2(outputs, ground_truth, config):
        losses = real_losses(outputs, ground_truth, config)
        bad = tf.where(step == 2, np.float32(np.nan), 0.0)
        return {**losses, "mask": losses["mask"] + bad, "total": losses["total"] + bad}

    step = tf.Variable(0, dtype=tf.int64)
    real_trainer = trainer.build_trainer
    built = []

    def build(*args):
        built.append(real_trainer(*args))
        built[0].global_step = step
        return built[0]

    monkeypatch.setattr(trainer, "build_trainer", build)
    monkeypatch.setattr(trainer, "panoptic_fpn_losses", bad_at_step_2)
    config = tiny_config.replace(train_steps=9, steps_per_loop=9, summary_interval_steps=9, checkpoint_interval_steps=2)
    with pytest.raises(trainer.NonFiniteLoss) as error:
        trainer.train(config, str(tmp_path))
    text = str(error.value)
    assert "loss is not finite at step 2:" in text and "mask nan" in text and "total nan" in text
    assert "rpn_box" in text and "semantic" in text
    assert text.count("Images of the batch: ") == 1
    ids = text.partition("Images of the batch: ")[2].partition(".")[0].split(", ")
    assert len(ids) == 2 and all(ids)
    assert int(step) == 2 and int(built[0].optimizer.iterations) == 2
    assert all(np.isfinite(v.numpy()).all() for v in built[0].model.variables)
    assert [checkpoints.step_of(p) for p in checkpoints.saved_prefixes(str(tmp_path / "checkpoints"))] == [2]


def test_clipping_limits_what_is_applied(tiny_config, tmp_path):
    """With plain SGD at rate 1 the change of the weights is the clipped gradient."""
    config = tiny_config.replace(
        gradient_clip_norm=0.25, momentum=0.0, weight_decay=0.0, learning_rate=1.0, warmup_steps=0, lr_decay_steps=()
    )
    built, before = one_step(config)
    change = np.sqrt(sum(np.sum((a - b.numpy()) ** 2) for a, b in zip(before, built.model.trainable_variables)))
    assert change == pytest.approx(0.25, rel=1e-4)


def one_step(config):
    strategy = trainer.build_strategy("cpu")
    info = trainer.load_dataset_info(config)
    built = trainer.build_trainer(config, info, strategy)
    built.set_dataset(trainer.distributed_dataset(config, info, strategy, 0))
    before = [v.numpy() for v in built.model.trainable_variables]
    built.train(tf.constant(1))
    return built, before


def problems(config, replicas=1):
    with pytest.raises(ValueError) as error:
        trainer.check(config, replicas)
    return str(error.value)


def test_batch_that_does_not_split(tiny_config):
    text = problems(tiny_config.replace(global_batch_size=10), replicas=4)
    assert "--global_batch_size=10 must be divisible by the 4 replicas; use 8 or 12." in text
    assert "use 4." in problems(tiny_config.replace(global_batch_size=1), replicas=4)


def test_freezing_random_weights(tiny_config):
    assert "--freeze_stages=2 would freeze random weights" in problems(tiny_config.replace(freeze_stages=2))


def test_missing_paths_are_all_reported_before_the_first_step(tmp_path):
    config = Config().replace(
        train_records=str(tmp_path / "train-*"),
        eval_records=str(tmp_path / "val-*"),
        init_weights=str(tmp_path / "nowhere"),
    )
    text = problems(config)
    for name in ("--train_records", "--eval_records", "--init_weights"):
        assert name in text
    with pytest.raises(ValueError, match="dataset_info"):
        trainer.load_dataset_info(config)


def test_initialising_from_a_run_with_other_classes(tiny_config, tmp_path, caplog):
    trainer.train(tiny_config.replace(train_steps=1), str(tmp_path / "first"))
    config = tiny_config.replace(init_weights=str(tmp_path / "first"), freeze_stages=2, semantic_targets="all")
    with caplog.at_level("INFO"):
        assert trainer.train(config.replace(train_steps=1), str(tmp_path / "second")) == 0
    assert "Not restored, starts at random: semantic_head" in caplog.text
    first, second = (
        tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "ckpt-1")) for name in ("first", "second")
    )
    frozen = [n for n in first.get_variable_to_shape_map() if n.startswith("model/backbone/stem")]
    assert frozen
    for name in frozen:
        np.testing.assert_array_equal(first.get_tensor(name), second.get_tensor(name))
