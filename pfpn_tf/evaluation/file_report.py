"""The report page about prediction files: best and worst images, drawn from the files
themselves.
"""

import os
from typing import Any, Dict

import cv2
import numpy as np

from pfpn_tf.data import panoptic_png
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import html_report
from pfpn_tf.utils.errors import UserError

_GREY = 205  # Stands for the photo where there is none.


class FileReport:
    """Draws the images at either end while they are scored, then writes page and confusion
    picture.
    """

    def __init__(
        self, gt: Dict[str, Any], gt_json: str, gt_dir: str, pred_dir: str, image_dir: str = ""
    ):
        """Prepares the gallery.

        Args:
          gt: content of the ground truth's COCO panoptic JSON.
          gt_json: its path, for errors.
          gt_dir, pred_dir: folders of the PNGs.
          image_dir: folder of the photos; empty: maps are drawn without them.

        Raises:
          UserError: the categories cannot be drawn, or the folder of the photos does not exist.
        """
        if image_dir and not os.path.isdir(image_dir):
            raise UserError(f"--image_dir={image_dir}: no such folder.")
        self._info = DatasetInfo.from_coco_categories(gt["categories"], source=gt_json)
        self._gt_json, self._gt_dir, self._pred_dir, self._image_dir = (
            gt_json,
            gt_dir,
            pred_dir,
            image_dir,
        )
        self._photos = {image["id"]: image.get("file_name") for image in gt.get("images", [])}
        self._gallery = html_report.Gallery(self._info)

    def add(
        self, position: int, gt: Dict[str, Any], pred: Dict[str, Any], tally: html_report.Tally
    ) -> None:
        """Adds one scored image.

        Args:
          position: of the image in the ground truth.
          gt, pred: its COCO panoptic annotations.
          tally: of its segments.

        Raises:
          UserError: its photo is missing.
        """

        def read():
            image_id = gt["image_id"]
            gt_ids = panoptic_png.read(self._gt_dir, gt["file_name"], image_id, "ground-truth")
            pred_ids = panoptic_png.read(self._pred_dir, pred["file_name"], image_id, "prediction")
            # Ground truth of a category that the JSON does not list counts for nothing.
            known = [s for s in gt["segments_info"] if s["category_id"] in self._info.by_id]
            return (
                self._photo(image_id, gt_ids.shape),
                (gt_ids, known),
                (pred_ids, pred["segments_info"]),
            )

        self._gallery.add(position, f"Image {gt['image_id']}", tally, read)

    def write(
        self, output_dir: str, metrics: Dict[str, Any], category_ids, confusion: np.ndarray
    ) -> None:
        """Writes report.html and confusion.png.

        Args:
          output_dir: made if need be.
          metrics: with `panoptic`.
          category_ids: of the rows of `confusion`.
          confusion: [C, C + 1] pixels, void last.
        """
        rows = [list(category_ids).index(category.id) for category in self._info.categories]
        confusion = confusion[rows][:, [*rows, len(rows)]]
        html_report.write(output_dir, metrics, self._info, self._gallery, confusion)

    def _photo(self, image_id, hw):
        if not self._image_dir:
            return np.full((*hw, 3), _GREY, np.uint8)
        file_name = self._photos.get(image_id)
        path = os.path.join(self._image_dir, str(file_name))
        photo = (
            cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if file_name
            else None
        )
        if photo is None:
            where = (
                f"{path} cannot be read"
                if file_name
                else f"{self._gt_json} does not name its photo"
            )
            raise UserError(f"Image {image_id}: {where}; leave --image_dir out to draw maps alone.")
        return cv2.resize(photo, hw[::-1], interpolation=cv2.INTER_AREA)[..., ::-1]
