#!/usr/bin/env python3
"""Trains a network, or continues a training.

    python tools/train.py --flagfile=configs/coco/panoptic_fpn_r50_1x.flags --run_dir=runs/r50

The same command again continues. Exit codes: 0 done, 2 unusable settings or files, 3 non-finite
loss, 130 stopped by Ctrl-C, 143 by SIGTERM (both after saving a checkpoint), 138 another worker is
gone (see tools/cluster/README.md), 1 any other error.
"""

import os
import sys

from absl import flags, logging

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli

NON_FINITE = 3
# Kubernetes' TFJob restarts after codes from 128 on, and leaves this one to users.
WORKER_LOST = 138

flags.DEFINE_string("run_dir", "", "Directory of the training: config.json, checkpoints, logs.")
flags.DEFINE_bool(
    "dry_run",
    False,
    "Check everything; print settings, batches, memory, learning rate; train nothing.",
)
flags_lib.define_config_flags()


@cli.command
def main():
    from pfpn_tf.data import pipeline
    from pfpn_tf.distribution import strategies
    from pfpn_tf.training import dry_run, train, trainer

    config = pipeline.config_for_records(flags_lib.given_settings())
    run_dir = flags.FLAGS.run_dir
    if not flags.FLAGS.dry_run:
        flags_lib.check_given(["run_dir"])
    strategies.set_up_runtime(config)
    if flags.FLAGS.dry_run:
        print(dry_run.describe(config, run_dir))
        return 0
    try:
        code = train.train(config, run_dir)
    except trainer.NonFiniteLoss as error:
        logging.error("%s", error)
        code = NON_FINITE
    except strategies.WorkerLost as error:
        logging.error("%s", error)
        code = WORKER_LOST
    several = config.train.distribution == "multi_worker"
    if code == WORKER_LOST or not several or strategies.is_follower(config.train.distribution):
        # All is written. TensorFlow's own way out waits for the other workers, a minute for a chief
        # that is gone, and sometimes as long for the thread that tunes the input pipeline.
        logging.flush()
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    main()
