"""Panoptic quality with panopticapi's numbers.

PQ is defined in Kirillov et al., "Panoptic Segmentation". What the definition leaves open follows
panopticapi, the COCO evaluator, to the letter:

- The area of a ground-truth segment is the JSON's, that of a predicted segment its pixels. Where
  the JSON's areas contradict the pixels, a note also tells PQ by the pixels.
- Pixels that are void in the ground truth are taken out of the union; crowd pixels are not.
- Ground-truth ids missing from segments_info are neither void nor a segment.
- Of several crowd segments of a class in an image, only the last listed excuses false positives.
- Of several entries with one id, the last counts.

Sums are exact, so results depend neither on the order of the images nor on how they are split over
processes or replicas.
"""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

from pfpn_tf.data.record import Notes
from pfpn_tf.evaluation.segment_pairs import SegmentPairs
from pfpn_tf.utils.errors import UserError

VOID = 0
_NUM_IDS = 1 << 24
_WRONG_AREAS = "ground-truth segments have another area in the JSON than pixels"
# An IoU that counts is above 0.5, hence a whole multiple of 2**-53 in double precision: sums of
# these multiples are exact in Python's integers.
_IOU_UNIT = 1 << 53


class SegmentMatches(NamedTuple):
    """Which segments of one image match.

    Attributes:
      matches: list of (category_id, iou, gt id, predicted id).
      false_negatives: list of (category_id, gt id).
      false_positives: list of (category_id, predicted id).
    """

    matches: list
    false_negatives: list
    false_positives: list

    @property
    def quality(self) -> Optional[float]:
        """PQ of the image as if all segments were of one class; None without a segment."""
        errors = len(self.false_negatives) + len(self.false_positives)
        if not self.matches and not errors:
            return None
        return sum(iou for _, iou, _, _ in self.matches) / (len(self.matches) + 0.5 * errors)


def _areas(ids, pixels) -> Dict[int, int]:
    """Pixels of each id among the pairs."""
    areas: Dict[int, int] = {}
    for segment_id, count in zip(ids.tolist(), pixels.tolist()):
        areas[segment_id] = areas.get(segment_id, 0) + count
    return areas


def _check_prediction(pairs, pred_segments, categories, where) -> Dict[int, int]:
    """Compares a predicted map with its segments_info; returns the pixels of each predicted id.

    Raises:
      UserError: an id is in only one of the two, or a category is unknown.
    """
    areas = _areas(pairs.pred_ids, pairs.pixels)
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
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        in_range = all(0 <= i < _NUM_IDS for i in missing)
        hint = "" if in_range else f" Ids in a PNG stay below {_NUM_IDS}."
        raise UserError(
            f"{where}: segment {missing[0]}{more} is in segments_info of the JSON but not in the"
            f" PNG.{hint}"
        )
    return areas


def _match_image(pairs, gt_segments, pred_segments, pred_areas, where) -> SegmentMatches:
    """Matches the segments of one image; `pred_areas` is what `_check_prediction` returns.

    Raises:
      UserError: a ground-truth segment that might match has no area.
    """
    gt = {s["id"]: s for s in gt_segments}
    pred = {s["id"]: s["category_id"] for s in pred_segments}
    pixels = {(g, p): n for g, p, n in zip(*(a.tolist() for a in pairs))}

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
    return SegmentMatches(matches, false_negatives, false_positives)


class PanopticQuality:
    """PQ, SQ and RQ of a set of images; memory does not grow with their number."""

    def __init__(self, categories: Sequence[Dict[str, Any]]):
        """Args: categories: COCO categories with id and isthing, in the order of averaging."""
        self._is_thing = {c["id"]: c["isthing"] == 1 for c in categories}
        # By category: true positives, false positives, false negatives, IoU in units of 2**-53.
        self._sums = {c: [0, 0, 0, 0] for c in self._is_thing}
        self._sums_by_pixels = {c: [0, 0, 0, 0] for c in self._is_thing}
        self._wrong_areas = Notes()

    def update(
        self,
        pairs: SegmentPairs,
        gt_segments: Sequence[dict],
        pred_segments: Sequence[dict],
        where: str = "Prediction",
    ) -> SegmentMatches:
        """Adds one image.

        Args:
          pairs: of the image.
          gt_segments: COCO segments_info with id, category_id, area, iscrowd.
          pred_segments: COCO segments_info with id, category_id.
          where: opening of an error message: image and file.

        Raises:
          UserError: the predicted map and its segments_info disagree, or a ground-truth segment
            that might match has no area; the segment is named.
        """
        areas = _check_prediction(pairs, pred_segments, self._is_thing, where)
        matches = _match_image(pairs, gt_segments, pred_segments, areas, where)
        _add_matches(self._sums, matches)
        corrected = self._with_areas_of_pixels(pairs, gt_segments, where)
        by_pixels = matches
        if corrected != list(gt_segments):
            by_pixels = _match_image(pairs, corrected, pred_segments, areas, where)
        _add_matches(self._sums_by_pixels, by_pixels)
        return matches

    def _with_areas_of_pixels(self, pairs, gt_segments, where):
        """The segments with the areas that their pixels have; crowds' areas do not count."""
        areas = _areas(pairs.gt_ids, pairs.pixels)
        corrected = list(gt_segments)
        for n, segment in enumerate(gt_segments):
            pixels = areas.get(segment["id"], 0)
            if segment.get("iscrowd", 0) != 1 and segment.get("area", pixels) != pixels:
                corrected[n] = {**segment, "area": pixels}
                place = f"ground-truth segment {segment['id']} has area {segment['area']}"
                self._wrong_areas.add(_WRONG_AREAS, f"{where}: {place} and {pixels} pixels")
        return corrected

    def merge(self, other: "PanopticQuality") -> None:
        """Adds the images of another accumulator with the same categories."""
        both = (self._sums, other._sums), (self._sums_by_pixels, other._sums_by_pixels)
        for mine, its in both:
            for category_id, values in its.items():
                mine[category_id] = [a + b for a, b in zip(mine[category_id], values)]
        self._wrong_areas.merge(other._wrong_areas)

    def result(self) -> Dict[str, Any]:
        """Fractions at full precision.

        Returns:
          `All`, `Things`, `Stuff`: pq, sq, rq, n, or None where no class of the group occurs in
          ground truth or prediction (n would be 0); `per_class`: by category id as a string pq, sq,
          rq, tp, fp, fn, iou_sum (zeros for a class that does not occur).
        """
        return self._result(self._sums)

    def notes(self) -> List[str]:
        """What a reader of the result should know."""
        result = self._result(self._sums)
        notes = [
            f"{group} is null: no {kind} occurs in ground truth or prediction, so there is nothing"
            " to average (panopticapi divides by zero here)."
            for group, kind in {
                "All": "class",
                "Things": "thing class",
                "Stuff": "stuff class",
            }.items()
            if result[group] is None
        ]
        if self._wrong_areas.count(_WRONG_AREAS) and result["All"]:
            ours, by_pixels = (
                100 * part["All"]["pq"] for part in (result, self._result(self._sums_by_pixels))
            )
            notes.append(
                f"{self._wrong_areas.line(_WRONG_AREAS)}. PQ takes the JSON's areas, as panopticapi"
                f" does: {ours:.2f}; by the pixels it would be {by_pixels:.2f}."
            )
        return notes

    def _result(self, sums):
        per_class = {str(c): _class_result(*values) for c, values in sums.items()}
        things = {str(c) for c, thing in self._is_thing.items() if thing}
        return {
            "All": _average(per_class.values()),
            "Things": _average(row for c, row in per_class.items() if c in things),
            "Stuff": _average(row for c, row in per_class.items() if c not in things),
            "per_class": per_class,
        }


def _add_matches(sums, matches):
    """Adds the matches of one image. A ground-truth category that is not listed does not count."""
    for category_id, iou, _, _ in matches.matches:
        if category_id in sums:
            sums[category_id][0] += 1
            sums[category_id][3] += int(iou * _IOU_UNIT)
    for category_id, _ in matches.false_positives:
        sums[category_id][1] += 1
    for category_id, _ in matches.false_negatives:
        if category_id in sums:
            sums[category_id][2] += 1


def _class_result(tp, fp, fn, iou_units) -> Dict[str, Any]:
    iou_sum = iou_units / _IOU_UNIT
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


def _average(rows: Iterable[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """Means over the classes that occur."""
    found = [row for row in rows if row["tp"] + row["fp"] + row["fn"]]
    if not found:
        return None
    means = {key: sum(row[key] for row in found) / len(found) for key in ("pq", "sq", "rq")}
    return {**means, "n": len(found)}
