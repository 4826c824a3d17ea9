#!/usr/bin/env python3
"""Exports a trained network as a SavedModel with preprocessing and panoptic fusion inside.

    python export/export_saved_model.py --run_dir=runs/r50 --export_dir=models/panoptic/1

The settings are those of the run; any can be given on top: --fusion_score_threshold,
--fusion_stuff_area_threshold_px, --eval_min_side, --max_image_pixels, --allowed_batch_sizes, ...
The last part of --export_dir is the version number for TensorFlow Serving, the one before it the
model's name. With the model come warm-up requests and batching parameters; see export/README.md.
--verbosity=1 lists inputs and outputs of each signature. Needs the extra `serving`. Exit codes: 0
done, 2 unusable settings or files.
"""

import os

from absl import flags, logging

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli

FLAGS = flags.FLAGS

flags.DEFINE_string("run_dir", "", "Run to export: the --run_dir of a training.")
flags.DEFINE_string("checkpoint", "", "A step, best, or a path without suffix; empty: the newest.")
flags.DEFINE_string("export_dir", "", "Directory to make: NAME/VERSION, e.g. models/panoptic/1.")
flags_lib.define_config_flags()


@cli.command
def main():
    flags_lib.check_files(["run_dir"])
    flags_lib.check_given(["export_dir"])
    from pfpn_tf.serving import exporter

    exporter.check_target(FLAGS.export_dir)
    settings = flags_lib.given_settings()
    precision = settings.pop("precision", "float32")  # of the export, whatever the training's was
    module = exporter.load_module(FLAGS.run_dir, FLAGS.checkpoint, settings, precision)
    signatures = exporter.export(module, FLAGS.export_dir)
    print(f"Wrote {FLAGS.export_dir} with the signatures {', '.join(sorted(signatures))}.")
    for name, function in sorted(signatures.items()):
        logging.debug("%s%s", name, function.pretty_printed_signature(verbose=False))
    version = os.path.basename(os.path.abspath(FLAGS.export_dir))
    if not version.isdigit():
        print(f"TensorFlow Serving will want a whole number instead of {version} for a version.")


if __name__ == "__main__":
    main()
