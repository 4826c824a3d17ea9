"""Mean and frequency-weighted IoU from a confusion matrix of pixels.

Ground-truth void is left out. A pixel predicted void counts as a miss of its ground-truth class.

Shapes: C classes; row of the confusion matrix: ground truth, column: prediction, column C: void.
"""

from typing import Any, Dict, Hashable, Optional, Sequence

import numpy as np

from pfpn_tf.evaluation.segment_pairs import SegmentPairs

THINGS = "things"


class SemanticIoU:
    """Confusion matrix over any number of images.

    Attributes:
      confusion: [C, C + 1] int64 pixels.
    """

    def __init__(self, classes: Sequence[Hashable], things: Sequence[Hashable] = ()):
        """Makes an empty matrix.

        Args:
          classes: names of the C classes, e.g. category ids.
          things: those of them that `result` also reports as one class.
        """
        self._classes = list(classes)
        self._index = {name: i for i, name in enumerate(self._classes)}
        self._things = [self._index[name] for name in things]
        self.confusion = np.zeros((len(self._classes), len(self._classes) + 1), np.int64)

    @classmethod
    def of_categories(cls, categories: Sequence[Dict[str, Any]]) -> "SemanticIoU":
        """An empty matrix of COCO categories, by their ids."""
        things = [c["id"] for c in categories if c["isthing"] == 1]
        return cls([c["id"] for c in categories], things)

    def update(
        self, pairs: SegmentPairs, gt_segments: Sequence[dict], pred_segments: Sequence[dict]
    ) -> None:
        """Adds one image; crowd pixels count as their class.

        Args:
          pairs: of the image.
          gt_segments: COCO segments_info; ids not listed count as void.
          pred_segments: COCO segments_info.
        """
        row_of = {s["id"]: self._index.get(s["category_id"]) for s in gt_segments}
        column_of = {s["id"]: self._index[s["category_id"]] for s in pred_segments}
        void = len(self._classes)
        for gt_id, pred_id, pixels in zip(*(a.tolist() for a in pairs)):
            row = row_of.get(gt_id)
            if row is not None:
                self.confusion[row, column_of.get(pred_id, void)] += pixels

    def merge(self, other: "SemanticIoU") -> None:
        """Adds the images of another accumulator with the same classes."""
        self.confusion += other.confusion

    def result(self) -> Dict[str, Any]:
        """IoUs as fractions.

        Returns:
          miou: mean over the classes that occur in the ground truth (None if none does).
          miou_over_classes_in_gt_or_pred: a class only predicted counts as 0.
          fwiou: IoU weighted by ground-truth pixels. pixel_accuracy, mean_class_accuracy.
          iou: by class, None where the class occurs in neither.
          things_as_one: the same with all things as the one class "things"; only if things were
            named.
        """
        result = _summary(self.confusion, self._classes)
        if self._things:
            result["things_as_one"] = _summary(*self._merged())
        return result

    def _merged(self):
        """The confusion matrix and names with all things in the first class."""
        stuff = [i for i in range(len(self._classes)) if i not in set(self._things)]
        of_things = self.confusion[:, self._things].sum(axis=1)
        columns = np.column_stack([of_things, self.confusion[:, [*stuff, -1]]])  # void stays last
        merged = np.vstack([columns[self._things].sum(axis=0), columns[stuff]])
        return merged, [THINGS] + [self._classes[i] for i in stuff]


def _summary(confusion, classes) -> Dict[str, Any]:
    hits = np.diagonal(confusion)
    gt_pixels = confusion.sum(axis=1)
    union = gt_pixels + confusion[:, :-1].sum(axis=0) - hits
    iou = [_ratio(h, u) for h, u in zip(hits, union)]
    in_gt = gt_pixels > 0
    total = int(gt_pixels.sum())
    weighted = [int(n) * i for n, i in zip(gt_pixels, iou) if i is not None]
    return {
        "miou": _mean([i for i, present in zip(iou, in_gt) if present]),
        "miou_over_classes_in_gt_or_pred": _mean(iou),
        "fwiou": sum(weighted) / total if total else None,
        "pixel_accuracy": _ratio(hits.sum(), total),
        "mean_class_accuracy": _mean([_ratio(h, n) for h, n in zip(hits, gt_pixels)]),
        "iou": {str(name): value for name, value in zip(classes, iou)},
    }


def _ratio(part, whole) -> Optional[float]:
    return int(part) / int(whole) if whole else None


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    """Over the classes that have a value."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
