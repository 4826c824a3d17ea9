#!/usr/bin/env python3
"""Draws a dataset in COCO panoptic format: train/, val/ and annotations/.

    python tools/make_demo_dataset.py --output_dir=demo/dataset

tools/create_tfrecords.py turns each of its splits into TFRecords.
"""

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli

flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_integer("num_train", 300, "Images of the training split.", lower_bound=1)
flags.DEFINE_integer("num_val", 50, "Images of the validation split.", lower_bound=1)
flags.DEFINE_integer("num_workers", 0, "Processes; 0: one per CPU core.", lower_bound=0)


@cli.command
def main():
    from pfpn_tf.data import synthetic

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    synthetic.make_dataset(
        args.output_dir, args.num_train, args.num_val, num_workers=args.num_workers
    )
    print(f"{args.output_dir}: {args.num_train} training and {args.num_val} validation images.")


if __name__ == "__main__":
    main()
