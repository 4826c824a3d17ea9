#!/usr/bin/env python3
"""Brings weights of Detectron2, MMDetection or an ImageNet backbone into a run directory, or back.

    python tools/convert_weights.py --list
    python tools/convert_weights.py --run_dir=runs/published \\
      --weights=mmdet://panoptic_fpn_r101_fpn_mstrain_3x_coco
    python tools/convert_weights.py --run_dir=runs/theirs --weights=model_final.pkl \\
      --detectron2_config=config.yaml
    python tools/convert_weights.py --to=detectron2 --run_dir=runs/mine --weights=mine.pkl
    python tools/convert_weights.py --to=mmdetection --run_dir=runs/mine --weights=mine.pth

Evaluation, export and prediction take the run directory, and so does --init_weights in training.
A name brings its settings; its file is downloaded once, into $PFPN_TF_CACHE or ~/.cache/pfpn_tf.
Backbones: Detectron2's R-50.pkl, R-101.pkl, X-101-32x8d.pkl, torchvision's .pth, or
--weights=imagenet for Keras' ResNets. Nothing in a file is executed.
"""

from absl import flags

from pfpn_tf import config as config_lib
from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError

flags.DEFINE_string("run_dir", "", "Run directory to write; with another --to, to read.")
flags.DEFINE_string(
    "weights",
    "",
    "File (.pkl, .pth), a name of --list, or imagenet; with another --to, the file to write.",
)
flags.DEFINE_string(
    "detectron2_config", "", "The Detectron2 model's own config.yaml, to take its settings from."
)
flags.DEFINE_bool("list", False, "Print the published models that --weights knows by name.")
flags.DEFINE_string(
    "to", "run_dir", "run_dir: read --weights, write --run_dir; detectron2, mmdetection: back."
)
flags_lib.define_config_flags()


@cli.command
def main():
    from pfpn_tf.weights import convert, detectron2_config, zoo

    given = flags.FLAGS
    if given.list:
        print(zoo.table())
        return
    directions = ("run_dir", *convert.PROJECTS)
    if given.to not in directions:
        raise UserError(f"--to={given.to} must be one of {', '.join(directions)}.")
    flags_lib.check_given(["weights", "run_dir"])
    if given.to != "run_dir":
        convert.from_run_dir(given.run_dir, given.weights, given.to)
    else:
        source, base, checkpoint = None, None, None
        if zoo.is_name(given.weights):
            base = zoo.config(given.weights)
        elif not given.detectron2_config:
            stride = flags_lib.given_settings().get("stride_in_1x1")
            base, checkpoint = convert.known_config(given.weights, stride)
        base = base or config_lib.Config()
        if given.detectron2_config:
            source = detectron2_config.read(given.detectron2_config)
            if source.of_coco:
                base = base.replace(dataset_info=zoo.COCO_INFO)
            base = base.replace(**source.settings)
        config = flags_lib.config_from_flags(base)
        if not config.data.dataset_info:
            raise UserError(
                "--dataset_info is required: the classes that the weights know, e.g. "
                "configs/coco/dataset_info.json."
            )
        convert.to_run_dir(given.weights, config, given.run_dir, source, checkpoint)


if __name__ == "__main__":
    main()
