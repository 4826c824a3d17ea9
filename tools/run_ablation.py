#!/usr/bin/env python3
"""The paper's ablations with any recipe of a Panoptic FPN: tables and a plot from one command.

    python tools/run_ablation.py --flagfile=configs/camvid/ablation.flags \\
        --output_dir=runs/camvid_ablation

Varied are lambda_s, lambda_i, sum against concat, and alternating against combined losses, or those
of them that --ablations names; --steps stretches or shrinks the recipe's schedule. OUTPUT_DIR gets
a run directory and a log for each training, and ablation.md, ablation.json and ablation.png. It
needs nobody to watch it: the same command again skips what is done and continues what was
interrupted.
Exit codes: 0 done, 1 a training failed, 2 unusable settings or files, 130 stopped by Ctrl-C, 143 by
SIGTERM.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags  # noqa: E402

from pfpn_tf import flags as flags_lib  # noqa: E402
from pfpn_tf.utils import cli  # noqa: E402  (before TensorFlow)

FAILED = 1

flags.DEFINE_list(
    "ablations", ["lambda_s", "lambda_i", "aggregation", "losses"], "What to vary, comma-separated."
)
flags.DEFINE_integer(
    "steps", 0, "Steps of each training, and its schedule with them; 0: the recipe's."
)
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags_lib.define_config_flags()


def main():
    from pfpn_tf.experiments import ablation, queue

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    config = ablation.with_steps(flags_lib.config_from_flags(), args.steps)
    rows = ablation.rows(config, args.ablations)
    flags_lib.make_output_dir("output_dir")
    try:
        results = queue.run_all(ablation.experiments_of(rows), args.output_dir)
    except queue.Stopped as stopped:
        return stopped.code
    model, steps = config.model.backbone, config.train.train_steps
    title = f"Panoptic FPN with {model}, {steps:,} steps of {config.train.global_batch_size} images"
    print(ablation.write_report(rows, results, args.output_dir, title))
    return 0 if all(results.values()) else FAILED


if __name__ == "__main__":
    cli.run(main)
