#!/usr/bin/env python3
"""Draws exactly what the network receives in training, as PNGs.

    python tools/show_data.py --flagfile=configs/coco/panoptic_fpn_r50_1x.flags --output_dir=shown

Each picture has the augmented, padded image with boxes, masks and class names on the left, and with
the semantic target on the right, void in grey stripes. Takes every setting that train.py takes.
"""

import os

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli  # before TensorFlow
from pfpn_tf.utils.errors import UserError

flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_integer("num_images", 8, "Training examples to draw.")
flags.DEFINE_integer("start_step", 0, "Step of the training whose batch comes first.")
flags_lib.define_config_flags()


@cli.command
def main():
    import cv2

    from pfpn_tf.data import pipeline, show

    args = flags.FLAGS
    flags_lib.check_given(["output_dir"])
    if args.num_images < 1 or args.start_step < 0:
        raise UserError("--num_images must be at least 1 and --start_step at least 0.")
    config = pipeline.config_for_records(flags_lib.given_settings())
    info = pipeline.load_info(config)
    flags_lib.make_output_dir("output_dir")
    pictures = show.draw_examples(config, info, args.num_images, args.start_step)
    for name, picture in pictures:
        path = os.path.join(args.output_dir, f"{name}.png")
        if not cv2.imwrite(path, picture[..., ::-1]):
            raise UserError(f"{path}: cannot be written.")
    print(f"{args.output_dir}: {args.num_images} pictures.")


if __name__ == "__main__":
    main()
