#!/usr/bin/env python3
"""Evaluates a trained network, or scores prediction files without one.

    python tools/eval.py --run_dir=runs/r50
    python tools/eval.py --gt_panoptic_json=gt.json --gt_panoptic_dir=gt \\
        --pred_panoptic_json=pred.json --pred_panoptic_dir=pred --semantic --metrics_json=m.json
    python tools/eval.py --gt_instances_json=instances.json --pred_instances_json=results.json
    python tools/eval.py --cityscapes_gt_dir=gtFine/val --pred_panoptic_json=pred.json \\
        --pred_instances_json=results.json

With --run_dir the settings are those of the run; any setting can be given on top, say
--eval_records. Files and tables go to RUN_DIR/eval/STEP or --output_dir. Exit codes: 0 done,
2 unusable settings or files.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from pfpn_tf.utils import cli  # noqa: E402

from absl import flags  # noqa: E402

from pfpn_tf import flags as flags_lib  # noqa: E402
from pfpn_tf.evaluation import report  # noqa: E402
from pfpn_tf.utils.files import atomic_write  # noqa: E402

FLAGS = flags.FLAGS
PANOPTIC_FILES = ("gt_panoptic_json", "pred_panoptic_json")
INSTANCE_FILES = ("gt_instances_json", "pred_instances_json")


def main():
    score_files = any(getattr(FLAGS, name) for name in PANOPTIC_FILES + INSTANCE_FILES)
    if score_files == bool(FLAGS.run_dir):
        raise ValueError(
            "Give --run_dir to evaluate a network, or --gt_panoptic_json and --pred_panoptic_json "
            "(or --gt_instances_json and --pred_instances_json) to score files."
        )
    if score_files:
        metrics = _score_files()
    else:
        from pfpn_tf.training.evaluate_run import evaluate_run

        metrics = evaluate_run(
            FLAGS.run_dir,
            checkpoint=FLAGS.checkpoint,
            settings=flags_lib.given_settings(),
            output_dir=FLAGS.output_dir,
            save_predictions=FLAGS.save_predictions,
        )
    print(report.table(metrics))
    print()
    print(report.copy_paste_line(metrics))
    if FLAGS.metrics_json:
        with atomic_write(FLAGS.metrics_json) as f:
            json.dump(metrics, f, indent=2)
            f.write("\n")


def _score_files():
    from pfpn_tf.evaluation import score_files

    metrics = {}
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
        )
    if FLAGS.gt_instances_json or (FLAGS.pred_instances_json and not FLAGS.cityscapes_gt_dir):
        flags_lib.check_files(INSTANCE_FILES)
        metrics.update(
            score_files.score_instances(FLAGS.gt_instances_json, FLAGS.pred_instances_json)
        )
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
    return metrics


if __name__ == "__main__":
    flags_lib.define_config_flags()
    flags_lib.define_tool_flags(
        "run_dir",
        "checkpoint",
        "output_dir",
        "save_predictions",
        "gt_panoptic_json",
        "gt_panoptic_dir",
        "pred_panoptic_json",
        "pred_panoptic_dir",
        "gt_instances_json",
        "pred_instances_json",
        "semantic",
        "cityscapes_gt_dir",
        "metrics_json",
        "num_processes",
    )
    cli.run(main)
