"""COCO average precision of boxes and masks: pycocotools' numbers, computed by hotcoco.

The area of an object decides whether it counts for APs, APm or APl. pycocotools takes the box area
of a mask result that also carries a box; here masks are always measured by their pixels. It also
treats a match with the annotation of id 0 as no match; here all ids count alike.
"""

import copy
from typing import Any, Dict, Iterable, List

import hotcoco
import numpy as np

_KEYS = {"bbox": "bbox", "segm": "segmentation"}


class AveragePrecision:
    """COCO's twelve numbers and the AP of each class, over any number of images: of each only
    scores and matches are kept, no masks.
    """

    def __init__(self, categories: Iterable[Dict[str, Any]], iou_type: str):
        """Args: categories: COCO categories of the things. iou_type: "bbox" or "segm"."""
        self._key = _KEYS[iou_type]
        # hotcoco's ids are integers: here the place of a category in the order of the ids.
        self._classes = {c: n for n, c in enumerate(sorted({c["id"] for c in categories}))}
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

        placed = [{**image, "id": place} for place, image in images.items()]
        self._matches.update(placed, kept(annotations, "area", "iscrowd"), kept(results, "score"))

    def merge(self, other: "AveragePrecision") -> None:
        """Adds the images of another accumulator with the same categories."""
        self._matches = hotcoco.StreamingEval.merge([self._matches, other._matches])

    def result(self) -> Dict[str, Any]:
        """The numbers of the images so far.

        Returns:
          AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and AR (= AR100) as
          fractions, -1 where there is no ground truth, as pycocotools has it; `per_class`: by
          category id AP, AP50, AP75, None without ground truth.
        """
        evaluation: Any = copy.copy(self._matches).finalize()
        evaluation.accumulate()
        evaluation.summary_lines()  # computes the numbers without printing them
        stats = dict(zip(evaluation.metric_keys(), evaluation.stats.tolist()))
        # From IoU threshold, recall, class, area and detections: [10, 101, K].
        precision = evaluation.eval["precision"][..., 0, -1]
        parts = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
        per_class = {
            str(category_id): {name: _mean(part[..., n]) for name, part in parts.items()}
            for category_id, n in self._classes.items()
        }
        return {**stats, "AR": stats["AR100"], "per_class": per_class}


def _mean(values):
    known = values[values > -1]
    return float(np.mean(known)) if known.size else None
