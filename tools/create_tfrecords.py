#!/usr/bin/env python3
"""Turns one split of a dataset in COCO panoptic format into TFRecords.

    python tools/create_tfrecords.py --split=val --output_dir=data/coco \\
        --panoptic_json=annotations/panoptic_val2017.json --image_dir=val2017 \\
        --instances_json=annotations/instances_val2017.json

Writes val-*.tfrecord and beside them, for all splits of the dataset, dataset_info.json,
dataset.html (a page to look at: classes, sizes, samples, warnings) and recipe.flags (settings to
train with). For Cityscapes give createPanopticImgs' JSON and --image_dir=leftImg8bit/val. Images
without annotations join a dataset that is already there:

    python tools/create_tfrecords.py --split=test-dev --output_dir=data/coco \\
        --image_info_json=annotations/image_info_test-dev2017.json --image_dir=test2017
"""

import os

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli  # before TensorFlow
from pfpn_tf.utils.errors import UserError

flags.DEFINE_string("panoptic_json", "", "COCO panoptic JSON of the split.")
flags.DEFINE_string(
    "image_info_json", "", "Instead of --panoptic_json: a COCO JSON of images alone."
)
flags.DEFINE_string(
    "panoptic_dir",
    "",
    "Folder of the PNGs of --panoptic_json. Empty: the path of that, without .json.",
)
flags.DEFINE_string("image_dir", "", "Folder of the photos.")
flags.DEFINE_string(
    "instances_json", "", "COCO instances JSON of the same images: overlaps and crowds."
)
flags.DEFINE_list("image_ids", [], "Use only the images with these ids, comma-separated.")
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_string("split", "", "Name of the split: train, val, ...")
flags.DEFINE_integer("num_shards", 0, "Number of TFRecord files; 0: one for every 500 images.")
flags.DEFINE_integer("num_workers", 0, "Processes; 0: one per CPU core.")
flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave broken images and instances out and count them; otherwise the first one stops.",
)
flags.DEFINE_float(
    "epochs",
    0,
    "Epochs of the training that recipe.flags suggests; 0: those that show 400,000 images, but 36 "
    "to 300, and more where these are below 1500 steps.",
)
flags.DEFINE_bool(
    "allow_mismatch",
    False,
    "Only warn of data that contradict themselves: annotations of unlisted images, objects that are"
    " all crowds, ...",
)


@cli.command
def main():
    from pfpn_tf.data import categories, coco_json, coco_panoptic, convert, overview

    args = flags.FLAGS
    if args.image_info_json and (args.panoptic_json or args.instances_json):
        raise UserError(
            "--image_info_json is for images without annotations; leave out --panoptic_json and "
            "--instances_json, or leave out this."
        )
    flags_lib.check_files(
        ["image_info_json" if args.image_info_json else "panoptic_json", "image_dir"]
    )
    flags_lib.check_given(["output_dir", "split"])
    for name in ("num_shards", "num_workers", "epochs"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name}={getattr(args, name)} must be 0 or more.")
    if args.image_info_json:
        info_path = os.path.join(args.output_dir, categories.FILE_NAME)
        if not os.path.exists(info_path):
            raise UserError(
                f"{info_path} does not exist. It has to tell the categories, which "
                "--image_info_json does not; convert a split with annotations first."
            )
        info = categories.DatasetInfo.load(info_path)
        dataset = coco_panoptic.CocoImages(
            args.image_info_json, args.image_dir, info, args.image_ids
        )
    else:
        dataset = coco_panoptic.CocoPanoptic(
            args.panoptic_json,
            args.panoptic_dir or coco_json.png_folder(args.panoptic_json),
            args.image_dir,
            args.instances_json or None,
            args.image_ids,
            args.allow_mismatch,
        )
    flags_lib.make_output_dir("output_dir")
    try:
        counts = convert.convert(
            dataset,
            args.output_dir,
            args.split,
            args.num_shards,
            args.num_workers,
            args.skip_bad,
        )
    except coco_json.DataError as error:
        raise UserError(f"{error} Correct it, or leave out what is broken: --skip_bad.") from None
    print(
        f"{args.output_dir}: {args.split}: {counts['images']} images "
        f"({counts['skipped']} skipped), {counts['instances']} instances, "
        f"{counts['crowds']} crowds, {counts['segments']} segments "
        f"in {counts['shards']} shards."
    )
    overview.write(args.output_dir, args.epochs)


if __name__ == "__main__":
    main()
