#!/usr/bin/env python3
"""Brings weights of Detectron2, or an ImageNet backbone, into a run directory, or back.

    python tools/convert_weights.py --weights=model_final.pkl --run_dir=runs/converted \\
      --flagfile=configs/coco/panoptic_fpn_r50_3x_detectron2.flags
    python tools/convert_weights.py --to=detectron2 --run_dir=runs/mine --weights=mine.pkl

Evaluation, export and prediction take the run directory, and so does --init_weights in training.
Backbones: Detectron2's R-50.pkl, R-101.pkl, X-101-32x8d.pkl, torchvision's .pth, or
--weights=imagenet for Keras' ResNets.
Nothing in a file is executed.
"""

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError

DIRECTIONS = ("run_dir", "detectron2")

flags.DEFINE_string("run_dir", "", "Run directory to write; with --to=detectron2 to read.")
flags.DEFINE_string(
    "weights", "", "File (.pkl, .pth) or imagenet; with --to=detectron2 the .pkl to write."
)
flags.DEFINE_string(
    "to", "run_dir", "run_dir: read --weights, write --run_dir; detectron2: the other way."
)
flags_lib.define_config_flags()


@cli.command
def main():
    from pfpn_tf.weights import convert

    given = flags.FLAGS
    if given.to not in DIRECTIONS:
        raise UserError(f"--to={given.to} must be one of {', '.join(DIRECTIONS)}.")
    flags_lib.check_given(["weights", "run_dir"])
    if given.to == "detectron2":
        convert.to_detectron2(given.run_dir, given.weights)
    else:
        config = flags_lib.config_from_flags()
        if not config.data.dataset_info:
            raise UserError(
                "--dataset_info is required: the classes that the weights know, e.g. "
                "configs/coco/dataset_info.json."
            )
        convert.to_run_dir(given.weights, config, given.run_dir)


if __name__ == "__main__":
    main()
