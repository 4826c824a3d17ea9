"""Panoptic quality with panopticapi's numbers, counted from runs of equal pixels.

PQ is defined in Kirillov et al., "Panoptic Segmentation". What the definition leaves open follows
panopticapi, the COCO evaluator, to the letter:

- The area of a ground-truth segment is the JSON's, that of a predicted segment its pixels.
- Pixels that are void in the ground truth are taken out of the union; crowd pixels are not.
- Ground-truth ids missing from segments_info are neither void nor a segment.
- Of several crowd segments of a class in an image, only the last listed excuses false positives.
- Of several entries with one id, the last counts.

Speed: an image is a few thousand runs of equal (ground truth, prediction) pixels, and only the runs
are sorted, not the pixels. Sums are exact, so results depend neither on the order of the images nor
on how they are split over processes or replicas.

Shapes: h, w image size · P pairs of overlapping segments.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import cv2
import numpy as np

from pfpn_tf.utils.errors import UserError

VOID = 0
_NUM_IDS = 1 << 24
_MAX_RUN = 1 << 16  # No run may be longer than 16 bits can say.
# An IoU that counts is above 0.5, hence a whole multiple of 2**-53 in double precision: sums of
# these multiples are exact in Python's integers.
_IOU_UNIT = 1 << 53


class Overlaps(NamedTuple):
    """Overlap of ground truth and prediction in one image, by rising ids.

    Attributes:
      gt_ids: [P] int64.
      pred_ids: [P] int64.
      pixels: [P] int64, all above 0.
    """

    gt_ids: np.ndarray
    pred_ids: np.ndarray
    pixels: np.ndarray


def overlaps(gt_ids: np.ndarray, pred_ids: np.ndarray) -> Overlaps:
    """Counts the pixels of each pair of ids.

    Args:
      gt_ids: [h, w] uint32 below 2**24.
      pred_ids: [h, w] uint32 below 2**24.
    """
    gt, pred = gt_ids.reshape(-1), pred_ids.reshape(-1)
    starts_run = np.empty(gt.size, bool)
    np.not_equal(gt[1:], gt[:-1], out=starts_run[1:])
    starts_run[1:] |= pred[1:] != pred[:-1]
    starts_run[::_MAX_RUN] = True
    starts = np.flatnonzero(starts_run)
    return _add_runs(gt[starts], pred[starts], starts, gt.size)


def overlaps_of_pixels(gt_pixels: np.ndarray, pred_pixels: np.ndarray) -> Overlaps:
    """`overlaps` of maps as they are in their PNGs, which saves making ids of all pixels.

    Args:
      gt_pixels: [h, w, 3] uint8, bytes of the id, lowest first.
      pred_pixels: [h, w, 3] uint8.
    """
    gt, pred = gt_pixels.reshape(1, -1, 3), pred_pixels.reshape(1, -1, 3)
    size = gt.shape[1]
    starts = np.zeros(1, np.int64)
    if size > 1:
        # 255 where a byte differs: [1, h * w - 1, 3].
        gt_bytes = cv2.compare(gt[:, 1:], gt[:, :-1], cv2.CMP_NE)
        pred_bytes = cv2.compare(pred[:, 1:], pred[:, :-1], cv2.CMP_NE)
        changed_bytes = cv2.bitwise_or(gt_bytes, pred_bytes, dst=gt_bytes)
        # The weighted sum of three bytes of 0 or 255 is 0 only if all are.
        changed = cv2.cvtColor(changed_bytes, cv2.COLOR_RGB2GRAY)[0]
        changed[_MAX_RUN - 1 :: _MAX_RUN] = 255
        starts = np.concatenate([starts, np.flatnonzero(changed.view(bool)) + 1])
    return _add_runs(_ids_at(gt[0], starts), _ids_at(pred[0], starts), starts, size)


def _ids_at(pixels, positions):
    """Ids of some of the [n, 3] pixels: uint32."""
    padded = np.zeros((len(positions), 4), np.uint8)
    padded[:, :3] = pixels.take(positions, 0)
    return padded.view("<u4")[:, 0]


def _add_runs(gt_ids, pred_ids, starts, size) -> Overlaps:
    """Sums the lengths of runs by pair.

    Args:
      gt_ids, pred_ids: ids in each run.
      starts: first pixel of each run, rising from 0; no run is longer than `_MAX_RUN`.
      size: pixels in all.
    """
    lengths = np.diff(starts, append=size)
    # gt id, pred id and run length in one number: sorting it groups the pairs.
    runs = gt_ids.astype(np.uint64) << np.uint64(40)
    runs |= pred_ids.astype(np.uint64) << np.uint64(16)
    runs |= (lengths - 1).astype(np.uint64)
    runs.sort()
    pairs = (runs >> np.uint64(16)).view(np.int64)
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    pixels = np.add.reduceat((runs & np.uint64(0xFFFF)).view(np.int64) + 1, first)
    return Overlaps(pairs[first] >> 24, pairs[first] & 0xFFFFFF, pixels)


class ImageCounts(NamedTuple):
    """PQ counts of one image.

    Attributes:
      matches: list of (category_id, iou, gt id, predicted id).
      false_negatives: list of (category_id, gt id).
      false_positives: list of (category_id, predicted id).
    """

    matches: list
    false_negatives: list
    false_positives: list


def check_prediction(
    found: Overlaps, pred_segments: Sequence[dict], categories, where: str
) -> Dict[int, int]:
    """Compares a predicted map with its segments_info.

    Args:
      found: of the image.
      pred_segments: COCO segments_info of the prediction.
      categories: known category ids.
      where: opening of an error message: image and file.

    Returns:
      Predicted id -> pixels.

    Raises:
      UserError: an id is in only one of the two, or a category is unknown.
    """
    areas: Dict[int, int] = {}
    for pred_id, pixels in zip(found.pred_ids.tolist(), found.pixels.tolist()):
        areas[pred_id] = areas.get(pred_id, 0) + pixels
    listed = {s["id"]: s["category_id"] for s in pred_segments}
    for pred_id in sorted(areas):
        if pred_id not in listed:
            if pred_id == VOID:
                continue
            raise UserError(
                f"{where}: segment {pred_id} is in the PNG but not in segments_info of the JSON."
            )
        if listed[pred_id] not in categories:
            raise UserError(
                f"{where}: segment {pred_id} has category_id {listed[pred_id]!r}, which is not"
                " among the ground truth's categories."
            )
    missing = [i for i in listed if i not in areas]
    if missing:
        many = "segments" if len(missing) > 1 else "segment"
        hint = (
            f" Ids in a PNG stay below {_NUM_IDS}."
            if any(i >= _NUM_IDS or i < 0 for i in missing)
            else ""
        )
        raise UserError(
            f"{where}: {many} {', '.join(map(str, missing[:10]))}"
            f" {'are' if len(missing) > 1 else 'is'} in segments_info of the JSON but not in the"
            f" PNG.{hint}"
        )
    return areas


def match_image(
    found: Overlaps,
    gt_segments: Sequence[dict],
    pred_segments: Sequence[dict],
    pred_areas: Dict[int, int],
    where: str = "Prediction",
) -> ImageCounts:
    """Matches the segments of one image.

    Args:
      found: of the image.
      gt_segments: COCO segments_info with id, category_id, area, iscrowd.
      pred_segments: COCO segments_info with id, category_id.
      pred_areas: from `check_prediction`.
      where: opening of an error message: image and file.

    Raises:
      UserError: a ground-truth segment that might match has no area.
    """
    gt = {s["id"]: s for s in gt_segments}
    pred = {s["id"]: s["category_id"] for s in pred_segments}
    pixels = {(g, p): n for g, p, n in zip(*(a.tolist() for a in found))}

    matches, matched_gt, matched_pred = [], set(), set()
    for (gt_id, pred_id), intersection in pixels.items():
        segment = gt.get(gt_id)
        if segment is None or pred_id not in pred or segment.get("iscrowd", 0) == 1:
            continue
        if segment["category_id"] != pred[pred_id]:
            continue
        if "area" not in segment:
            raise UserError(
                f"{where}: the ground-truth segment {gt_id}, which segment {pred_id} overlaps, has"
                ' no "area" in the ground-truth JSON.'
            )
        union = (
            pred_areas[pred_id] + segment["area"] - intersection - pixels.get((VOID, pred_id), 0)
        )
        # A union of 0 takes a wrong area in the JSON; such a pair cannot be told to match.
        iou = intersection / union if union else 0.0
        if iou > 0.5:
            matches.append((segment["category_id"], iou, gt_id, pred_id))
            matched_gt.add(gt_id)
            matched_pred.add(pred_id)

    false_negatives, last_crowd = [], {}
    for gt_id, segment in gt.items():
        if gt_id in matched_gt:
            continue
        if segment.get("iscrowd", 0) == 1:
            last_crowd[segment["category_id"]] = gt_id
        else:
            false_negatives.append((segment["category_id"], gt_id))

    false_positives = []
    for pred_id, category_id in pred.items():
        if pred_id in matched_pred:
            continue
        excused = pixels.get((VOID, pred_id), 0)
        if category_id in last_crowd:
            excused += pixels.get((last_crowd[category_id], pred_id), 0)
        if excused / pred_areas[pred_id] <= 0.5:
            false_positives.append((category_id, pred_id))
    return ImageCounts(matches, false_negatives, false_positives)


class PanopticQuality:
    """PQ, SQ and RQ of a set of images; memory does not grow with their number."""

    def __init__(self, categories: Sequence[Dict[str, Any]]):
        """Args: categories: COCO categories with id and isthing, in the order of averaging."""
        self._is_thing = {c["id"]: c["isthing"] == 1 for c in categories}
        self._tp = dict.fromkeys(self._is_thing, 0)
        self._fp = dict.fromkeys(self._is_thing, 0)
        self._fn = dict.fromkeys(self._is_thing, 0)
        self._iou = dict.fromkeys(self._is_thing, 0)  # In units of 2**-53.

    def update(
        self,
        found: Overlaps,
        gt_segments: Sequence[dict],
        pred_segments: Sequence[dict],
        where: str = "Prediction",
    ) -> ImageCounts:
        """Adds one image.

        Args:
          found: of the image.
          gt_segments: COCO segments_info with id, category_id, area, iscrowd.
          pred_segments: COCO segments_info with id, category_id.
          where: opening of an error message: image and file.

        Returns:
          The image's own counts.

        Raises:
          UserError: the predicted map and its segments_info disagree; the segment is named.
        """
        areas = check_prediction(found, pred_segments, self._is_thing, where)
        counts = match_image(found, gt_segments, pred_segments, areas, where)
        for category_id, iou, _, _ in counts.matches:
            if category_id in self._tp:
                self._tp[category_id] += 1
                self._iou[category_id] += int(iou * _IOU_UNIT)
        for category_id, _ in counts.false_negatives:
            if category_id in self._fn:
                self._fn[category_id] += 1
        for category_id, _ in counts.false_positives:
            self._fp[category_id] += 1
        return counts

    def merge(self, other: "PanopticQuality") -> None:
        """Adds the images of another accumulator with the same categories."""
        for mine, its in zip(self._counters(), other._counters()):
            for category_id, value in its.items():
                mine[category_id] += value

    def state(self) -> List[List[int]]:
        """All counts as plain integers: tp, fp, fn and IoU sum in units of 2**-53, per category."""
        return [list(counter.values()) for counter in self._counters()]

    def add_state(self, state: Sequence[Sequence[int]]) -> None:
        """Adds what another accumulator's `state` returned."""
        for counter, values in zip(self._counters(), state):
            for category_id, value in zip(counter, values):
                counter[category_id] += value

    def result(self) -> Dict[str, Any]:
        """Fractions at full precision.

        Returns:
          `All`, `Things`, `Stuff`: pq, sq, rq, n, or None where no class of the group occurs in
          ground truth or prediction (n would be 0); `per_class`: by category id as a string pq, sq,
          rq, tp, fp, fn, iou_sum (zeros for a class that does not occur).
        """
        per_class = {str(c): self._class_result(c) for c in self._is_thing}
        return {
            "All": self._average(per_class, (True, False)),
            "Things": self._average(per_class, (True,)),
            "Stuff": self._average(per_class, (False,)),
            "per_class": per_class,
        }

    def _counters(self):
        return self._tp, self._fp, self._fn, self._iou

    def _class_result(self, category_id):
        tp, fp, fn = self._tp[category_id], self._fp[category_id], self._fn[category_id]
        iou_sum = self._iou[category_id] / _IOU_UNIT
        denominator = tp + 0.5 * fp + 0.5 * fn
        return {
            "pq": iou_sum / denominator if denominator else 0.0,
            "sq": iou_sum / tp if tp else 0.0,
            "rq": tp / denominator if denominator else 0.0,
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "iou_sum": iou_sum,
        }

    def _average(self, per_class, is_thing) -> Optional[Dict[str, Any]]:
        rows = [
            per_class[str(c)]
            for c, thing in self._is_thing.items()
            if thing in is_thing and self._tp[c] + self._fp[c] + self._fn[c]
        ]
        if not rows:
            return None
        return {
            **{k: sum(row[k] for row in rows) / len(rows) for k in ("pq", "sq", "rq")},
            "n": len(rows),
        }
