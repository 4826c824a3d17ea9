#!/usr/bin/env python3
"""Draws a dataset in COCO panoptic format: train/, val/ and annotations/.

python tools/make_demo_dataset.py --output_dir=demo/dataset
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from pfpn_tf import flags  # noqa: E402
from pfpn_tf.utils import cli  # noqa: E402
from pfpn_tf.utils.errors import UserError  # noqa: E402

flags.define_tool_flags("output_dir", "num_train", "num_val", "num_workers")


def main():
    from rich.progress import track

    from pfpn_tf.data import synthetic

    args = flags.FLAGS
    flags.check_given(["output_dir"])
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
