#!/usr/bin/env python3
"""Predicts panoptic maps of images or a video with an exported model or a run directory.

    python tools/predict.py --saved_model=models/panoptic/1 --images=photos --output_dir=predictions
    python tools/predict.py --run_dir=runs/r50 --images="a.jpg,more/*.png" --output_dir=predictions
    python tools/predict.py --saved_model=models/panoptic/1 --video=street.mp4 --output_dir=out

Of images: OUTPUT_DIR/predictions.json (COCO panoptic format), its maps in predictions/, overlays in
pictures/; with --contact_sheet one picture of the first three: photo, truth and prediction. Of a
video: NAME_overlay.mp4 and, with --save_predictions, the same files per frame. With --serving_reply
also replies/NAME.json, what TensorFlow Serving's REST interface would answer. With --run_dir any
setting of the run can be given on top. Exit codes: 0 all done, 1 some images could not be read,
drawn or written (the others are done), 2 unusable settings or files.
"""

import os
import sys

from absl import flags

import pfpn_tf
from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError

FLAGS = flags.FLAGS
SOME_FAILED = 1
NUM_SHOWN = 3  # images of the contact sheet

flags.DEFINE_string("run_dir", "", "Run of a training, instead of an exported model.")
flags.DEFINE_string("checkpoint", "", "A step, best, or a path without suffix; empty: the newest.")
flags.DEFINE_string("saved_model", "", "Directory of an exported model.")
flags.DEFINE_list("images", [], "Files, folders (every image in them) or globs, comma-separated.")
flags.DEFINE_string("video", "", "Video file to predict frame by frame, instead of images.")
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_bool("overlays", True, "Also draw each result over its image.")
flags.DEFINE_bool(
    "save_predictions", True, "Write COCO's format; of a video only if this is given."
)
flags.DEFINE_bool(
    "serving_reply", False, "Also write what TensorFlow Serving's REST interface replies."
)
flags.DEFINE_string(
    "contact_sheet", "", "PNG or JPEG file to write: photos and maps of the first three images."
)
flags.DEFINE_string("panoptic_json", "", "COCO panoptic JSON with the truth for --contact_sheet.")
flags_lib.define_config_flags()


@cli.command
def main():
    if bool(FLAGS.saved_model) == bool(FLAGS.run_dir):
        raise UserError("Give --saved_model for an exported model, or --run_dir for a training.")
    if bool(FLAGS.images) == bool(FLAGS.video):
        raise UserError("Give --images (files, folders or globs), or --video (one file).")
    if FLAGS.images and not FLAGS.save_predictions:
        raise UserError(
            "--nosave_predictions is of --video; of images COCO's format is always written."
        )
    flags_lib.check_given(["output_dir"])
    settings = flags_lib.given_settings()
    fixed = [*settings, *(["checkpoint"] if FLAGS.checkpoint else [])]
    if fixed and FLAGS.saved_model:
        raise UserError(
            f"--{fixed[0]} cannot be changed in an exported model; give it to "
            "export_saved_model.py, or use --run_dir."
        )
    check_contact_sheet()
    from pfpn_tf.serving import model as model_lib
    from pfpn_tf.serving import results

    paths = results.find_images(FLAGS.images)
    shown = [os.path.basename(path) for path in paths[:NUM_SHOWN]]
    model_lib.truths(FLAGS.panoptic_json, shown)  # Errors come before the work.
    from pfpn_tf.serving import predictor

    if FLAGS.video:
        video = predictor.Video(FLAGS.video)
    flags_lib.make_output_dir("output_dir")
    source = FLAGS.saved_model or FLAGS.run_dir
    model = pfpn_tf.load(source, FLAGS.checkpoint or None, **settings)
    if FLAGS.video:
        return predict_video(model, video)
    return predict_images(model, paths)


def check_contact_sheet():
    if FLAGS.contact_sheet:
        if not FLAGS.contact_sheet.lower().endswith((".png", ".jpg", ".jpeg")):
            raise UserError(f"--contact_sheet={FLAGS.contact_sheet} must end in .png or .jpg.")
        if FLAGS.video:
            raise UserError("--contact_sheet is of --images; of a video give frames.")
        flags_lib.make_parent("contact_sheet")
    elif FLAGS.panoptic_json:
        raise UserError("--panoptic_json is the truth for --contact_sheet=FILE; give that, too.")


def predict_images(model, paths):
    from pfpn_tf.serving import model as model_lib
    from pfpn_tf.serving import results

    options = FLAGS.overlays, FLAGS.serving_reply
    failures, shown = [], []
    with results.Writer(FLAGS.output_dir, model.info, *options) as writer:
        for result in model.predict_files(paths, writer):
            if isinstance(result, results.Failure):
                failures.append(result)
            elif FLAGS.contact_sheet and len(shown) < NUM_SHOWN:
                shown.append(result)
    if shown:
        sheet = model_lib.contact_sheet(shown, FLAGS.panoptic_json)
        sheet.save(FLAGS.contact_sheet, quality=92)  # PNG has none.
    for failure in failures:
        print(f"Skipped {failure.path}: {failure.reason}", file=sys.stderr)
    print(f"Wrote {len(paths) - len(failures)} of {len(paths)} predictions to {FLAGS.output_dir}.")
    return SOME_FAILED if failures else 0


def predict_video(model, video):
    from pfpn_tf.serving import predictor, results

    (name,) = results.unique_names([FLAGS.video]).values()
    count = predictor.predict_video(
        model,
        video,
        name,
        FLAGS.output_dir,
        FLAGS.overlays,
        FLAGS["save_predictions"].present and FLAGS.save_predictions,
        FLAGS.serving_reply,
    )
    print(f"Wrote {count} frames to {FLAGS.output_dir}.")


if __name__ == "__main__":
    main()
