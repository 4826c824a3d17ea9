"""Evaluating run directories: one, its moving averages, and two halves of one."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import evaluate_run as evaluate_run_lib
from pfpn_tf.evaluation import evaluator
from pfpn_tf.evaluation.evaluate_run import EvaluationOptions, evaluate_run
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints, restore
from pfpn_tf.training import logs, train
from pfpn_tf.training.averages import MovingAverages
from pfpn_tf.utils.errors import UserError
from tests import tiny

PICTURES = {f"eval/{name}" for name in ("table", "classes", "confusion", "worst/0", "best/0")}


@pytest.fixture(scope="module")
def config(tiny_records):
    """A network that has learnt nothing finds nothing sure."""
    return tiny.config(tiny_records).replace(
        score_threshold=0.01, fusion_score_threshold=0.0, ema_decay=0.9
    )


@pytest.fixture(scope="module")
def info(tiny_records):
    return DatasetInfo.load(tiny_records / "dataset_info.json")


@pytest.fixture(scope="module")
def run_dir(config, info, tmp_path_factory):
    """A run of a panoptic network whose checkpoint also holds averages: half of every weight."""
    tf.keras.utils.set_random_seed(0)
    model = panoptic_fpn.build_for_dataset(config.model, info)
    for variable in model.trainable_variables:  # random biases, too
        variable.assign_add(tf.random.normal(variable.shape, stddev=0.02))
    path = str(tmp_path_factory.mktemp("runs") / "panoptic")
    checkpoints.save_weights(model, config, info, path)
    averages = {
        name: tf.Variable(v / 2)
        for name, v in restore.model_variables(model).items()
        if v.dtype.is_floating
    }
    checkpoints.RunCheckpoints(path, keep=2, model=model, averages=averages).save(7)
    return path


@pytest.fixture(scope="module")
def evaluated(run_dir):
    """The metrics of weights and averages; files are in the run directory."""
    return evaluate_run(run_dir)


@pytest.fixture(scope="module")
def instance_half(run_dir, config, info):
    return half_of(run_dir, config, info, "instance")


def half_of(run_dir, config, info, task, **settings):
    """A run directory with only one branch of the network."""
    config = config.replace(task=task, **settings)
    model = panoptic_fpn.build_for_dataset(config.model, info)
    restore.restore_for_inference(model, run_dir)
    checkpoints.save_weights(model, config, info, f"{run_dir}_{task}")
    return f"{run_dir}_{task}"


def without_times(metrics):
    return {
        k: v for k, v in metrics.items() if k not in ("seconds", "checkpoint", "weights", "ema")
    }


def events(folder):
    """Tags in TensorBoard's events of a folder."""
    tags = {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            tags.update({value.tag: event.step for value in event.summary.value})
    return tags


def test_two_halves_are_the_whole_network(
    run_dir, evaluated, instance_half, config, info, tmp_path
):
    whole, folder = evaluated, pathlib.Path(run_dir, "eval/7")
    semantic = half_of(run_dir, config, info, "semantic")
    options = EvaluationOptions(output_dir=str(tmp_path / "both"))
    both = evaluate_run(instance_half, options, semantic)
    assert without_times(both) == without_times(whole)
    assert whole["panoptic"]["All"]["n"] and whole["segm"]["AR"] >= 0
    files = {p.relative_to(folder) for p in folder.rglob("*.png")}
    files |= {p.relative_to(folder) for p in folder.glob("[pi]*.json")}
    files = {name for name in files if name.parts[0] != "ema"}
    assert len(files) == 7  # panoptic and semantic maps of two images, the confusion, two lists
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "both" / name).read_bytes()

    # Instances still at 64 pixels, semantic labels at 96 and with another mean: each as its run
    # says.
    own = {"eval_min_side": 96, "eval_max_side": 128, "pixel_mean": (100.0, 110.0, 120.0)}
    semantic = half_of(run_dir, config, info, "semantic", **own)
    options = EvaluationOptions(output_dir=str(tmp_path / "mixed"), save_predictions=False)
    mixed = evaluate_run(instance_half, options, semantic)
    alone = evaluate_run(semantic, EvaluationOptions(output_dir=str(tmp_path / "alone")))
    assert mixed["bbox"] == whole["bbox"] and mixed["segm"] == whole["segm"]
    assert mixed["semantic_branch"] == alone["semantic_branch"] != whole["semantic_branch"]


def test_a_branch_takes_its_part_of_the_averages(run_dir, config, info, tmp_path):
    model = panoptic_fpn.build_for_dataset(config.replace(task="semantic").model, info)
    restore.restore_for_inference(model, run_dir)
    weights = [v.numpy() for v in model.trainable_variables]
    restore.restore_for_inference(model, run_dir, averages=True)
    for variable, value in zip(model.trainable_variables, weights):
        np.testing.assert_array_equal(variable, value / 2)

    # Averages that are damaged do not keep anyone from the weights.
    shutil.copytree(pathlib.Path(run_dir, "checkpoints"), tmp_path / "checkpoints")
    with open(tmp_path / "checkpoints/ckpt-7.data-00000-of-00001", "r+b") as f:
        f.write(bytes(8))  # The averages come first.
    assert evaluate_run_lib._kinds([str(tmp_path / "checkpoints/ckpt-7")], "raw") == ["raw"]
    restore.restore_for_inference(model, str(tmp_path), "7")
    with pytest.raises(UserError, match="ckpt-7 is damaged: "):
        restore.restore_for_inference(model, str(tmp_path), "7", averages=True)


def test_weights_and_their_averages(run_dir, evaluated, config, info, tmp_path):
    both, run_path = evaluated, pathlib.Path(run_dir)
    folder = run_path / "eval/7"
    assert both["weights"] == "raw" and both["ema"]["weights"] == "ema"
    assert both["ema"]["semantic_branch"] != both["semantic_branch"]
    assert json.loads((folder / "metrics.json").read_text()) == both
    for name in ("report.html", "panoptic.json", "ema/report.html", "ema/panoptic.json"):
        assert (folder / name).exists()
    tags = events(run_path / "tensorboard/eval")
    assert {"eval/PQ", "eval/mIoU", *PICTURES} <= tags.keys()
    assert tags["eval/PQ"] == 7
    assert "eval/PQ" in events(run_path / "tensorboard/eval/ema")

    # The same between two steps of a training, and the weights come back.
    model = panoptic_fpn.build_for_dataset(config.model, info)
    prefix = restore.restore_for_inference(model, run_dir, averages=True)
    averages = MovingAverages(model, 0.5, tf.distribute.get_strategy())
    restore.restore_for_inference(model, run_dir, prefix)
    weights = [v.numpy() for v in model.variables]
    log = logs.RunLog(str(tmp_path), 0)
    found = train._metrics(
        evaluator.Evaluator(config, info, model), averages, str(tmp_path), 7, log
    )
    for value, expected in ((found, both), (found["ema"], both["ema"])):
        assert without_times(value) == without_times(expected)
    for before, after in zip(weights, model.variables):
        np.testing.assert_array_equal(after.numpy(), before)
    tags = events(tmp_path / "tensorboard")
    assert PICTURES <= tags.keys()
    for name in ("metrics.json", "report.html", "confusion.png", "ema/metrics.json"):
        assert (tmp_path / "eval/7" / name).exists()


def test_results_with_several_views_stand_apart():
    run = evaluate_run_lib._Run("r", Config(), None, "panoptic")
    settings = {"semantic_flip": True, "semantic_scales": (0.75, 1.0)}
    options = EvaluationOptions(settings=settings, split="val")
    assert evaluate_run_lib._directories([run], 7, options) == (
        os.path.join("r", "eval", "7_val_flip_scales_0.75_1"),
        os.path.join("r", "tensorboard", "eval_val_flip_scales_0.75_1"),
    )


def test_no_averages_to_evaluate(run_dir):
    without, with_averages = (restore.find_checkpoint(run_dir, step) for step in ("0", "7"))
    assert evaluate_run_lib._kinds([without], "auto") == ["raw"]
    assert evaluate_run_lib._kinds([with_averages], "raw") == ["raw"]
    for weights in ("ema", "both"):  # Before anything is evaluated.
        with pytest.raises(ValueError, match="no moving averages"):
            evaluate_run_lib._kinds([with_averages, without], weights)
    with pytest.raises(ValueError, match="--eval_weights=mean must be one of auto, raw, ema, both"):
        evaluate_run(run_dir, EvaluationOptions(weights="mean"))


def test_records_of_other_classes(run_dir, tiny_records, info, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_run_lib, "_build", lambda *args: pytest.fail("was built"))
    others = info.coco_categories()
    others[1]["isthing"] = 1 - others[1]["isthing"]
    DatasetInfo.from_coco_categories(others).save(tmp_path / "dataset_info.json")
    for path in tiny_records.glob("*.tfrecord"):
        (tmp_path / path.name).symlink_to(path)
    options = EvaluationOptions(settings={"eval_records": f"{tmp_path}/*.tfrecord"})
    with pytest.raises(UserError, match=r"other classes .*\n.*category 3: crate"):
        evaluate_run(run_dir, options)


def test_runs_that_do_not_fit(run_dir, instance_half, config, info, monkeypatch):
    monkeypatch.setattr(evaluate_run_lib, "_evaluate", lambda *args: pytest.fail("was evaluated"))
    instance = instance_half
    with pytest.raises(
        ValueError, match="--semantic_run_dir=.*--task=instance; it must be semantic or panoptic"
    ):
        evaluate_run(instance, semantic_run_dir=instance)
    with pytest.raises(ValueError, match="--semantic_run_dir=nowhere is not a run directory"):
        evaluate_run(instance, semantic_run_dir="nowhere")
    others = info.coco_categories()
    others[1]["name"] = "zebra"
    checkpoints.save_weights(
        panoptic_fpn.build_for_dataset(config.model, info),
        config,
        DatasetInfo.from_coco_categories(others),
        run_dir + "_other",
    )
    with pytest.raises(ValueError, match=r"holds other classes .*\n.* there, zebra"):
        evaluate_run(instance, semantic_run_dir=run_dir + "_other")
