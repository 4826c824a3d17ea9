"""Evaluates the network of a run directory, or those of two: an instance and a semantic one."""

import json
import os
from typing import Any, Dict, Mapping, NamedTuple, Optional

from absl import logging

from pfpn_tf.config import Config
from pfpn_tf.data import categories
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution import strategies
from pfpn_tf.distribution.workers import Gatherer
from pfpn_tf.evaluation import cityscapes, coco_submission, evaluator, tensorboard
from pfpn_tf.evaluation.inference import Network
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints, restore, run_directory
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

WEIGHTS = ("auto", "raw", "ema", "both")


class _Run(NamedTuple):
    """A run directory and what of it is evaluated.

    Attributes:
      task: "panoptic", or the branch whose part the network has.
    """

    directory: str
    config: Config
    info: DatasetInfo
    task: str


class _Extras(NamedTuple):
    """What is made of the predictions of an evaluation besides; see `evaluate_run`."""

    split: str
    cityscapes_gt_dir: str


def evaluate_run(
    run_dir: str,
    checkpoint: str = "",
    settings: Optional[Mapping[str, Any]] = None,
    output_dir: str = "",
    save_predictions: bool = True,
    weights: str = "auto",
    metrics_json: str = "",
    split: str = "",
    cityscapes_gt_dir: str = "",
) -> Dict[str, Any]:
    """Restores a network and evaluates it on `eval_records`.

    Args:
      run_dir: directory of a training run, or of converted weights.
      checkpoint: empty for the newest intact one, "best", a step, or a checkpoint prefix.
      settings: settings that replace those of the run, by flag name.
      output_dir: where metrics.json, report and predictions go, and TensorBoard's events in the
        folder tensorboard; empty: RUN_DIR/eval/STEP and RUN_DIR/tensorboard/eval.
      save_predictions: whether to write predictions in COCO format.
      weights: "raw"; "ema", the moving averages of --ema_decay; "both", which puts the files of the
        averages into the folder ema; "auto": both if the checkpoint has averages.
      metrics_json: where to write the result as well; empty: nowhere.
      split: name of the records to take beside `eval_records`, unless the settings name those; of
        test-dev the zip files for COCO's server are written.
      cityscapes_gt_dir: ground truth of Cityscapes to score the predictions with, see
        `cityscapes.score_files`.

    Returns:
      See `Evaluator.evaluate`; `checkpoint` and `weights` are added, and with both `ema`, the
      metrics of the averages; `cityscapes` if asked for.

    Raises:
      UserError: the directory, the checkpoint, the records or a setting is not usable.
    """
    run = _load(run_dir, settings)
    if not run.config.data.eval_records:
        raise UserError("The run has no evaluation records; give --eval_records.")
    config = run.config.replace(
        eval_records=_records(run.config.data.eval_records, split, settings)
    )
    extras = _Extras(split, cityscapes_gt_dir)
    return _evaluate(
        [run], config, checkpoint, output_dir, save_predictions, weights, metrics_json, extras
    )


def evaluate_two_runs(
    instance_run_dir: str,
    semantic_run_dir: str,
    checkpoint: str = "",
    settings: Optional[Mapping[str, Any]] = None,
    output_dir: str = "",
    save_predictions: bool = True,
    weights: str = "auto",
    metrics_json: str = "",
    split: str = "",
    cityscapes_gt_dir: str = "",
) -> Dict[str, Any]:
    """Fuses the instances of one network with the stuff of another (the paper's R50-FPN x 2).

    Each network gets the images as its own run prepares them; of a panoptic run only one branch
    counts. What concerns the whole (fusion, batch size, devices) is taken from the instance run.

    Args:
      instance_run_dir: run with --task=instance or panoptic.
      semantic_run_dir: run with --task=semantic or panoptic.
      output_dir: empty: INSTANCE_RUN_DIR/eval/STEP_with_NAME, with the name of the semantic run.
      checkpoint, settings, save_predictions, weights, metrics_json, split, cityscapes_gt_dir: as
        `evaluate_run`, for both runs.

    Raises:
      UserError: as `evaluate_run`, or the runs do not fit each other.
    """
    instance = _load(instance_run_dir, settings, "instance", "--instance_run_dir")
    semantic = _load(semantic_run_dir, settings, "semantic", "--semantic_run_dir")
    _check_classes(instance, semantic)
    records = instance.config.data.eval_records or semantic.config.data.eval_records
    if not records:
        raise UserError("Neither run has evaluation records; give --eval_records.")
    records = _records(records, split, settings)
    config = instance.config.replace(
        task="panoptic",
        semantic_targets=semantic.config.model.semantic_targets,
        eval_records=records,
    )
    extras = _Extras(split, cityscapes_gt_dir)
    return _evaluate(
        [instance, semantic],
        config,
        checkpoint,
        output_dir,
        save_predictions,
        weights,
        metrics_json,
        extras,
    )


def _load(run_dir, settings, branch="", flag="--run_dir"):
    try:
        config, info = run_directory.load_run(run_dir)
    except UserError as error:
        raise UserError(str(error).replace("--run_dir=", f"{flag}=", 1)) from None
    task = config.model.task
    if branch and task not in (branch, "panoptic"):
        raise UserError(
            f"{flag}={run_dir} is a run with --task={task}; it must be {branch} or panoptic."
        )
    config = config.replace(**dict(settings or {}))
    return _Run(run_dir, config, info, branch or config.model.task)


def _check_classes(instance, semantic):
    if instance.info.same_classes(semantic.info):
        return
    ours, theirs = ([c[:3] for c in run.info.categories] for run in (instance, semantic))
    pairs = [pair for pair in zip(ours, theirs) if pair[0] != pair[1]]
    words = [
        f"id {c[0]} {c[1]} ({'thing' if c[2] else 'stuff'})" for c in (pairs[0] if pairs else ())
    ]
    first = (
        f"the first difference is {words[0]} against {words[1]}" if pairs else "the rest is alike"
    )
    raise UserError(
        f"--instance_run_dir={instance.directory} and --semantic_run_dir={semantic.directory} were"
        f" trained on different classes ({len(ours)} and {len(theirs)} categories; {first}). Give"
        " two runs on the same dataset."
    )


def _records(records, split, settings):
    """The records of a split, beside those of the run."""
    if not split or (settings or {}).get("eval_records"):
        return records
    return os.path.join(os.path.dirname(records), f"{split}-*.tfrecord")


def _evaluate(
    runs, config, checkpoint, output_dir, save_predictions, weights, metrics_json, extras
):
    if not save_predictions and (
        extras.cityscapes_gt_dir or extras.split in coco_submission.SPLITS
    ):
        raise UserError(
            "--cityscapes_gt_dir and --split=test-dev need the predictions: leave out"
            " --nosave_predictions."
        )
    if weights not in WEIGHTS:
        raise UserError(f"--eval_weights={weights} must be one of {', '.join(WEIGHTS)}.")
    strategies.set_up_runtime(config)
    strategy = strategies.build_strategy(config.train.distribution)
    networks = [_build(run, strategy) for run in runs]
    gather = Gatherer(strategy)
    with strategies.losing_workers(gather.workers):
        # The first worker's choice: another one could find a newer checkpoint.
        prefixes = gather(
            [restore.find_checkpoint(run.directory, checkpoint or None) for run in runs]
        )[0]
        step = checkpoints.step_of(prefixes[0])
        output_dir, events_dir = _directories(runs, step, output_dir, extras.split)
        runner = evaluator.Evaluator(
            config, runs[0].info, networks[0].model, strategy, *networks[1:]
        )
        metrics = {}
        for kind in _kinds(prefixes, weights):
            for run, network, prefix in zip(runs, networks, prefixes):
                restore.restore_for_inference(
                    network.model, run.directory, prefix, averages=kind == "ema"
                )
            names = " and ".join(prefixes)
            logging.info(
                "Evaluating %s%s on %s.",
                "the averages in " * (kind == "ema"),
                names,
                config.data.eval_records,
            )
            beside = "ema" if metrics else ""
            found = runner.evaluate(
                os.path.join(output_dir, beside), save_predictions=save_predictions
            )
            found = {"checkpoint": names, "weights": kind, **found}
            if gather.workers.is_chief:
                _add_extras(found, os.path.join(output_dir, beside), runs, config, extras)
                tensorboard.write_evaluation(
                    os.path.join(events_dir, beside),
                    found,
                    runner.class_table(found),
                    runner.pictures(),
                    step,
                )
            if beside:
                metrics["ema"] = found
            else:
                metrics = found
    if gather.workers.is_chief:
        for path in filter(None, (os.path.join(output_dir, evaluator.METRICS), metrics_json)):
            with atomic_write(path) as f:
                json.dump(metrics, f, indent=2)
                f.write("\n")
    logging.info("Metrics%s are in %s.", " and predictions" if save_predictions else "", output_dir)
    return metrics


def _add_extras(metrics, directory, runs, config, extras):
    """Scores the predictions in `directory` with Cityscapes' own code, and packs them for COCO's
    server.
    """
    if extras.cityscapes_gt_dir:
        metrics["cityscapes"] = cityscapes.score_written(
            extras.cityscapes_gt_dir,
            directory,
            os.path.join(runs[0].directory, categories.FILE_NAME),
            semantic=config.model.semantic_targets == "all",
        )
    if extras.split in coco_submission.SPLITS:
        name = "_".join(os.path.basename(os.path.normpath(run.directory)) for run in runs)
        for path in coco_submission.write(directory, extras.split, name):
            logging.info("For COCO's server: %s", path)


def _build(run, strategy):
    config = run.config.replace(task=run.task)
    with strategy.scope():
        model = panoptic_fpn.build_model(
            config.model,
            run.info.num_thing_classes,
            run.info.num_semantic_classes(config.model.semantic_targets),
        )
    return Network(config, model)


def _kinds(prefixes, weights):
    """Which weights to evaluate, in order."""
    if weights == "auto":
        weights = "both" if all(restore.has_averages(prefix) for prefix in prefixes) else "raw"
    return ["raw", "ema"] if weights == "both" else [weights]


def _directories(runs, step, output_dir, split):
    """Where results and TensorBoard's events go."""
    if output_dir:
        return output_dir, os.path.join(output_dir, run_directory.TENSORBOARD)
    name, events = (f"{step}_{split}", f"eval_{split}") if split else (str(step), "eval")
    if len(runs) > 1:
        other = "_with_" + os.path.basename(os.path.normpath(runs[1].directory))
        name, events = name + other, events + other
    directory = runs[0].directory
    return os.path.join(directory, "eval", name), os.path.join(
        directory, run_directory.TENSORBOARD, events
    )
