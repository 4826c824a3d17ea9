"""COCO average precision of boxes and masks, by pycocotools.

The area of an object decides whether it counts for APs, APm or APl. pycocotools takes the box area
of a mask result that also carries a box; here masks are always measured by their pixels.
"""

import array
import contextlib
import io
import math
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def kinds_of(results: Sequence[Dict[str, Any]]) -> List[str]:
    """Which of pycocotools' "bbox" and "segm" the results can be scored for: every entry has to
    carry it.
    """
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
      ValueError: names the list and entry.
    """
    keys = {
        "images": ("id",),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id",),
    }
    for key, needed in keys.items():
        if not isinstance(gt, dict) or not isinstance(gt.get(key), list):
            raise ValueError(f'{name} has no list "{key}".')
        for index, entry in enumerate(gt[key]):
            for field in needed:
                if not isinstance(entry, dict) or not isinstance(
                    entry.get(field), (int, float, str)
                ):
                    raise ValueError(f'{name}: {key}[{index}] has no usable "{field}".')


def check_results(results: Any, gt: Dict[str, Any], name: str) -> None:
    """Checks COCO instance results against the ground truth they belong to.

    Args:
      results: content of a results JSON.
      gt: content of a COCO instances JSON.
      name: what an error calls the results.

    Raises:
      ValueError: names the entry, its image and what is wrong.
    """
    if not isinstance(results, list):
        hint = (
            " It is an object: is it a panoptic or annotation file?"
            if isinstance(results, dict)
            else ""
        )
        raise ValueError(f"{name} must be a list of results.{hint}")
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in gt["images"]}
    for index, result in enumerate(results):
        where = f"{name}: entry {index}"
        if not isinstance(result, dict):
            raise ValueError(f"{where} is not an object.")
        for key in ("image_id", "category_id", "score"):
            if key not in result:
                raise ValueError(f'{where} has no "{key}".')
        where += f" (image {result['image_id']})"
        if isinstance(result["image_id"], (list, dict)) or result["image_id"] not in sizes:
            raise ValueError(f"{where}: the ground truth has no such image.")
        if isinstance(result["category_id"], (list, dict)):
            raise ValueError(f"{where}: category_id {result['category_id']!r} is not a number.")
        if not _is_number(result["score"]):
            raise ValueError(f"{where}: score {result['score']!r} is not a finite number.")
        if not _has_box(result) and "segmentation" not in result:
            raise ValueError(f'{where} has neither "bbox" nor "segmentation".')
        if _has_box(result):
            _check_box(result["bbox"], where)
        if "segmentation" in result:
            _check_mask(result["segmentation"], sizes[result["image_id"]], where)


def _has_box(result):
    """pycocotools takes an empty list for no box; mask results often carry one."""
    return result.get("bbox", []) != []


def _check_box(box, where):
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise ValueError(f"{where}: bbox {box!r} must be four finite numbers x, y, width, height.")


def _check_mask(mask, size, where):
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        raise ValueError(
            f'{where}: the segmentation must be compressed RLE, an object with "size" and a text'
            ' "counts"; pycocotools scores no polygons or uncompressed RLE.'
            " pycocotools.mask.frPyObjects converts them."
        )
    height_width = mask.get("size")
    if not isinstance(height_width, list) or len(height_width) != 2:
        raise ValueError(f'{where}: the segmentation has no "size", height and width.')
    if None not in size and height_width != list(size):
        raise ValueError(
            f"{where}: the mask has size {height_width}, the image {list(size)} (height, width)."
        )
    if _num_pixels(mask["counts"]) != height_width[0] * height_width[1]:
        raise ValueError(
            f"{where}: the segmentation's counts do not add up to its size {height_width}."
        )


def _num_pixels(counts: str) -> int:
    """Pixels that compressed RLE covers, zeros included; -1 if it is malformed.

    A number is a little-endian row of 5-bit digits, each in a character from "0" on; 32 marks that
    more follow, 16 in the last one a negative number. From the third on a run is stored as its
    difference from the one two before.
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not digits.size:
        return 0
    ends = np.flatnonzero(digits < 32)
    if digits.min() < 0 or digits.max() > 63 or not ends.size or ends[-1] != digits.size - 1:
        return -1
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        return -1
    place = np.arange(digits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= ((digits[ends] >> 4) & 1) << (5 * lengths)
    runs = np.concatenate([numbers[:1], np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])])
    return int(runs.sum()) if runs.min() >= 0 else -1


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def average_precision(
    gt: Dict[str, Any], results: List[Dict[str, Any]], iou_type: str
) -> Dict[str, Any]:
    """COCO's twelve numbers and the AP of each class.

    Args:
      gt: content of a COCO instances JSON; not changed.
      results: COCO results with `bbox` or `segmentation`; not changed.
      iou_type: "bbox" or "segm".

    Returns:
      AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and AR (= AR100) as fractions,
      -1 where there is no ground truth, as pycocotools has it; `per_class`: by category id AP,
      AP50, AP75, None without ground truth.

    Raises:
      ValueError: the ground truth lacks what this type needs.
    """
    evaluation = _evaluate(gt, results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return _summary(evaluation)


class AveragePrecision:
    """The same numbers image by image: of each image only scores and match flags are kept, no
    masks.
    """

    def __init__(self, categories: Sequence[Dict[str, Any]], iou_type: str):
        """Args: categories: COCO categories of the things. iou_type: "bbox" or "segm"."""
        self._categories = sorted(({"id": c["id"]} for c in categories), key=lambda c: c["id"])
        self._iou_type = iou_type
        self._images = {}

    def update(self, image: Dict[str, Any], annotations: List[dict], results: List[dict]) -> None:
        """Adds one image.

        Args:
          image: COCO image entry with id, height, width.
          annotations: COCO annotations of the image.
          results: COCO results of the image.
        """
        gt = {"images": [image], "annotations": annotations, "categories": self._categories}
        evaluation = _evaluate(gt, results, self._iou_type)
        self._images[image["id"]] = _Matches.of(evaluation.evalImgs)

    def merge(self, other: "AveragePrecision") -> None:
        """Adds the images of another accumulator with the same categories."""
        self._images.update(other._images)

    def result(self) -> Dict[str, Any]:
        """See `average_precision`."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(iouType=self._iou_type)
            params = evaluation.params
            params.catIds = [c["id"] for c in self._categories]
            params.imgIds = sorted(self._images)
            num_lists = len(params.catIds) * len(params.areaRng)
            images = [self._images[i] for i in params.imgIds]
            evaluation.evalImgs = _EvalImgs(images, num_lists, len(params.iouThrs))
            evaluation._paramsEval = params
            evaluation.accumulate()
            evaluation.summarize()
        return _summary(evaluation)


class _Matches(NamedTuple):
    """What COCOeval.accumulate reads of one image, in few kilobytes.

    Entries are the pairs of class and area range with ground truth or detections; most have
    neither.

    Attributes:
      entry_of: number of the entry of each pair in pycocotools' order, -1 where there is none.
      detections: bounds of each entry's part of `scores` and `flags`. objects: of `ignored`.
      scores: of the detections, float64.
      flags: of the detections, uint32; bit t: matched at the t-th IoU threshold, bit 16 + t:
        ignored there.
      ignored: of the ground-truth objects, bool.
    """

    entry_of: array.array
    detections: array.array
    objects: array.array
    scores: np.ndarray
    flags: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of(cls, eval_imgs: Sequence[Any]) -> "_Matches":
        """Packs the list that COCOeval.evaluate has made of one image."""
        entry_of, detections, objects = (
            array.array("i"),
            array.array("i", [0]),
            array.array("i", [0]),
        )
        scores, flags, ignored = [np.zeros(0)], [np.zeros(0, np.uint32)], [np.zeros(0, bool)]
        for entry in eval_imgs:
            entry_of.append(-1 if entry is None else len(detections) - 1)
            if entry is None:
                continue
            matched, dropped = (
                np.asarray(entry[k], bool) for k in ("dtMatches", "dtIgnore")
            )  # [T, D]
            bits = np.arange(len(matched), dtype=np.uint32)[:, None]
            scores.append(np.asarray(entry["dtScores"], np.float64))
            flags.append(np.sum((matched << bits) | (dropped << (bits + 16)), 0, np.uint32))
            ignored.append(np.asarray(entry["gtIgnore"], bool))
            detections.append(detections[-1] + len(scores[-1]))
            objects.append(objects[-1] + len(ignored[-1]))
        return cls(
            entry_of,
            detections,
            objects,
            np.concatenate(scores),
            np.concatenate(flags),
            np.concatenate(ignored),
        )

    def entry(self, pair: int, num_thresholds: int):
        """The entry of a pair of class and area range, as pycocotools has it; None if there is
        none.
        """
        i = self.entry_of[pair]
        if i < 0:
            return None
        part = slice(self.detections[i], self.detections[i + 1])
        bits = np.arange(num_thresholds, dtype=np.uint32)[:, None]
        flags = self.flags[part]
        return {
            "dtScores": self.scores[part],
            "dtMatches": (flags >> bits & 1).astype(bool),
            "dtIgnore": (flags >> (bits + 16) & 1).astype(bool),
            "gtIgnore": self.ignored[self.objects[i] : self.objects[i + 1]].astype(np.uint8),
        }


class _EvalImgs:
    """Stands for COCOeval.evalImgs; unpacks one pair of class and area range at a time."""

    def __init__(self, images, num_pairs, num_thresholds):
        self._images = images
        self._num_pairs = num_pairs
        self._num_thresholds = num_thresholds
        self._pair, self._entries = None, []

    def __len__(self):
        return self._num_pairs * len(self._images)

    def __getitem__(self, index):
        pair, image = divmod(index, len(self._images))
        if pair != self._pair:
            self._pair = pair
            self._entries = [m.entry(pair, self._num_thresholds) for m in self._images]
        return self._entries[image]


def _evaluate(gt, results, iou_type):
    """A COCOeval that has matched the results, image by image; pycocotools' prints are dropped."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt_index = _index(_complete(gt, iou_type))
        # Other keys might make pycocotools take the results for captions or keypoints.
        keys = (
            "image_id",
            "category_id",
            "score",
            "bbox" if iou_type == "bbox" else "segmentation",
        )
        results = [{key: r[key] for key in keys} for r in results]
        if results:
            pred_index = gt_index.loadRes(results)
        else:
            pred_index = _index({**gt_index.dataset, "annotations": []})
        evaluation = COCOeval(gt_index, pred_index, iou_type)
        evaluation.evaluate()
    return evaluation


def _summary(evaluation):
    stats = dict(zip(_STATS, (float(v) for v in evaluation.stats)))
    precision = evaluation.eval["precision"][
        :, :, :, 0, -1
    ]  # [IoU, recall, class]: all areas, 100 detections
    per_class = {
        str(category_id): {
            "AP": _mean(precision[:, :, k]),
            "AP50": _mean(precision[0, :, k]),
            "AP75": _mean(precision[5, :, k]),
        }
        for k, category_id in enumerate(evaluation.params.catIds)
    }
    return {**stats, "AR": stats["AR100"], "per_class": per_class}


def _mean(precision):
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else None


def _index(dataset):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _complete(gt, iou_type):
    """A copy that pycocotools can take: it writes into annotations and needs `iscrowd`."""
    needed = (
        "id",
        "image_id",
        "category_id",
        "area",
        "bbox" if iou_type == "bbox" else "segmentation",
    )
    annotations = []
    for annotation in gt["annotations"]:
        for key in needed:
            if key not in annotation:
                raise ValueError(
                    f"The ground-truth instances JSON: annotation {annotation.get('id')} (image "
                    f'{annotation.get("image_id")}) has no "{key}", which AP needs.'
                )
        annotations.append({"iscrowd": 0, **annotation})
    return {"images": gt["images"], "categories": gt["categories"], "annotations": annotations}
