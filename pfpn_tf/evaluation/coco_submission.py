"""The zip files that COCO's evaluation servers take for test images, which have no public ground
truth.

The servers tell submissions by name: TASK_SPLIT2017_ALGORITHM_results.zip. That of the panoptic
task holds the JSON and the folder of PNGs under the same name, that of detection (boxes and masks)
the JSON of results.
"""

import os
import re
import zipfile
from typing import List

from pfpn_tf.data import coco_json
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

SPLITS = ("test-dev", "test-challenge")
_YEAR = "2017"


def write(predictions_dir: str, split: str, algorithm: str) -> List[str]:
    """Packs the files of a `predictions.PredictionWriter`.

    Args:
      predictions_dir: holds panoptic.json and panoptic/, or instances.json, or both; the zip files
        go there.
      split: one of `SPLITS`.
      algorithm: a name for the network; what is not a letter, digit, "-" or "_" is dropped from it.

    Returns:
      Paths of the zip files.

    Raises:
      UserError: there are no predictions, or a PNG is missing.
    """
    algorithm = re.sub(r"[^\w-]", "", algorithm, flags=re.ASCII) or "pfpn"
    written = []
    panoptic_json = os.path.join(predictions_dir, "panoptic.json")
    if os.path.exists(panoptic_json):
        written.append(
            _pack(predictions_dir, f"panoptic_{split}{_YEAR}_{algorithm}_results", panoptic_json)
        )
    instances_json = os.path.join(predictions_dir, "instances.json")
    if os.path.exists(instances_json):
        written.append(
            _pack(predictions_dir, f"detections_{split}{_YEAR}_{algorithm}_results", instances_json)
        )
    if not written:
        raise UserError(f"{predictions_dir}: holds no panoptic.json or instances.json to submit.")
    return written


def _pack(directory, name, json_path):
    path = os.path.join(directory, f"{name}.zip")
    content = coco_json.load_json(json_path, "The prediction JSON")
    with atomic_write(path, "wb") as f, zipfile.ZipFile(f, "w") as archive:
        archive.write(json_path, f"{name}.json", zipfile.ZIP_DEFLATED)
        # The folder may hold images of an earlier evaluation as well; those in the JSON count.
        for annotation in content["annotations"] if isinstance(content, dict) else ():
            png = os.path.join(coco_json.png_folder(json_path), annotation["file_name"])
            if not os.path.exists(png):
                raise UserError(
                    f"Image {annotation['image_id']}: {png}, which {json_path} names, does not"
                    " exist."
                )
            archive.write(png, f"{name}/{annotation['file_name']}")  # PNGs are compressed already.
    return path
