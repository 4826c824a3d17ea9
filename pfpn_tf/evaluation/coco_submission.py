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

from pfpn_tf.data import predictions
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

SPLITS = ("test-dev", "test-challenge")


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
      UserError: there are no predictions.
    """
    algorithm = re.sub(r"[^\w-]", "", algorithm, flags=re.ASCII) or "pfpn"
    kinds = {"panoptic.json": "panoptic", "instances.json": "detections"}
    written = [
        _pack(predictions_dir, f"{task}_{split}2017_{algorithm}_results", file_name)
        for file_name, task in kinds.items()
        if os.path.exists(os.path.join(predictions_dir, file_name))
    ]
    if not written:
        raise UserError(f"{predictions_dir}: holds no panoptic.json or instances.json to submit.")
    return written


def _pack(directory, name, file_name):
    path, json_path = (os.path.join(directory, n) for n in (f"{name}.zip", file_name))
    with atomic_write(path, "wb") as f, zipfile.ZipFile(f, "w") as archive:
        archive.write(json_path, f"{name}.json", zipfile.ZIP_DEFLATED)
        # The folder may hold images of an earlier evaluation as well; those in the JSON count.
        for entry in predictions.read_entries(json_path) if file_name == "panoptic.json" else ():
            png = os.path.join(directory, "panoptic", entry["file_name"])
            archive.write(png, f"{name}/{entry['file_name']}")  # PNGs are compressed already.
    return path
