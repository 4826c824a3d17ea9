#!/usr/bin/env python3
"""Trains and evaluates one recipe with several seeds; gives median and spread of each metric.

    python tools/run_trials.py --flagfile=configs/cityscapes/semantic_fpn_r50.flags \\
        --init_weights=WEIGHTS --num_trials=5 --output_dir=runs/cityscapes_semantic_fpn_r50

OUTPUT_DIR gets a run directory and a log for each seed, trials.md and trials.json. The same command
again skips the trials that are done and continues the one that was interrupted. Exit codes: 0 done,
1 a trial failed, 2 unusable settings or files, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags  # noqa: E402

from pfpn_tf import flags as flags_lib  # noqa: E402
from pfpn_tf.utils import cli  # noqa: E402  (before TensorFlow)

FAILED = 1

flags.DEFINE_integer("num_trials", 5, "Trainings, with the seeds from --seed on.")
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags_lib.define_config_flags()


def main():
    from pfpn_tf.experiments import queue, trials

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    chosen = trials.trials(flags_lib.config_from_flags(), args.num_trials)
    flags_lib.make_output_dir("output_dir")
    try:
        results = queue.run_all(chosen, args.output_dir)
    except queue.Stopped as stopped:
        return stopped.code
    print(trials.write_report(results, args.output_dir))
    return 0 if all(results.values()) else FAILED


if __name__ == "__main__":
    cli.run(main)
