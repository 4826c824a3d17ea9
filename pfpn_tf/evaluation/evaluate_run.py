"""Evaluates the network of a run directory, or fuses those of two."""

import dataclasses
import os
from typing import Any, Dict, List, Mapping, NamedTuple

from absl import logging

from pfpn_tf.config import Config
from pfpn_tf.data import categories, pipeline
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution import strategies
from pfpn_tf.distribution.workers import Gatherer
from pfpn_tf.evaluation import (
    cityscapes,
    coco_submission,
    evaluator,
    output_folder,
    report,
    tensorboard,
)
from pfpn_tf.evaluation.inference import Network
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints, restore, run_directory
from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError

WEIGHTS = ("auto", "raw", "ema", "both")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What of a run to evaluate, and where the results go.

    Attributes:
      checkpoint: empty for the newest intact one, "best", a step, or a checkpoint prefix.
      settings: settings that replace those of the run, by flag name.
      output_dir: where metrics.json, report and predictions go, and TensorBoard's events in the
        folder tensorboard; empty: RUN_DIR/eval/STEP and RUN_DIR/tensorboard/eval. Of two runs it is
        the directory of the instance run, and STEP_with_NAME with the name of the semantic run;
        settings of mirror images and several sizes add _flip and _scales_0.75_1.
      save_predictions: whether to write predictions in COCO format.
      weights: "raw"; "ema", the moving averages of --ema_decay; "both", which puts the files of the
        averages into the folder ema; "auto": both if the checkpoint has averages.
      split: name of the records to take beside `eval_records`, unless the settings name those; of
        test-dev the zip files for COCO's server are written.
      cityscapes_gt_dir: ground truth of Cityscapes to score the predictions with, see
        `cityscapes.CityscapesScorer`.
    """

    checkpoint: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output_dir: str = ""
    save_predictions: bool = True
    weights: str = "auto"
    split: str = ""
    cityscapes_gt_dir: str = ""


class _Run(NamedTuple):
    """A run directory and what of it is evaluated.

    Attributes:
      task: "panoptic", or the branch whose part the network has.
    """

    directory: str
    config: Config
    info: DatasetInfo
    task: str

    @property
    def name(self):
        return os.path.basename(os.path.normpath(self.directory))


def evaluate_run(
    run_dir: str, options: EvaluationOptions = EvaluationOptions(), semantic_run_dir: str = ""
) -> Dict[str, Any]:
    """Restores a network and evaluates it on `eval_records`.

    With a second run it fuses the instances of the first with the stuff of the second (the paper's
    R50-FPN x 2). Each network gets the images as its own run prepares them; of a panoptic run only
    one branch counts. What concerns the whole (fusion, batch size, devices) is of the first.

    Args:
      run_dir: directory of a training run, or of converted weights.
      options: see there; of two runs for both.
      semantic_run_dir: run with --task=semantic or panoptic; then `run_dir` is one with
        --task=instance or panoptic.

    Returns:
      See `Evaluator.evaluate`; `checkpoint` and `weights` are added, `settings` if there are any,
      and with both `ema`, the metrics of the averages; `cityscapes` if asked for.

    Raises:
      UserError: the directory, the checkpoint, the records or an option is not usable, or two runs
        do not fit each other.
    """
    if not semantic_run_dir:
        run = _load(run_dir, options.settings)
        return _evaluate([run], run.config, options)
    instance = _load(run_dir, options.settings, "instance", "instance_run_dir")
    semantic = _load(semantic_run_dir, options.settings, "semantic", "semantic_run_dir")
    names = f"--semantic_run_dir={semantic_run_dir}", f"--instance_run_dir={run_dir}"
    run_directory.check_classes(semantic.info, names[0], instance.info, names[1])
    config = instance.config.replace(
        task="panoptic",
        semantic_targets=semantic.config.model.semantic_targets,
        eval_records=instance.config.data.eval_records or semantic.config.data.eval_records,
    )
    return _evaluate([instance, semantic], config, options)


def _load(run_dir, settings, branch="", flag="run_dir"):
    config, info = run_directory.load_run(run_dir, flag)
    task = config.model.task
    if branch and task not in (branch, "panoptic"):
        raise UserError(
            f"--{flag}={run_dir} is a run with --task={task}; it must be {branch} or panoptic."
        )
    return _Run(run_dir, config.replace(**settings), info, branch or task)


def _evaluate(runs: List[_Run], config: Config, options: EvaluationOptions) -> Dict[str, Any]:
    _check_options(options, runs)
    config = _with_split(config, options)
    info = _info_of_records(config, runs[0], options.settings)
    strategy = strategies.build_strategy(config.train.distribution)
    networks = [_build(run, strategy) for run in runs]
    gather = Gatherer(strategy)
    with strategies.losing_workers(gather):
        # The first worker's choice: another one could find a newer checkpoint.
        prefixes = gather(
            [restore.find_checkpoint(run.directory, options.checkpoint or None) for run in runs]
        )[0]
        kinds = _kinds(prefixes, options.weights)
        step = checkpoints.step_of(prefixes[0])
        output_dir, events_dir = _directories(runs, step, options)
        for folder in (output_dir, events_dir) if gather.workers.is_chief else ():
            files.make_writable(folder, "output_dir")
        runner = evaluator.Evaluator(config, info, networks[0].model, strategy, *networks[1:])
        settings = {"settings": dict(options.settings)} if options.settings else {}
        found = []
        for kind, beside in zip(kinds, ("", output_folder.AVERAGES)):
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
            directory = os.path.join(output_dir, beside)
            metrics = runner.evaluate(directory, save_predictions=options.save_predictions)
            metrics = {"checkpoint": names, "weights": kind, **settings, **metrics}
            if gather.workers.is_chief:
                _add_benchmarks(metrics, directory, runs, config, options, runner.found.image_ids)
                tensorboard.write_evaluation(
                    os.path.join(events_dir, beside), runner, metrics, step
                )
            found.append(metrics)
    metrics = {**found[0], "ema": found[1]} if len(found) > 1 else found[0]
    if gather.workers.is_chief:
        report.write_metrics(os.path.join(output_dir, output_folder.METRICS), metrics)
    what = "Metrics and predictions" if options.save_predictions else "Metrics"
    logging.info("%s are in %s.", what, output_dir)
    return metrics


def _check_options(options, runs):
    """What can be known before a network is built."""
    if options.weights not in WEIGHTS:
        raise UserError(f"--eval_weights={options.weights} must be one of {', '.join(WEIGHTS)}.")
    needs_files = options.cityscapes_gt_dir or options.split in coco_submission.SPLITS
    if needs_files and not options.save_predictions:
        raise UserError(
            "--cityscapes_gt_dir and --split=test-dev need the predictions: leave out"
            " --nosave_predictions."
        )
    if options.cityscapes_gt_dir:
        categories_json = _info_json(runs[0])
        cityscapes.CityscapesScorer(options.cityscapes_gt_dir, categories_json=categories_json)


def _info_json(run):
    return os.path.join(run.directory, categories.FILE_NAME)


def _with_split(config, options):
    """The settings with the records of the split, which are beside those of the run."""
    records = config.data.eval_records
    if not records:
        raise UserError("The run has no evaluation records; give --eval_records.")
    if options.split and not options.settings.get("eval_records"):
        records = os.path.join(os.path.dirname(records), f"{options.split}-*.tfrecord")
    return config.replace(eval_records=records)


def _info_of_records(config, run, settings):
    """The run's categories with the splits of the records, whose classes must be the run's."""
    beside = config.replace(train_records="", dataset_info=settings.get("dataset_info", ""))
    info = pipeline.load_info(beside)
    what = f"--eval_records={config.data.eval_records}"
    run_directory.check_classes(info, what, run.info, f"the run {run.directory}")
    return dataclasses.replace(run.info, splits=info.splits)


def _add_benchmarks(metrics, directory, runs, config, options, image_ids):
    """Scores the predictions in `directory` with Cityscapes' own code, and packs them for COCO's
    server.
    """
    if options.cityscapes_gt_dir:
        written = {name: os.path.join(directory, name) for name in os.listdir(directory)}
        # As in the paper, the semantic branch's own labels count where it knows all classes.
        own_labels = written.get("semantic", "") if config.model.semantic_targets == "all" else ""
        scorer = cityscapes.CityscapesScorer(
            options.cityscapes_gt_dir,
            written.get("panoptic.json", ""),
            instances_json=written.get("instances.json", ""),
            semantic_dir=own_labels,
            categories_json=_info_json(runs[0]),
            image_ids=image_ids,
        )
        metrics["cityscapes"] = scorer.score(directory)
    if options.split in coco_submission.SPLITS:
        name = "_".join(run.name for run in runs)
        for path in coco_submission.write(directory, options.split, name):
            logging.info("For COCO's server: %s", path)


def _build(run, strategy):
    config = run.config.replace(task=run.task)
    with strategy.scope():
        model = panoptic_fpn.build_for_dataset(config.model, run.info)
    return Network(config, model)


def _kinds(prefixes, weights):
    """Which weights to evaluate, in order."""
    without = [prefix for prefix in prefixes if not restore.has_averages(prefix)]
    if weights in ("ema", "both") and without:
        raise UserError(
            f"--eval_weights={weights}: {without[0]} holds no moving averages; the run had"
            " --ema_decay=0."
        )
    if weights == "auto":
        weights = "raw" if without else "both"
    return ["raw", "ema"] if weights == "both" else [weights]


def _directories(runs, step, options):
    """Where results and TensorBoard's events go."""
    if options.output_dir:
        return options.output_dir, os.path.join(options.output_dir, run_directory.TENSORBOARD)
    split = options.split
    name, events = (f"{step}_{split}", f"eval_{split}") if split else (str(step), "eval")
    if len(runs) > 1:
        name, events = f"{name}_with_{runs[1].name}", f"{events}_with_{runs[1].name}"
    views = "_flip" if options.settings.get("semantic_flip") else ""
    if "semantic_scales" in options.settings:
        scales = options.settings["semantic_scales"]
        views += "_scales_" + "_".join(f"{scale:g}" for scale in scales)
    name, events = name + views, events + views
    directory = runs[0].directory
    return os.path.join(directory, "eval", name), os.path.join(
        directory, run_directory.TENSORBOARD, events
    )
