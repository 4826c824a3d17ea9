"""Chooses the reader of a dataset by what is given, and splits it by the names of its images."""

import hashlib
import os
import re
from typing import Dict

from pfpn_tf.data import categories as categories_lib
from pfpn_tf.data import coco_panoptic, joined, photo_folder
from pfpn_tf.data.given import Given
from pfpn_tf.utils.errors import UserError

_ROBOFLOW = re.compile(r"\.rf\.[0-9a-zA-Z]+(?=\.\w+$)")


# Flag -> what it needs beside it, and what it cannot be together with.
_NEEDS = {"class_map_dir": "class_names", "class_names": "class_map_dir"}
_EXCLUDES = {
    "image_info_json": ("panoptic_json", "instances_json", "class_map_dir", "things"),
    "panoptic_json": ("class_map_dir", "things"),
}
PATHS = ("image_dir", "panoptic_json", "instances_json", "class_map_dir", "image_info_json")
_KINDS = ("panoptic_json", "instances_json", "class_map_dir", "image_info_json")


def open_dataset(given: Given) -> coco_panoptic.CocoImages:
    """The dataset in the format that the given files have.

    Raises:
      UserError: they go together in no format, or one is missing or malformed; says which.
    """
    _check(given)
    source = given.panoptic_json or given.instances_json or given.image_info_json
    given = given._replace(image_dir=given.image_dir or _beside(source))
    if given.image_info_json:
        info_path = os.path.join(given.output_dir, categories_lib.FILE_NAME)
        if not os.path.exists(info_path):
            raise UserError(
                f"{info_path} does not exist. It has to tell the categories, which "
                "--image_info_json does not; convert a split with annotations first."
            )
        info = categories_lib.DatasetInfo.load(info_path)
        return coco_panoptic.CocoImages(given, info)
    if given.panoptic_json:
        return coco_panoptic.CocoPanoptic(given)
    return joined.JoinedDataset(given)


def saw(given: Given, dataset: coco_panoptic.CocoImages) -> str:
    """One line on the format of a dataset and what its records will hold."""
    things, stuff = len(dataset.info.things), len(dataset.info.stuff)
    classes = f"{len(dataset)} images, {things} classes of things and {stuff} of stuff"
    if given.image_info_json:
        return f"Saw: photos without annotations, {len(dataset)} images."
    if given.panoptic_json:
        kind = "COCO panoptic"
        if dataset.has_string_ids:
            kind += " in Cityscapes' layout (createPanopticImgs)"
        beside = " with a COCO instances JSON beside it" if given.instances_json else ""
        return f"Saw: {kind}{beside}, {classes}."
    if given.instances_json and given.class_map_dir:
        return (
            f"Saw: a COCO instances JSON and class maps, {classes}. They are joined into panoptic"
            " truth; where they disagree, the instance's class is taken."
        )
    if given.instances_json:
        use = "Mask R-CNN (--task=instance)" if not stuff else "every task"
        return f"Saw: a COCO instances JSON alone, {classes}, for {use}."
    return (
        f"Saw: class maps alone, {len(dataset)} images, {things + stuff} classes, for Semantic FPN"
        f" (--task=semantic); without a label: {', '.join(given.ignore) or 'nothing'}."
    )


def by_name(
    dataset: coco_panoptic.CocoImages, val_fraction: float
) -> Dict[str, coco_panoptic.CocoImages]:
    """The dataset in two, "train" and "val".

    The hash of its name says where an image goes, so it goes there whatever else the dataset has. A
    larger fraction leaves in "val" what is there. The versions of a photo that Roboflow made go to
    the same side.

    Raises:
      UserError: one of the two is empty.
    """
    sides: Dict[str, list] = {"train": [], "val": []}
    for position, image in enumerate(dataset.images):
        name = _ROBOFLOW.sub("", photo_folder.plain_name(image["file_name"]))
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        sides["val" if number < val_fraction * 2**64 else "train"].append(position)
    for side, positions in sides.items():
        if not positions:
            raise UserError(
                f"--val_fraction={val_fraction:g} puts none of the {len(dataset)} images into"
                f" {side}; choose another fraction, or convert the two splits one by one."
            )
    return {side: dataset.part(positions) for side, positions in sides.items()}


def _check(given):
    present = {name for name, value in given._asdict().items() if value}
    if not present.intersection(_KINDS):
        raise UserError(
            "Give the annotations: --panoptic_json, --instances_json, --class_map_dir with"
            " --class_names, or the last two kinds together; --helpshort tells more."
        )
    for name, others in _EXCLUDES.items():
        found = [other for other in others if other in present]
        if name in present and found:
            why = "is for images without annotations"
            if name == "panoptic_json":
                why = "has stuff, and says what is a thing, itself"
            raise UserError(
                f"--{name} {why}; leave out --{' and --'.join(found)}, or leave out this."
            )
    for name, needed in _NEEDS.items():
        if name in present and needed not in present:
            raise UserError(f"--{name} needs --{needed} beside it; --helpshort tells what it is.")
    if "image_dir" not in present and not present.intersection(_KINDS) - {"class_map_dir"}:
        raise UserError("--image_dir is required: the folder of the photos.")


def _beside(path):
    """Where the photos of a JSON are if nothing is said: in any folder beside it."""
    folder = os.path.dirname(os.path.abspath(path))
    return os.path.dirname(folder) if os.path.basename(folder) == "annotations" else folder
