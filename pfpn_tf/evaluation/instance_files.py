"""Scores files of COCO instance results against ground truth; needs no model and no TensorFlow."""

import re
from typing import Any, Dict, List

import hotcoco
from pycocotools import mask as mask_utils

from pfpn_tf.data import coco_json, coco_masks
from pfpn_tf.data.coco_instances import boxes_agree
from pfpn_tf.data.record import Notes
from pfpn_tf.evaluation.average_precision import AveragePrecision
from pfpn_tf.utils.errors import UserError

_OUTSIDE_PX = 2  # how far boxes may reach out of their image
_FRACTIONS = 1.01  # largest coordinate of boxes that are fractions of the image
_OUTSIDE = (
    "entries have a box (bbox) that reaches out of the image or has negative sides; it is x, y,"
    " width, height"
)
# Whole numbers of compressed RLE: the last character of each is at most "O".
_RLE = re.compile("[0-o]*[0-O]")


class InstanceFiles:
    """Instances of the ground truth and results for them, read and checked.

    Attributes:
      categories: COCO categories of the ground truth.
    """

    def __init__(self, gt_json: str, pred_json: str):
        """Reads the files.

        Args:
          gt_json: COCO instances JSON.
          pred_json: COCO results with bbox, segmentation or both.

        Raises:
          UserError: a file is missing or malformed, or the results can be scored for neither.
        """
        where = f"The ground-truth instances JSON {gt_json}"
        keys = ("images", "annotations", "categories")
        gt = coco_json.load_lists(gt_json, "ground-truth instances", keys)
        ids = coco_json.unique_image_ids(gt["images"], where)
        self._notes: List[str] = []
        self._images = {
            i: {"id": i, **_sides(image, f"{where}: image {i}")}
            for i, image in zip(ids, gt["images"])
        }
        self.categories = [
            {
                **c,
                "id": coco_json.field(c, "id", coco_json.CATEGORY_ID, f"{where}: categories[{n}]"),
                "name": coco_json.name(c.get("name")) or str(c.get("id")),
            }
            for n, c in enumerate(gt["categories"])
        ]
        self._match = coco_json.matcher(ids)
        self._results = self._read_results(pred_json)
        self._kinds = []
        for kind, key, what in (("bbox", "bbox", "box"), ("segm", "segmentation", "mask")):
            missing = sum(key not in result for result in self._results)
            if not missing:
                self._kinds.append(kind)
            elif missing < len(self._results):
                self._notes.append(
                    f'{missing} of {len(self._results)} results have no "{key}", so there is no'
                    f" {what} AP."
                )
        if not self._kinds:
            raise UserError(
                f'The instance results JSON {pred_json}: every entry must carry "bbox", or every'
                ' entry "segmentation".'
            )
        self._annotations = self._read_annotations(gt["annotations"], where)

    def score(self) -> Dict[str, Any]:
        """`bbox` and `segm`, whichever the results carry: see `AveragePrecision.result`;
        `notes`, if there is anything to know about the numbers.
        """
        ids = sorted(self._images, key=lambda i: (isinstance(i, str), i))  # numbers before texts
        images = dict(enumerate(self._images[i] for i in ids))
        metrics: Dict[str, Any] = {}
        for kind in self._kinds:
            precision = AveragePrecision(self.categories, kind)
            precision.update(images, self._annotations, self._results)
            metrics[kind] = precision.result()
        notes = list(self._notes)
        if any(numbers["AP"] == -1 for numbers in metrics.values()):
            notes.append("AP is -1: the ground truth has no object that is no crowd.")
        return {**metrics, **({"notes": notes} if notes else {})}

    def _read_annotations(self, annotations, where):
        """The annotations of known images and categories, as AP takes them."""
        category_ids = {c["id"] for c in self.categories}
        entries, boxes, seen, notes = [], [], set(), Notes()
        for n, annotation in enumerate(annotations):
            place = f"{where}: annotation {coco_json.shown(annotation.get('id', n))}"
            value = coco_json.field(annotation, "image_id", coco_json.IMAGE_ID, place)
            place += f" (image {value})"
            image_id = self._match(value)
            category_id = coco_json.field(annotation, "category_id", coco_json.WHOLE, place)
            if image_id is None or category_id not in category_ids:
                notes.add("entries do not count, as the lists lack their image or category", place)
                continue
            entry = {
                "image_id": image_id,
                "category_id": category_id,
                "area": coco_json.field(annotation, "area", coco_json.NUMBER, place),
                "iscrowd": int(
                    coco_json.field(annotation, "iscrowd", coco_json.FLAG, place, default=False)
                ),
            }
            if entry["area"] < 0:
                raise UserError(f"{place}: the area {entry['area']} is negative.")
            if "bbox" in self._kinds:
                entry["bbox"] = _truth_box(annotation, place)
            mask = None
            try:
                mask = _truth_mask(annotation.get("segmentation"), self._images[image_id], place)
            except UserError:
                if "segm" in self._kinds:
                    raise
            if "segm" in self._kinds:
                entry["segmentation"] = mask
            box = entry.get("bbox") or coco_json.box(annotation.get("bbox"))
            mask_box = _mask_box(mask)
            if box and mask_box is not None and not boxes_agree(box, mask_box):
                notes.add("entries have another box (bbox) than their mask", place)
            box = box or mask_box
            if box is not None:
                _note_outside(box, self._images[image_id], place, notes)
                pixels = box[2] * box[3]
                if entry["area"] > 20 + 1.5 * pixels or (entry["area"] == 0 and pixels > 20):
                    notes.add(
                        "entries have an area that contradicts their box (bbox); it tells small"
                        " objects from large",
                        place,
                    )
                boxes.append(box)
                key = image_id, category_id, entry["iscrowd"], entry["area"], *box
                if key in seen:
                    notes.add("entries repeat an object with the same box (bbox) and area", place)
                seen.add(key)
            entries.append(entry)
        self._notes += notes.lines()
        self._note_fractions(boxes, where)
        return entries

    def _note_fractions(self, boxes, where):
        """Says where all boxes are within the first pixel."""
        if boxes and all(
            min(b) >= 0 and max(b[0] + b[2], b[1] + b[3]) <= _FRACTIONS for b in boxes
        ):
            self._notes.append(
                f"{where}: all boxes (bbox) lie within the first pixel. Are they fractions of the"
                " image? They must be x, y, width, height in pixels."
            )

    def _read_results(self, path):
        name = f"The instance results JSON {path}"
        results = coco_json.load_json(path, "The instance results JSON")
        if not isinstance(results, list):
            hint = " It is an object: is it a panoptic or annotation file?"
            raise UserError(
                f"{name} must be a list of results.{hint if isinstance(results, dict) else ''}"
            )
        outside = Notes()
        entries = [
            self._read_result(r, f"{name}: entry {n}", outside) for n, r in enumerate(results)
        ]
        self._check_categories(entries, name)
        # Fewer are a network's, which need not clip boxes.
        if outside.count(_OUTSIDE) > len(entries) / 5:
            self._notes += outside.lines()
        self._note_fractions([entry["bbox"] for entry in entries if "bbox" in entry], name)
        return entries

    def _read_result(self, result, where, outside):
        if not isinstance(result, dict):
            raise UserError(f"{where} is not an object.")
        value = coco_json.field(result, "image_id", coco_json.IMAGE_ID, where)
        image_id = self._match(value)
        where += f" (image {value})"
        if image_id is None:
            raise UserError(f"{where}: the ground truth has no such image.")
        entry = {
            "image_id": image_id,
            "category_id": coco_json.field(result, "category_id", coco_json.WHOLE, where),
            "score": coco_json.field(result, "score", coco_json.NUMBER, where),
        }
        if result.get("bbox") not in (None, []):  # Mask results often carry an empty one.
            entry["bbox"] = coco_json.field(result, "bbox", coco_json.BOX, where)
            _note_outside(entry["bbox"], self._images[image_id], where, outside)
        if result.get("segmentation") is not None:
            entry["segmentation"] = _result_mask(
                result["segmentation"], self._images[image_id], where
            )
        elif "bbox" not in entry:
            raise UserError(f'{where} has neither "bbox" nor "segmentation".')
        return entry

    def _check_categories(self, results, name):
        """Results of categories that the ground truth does not list do not count, as in
        pycocotools. Where they are the network's class ids, that is an error.
        """
        known = {c["id"] for c in self.categories}
        found = {r["category_id"] for r in results}
        unknown = sorted(found - known)
        if not unknown:
            return
        ids = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        if not found & known or found <= set(range(len(known))):
            raise UserError(
                f"{name}: category_id {ids} is not in the ground truth, whose categories are"
                f" {', '.join(map(str, sorted(known)[:5]))}{', ...' * (len(known) > 5)}. Are these"
                " the network's class ids, from 0? Results need the dataset's category ids."
            )
        count = sum(r["category_id"] in unknown for r in results)
        self._notes.append(
            f"{count} results do not count, as their category_id ({ids}) is not in the ground"
            " truth."
        )


def _sides(image, where):
    """Height and width, as far as the image has them."""
    sides = {
        side: coco_json.field(image, side, coco_json.SIDE, where, default=None)
        for side in ("height", "width")
    }
    return {side: value for side, value in sides.items() if value is not None}


def _size(image, mask):
    """(height, width) that a mask must have: those of the image, or its own where that has none."""
    if "height" in image and "width" in image:
        return image["height"], image["width"]
    size = mask.get("size") if isinstance(mask, dict) else None
    sides = [coco_json.SIDE.read(side) for side in size] if isinstance(size, list) else []
    return tuple(sides) if len(sides) == 2 and None not in sides else None


def _note_outside(box, image, where, notes):
    """Notes a box that reaches out of its image."""
    x, y, width, height = box
    right, bottom = image.get("width", x + width), image.get("height", y + height)
    outermost = max(x + width - right, y + height - bottom)
    if outermost > _OUTSIDE_PX or min(width, height) < 0:
        notes.add(_OUTSIDE, where)


def _mask_box(mask):
    """The box x, y, width, height around a mask of `_truth_mask`; None without one."""
    if mask is None:
        return None
    if isinstance(mask, list):
        xs, ys = ([v for polygon in mask for v in polygon[axis::2]] for axis in (0, 1))
        return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if not _is_text(mask):
        mask = mask_utils.frPyObjects(mask, *mask["size"])
    return mask_utils.toBbox(mask)


def _truth_box(annotation, where):
    box = coco_json.field(annotation, "bbox", coco_json.BOX, where)
    if min(box[2:]) < 0:
        raise UserError(f"{where}: bbox {box} has a negative width or height.")
    return box


def _truth_mask(mask, image, where):
    """Polygons or RLE that hotcoco reads as pycocotools does."""
    hw = _size(image, mask)
    if isinstance(mask, dict):
        if _is_text(mask):
            return _compressed_rle(mask, hw or (0, 0), where)
        return {
            "size": list(hw or ()),
            "counts": coco_masks.rle_runs(mask, hw or (0, 0), where).tolist(),
        }
    if not isinstance(mask, list) or not mask:
        raise UserError(
            f"{where}: the segmentation must be polygons or RLE, not {coco_json.shown(mask)}."
        )
    if hw is None:
        raise UserError(f"{where}: polygons need the height and width of their image.")
    problems = filter(None, (coco_masks.polygon_problem(polygon, hw) for polygon in mask))
    for problem in problems:
        raise UserError(f"{where}: {problem}.")
    return [[float(v) for v in polygon] for polygon in mask]


def _result_mask(mask: Any, image: Dict[str, Any], where: str) -> Dict[str, Any]:
    """Compressed RLE, the one form that pycocotools scores."""
    if not isinstance(mask, dict) or not _is_text(mask):
        raise UserError(
            f'{where}: the segmentation must be compressed RLE, an object with "size" and a text'
            ' "counts"; pycocotools scores no polygons or uncompressed RLE.'
            " pycocotools.mask.frPyObjects converts them."
        )
    return _compressed_rle(mask, _size(image, mask) or (0, 0), where)


def _compressed_rle(mask, hw, where):
    """A mask whose counts are a text, checked."""
    if mask.get("size") != list(hw) or not _covers(mask["counts"], hw[0] * hw[1]):
        coco_masks.rle_runs(mask, hw, where)  # Ten times slower, says what is wrong.
    return {"size": list(hw), "counts": mask["counts"]}


def _is_text(mask):
    return isinstance(mask.get("counts"), str)


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
