"""Scores files of COCO instance results against ground truth; needs no model and no TensorFlow."""

from typing import Any, Dict, List

from pfpn_tf.data import coco_files
from pfpn_tf.evaluation import average_precision
from pfpn_tf.utils.errors import UserError


def score_instances(gt_json: str, pred_json: str) -> Dict[str, Any]:
    """COCO AP of instance results. Args, Returns, Raises: as `InstanceFiles` and its `score`."""
    return InstanceFiles(gt_json, pred_json).score()


class InstanceFiles:
    """Instances of the ground truth and results, read and checked.

    Attributes:
      categories: COCO categories of the ground truth.
    """

    def __init__(self, gt_json: str, pred_json: str):
        """Args: gt_json: COCO instances JSON. pred_json: COCO results with bbox, segmentation or
        both.

        Raises:
          UserError: a file is missing or malformed, or the results can be scored for neither.
        """
        gt_name = f"The ground-truth instances JSON {gt_json}"
        name = f"The instance results JSON {pred_json}"
        self._gt = coco_files.load_json(gt_json, "The ground-truth instances JSON")
        self._results = coco_files.load_json(pred_json, "The instance results JSON")
        average_precision.check_ground_truth(self._gt, gt_name)
        average_precision.check_results(self._results, self._gt, name)
        self.categories: List[dict] = self._gt["categories"]
        self._kinds = average_precision.kinds_of(self._results)
        if not self._kinds:
            raise UserError(
                f'{name}: every entry must carry "bbox", or every entry "segmentation".'
            )

    def score(self) -> Dict[str, Any]:
        """`bbox` and `segm`, whichever the results carry: see `average_precision`."""
        return {
            kind: average_precision.average_precision(self._gt, self._results, kind)
            for kind in self._kinds
        }
