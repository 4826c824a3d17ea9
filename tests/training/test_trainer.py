"""The loop: what a run leaves behind, how it stops, and what it refuses to start."""

import concurrent.futures
import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.data import pipeline
from pfpn_tf.distribution import strategies
from pfpn_tf.runs import checkpoints, restore, run_directory
from pfpn_tf.training import checks, logs, loss_scale, train, trainer
from tests.training.runs import metrics, tensors

FOLDERS = ("checkpoints", run_directory.BEST)
LOSSES = [
    f"loss/{name}"
    for name in ("rpn_objectness", "rpn_box", "class", "box", "mask", "semantic", "total")
]


def test_a_run_leaves_everything_behind(tiny_config, tmp_path, caplog):
    run_dir = str(tmp_path / "run")
    config = tiny_config.replace(
        eval_interval_steps=3,
        eval_losses=True,
        image_interval_steps=3,
        backbone_norm="sync_bn",  # without a warning that the backbone has no norm
        warmup_steps=2,  # nor one that the schedule is longer than the training
        lr_decay_steps=(),
    )
    # TensorFlow's own logger as `set_up_runtime` leaves it: it counts traces over all tests of the
    # process.
    with caplog.at_level("ERROR", logger="tensorflow"), caplog.at_level("INFO", logger="absl"):
        assert train.train(config, run_dir) == 0
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    evaluation = lines.pop()
    assert {"eval/PQ", "eval/mIoU", "eval/box_AP", "eval/mask_AP"} <= evaluation.keys()
    names = {tag.partition("/")[2] for tag in evaluation if tag.startswith("eval_PQ/")}
    assert names and names <= {c.name for c in pipeline.load_info(config).categories}
    found = [evaluation[f"eval_{name}"] for name in LOSSES]
    assert found[-1] == pytest.approx(sum(found[:-1]), rel=1e-5) and min(found) > 0
    # Of these the first was saved before the evaluation, the second after it.
    saved = (tensors(tmp_path / "run", 3, name) for name in FOLDERS)
    tf.nest.map_structure(np.testing.assert_array_equal, *saved)
    for line in lines:
        assert set(LOSSES) <= line.keys()
        assert line["loss/total"] == pytest.approx(sum(line[n] for n in LOSSES[:-1]), rel=1e-5)
        assert min(line[n] for n in ("loss/total", "gradient_norm", "images_per_second")) > 0
        assert 0 <= line["positive_anchors"] <= 16 and 0 <= line["foreground_rois"] <= 4
        assert 0 <= line["input_wait"] <= 1
    # Warm-up: step i, counted from 0, has 0.01 * (0.001 + 0.999 i / 2).
    assert [line["learning_rate"] for line in lines] == pytest.approx(
        [0.01 * (0.001 + 0.999 * i / 2) for i in (0, 1, 2)], rel=1e-5
    )
    assert run_directory.load_run(run_dir)[0] == config
    written = [run_directory.RECIPE, run_directory.VERSIONS, "checkpoints/ckpt-3.index"]
    for name in written + ["checkpoints/best/ckpt-3.index", "eval/3/metrics.json"]:
        assert os.path.exists(os.path.join(run_dir, name)), name
    assert list((tmp_path / "run" / run_directory.TENSORBOARD).glob("*tfevents*"))
    told = "first step compiles", "step 2/3 | rpn_objectness", "step 3/3", " left", "Peak memory"
    for text in (*told, "backbone"):
        assert text in caplog.text, text
    for noise in ("WARNING", "retrac", "steps/sec"):
        assert noise not in caplog.text, caplog.text


def test_checkpoints_lines_and_scalars_fall_on_multiples(toy, tmp_path, caplog):
    config = toy.config.replace(
        train_steps=11,
        steps_per_loop=3,
        summary_interval_steps=4,
        checkpoint_interval_steps=5,
        keep_checkpoints=9,
    )
    with caplog.at_level("INFO", logger="absl"):
        train.train(config, str(tmp_path))
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8, 11]
    assert steps_saved(tmp_path) == [11, 10, 5]
    lines = [r.message.split("/")[0] for r in caplog.records if r.message.startswith("step ")]
    assert lines == ["step 3", "step 6", "step 9", "step 11"]


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, train.TERMINATED), (signal.SIGINT, train.INTERRUPTED)]
)
def test_a_signal_saves_and_stops(toy, tmp_path, monkeypatch, number, code):
    before = signal.getsignal(number)
    send_at_step(monkeypatch, number, 2)
    config = toy.config.replace(train_steps=50, steps_per_loop=50, summary_interval_steps=50)
    assert train.train(config, str(tmp_path)) == code
    assert steps_saved(tmp_path) == [2]
    assert signal.getsignal(number) is before


def test_a_run_stopped_between_two_lines_continues_with_the_same_line(toy, tmp_path, monkeypatch):
    config = toy.config.replace(summary_interval_steps=4, train_steps=4)
    train.train(config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        send_at_step(patch, signal.SIGTERM, 3)
        train.train(config, str(tmp_path / "parts"))
    assert not (tmp_path / "parts" / run_directory.METRICS).exists()
    train.train(config, str(tmp_path / "parts"))
    (whole,), (parts,) = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert parts["loss/total"] == pytest.approx(whole["loss/total"], rel=1e-7)


def test_training_in_a_thread_leaves_signals_alone_and_prints_nothing(toy, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(train.train, toy.config, str(tmp_path)).result() == 0
    assert steps_saved(tmp_path) == [6] and signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().out == ""


def send_at_step(monkeypatch, number, step):
    real_step = trainer.Trainer.train_step

    def step_with_signal(self, iterator):
        result = real_step(self, iterator)
        if int(self.global_step) == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(trainer.Trainer, "train_step", step_with_signal)


def steps_saved(run_dir):
    return [
        checkpoints.step_of(p) for p in checkpoints.saved_prefixes(str(run_dir / "checkpoints"))
    ]


def test_a_non_finite_loss_stops_at_its_step_and_harms_nothing(toy, tmp_path, monkeypatch):
    built = []
    real_build = trainer.build_trainer
    monkeypatch.setattr(
        train, "build_trainer", lambda *args: built.append(real_build(*args)) or built[0]
    )
    toy.bad_step = 3
    config = toy.config.replace(
        train_steps=9, steps_per_loop=9, summary_interval_steps=9, checkpoint_interval_steps=2
    )
    with pytest.raises(trainer.NonFiniteLoss) as error:
        train.train(config, str(tmp_path))
    text = str(error.value)
    assert "loss is not finite at step 3: semantic nan, total nan, gradient_norm nan" in text
    assert "Images of the batch: i3-0, i3-1." in text
    assert int(built[0].global_step) == 3 and int(built[0].optimizer.iterations.numpy()) == 3
    assert all(np.isfinite(v.numpy()).all() for v in built[0].model.variables)
    assert steps_saved(tmp_path) == [2]


def zero_with_gradient_nan(outputs, ground_truth, config, step):
    loss = tf.reduce_sum(tf.sqrt(0.0 * tf.cast(outputs.semantic_logits, tf.float32)))
    return {"semantic": loss, "total": loss}


def test_a_finite_loss_with_a_non_finite_gradient_stops_too(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "panoptic_fpn_losses", zero_with_gradient_nan)
    with pytest.raises(
        trainer.NonFiniteLoss, match="gradient is not finite at step 0: .*gradient_norm nan"
    ):
        train.train(toy.config, str(tmp_path))


def test_clipping_limits_what_is_applied(toy):
    """With plain SGD at rate 1 the change of the weights is the clipped gradient."""
    config = toy.config.replace(
        gradient_clip_norm=0.25, momentum=0.0, weight_decay=0.0, learning_rate=1.0
    )
    built, before, after, scalars = one_step(config)
    assert scalars["gradient_norm"] > 0.3
    change = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, after)))
    assert change == pytest.approx(0.25, rel=1e-5)


def test_accumulated_parts_step_like_the_whole_batch(toy):
    """The toy's loss is a mean over equal images, so that the average over parts is exact."""
    config = toy.config.replace(global_batch_size=4, gradient_clip_norm=0.0)
    _, _, whole, whole_scalars = one_step(config)
    toy_losses = trainer.panoptic_fpn_losses

    def losses_of_part(outputs, ground_truth, config, step):  # a part is normalised by its own size
        return {
            name: 2 * value
            for name, value in toy_losses(outputs, ground_truth, config, step).items()
        }

    trainer.panoptic_fpn_losses = losses_of_part
    _, before, parts, scalars = one_step(config.replace(gradient_accumulation_steps=2))
    for a, b, c in zip(whole, parts, before):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-7)
        assert np.any(b != c) or not np.any(c)
    assert scalars["loss/total"] == pytest.approx(whole_scalars["loss/total"], rel=1e-6)
    assert scalars["gradient_norm"] == pytest.approx(whole_scalars["gradient_norm"], rel=1e-6)


def one_step(config, num_steps=1):
    strategy = strategies.build_strategy("cpu")
    info = pipeline.load_info(config)
    built = trainer.build_trainer(config, info, strategy)
    built.set_dataset(trainer.distributed_dataset(config, info, strategy, 0))
    before = [v.numpy() for v in built.model.trainable_variables]
    scalars = built.train(tf.constant(num_steps))
    return built, before, [v.numpy() for v in built.model.trainable_variables], scalars


def test_the_moving_average_of_the_weights(toy, tmp_path):
    """Decay min(0.5, (1 + n) / (10 + n)) after update n, by hand."""
    config = toy.config.replace(
        ema_decay=0.15, train_steps=3, checkpoint_interval_steps=1, keep_checkpoints=9
    )
    run_dir = str(tmp_path)
    train.train(config, run_dir)
    model = trainer.panoptic_fpn.build_model()

    def kernel(step, averages):
        restore.restore_for_inference(model, run_dir, str(step), averages)
        return model.stem.kernel.numpy()

    expected = kernel(1, averages=True)
    for step, decay in ((2, 0.15), (3, 0.15)):
        expected = decay * expected + (1 - decay) * kernel(step, averages=False)
        np.testing.assert_allclose(kernel(step, averages=True), expected, rtol=1e-5)
        assert np.any(kernel(step, averages=True) != kernel(step, averages=False))


def test_the_loss_scale_of_float16_halves_and_skips_on_overflow(toy, monkeypatch):
    """A gradient of 2**120 overflows float32 at a scale above 2**7."""

    def losses(outputs, ground_truth, config, step):
        loss = 2.0**100 * tf.reduce_sum(tf.cast(outputs.semantic_logits, tf.float32))
        return {"semantic": loss, "total": loss}

    monkeypatch.setattr(trainer, "panoptic_fpn_losses", losses)
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**60)
    built, before, after, scalars = one_step(toy.config.replace(precision="mixed_float16"))
    assert scalars["loss_scale"] == 2.0**24  # half, but never above this
    assert "loss/total" not in scalars  # the mean is over the steps that were not skipped
    assert "no update" in logs.progress_line(scalars, 1, 9, 1.0)
    assert int(built.global_step) == 1 and int(built.optimizer.iterations.numpy()) == 0
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a, b)


def test_an_overflow_at_the_lowest_loss_scale_stops_the_run(toy, monkeypatch):
    monkeypatch.setattr(trainer, "panoptic_fpn_losses", zero_with_gradient_nan)
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0)
    config = toy.config.replace(precision="mixed_float16")
    with pytest.raises(trainer.NonFiniteLoss, match="gradient is not finite at step 1: "):
        one_step(config, num_steps=2)


def test_mixed_precision_trains(toy, tmp_path):
    for precision in ("mixed_bfloat16", "mixed_float16"):
        train.train(toy.config.replace(precision=precision), str(tmp_path / precision))
        lines = metrics(tmp_path / precision)
        assert lines[-1]["loss/total"] < lines[0]["loss/total"]
        assert tf.keras.mixed_precision.global_policy().name == "float32"  # as it was


def test_half_precision_changes_the_losses_of_the_network_little(tiny_config):
    """bfloat16 rounds to 1 in 256; the losses are means over many such roundings."""
    config = tiny_config.replace(backbone_norm="group_norm", head_norm="group_norm")
    strategy, info = strategies.build_strategy("cpu"), pipeline.load_info(config)
    batch = next(iter(pipeline.build_dataset(config, info, training=True)))
    losses = {}
    for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
        built = trainer.build_trainer(config.replace(precision=precision), info, strategy)
        assert built.model.backbone.compute_dtype == precision.removeprefix("mixed_")
        losses[precision] = {
            name: float(value) for name, value in built.forward(batch, built.global_step)[1].items()
        }
    for precision in ("mixed_bfloat16", "mixed_float16"):
        assert losses[precision] != losses["float32"]
        for name in ("rpn_objectness", "class", "mask", "semantic", "total"):
            assert losses[precision][name] == pytest.approx(losses["float32"][name], rel=0.02), name


def problems(config, replicas=1):
    with pytest.raises(ValueError) as error:
        checks.check(config, replicas)
    return str(error.value)


def test_batch_that_does_not_split(tiny_config):
    text = problems(tiny_config.replace(global_batch_size=10), replicas=4)
    assert "--global_batch_size=10 must be divisible by the 4 replicas; use 8 or 12." in text
    assert "use 4." in problems(tiny_config.replace(global_batch_size=1), replicas=4)


def test_freezing_random_weights(tiny_config):
    assert "--freeze_stages=2 would freeze random weights" in problems(
        tiny_config.replace(freeze_stages=2)
    )


def test_missing_paths_are_all_reported_before_the_first_step(tmp_path):
    config = Config().replace(
        train_records=str(tmp_path / "train-*"),
        eval_records=str(tmp_path / "val-*"),
        init_weights=str(tmp_path / "nowhere"),
    )
    text = problems(config)
    for name in ("--train_records", "--eval_records", "--init_weights"):
        assert name in text
    (tmp_path / "alone-0").touch()  # records without their description
    with pytest.raises(ValueError, match="dataset_info"):
        pipeline.load_info(config.replace(train_records=str(tmp_path / "alone-*")))


def test_initialising_from_another_run(toy, tmp_path):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    train.train(toy.config.replace(train_steps=1), first)
    train.train(toy.config.replace(init_weights=first, learning_rate=1e-12, train_steps=1), second)
    name = "model/stem/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    values = [tensors(tmp_path / d, 1)[name] for d in ("first", "second")]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


def test_a_finished_run_and_fewer_steps_than_are_done_change_nothing(toy, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    config = toy.config.replace(train_steps=2)
    train.train(config, str(tmp_path))
    saved = sorted(os.listdir(tmp_path / "checkpoints"))
    assert train.train(config, str(tmp_path)) == 0
    assert sorted(os.listdir(tmp_path / "checkpoints")) == saved
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train.train(toy.config.replace(train_steps=1), str(tmp_path)) == train.FINISHED
    assert "is done with 2 steps, more than --train_steps=1; nothing is changed" in caplog.text
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="--learning_rate"):
        train.train(toy.config.replace(train_steps=1, learning_rate=0.5), str(tmp_path))
