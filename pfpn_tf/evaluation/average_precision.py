"""COCO average precision of boxes and masks: pycocotools' numbers, computed by hotcoco.

The area of an object decides whether it counts for APs, APm or APl. pycocotools takes the box area
of a mask result that also carries a box; here masks are always measured by their pixels. It also
takes a match with an annotation of id 0 for none; here all ids count alike.
"""

import copy
import math
import re
from typing import Any, Dict, Iterable, List, Sequence

import hotcoco
import numpy as np

from pfpn_tf.utils.errors import UserError

_KEYS = {"bbox": "bbox", "segm": "segmentation"}
# Whole numbers of compressed RLE: the last character of each is at most "O".
_RLE = re.compile("[0-o]*[0-O]")


def kinds_of(results: Sequence[Dict[str, Any]]) -> List[str]:
    """Which of "bbox" and "segm" the results can be scored for: every entry has to carry it."""
    kinds = []
    if all(_has_box(r) for r in results):
        kinds.append("bbox")
    if all("segmentation" in r for r in results):
        kinds.append("segm")
    return kinds


def check_ground_truth(gt: Any, name: str) -> None:
    """Checks the lists of a COCO instances JSON; what a kind of AP needs of annotations is checked
    with it.

    Args:
      gt: content of the JSON.
      name: what an error calls it.

    Raises:
      UserError: names the list and entry.
    """
    keys = {
        "images": ("id",),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id",),
    }
    for key, needed in keys.items():
        if not isinstance(gt, dict) or not isinstance(gt.get(key), list):
            raise UserError(f'{name} has no list "{key}".')
        for index, entry in enumerate(gt[key]):
            for field in needed:
                if not isinstance(entry, dict) or not isinstance(
                    entry.get(field), (int, float, str)
                ):
                    raise UserError(f'{name}: {key}[{index}] has no usable "{field}".')


def check_results(results: Any, gt: Dict[str, Any], name: str) -> None:
    """Checks COCO instance results against the ground truth they belong to.

    Args:
      results: content of a results JSON.
      gt: content of a COCO instances JSON.
      name: what an error calls the results.

    Raises:
      UserError: names the entry, its image and what is wrong.
    """
    if not isinstance(results, list):
        hint = (
            " It is an object: is it a panoptic or annotation file?"
            if isinstance(results, dict)
            else ""
        )
        raise UserError(f"{name} must be a list of results.{hint}")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in gt["images"]}
    for index, result in enumerate(results):
        where = f"{name}: entry {index}"
        if not isinstance(result, dict):
            raise UserError(f"{where} is not an object.")
        for key in ("image_id", "category_id", "score"):
            if key not in result:
                raise UserError(f'{where} has no "{key}".')
        where += f" (image {result['image_id']})"
        if isinstance(result["image_id"], (list, dict)) or result["image_id"] not in sizes:
            raise UserError(f"{where}: the ground truth has no such image.")
        if isinstance(result["category_id"], (list, dict)):
            raise UserError(f"{where}: category_id {result['category_id']!r} is not a number.")
        if not _is_number(result["score"]):
            raise UserError(f"{where}: score {result['score']!r} is not a finite number.")
        if not _has_box(result) and "segmentation" not in result:
            raise UserError(f'{where} has neither "bbox" nor "segmentation".')
        if _has_box(result):
            _check_box(result["bbox"], where)
        if "segmentation" in result:
            _check_mask(result["segmentation"], sizes[result["image_id"]], where)


def _has_box(result):
    """An empty list is no box; mask results often carry one."""
    return result.get("bbox", []) != []


def _check_box(box, where):
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise UserError(f"{where}: bbox {box!r} must be four finite numbers x, y, width, height.")


def _check_mask(mask, size, where):
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        raise UserError(
            f'{where}: the segmentation must be compressed RLE, an object with "size" and a text'
            ' "counts"; pycocotools scores no polygons or uncompressed RLE.'
            " pycocotools.mask.frPyObjects converts them."
        )
    height_width = mask.get("size")
    if not (
        isinstance(height_width, list)
        and len(height_width) == 2
        and all(isinstance(side, int) and side > 0 for side in height_width)
    ):
        raise UserError(f'{where}: the segmentation has no "size", height and width.')
    if None not in size and height_width != list(size):
        raise UserError(
            f"{where}: the mask has size {height_width}, the image {list(size)} (height, width)."
        )
    if not _covers(mask["counts"], height_width[0] * height_width[1]):
        raise UserError(
            f"{where}: the segmentation's counts do not add up to its size {height_width}."
        )


def _covers(counts: str, num_pixels: int) -> bool:
    """Whether the runs of compressed RLE have so many pixels together, neither more nor fewer."""
    # hotcoco refuses a mask with fewer pixels than its runs.
    return bool(_RLE.fullmatch(counts)) and (
        _fits(counts, num_pixels) and not _fits(counts, num_pixels - 1)
    )


def _fits(counts, num_pixels):
    try:
        hotcoco.mask.area({"size": [num_pixels, 1], "counts": counts})
    except (ValueError, OverflowError):
        return False
    return True


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def average_precision(
    gt: Dict[str, Any], results: List[Dict[str, Any]], iou_type: str
) -> Dict[str, Any]:
    """COCO's twelve numbers and the AP of each class.

    Args:
      gt: content of a COCO instances JSON that `check_ground_truth` has passed.
      results: COCO results with `bbox` or `segmentation` that `check_results` has passed.
      iou_type: "bbox" or "segm".

    Returns:
      AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and AR (= AR100) as fractions,
      -1 where there is no ground truth, as pycocotools has it; `per_class`: by category id AP,
      AP50, AP75, None without ground truth.

    Raises:
      UserError: the ground truth lacks what this type needs.
    """
    images = {image["id"]: image for image in gt["images"]}
    for annotation in gt["annotations"]:
        _check_annotation(annotation, images.get(annotation["image_id"], {}), iou_type)
    precision = AveragePrecision(gt["categories"], iou_type)
    try:
        precision.update(
            dict(enumerate(images[i] for i in _sorted(images))), gt["annotations"], results
        )
    except ValueError as error:
        raise UserError(f"The ground-truth instances JSON: {error}") from None
    return precision.result()


class AveragePrecision:
    """The same numbers, a few images at a time: of each image only scores and matches are kept, no
    masks.
    """

    def __init__(self, categories: Iterable[Dict[str, Any]], iou_type: str):
        """Args: categories: COCO categories of the things. iou_type: "bbox" or "segm"."""
        self._key = _KEYS[iou_type]
        # hotcoco's ids are integers: here the place of a category in the order of the ids.
        self._classes = {c: n for n, c in enumerate(_sorted({c["id"] for c in categories}))}
        names = [{"id": n, "name": str(c)} for c, n in self._classes.items()]
        self._matches = hotcoco.StreamingEval(names, iou_type)

    def update(
        self, images: Dict[int, Dict[str, Any]], annotations: List[dict], results: List[dict]
    ) -> None:
        """Adds images. What belongs to other images or unknown categories does not count.

        Args:
          images: by an integer of its own, the COCO entry of each image with id, height, width. Of
            detections with equal scores, those of the image with the lower integer come first;
            pycocotools orders images by id.
          annotations: COCO annotations of the images.
          results: COCO results of the images.
        """
        places = {image["id"]: place for place, image in images.items()}

        def kept(entries, *keys):
            return [
                {
                    "id": n,
                    "image_id": places[entry["image_id"]],
                    "category_id": self._classes[entry["category_id"]],
                    self._key: entry[self._key],
                    **{key: entry.get(key, 0) for key in keys},
                }
                for n, entry in enumerate(entries, 1)
                if entry["image_id"] in places and entry["category_id"] in self._classes
            ]

        sizes = [
            {"id": place, **{side: image[side] for side in ("height", "width") if image.get(side)}}
            for place, image in images.items()
        ]
        self._matches.update(sizes, kept(annotations, "area", "iscrowd"), kept(results, "score"))

    def merge(self, other: "AveragePrecision") -> None:
        """Adds the images of another accumulator with the same categories."""
        self._matches = hotcoco.StreamingEval.merge([self._matches, other._matches])

    def result(self) -> Dict[str, Any]:
        """See `average_precision`."""
        evaluation: Any = copy.copy(self._matches).finalize()
        evaluation.accumulate()
        # IoU threshold, recall, class, area (all, small, medium, large), detections (1, 10, 100).
        precision = evaluation.eval["precision"][..., -1]  # [10, 101, K, 4]
        recall = evaluation.eval["recall"]  # [10, K, 4, 3]
        parts = {
            "AP": precision[..., 0],
            "AP50": precision[0, ..., 0],
            "AP75": precision[5, ..., 0],
            "APs": precision[..., 1],
            "APm": precision[..., 2],
            "APl": precision[..., 3],
            "AR1": recall[..., 0, 0],
            "AR10": recall[..., 0, 1],
            "AR100": recall[..., 0, 2],
            "ARs": recall[..., 1, 2],
            "ARm": recall[..., 2, 2],
            "ARl": recall[..., 3, 2],
        }
        stats = {name: _mean(part, -1.0) for name, part in parts.items()}
        per_class = {
            str(category_id): {
                name: _mean(parts[name][..., n], None) for name in ("AP", "AP50", "AP75")
            }
            for category_id, n in self._classes.items()
        }
        return {**stats, "AR": stats["AR100"], "per_class": per_class}


def _mean(values, otherwise):
    known = values[values > -1]
    return float(np.mean(known)) if known.size else otherwise


def _sorted(ids):
    """Numbers before strings."""
    return sorted(ids, key=lambda i: (isinstance(i, str), i))


def _check_annotation(annotation, image, iou_type):
    where = (
        f"The ground-truth instances JSON: annotation {annotation['id']} (image"
        f" {annotation['image_id']})"
    )
    for key in ("area", _KEYS[iou_type]):
        if key not in annotation:
            raise UserError(f'{where} has no "{key}", which AP needs.')
    if not _is_number(annotation["area"]):
        raise UserError(f"{where}: area {annotation['area']!r} is not a finite number.")
    if annotation.get("iscrowd", 0) not in (0, 1):
        raise UserError(f"{where}: iscrowd {annotation['iscrowd']!r} is neither 0 nor 1.")
    value, size = annotation[_KEYS[iou_type]], (image.get("height"), image.get("width"))
    if iou_type == "bbox":
        _check_box(value, where)
    elif isinstance(value, dict):
        if isinstance(value.get("counts"), str):
            _check_mask(value, (None, None), where)
    elif not value or None in size:
        raise UserError(f"{where}: polygons need corners, and the image its height and width.")
