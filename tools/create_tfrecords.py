#!/usr/bin/env python3
"""Turns a dataset into TFRecords. Says what it saw; what is not given here stands in the flags.

COCO panoptic (and Cityscapes: createPanopticImgs' JSON and --image_dir=leftImg8bit/val), for every
task; the instances JSON of the same images adds overlaps and crowds:

    python tools/create_tfrecords.py --split=val --output_dir=data/coco \\
        --panoptic_json=annotations/panoptic_val2017.json --image_dir=val2017 \\
        --instances_json=annotations/instances_val2017.json

A COCO instances JSON alone, for Mask R-CNN, as CVAT, Label Studio, Roboflow, labelme2coco and
FiftyOne export it; it is split by the names of the images:

    python tools/create_tfrecords.py --val_fraction=0.1 --output_dir=data/mine \\
        --instances_json=export/result.json

Class maps alone, a PNG for each photo, for Semantic FPN; with the two joined Panoptic FPN:

    python tools/create_tfrecords.py --val_fraction=0.1 --output_dir=data/mine \\
        --class_map_dir=labels --class_names=classes.txt --image_dir=photos

Writes train-*.tfrecord, ... and beside them, for all splits of the dataset, dataset_info.json,
dataset.html (a page to look at: classes, sizes, samples, warnings) and recipe.flags (settings to
train with). Images without annotations join a dataset that is already there:

    python tools/create_tfrecords.py --split=test-dev --output_dir=data/coco \\
        --image_info_json=annotations/image_info_test-dev2017.json --image_dir=test2017
"""

from absl import flags

from pfpn_tf import flags as flags_lib
from pfpn_tf.utils import cli  # before TensorFlow
from pfpn_tf.utils.errors import UserError

flags.DEFINE_string("panoptic_json", "", "COCO panoptic JSON.")
flags.DEFINE_string(
    "panoptic_dir",
    "",
    "Folder of the PNGs of --panoptic_json. Empty: the path of that, without .json.",
)
flags.DEFINE_string(
    "instances_json", "", "COCO instances JSON, alone or of the same images as the other files."
)
flags.DEFINE_string(
    "class_map_dir",
    "",
    "Folder of class maps: PNGs that have the names of the photos and hold the class of each pixel,"
    " as grey value, as index of a palette, or as a colour that --class_names tells.",
)
flags.DEFINE_list(
    "class_names",
    [],
    "Classes of the class maps: names from value 0 on, comma-separated, or a file: a name a line, a"
    " CSV name,r,g,b, CVAT's labelmap.txt, or JSON.",
)
flags.DEFINE_list(
    "things",
    [],
    "Names of the classes that are things, comma-separated. Empty: all of --instances_json.",
)
flags.DEFINE_list(
    "ignore", ["255"], "Values, or names of classes, of the pixels of class maps without a label."
)
flags.DEFINE_string("image_info_json", "", "Of images without annotations: a COCO JSON of images.")
flags.DEFINE_string(
    "image_dir", "", "Folder of the photos. Empty: they are in folders beside the JSON."
)
flags.DEFINE_list("image_ids", [], "Use only the images with these ids, comma-separated.")
flags.DEFINE_string("output_dir", "", "Folder to write to; made if need be.")
flags.DEFINE_string("split", "", "Name of the split: train, val, ...")
flags.DEFINE_float(
    "val_fraction",
    0.0,
    "Instead of --split: the share of the images that becomes split val, the others train. The"
    " name of an image alone says where it goes.",
)
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
flags.DEFINE_bool("crowds", True, "Believe iscrowd; otherwise each instance is a single object.")
flags.DEFINE_bool(
    "allow_mismatch",
    False,
    "Only warn of data that contradict themselves: annotations of unlisted images, objects that are"
    " all crowds, ...",
)


@cli.command
def main():
    from pfpn_tf.data import coco_json, convert, overview, sources

    args = flags.FLAGS
    given = sources.Given(**{name: getattr(args, name) for name in sources.Given._fields})
    flags_lib.check_given(["output_dir"])
    if bool(args.split) == bool(args.val_fraction):
        raise UserError("Give --split=NAME, or --val_fraction=0.1 for the splits train and val.")
    if not 0 <= args.val_fraction < 1:
        raise UserError(f"--val_fraction={args.val_fraction:g} must be between 0 and 1.")
    flags_lib.check_files([name for name in sources.PATHS if getattr(args, name)])
    if "," in args.output_dir:  # The settings of the recipe take it for two paths.
        raise UserError(f"--output_dir={args.output_dir} must be a path without a comma.")
    for name in ("num_shards", "num_workers", "epochs"):
        if not 0 <= getattr(args, name) <= 1_000_000:
            raise UserError(f"--{name}={getattr(args, name)} must be 0 to 1000000.")
    dataset = sources.open_dataset(given)
    print(sources.saw(given, dataset))
    splits = {args.split: dataset}
    if args.val_fraction:
        splits = sources.by_name(dataset, args.val_fraction)
        sizes = " and ".join(f"{len(part)} to {name}" for name, part in splits.items())
        print(f"Split by the names of the images: {sizes}.")
    flags_lib.make_output_dir("output_dir")
    try:
        converted = convert.convert_splits(
            splits, args.output_dir, args.num_shards, args.num_workers, args.skip_bad
        )
    except coco_json.DataError as error:
        raise UserError(f"{error} Correct it, or leave out what is broken: --skip_bad.") from None
    for split, counts in converted.items():
        print(
            f"{args.output_dir}: {split}: {counts['images']} images "
            f"({counts['skipped']} skipped), {counts['instances']} instances, "
            f"{counts['crowds']} crowds, {counts['segments']} segments "
            f"({counts['crowd_segments']} crowd regions) in {counts['shards']} shards."
        )
    overview.write(args.output_dir, args.epochs, converted)


if __name__ == "__main__":
    main()
