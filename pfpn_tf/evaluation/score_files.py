"""Scores panoptic prediction files against ground-truth files; needs no model and no TensorFlow.

Threads read and decode the maps and count their pixels, nearly all of which runs outside of
Python's lock; the matching of segments, a hundredth of the work, stays in the caller's thread.
"""

import collections
import functools
import json
import os
from concurrent import futures
from typing import Any, Dict

import cv2
import numpy as np

from pfpn_tf.data import coco_json, panoptic_png
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.record import Notes
from pfpn_tf.evaluation import html_report
from pfpn_tf.evaluation.gallery import Gallery
from pfpn_tf.evaluation.panoptic_quality import PanopticQuality
from pfpn_tf.evaluation.segment_pairs import SegmentPairs, segment_pairs
from pfpn_tf.evaluation.semantic_iou import SemanticIoU
from pfpn_tf.utils import process, progress
from pfpn_tf.utils.errors import UserError

_SIDES = "ground-truth", "prediction"
_GREY = 205  # Stands for the photo where there is none.


class PanopticFiles:
    """Panoptic ground truth and prediction of the same images, read and checked."""

    def __init__(
        self, gt_json: str, gt_dir: str, pred_json: str, pred_dir: str, max_images: int = 0
    ):
        """Reads the JSON files and looks for the PNGs.

        Args:
          gt_json, pred_json: COCO panoptic JSON files.
          gt_dir, pred_dir: folders of their PNGs; empty: the JSON's path without ".json".
          max_images: take only the first images of the ground truth; 0: all.

        Raises:
          UserError: a file is missing or malformed; names image, file and segment.
        """
        gt = coco_json.load_panoptic_json(gt_json, "ground-truth", with_categories=True)
        pred = coco_json.load_panoptic_json(pred_json, "prediction", with_categories=False)
        self._gt_json = gt_json
        self._directories = (
            gt_dir or coco_json.png_folder(gt_json),
            pred_dir or coco_json.png_folder(pred_json),
        )
        for what, directory in zip(_SIDES, self._directories):
            if not os.path.isdir(directory):
                raise UserError(f"The folder of the {what} PNGs {directory} does not exist.")
        self.categories = list({c["id"]: c for c in gt["categories"]}.values())
        images = gt.get("images")
        self._photos = {
            str(image.get("id")): coco_json.text(image.get("file_name"))
            for image in (images if isinstance(images, list) else ())
            if isinstance(image, dict)
        }
        scored = {**gt, "annotations": gt["annotations"][: max_images or None]}
        self._pairs = _pair(scored, pred, gt_json, pred_json)
        self._notes = _notes_on_files(gt, pred) + _notes_on_segments(self._pairs, self.categories)
        for pair in self._pairs:
            for directory, annotation, what in zip(self._directories, pair, _SIDES):
                path = coco_json.existing_path(directory, annotation["file_name"])
                if not os.path.isfile(path):
                    _read_map(directory, annotation, what)  # Says why it cannot.

    def score(
        self, num_threads: int = 0, output_dir: str = "", image_dir: str = ""
    ) -> Dict[str, Any]:
        """Scores the images.

        Args:
          num_threads: threads to use; 0: one per CPU.
          output_dir: where to write report.html and confusion.png; empty: nowhere.
          image_dir: folder of the photos, for the report; empty: it shows the maps alone.

        Returns:
          `panoptic`: see `PanopticQuality.result`; `semantic`: see `SemanticIoU.result`; `notes`:
            what to know about the numbers.

        Raises:
          UserError: a PNG is damaged or contradicts its JSON; names image, file and segment.
        """
        info = self._drawing_info(image_dir) if output_dir else None
        gallery = Gallery(info) if info else None
        quality, iou = PanopticQuality(self.categories), SemanticIoU.of_categories(self.categories)
        process.keep_freed_memory()
        pool = futures.ThreadPoolExecutor(num_threads or process.num_cores())
        try:
            counted = zip(self._pairs, pool.map(self._count, self._pairs))
            for position, ((gt, pred), pairs) in enumerate(
                progress.Bar("Evaluating", len(self._pairs), "image", counted)
            ):
                segments = gt["segments_info"], pred["segments_info"]
                matches = quality.update(pairs, *segments, self._where(gt, pred))
                iou.update(pairs, *segments)
                if gallery:
                    read = functools.partial(self._picture_parts, gt, pred, image_dir)
                    gallery.add(position, f"Image {gt['image_id']}", matches, read)
        finally:
            pool.shutdown(cancel_futures=True)
        metrics = {
            "panoptic": quality.result(),
            "semantic": iou.result(),
            "notes": quality.notes() + self._notes,
        }
        if info and gallery:
            order = [c["id"] for c in self.categories]
            rows = [order.index(category.id) for category in info.categories]
            confusion = iou.confusion[rows][:, [*rows, len(rows)]]
            html_report.write(output_dir, metrics, info, gallery, confusion)
        return metrics

    def _count(self, pair) -> SegmentPairs:
        """Counts the pixels of a ground-truth and a predicted annotation."""
        gt_map, pred_map = map(_read_map, self._directories, pair, _SIDES)
        if gt_map.shape != pred_map.shape:
            raise UserError(
                f"{self._where(*pair)} is {pred_map.shape[0]} x {pred_map.shape[1]} (height x"
                f" width), the ground truth {pair[0]['file_name']} is {gt_map.shape[0]} x"
                f" {gt_map.shape[1]}; predict at the original image size."
            )
        return segment_pairs(gt_map, pred_map)

    def _where(self, gt, pred):
        path = os.path.join(self._directories[1], pred["file_name"])
        return f"Image {gt['image_id']}: prediction {path}"

    def _drawing_info(self, image_dir):
        """The categories as the report draws them; all photos are there if there is a folder."""
        if image_dir and not os.path.isdir(image_dir):
            raise UserError(f"--image_dir={image_dir}: no such folder.")
        for gt, _ in self._pairs if image_dir else ():
            self._photo(image_dir, gt["image_id"])
        return DatasetInfo.from_coco_categories(self.categories, source=self._gt_json)

    def _picture_parts(self, gt, pred, image_dir):
        """Photo, ground truth and prediction of an image, as `Gallery.add` reads them."""
        gt_ids, pred_ids = map(_read_map, self._directories, (gt, pred), _SIDES)
        photo = np.full((*gt_ids.shape, 3), _GREY, np.uint8)
        if image_dir:
            bgr = self._photo(image_dir, gt["image_id"], gt_ids.shape)
            photo = cv2.resize(bgr, gt_ids.shape[::-1], interpolation=cv2.INTER_AREA)[..., ::-1]
        # Ground truth of a category that the JSON does not list counts for nothing.
        listed = {c["id"] for c in self.categories}
        known = [s for s in gt["segments_info"] if s["category_id"] in listed]
        return photo, (gt_ids, known), (pred_ids, pred["segments_info"])

    def _photo(self, image_dir, image_id, hw=None):
        """The photo of an image, [h, w, 3] uint8 BGR, upright or, if only that has the size `hw` of
        the maps, as it is stored. Without a size only looks whether there is one.
        """
        file_name = self._photos.get(str(image_id))
        path = coco_json.existing_path(image_dir, str(file_name))
        problem, photo = "", None
        if not file_name:
            problem = f"{self._gt_json} does not name its photo"
        elif not os.path.isfile(path):
            problem = f"{path} does not exist"
        elif hw:
            photo = cv2.imread(path, cv2.IMREAD_COLOR)
            problem = f"{path} cannot be read" if photo is None else ""
            if photo is not None and photo.shape[:2] == hw[::-1]:
                stored = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
                photo = stored if stored.shape[:2] == hw else photo
        if problem:
            raise UserError(
                f"Image {image_id}: {problem}; leave --image_dir out to draw maps alone."
            )
        return photo


def _read_map(directory, annotation, what):
    """[h, w] uint32 ids of a panoptic PNG."""
    return panoptic_png.read(directory, annotation["file_name"], annotation["image_id"], what)


def _pair(gt, pred, gt_json, pred_json):
    """Ground-truth annotations with their predictions, checked, by image id; the last prediction of
    an image counts.
    """
    match = coco_json.matcher(a["image_id"] for a in gt["annotations"])
    by_image = {match(a["image_id"]): a for a in pred["annotations"]}
    missing = [a["image_id"] for a in gt["annotations"] if a["image_id"] not in by_image]
    if missing:
        more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
        raise UserError(
            f"Image {json.dumps(missing[0])}{more}: the prediction JSON {pred_json} has no"
            f" annotation with this image_id (the ground truth is {gt_json})."
        )
    check = coco_json.checked_annotation
    return [
        (
            check(annotation, gt_json, "ground-truth", sizes=True),
            check(by_image[annotation["image_id"]], pred_json, "prediction"),
        )
        for annotation in gt["annotations"]
    ]


def _notes_on_files(gt, pred):
    """What panopticapi passes over in silence."""
    messages = []
    match = coco_json.matcher(a["image_id"] for a in gt["annotations"])
    predicted = [match(a["image_id"]) for a in pred["annotations"]]
    unused = predicted.count(None)
    if unused:
        messages.append(
            f"{unused} predicted images are not in the ground truth and were not scored."
        )
    known = [i for i in predicted if i is not None]
    repeated = len(known) - len(set(known))
    if repeated:
        messages.append(
            f"{repeated} predictions are for an image listed before; the last of an image counts."
        )
    twice_true = len(gt["annotations"]) - len({match(a["image_id"]) for a in gt["annotations"]})
    if twice_true:
        messages.append(
            f"{twice_true} ground-truth annotations are for an image listed before; each counts."
        )
    twice = [i for i, n in collections.Counter(c["id"] for c in gt["categories"]).items() if n > 1]
    if twice:
        messages.append(f"Category {twice[0]} is listed more than once; the last entry counts.")
    renamed = _renamed_category(gt["categories"], pred.get("categories"))
    if renamed:
        messages.append(
            "Category {} is {!r} in the prediction JSON, {!r} in the ground truth; the ground"
            " truth's counts. Do both use the same ids?".format(*renamed)
        )
    return messages


def _notes_on_segments(pairs, categories):
    """What `PanopticQuality` passes over in silence, as panopticapi does."""
    notes, listed = Notes(), {c["id"] for c in categories}
    for gt, _ in pairs:
        for segment in gt["segments_info"]:
            if segment["category_id"] not in listed:
                notes.add(
                    "ground-truth segments do not count, as the JSON does not list their category",
                    f"image {gt['image_id']}, segment {segment['id']}, category"
                    f" {segment['category_id']}",
                )
    for what, annotations in zip(("ground-truth", "predicted"), zip(*pairs)):
        for annotation in annotations:
            counts = collections.Counter(s["id"] for s in annotation["segments_info"])
            for segment_id in (i for i, n in counts.items() if n > 1):
                notes.add(
                    f"{what} segments are listed more than once; the last entry counts",
                    f"image {annotation['image_id']}, segment {segment_id}",
                )
    return notes.lines()


def _renamed_category(gt_categories, pred_categories):
    """(id, name in the prediction, name in the ground truth) of the first category that differs, or
    None.
    """
    names = {c["id"]: c.get("name") for c in gt_categories}
    for category in pred_categories if isinstance(pred_categories, list) else ():
        if isinstance(category, dict) and isinstance(category.get("id"), (int, str)):
            category_id, name = category["id"], category.get("name")
            if names.get(category_id, name) != name:
                return category_id, name, names[category_id]
    return None
