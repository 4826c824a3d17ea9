#!/usr/bin/env python3
"""Draws a dataset in COCO panoptic format: train/, val/ and annotations/.

python tools/make_demo_dataset.py --output_dir=demo/dataset
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags  # noqa: E402

from pfpn_tf import flags as flags_lib  # noqa: E402
from pfpn_tf.utils import cli  # noqa: E402
from pfpn_tf.utils.errors import UserError  # noqa: E402

flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_integer("num_train", 300, "Images of the training split.")
flags.DEFINE_integer("num_val", 50, "Images of the validation split.")
flags.DEFINE_integer("num_workers", 0, "Processes; 0: one per CPU core.")


def main():
    from rich.progress import track

    from pfpn_tf.data import synthetic

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    for name in ("num_train", "num_val"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be 1 or more.")
    if args.num_workers < 0:
        raise UserError(f"--num_workers={args.num_workers} must be 0 or more.")
    synthetic.make_dataset(
        args.output_dir,
        args.num_train,
        args.num_val,
        progress=track,
        num_workers=args.num_workers,
    )
    print(f"{args.output_dir}: {args.num_train} training and {args.num_val} validation images.")


if __name__ == "__main__":
    cli.run(main)
