#!/usr/bin/env python3
"""Evaluates a trained network, or scores prediction files without one.

    python tools/eval.py --run_dir=runs/r50
    python tools/eval.py --instance_run_dir=runs/mask_rcnn --semantic_run_dir=runs/semantic_fpn
    python tools/eval.py --gt_panoptic_json=gt.json --gt_panoptic_dir=gt \\
        --pred_panoptic_json=pred.json --pred_panoptic_dir=pred --semantic --metrics_json=m.json
    python tools/eval.py --gt_instances_json=instances.json --pred_instances_json=results.json
    python tools/eval.py --cityscapes_gt_dir=gtFine/val --pred_panoptic_json=pred.json \\
        --pred_instances_json=results.json
    python tools/eval.py --run_dir=runs/r50 --split=test-dev

With --run_dir the settings are those of the run; any setting can be given on top, say
--eval_records, --max_images or --semantic_flip. Predictions, metrics.json, report.html and
confusion.png go to RUN_DIR/eval/STEP or --output_dir, TensorBoard's events to
RUN_DIR/tensorboard/eval. With files --output_dir gets the report, with the photos of --image_dir.
Exit codes: 0 done, 2 unusable settings or files.
"""

import os

from absl import flags

from pfpn_tf import config as config_lib
from pfpn_tf import flags as flags_lib
from pfpn_tf.evaluation import report
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError

FLAGS = flags.FLAGS
RUN_FLAGS = ("checkpoint", "eval_weights", "split", "save_predictions")
PANOPTIC_FILES = ("gt_panoptic_json", "pred_panoptic_json")
PANOPTIC_FLAGS = ("gt_panoptic_dir", "pred_panoptic_dir", "image_dir", "semantic", "num_threads")
INSTANCE_FILES = ("gt_instances_json", "pred_instances_json")

flags.DEFINE_string("run_dir", "", "Run to evaluate: the --run_dir of a training.")
flags.DEFINE_string(
    "instance_run_dir",
    "",
    "Run of --task=instance or panoptic, for the things; needs --semantic_run_dir.",
)
flags.DEFINE_string("semantic_run_dir", "", "Run of --task=semantic or panoptic, for the stuff.")
flags.DEFINE_string("checkpoint", "", "A step, best, or a path without suffix; empty: the newest.")
flags.DEFINE_string(
    "eval_weights",
    "auto",
    "raw: as trained; ema: their moving averages; both; auto: both if there are averages.",
)
flags.DEFINE_string(
    "split",
    "",
    "Split beside --eval_records to evaluate; of test-dev also zip files for COCO's server.",
)
flags.DEFINE_string(
    "output_dir", "", "Folder to write to. Empty: RUN_DIR/eval/STEP; for files, nowhere."
)
flags.DEFINE_bool("save_predictions", True, "Write the predictions in COCO format.")
flags.DEFINE_bool("per_class", True, "Also print a table of every class.")
flags.DEFINE_string(
    "gt_panoptic_json", "", "To score files: COCO panoptic JSON of the ground truth."
)
flags.DEFINE_string(
    "gt_panoptic_dir",
    "",
    "Folder of the PNGs of --gt_panoptic_json. Empty: the path of that, without .json.",
)
flags.DEFINE_string(
    "pred_panoptic_json", "", "To score files: COCO panoptic JSON of the predictions."
)
flags.DEFINE_string(
    "pred_panoptic_dir",
    "",
    "Folder of the PNGs of --pred_panoptic_json. Empty: the path of that, without .json.",
)
flags.DEFINE_string(
    "gt_instances_json", "", "To score files: COCO instances JSON of the ground truth."
)
flags.DEFINE_string(
    "pred_instances_json", "", "To score files: COCO results with bbox, segmentation or both."
)
flags.DEFINE_string("image_dir", "", "With files: folder of the photos, for the report.")
flags.DEFINE_bool("semantic", False, "With files: also mIoU and fwIoU of the panoptic maps.")
flags.DEFINE_string(
    "cityscapes_gt_dir", "", "gtFine/val or another split: also Cityscapes' own IoU, iIoU and AP."
)
flags.DEFINE_string("metrics_json", "", "Write all metrics here, as fractions at full precision.")
flags.DEFINE_integer("num_threads", 0, "Threads that score files; 0: one per CPU.", lower_bound=0)
flags_lib.define_config_flags()


@cli.command
def main():
    scores_files = any(getattr(FLAGS, name) for name in PANOPTIC_FILES + INSTANCE_FILES)
    two_runs = bool(FLAGS.instance_run_dir or FLAGS.semantic_run_dir)
    if sum([bool(FLAGS.run_dir), two_runs, scores_files]) != 1:
        raise UserError(
            "Give --run_dir to evaluate a network, or --instance_run_dir and --semantic_run_dir to"
            " fuse two, or --gt_panoptic_json and --pred_panoptic_json (or --gt_instances_json and"
            " --pred_instances_json) to score files; one of the three."
        )
    metrics, categories = _score_files() if scores_files else _evaluate_runs(two_runs)
    if FLAGS.metrics_json:
        report.write_metrics(FLAGS.metrics_json, metrics)
    if FLAGS.per_class and categories:
        print(report.class_table(metrics, categories), end="\n\n")
    print(report.table(metrics))
    if report.flat_scalars(metrics):
        print()
        print(report.copy_paste_line(metrics))


def _evaluate_runs(two_runs):
    _refuse(PANOPTIC_FLAGS, "scores panoptic files")
    from pfpn_tf.distribution import strategies
    from pfpn_tf.evaluation import evaluate_run
    from pfpn_tf.runs import run_directory

    names = ("instance_run_dir", "semantic_run_dir") if two_runs else ("run_dir",)
    flags_lib.check_given(names)
    run_dirs = [getattr(FLAGS, name) for name in names]
    config, info = run_directory.load_run(run_dirs[0], names[0])
    strategies.set_up_runtime(flags_lib.config_from_flags(config))
    options = evaluate_run.EvaluationOptions(
        checkpoint=FLAGS.checkpoint,
        settings=flags_lib.given_settings(),
        output_dir=FLAGS.output_dir,
        save_predictions=FLAGS.save_predictions,
        weights=FLAGS.eval_weights,
        split=FLAGS.split,
        cityscapes_gt_dir=FLAGS.cityscapes_gt_dir,
    )
    _make_outputs()
    metrics = evaluate_run.evaluate_run(run_dirs[0], options, *run_dirs[1:])
    return metrics, info.coco_categories()


def _score_files():
    from pfpn_tf.evaluation import instance_files, score_files

    # Cityscapes has ground truth of its own; a panoptic JSON of it may tell the categories.
    cityscapes = bool(FLAGS.cityscapes_gt_dir)
    panoptic = bool(FLAGS.pred_panoptic_json) and not cityscapes
    panoptic |= bool(FLAGS.gt_panoptic_json) and not (cityscapes and FLAGS.pred_instances_json)
    panoptic |= bool(FLAGS.gt_panoptic_json and FLAGS.pred_panoptic_json)
    instances = bool(FLAGS.gt_instances_json) or (
        bool(FLAGS.pred_instances_json) and not cityscapes
    )
    _refuse((*RUN_FLAGS, *config_lib.all_fields()), "evaluates a network", but=("max_images",))
    if not panoptic:
        _refuse(
            (*PANOPTIC_FLAGS, "max_images"), "scores panoptic files", but=("pred_panoptic_dir",)
        )
    elif instances or cityscapes:
        _refuse(("max_images",), "scores panoptic files alone")
    if FLAGS.image_dir and not FLAGS.output_dir:
        raise UserError("--image_dir is for the report; give --output_dir, where that goes.")
    if FLAGS.max_images < 0:
        raise UserError(f"--max_images={FLAGS.max_images} must be at least 0 (0: all images).")
    flags_lib.check_files((*PANOPTIC_FILES * panoptic, *INSTANCE_FILES * instances))

    # All is read and checked before anything is computed.
    categories, parts = [], []
    if panoptic:
        files = score_files.PanopticFiles(
            FLAGS.gt_panoptic_json,
            FLAGS.gt_panoptic_dir,
            FLAGS.pred_panoptic_json,
            FLAGS.pred_panoptic_dir,
            FLAGS.max_images,
        )
        categories = files.categories
        parts.append(lambda: _panoptic(files))
    if instances:
        results = instance_files.InstanceFiles(FLAGS.gt_instances_json, FLAGS.pred_instances_json)
        categories = categories or [{**c, "isthing": 1} for c in results.categories]
        parts.append(results.score)
    if cityscapes:
        from pfpn_tf.evaluation.cityscapes import CityscapesScorer

        scorer = CityscapesScorer(
            FLAGS.cityscapes_gt_dir,
            FLAGS.pred_panoptic_json,
            FLAGS.pred_panoptic_dir,
            FLAGS.pred_instances_json,
            categories_json=FLAGS.gt_panoptic_json or FLAGS.pred_panoptic_json,
        )
        parts.append(lambda: {"cityscapes": scorer.score(FLAGS.output_dir)})
    _make_outputs()
    metrics = {"notes": []}
    for part in parts:
        found = part()
        metrics["notes"] += found.pop("notes", [])
        metrics.update(found)
    return metrics, categories


def _panoptic(files):
    metrics = files.score(FLAGS.num_threads, FLAGS.output_dir, FLAGS.image_dir)
    if not FLAGS.semantic:
        del metrics["semantic"]
    return metrics


def _refuse(names, purpose, but=()):
    """Refuses flags of another way to use the tool."""
    for name in names:
        if name not in but and FLAGS[name].present and FLAGS[name].value != FLAGS[name].default:
            raise UserError(
                f"--{name} only counts where the tool {purpose}; leave it out, or see the top of"
                " --help."
            )


def _make_outputs():
    """Makes the folders of the results, and finds out whether they can be written to."""
    if FLAGS.output_dir:
        flags_lib.make_output_dir("output_dir")
    if FLAGS.metrics_json:
        if os.path.isdir(FLAGS.metrics_json):
            raise UserError(
                f"--metrics_json={FLAGS.metrics_json} is a folder; give the path of a file."
            )
        flags_lib.make_parent("metrics_json")


if __name__ == "__main__":
    main()
