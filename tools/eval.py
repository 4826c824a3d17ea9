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

import json

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.evaluation import report
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

FLAGS = flags.FLAGS
PANOPTIC_FILES = ("gt_panoptic_json", "pred_panoptic_json")
INSTANCE_FILES = ("gt_instances_json", "pred_instances_json")

flags.DEFINE_string("run_dir", "", "Run to evaluate: the --run_dir of a training.")
flags.DEFINE_string(
    "instance_run_dir", "", "Run of --task=instance, to fuse with that of --semantic_run_dir."
)
flags.DEFINE_string("semantic_run_dir", "", "Run of --task=semantic.")
flags.DEFINE_string(
    "checkpoint", "", "Which one: empty for the newest, best, a step, or a path without suffix."
)
flags.DEFINE_string(
    "eval_weights",
    "auto",
    "raw; ema: their moving averages; both; auto: both if there are averages.",
)
flags.DEFINE_string(
    "split", "", "Split beside --eval_records; of test-dev COCO's server gets the files."
)
flags.DEFINE_string(
    "output_dir", "", "Folder to write to. Empty: RUN_DIR/eval/STEP, of files none."
)
flags.DEFINE_bool("save_predictions", True, "Write the predictions in COCO format.")
flags.DEFINE_bool("per_class", True, "Also print a table of every class.")
flags.DEFINE_string(
    "gt_panoptic_json", "", "To score files: COCO panoptic JSON of the ground truth."
)
flags.DEFINE_string(
    "gt_panoptic_dir", "", "Folder of its PNGs. Empty: the JSON's path without .json."
)
flags.DEFINE_string(
    "pred_panoptic_json", "", "To score files: COCO panoptic JSON of the predictions."
)
flags.DEFINE_string(
    "pred_panoptic_dir", "", "Folder of its PNGs. Empty: the JSON's path without .json."
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
flags.DEFINE_integer("num_processes", 0, "Processes that score files; 0: one per CPU.")
flags_lib.define_config_flags()


@cli.command
def main():
    modes = {
        "run": bool(FLAGS.run_dir),
        "two runs": bool(FLAGS.instance_run_dir or FLAGS.semantic_run_dir),
        "files": any(getattr(FLAGS, name) for name in PANOPTIC_FILES + INSTANCE_FILES),
    }
    if sum(modes.values()) != 1:
        raise UserError(
            "Give --run_dir to evaluate a network, or --instance_run_dir and --semantic_run_dir to"
            " fuse two, or --gt_panoptic_json and --pred_panoptic_json (or --gt_instances_json and"
            " --pred_instances_json) to score files; one of the three."
        )
    if modes["files"]:
        metrics, categories = _score_files()
    else:
        metrics, categories = _evaluate_runs()
    if FLAGS.per_class and categories:
        print(report.class_table(metrics, categories), end="\n\n")
    print(report.table(metrics))
    if report.flat_scalars(metrics):
        print()
        print(report.copy_paste_line(metrics))


def _evaluate_runs():
    from pfpn_tf.evaluation import evaluate_run
    from pfpn_tf.runs import run_directory

    options = {
        "checkpoint": FLAGS.checkpoint,
        "settings": flags_lib.given_settings(),
        "output_dir": FLAGS.output_dir,
        "save_predictions": FLAGS.save_predictions,
        "weights": FLAGS.eval_weights,
        "metrics_json": FLAGS.metrics_json,
        "split": FLAGS.split,
        "cityscapes_gt_dir": FLAGS.cityscapes_gt_dir,
    }
    if FLAGS.run_dir:
        metrics = evaluate_run.evaluate_run(FLAGS.run_dir, **options)
    else:
        flags_lib.check_given(("instance_run_dir", "semantic_run_dir"))
        metrics = evaluate_run.evaluate_two_runs(
            FLAGS.instance_run_dir, FLAGS.semantic_run_dir, **options
        )
    _, info = run_directory.load_run(FLAGS.run_dir or FLAGS.instance_run_dir)
    return metrics, info.coco_categories()


def _score_files():
    from pfpn_tf.data import coco_files
    from pfpn_tf.evaluation import score_files

    metrics, categories = {}, []
    # With Cityscapes' ground truth, that in COCO format is not needed.
    if FLAGS.gt_panoptic_json or (FLAGS.pred_panoptic_json and not FLAGS.cityscapes_gt_dir):
        flags_lib.check_files(PANOPTIC_FILES)
        metrics = score_files.score_panoptic(
            FLAGS.gt_panoptic_json,
            FLAGS.gt_panoptic_dir,
            FLAGS.pred_panoptic_json,
            FLAGS.pred_panoptic_dir,
            semantic=FLAGS.semantic,
            num_processes=FLAGS.num_processes,
            show_progress=True,
            max_images=FLAGS.max_images,
            output_dir=FLAGS.output_dir,
            image_dir=FLAGS.image_dir,
        )
        categories = coco_files.load_json(FLAGS.gt_panoptic_json, "")["categories"]
    if FLAGS.gt_instances_json or (FLAGS.pred_instances_json and not FLAGS.cityscapes_gt_dir):
        flags_lib.check_files(INSTANCE_FILES)
        metrics.update(
            score_files.score_instances(FLAGS.gt_instances_json, FLAGS.pred_instances_json)
        )
        things = coco_files.load_json(FLAGS.gt_instances_json, "")["categories"]
        categories = categories or [{"isthing": 1, **category} for category in things]
    if FLAGS.cityscapes_gt_dir:
        from pfpn_tf.evaluation import cityscapes

        metrics["cityscapes"] = cityscapes.score_files(
            FLAGS.cityscapes_gt_dir,
            FLAGS.pred_panoptic_json,
            FLAGS.pred_panoptic_dir,
            FLAGS.pred_instances_json,
            categories_json=FLAGS.gt_panoptic_json or FLAGS.pred_panoptic_json,
            output_dir=FLAGS.output_dir,
        )
    if FLAGS.metrics_json:
        with atomic_write(FLAGS.metrics_json) as f:
            json.dump(metrics, f, indent=2)
            f.write("\n")
    return metrics, categories


if __name__ == "__main__":
    main()
