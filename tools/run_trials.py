#!/usr/bin/env python3
"""Trains and evaluates a recipe with several seeds; gives median and spread of each metric.

    python tools/run_trials.py --flagfile=configs/cityscapes/semantic_fpn_r50.flags \\
        --init_weights=WEIGHTS --num_trials=5 --output_dir=runs/cityscapes_semantic_fpn_r50
    python tools/run_trials.py --flagfile=configs/coco/panoptic_fpn_r50_1x.flags \\
        --init_weights=WEIGHTS --sweep=lambda_s,lambda_i --num_trials=1 --output_dir=runs/table2

With --sweep the paper's ablations of a Panoptic FPN: lambda_s, lambda_i, aggregation (sum against
concat) and losses (alternating against combined). OUTPUT_DIR gets a run directory and a log for
each training, trials.md, trials.json and, of a sweep, trials.png. It needs nobody to watch it: the
same command again skips what is done and continues what was interrupted. Exit codes: 0 done, 1 a
training failed, 2 unusable settings or files, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli  # before TensorFlow

FAILED = 1

flags.DEFINE_integer(
    "num_trials", 5, "Trainings of each row, with the seeds from --seed on.", lower_bound=1
)
flags.DEFINE_list("sweep", [], "lambda_s, lambda_i, aggregation, losses; empty: the recipe alone.")
flags.DEFINE_integer(
    "steps", 0, "Stretch or shrink the schedule to this; 0: the recipe's steps.", lower_bound=0
)
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags_lib.define_config_flags()


@cli.command
def main():
    from pfpn_tf.data import pipeline
    from pfpn_tf.experiments import queue, trials

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    config = trials.with_steps(pipeline.config_for_records(flags_lib.given_settings()), args.steps)
    rows = trials.rows(config, args.sweep, args.num_trials)
    flags_lib.make_output_dir("output_dir")
    results = queue.run_all(trials.experiments_of(rows), args.output_dir)
    model, steps = config.model, config.train.train_steps
    title = f"{model.task} {model.backbone}, {steps:,} steps of {config.train.global_batch_size}"
    print(trials.write_report(rows, results, args.output_dir, f"{title} images"))
    return 0 if all(results.values()) else FAILED


if __name__ == "__main__":
    main()
