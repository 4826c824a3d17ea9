"""Cityscapes' own metrics, computed by cityscapesscripts, and the files its server takes.

IoU and iIoU score a label for each pixel, AP scores instance masks. Both are written in the format
of the benchmark and read back by cityscapesscripts' functions, so that the numbers are those of
csEvalPixelLevelSemanticLabeling and csEvalInstanceLevelSemanticLabeling on the same files.

cityscapesscripts keeps settings in global objects, stops the process at an error and leaves caches
in the working directory and beside itself. This module gives it copies of the settings, turns its
exits into errors, and calls nothing that leaves a cache.

Shapes: h, w original image size.
"""

import contextlib
import copy
import io
import math
import os
import tempfile
import warnings
from typing import Any, Dict, List, Optional, Sequence

from pfpn_tf.data import panoptic_png
from pfpn_tf.evaluation import cityscapes_files, output_folder
from pfpn_tf.utils import progress
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write


class CityscapesScorer:
    """Cityscapes' ground truth and predictions in COCO format, read and checked."""

    def __init__(
        self,
        gt_dir: str,
        panoptic_json: str = "",
        panoptic_dir: str = "",
        instances_json: str = "",
        semantic_dir: str = "",
        categories_json: str = "",
        image_ids: Optional[Sequence[Any]] = None,
    ):
        """Reads what can be read at once; the maps are read one by one in `score`. Without
        predictions it checks the ground truth and the categories.

        Args:
          gt_dir: folder of one split's city folders, e.g. gtFine/val.
          panoptic_json, panoptic_dir: a panoptic prediction, whose classes are scored as labels.
          instances_json: COCO instance results with masks.
          semantic_dir: label maps of `predictions.PredictionWriter.add_semantic`, scored instead of
            the panoptic prediction.
          categories_json: a JSON with the COCO categories of the predictions, by Cityscapes' names;
            ids may be label ids or train ids. Empty: panoptic_json.
          image_ids: score only these images of the ground truth; None: all of it.

        Raises:
          UserError: cityscapesscripts is not installed, or a file is missing or does not fit; says
            which.
        """
        for level in ("Pixel", "Instance"):
            cityscapes_files.scripts(f"evaluation.eval{level}LevelSemanticLabeling")
        self._truth = cityscapes_files.read_truth(gt_dir, image_ids)
        label_of = cityscapes_files.label_ids(categories_json or panoptic_json)
        self._read_map: Optional[cityscapes_files.MapReader] = None
        if semantic_dir:
            self._read_map = cityscapes_files.semantic_maps(semantic_dir, label_of)
        elif panoptic_json:
            self._read_map = cityscapes_files.panoptic_maps(
                panoptic_json, panoptic_dir, label_of, self._truth, gt_dir
            )
        self._results: Optional[Dict[str, List[Dict[str, Any]]]] = None
        if instances_json:
            self._results = cityscapes_files.read_results(instances_json, label_of, self._truth)

    def score(self, output_dir: str = "") -> Dict[str, Any]:
        """Scores the images.

        Args:
          output_dir: where the files for the server go, `pixel_level` and `instance_level`, in
            place of earlier ones; empty: they are not kept.

        Returns:
          Fractions, None where a class occurs nowhere: `miou`, `iiou` over classes and
          `miou_categories`, `iiou_categories` over Cityscapes' groups of classes; `AP`, `AP50`;
          `per_class` by name `iou`, `iiou`, `AP`, `AP50`; `num_images`.

        Raises:
          UserError: a map cannot be read or does not fit.
        """
        metrics: Dict[str, Any] = {"num_images": len(self._truth), "per_class": {}}
        with contextlib.ExitStack() as stack:
            output_dir = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
            if self._read_map:
                folder = _emptied(output_dir, output_folder.PIXEL_LEVEL)
                for image_id, truth in self._truth.items():
                    labels, name = self._read_map(image_id)
                    if labels.shape != truth.hw:
                        raise UserError(
                            f"Image {image_id}: prediction {name} is {labels.shape[0]} x"
                            f" {labels.shape[1]} (height x width), the ground truth {truth.labels}"
                            f" {truth.hw[0]} x {truth.hw[1]}; predict at the original image size."
                        )
                    with atomic_write(_label_path(folder, image_id), "wb") as f:
                        f.write(panoptic_png.encode_grey(labels))
                _merge(metrics, _score_pixels(folder, self._truth))
            if self._results is not None:
                folder = _emptied(output_dir, output_folder.INSTANCE_LEVEL)
                for image_id, results in self._results.items():
                    cityscapes_files.write_instances(folder, image_id, results)
                _merge(metrics, _score_instances(folder, self._truth))
        return metrics


def _label_path(folder, image_id):
    return os.path.join(folder, f"{image_id}_labelIds.png")


def _emptied(output_dir, name):
    folder = os.path.join(output_dir, name)
    output_folder.remove_folder(folder)
    return folder


@contextlib.contextmanager
def _exits_as_errors():
    """Drops what cityscapesscripts prints; if it stops the process, the last line is the error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Means over no class: they become None.
            yield
    except SystemExit:
        message = printed.getvalue().strip().splitlines()[-1:] or ["no reason given"]
        raise UserError(
            f"cityscapesscripts stopped: {message[0].removeprefix('ERROR: ')}"
        ) from None


class _Watched(list):
    """A list that moves a progress bar on with each entry that is taken."""

    def __init__(self, entries, bar):
        super().__init__(entries)
        self._bar = bar

    def __getitem__(self, index):
        self._bar.update()
        return super().__getitem__(index)


def _score_pixels(folder, truth):
    scripts = cityscapes_files.scripts("evaluation.evalPixelLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    truths = [files.labels for files in truth.values()]
    with progress.Bar("Evaluating", len(truth), "image") as bar, _exits_as_errors():
        predictions = _Watched([_label_path(folder, image_id) for image_id in truth], bar)
        found = scripts.evaluateImgLists(predictions, truths, args)
    names = [label.name for label in scripts.labels if not label.ignoreInEval]
    iou, iiou = found["classScores"], found["classInstScores"]
    return {
        "miou": _or_none(found["averageScoreClasses"]),
        "iiou": _or_none(found["averageScoreInstClasses"]),
        "miou_categories": _or_none(found["averageScoreCategories"]),
        "iiou_categories": _or_none(found["averageScoreInstCategories"]),
        "per_class": {
            name: {"iou": _or_none(iou[name]), "iiou": _or_none(iiou[name])} for name in names
        },
    }


def _score_instances(folder, truth):
    scripts = cityscapes_files.scripts("evaluation.evalInstanceLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    args.predictionPath = os.path.abspath(folder)
    scripts.setInstanceLabels(args)
    matches = {}
    with progress.Bar("Evaluating", len(truth), "image") as bar, _exits_as_errors():
        for image_id, files in truth.items():
            instances = scripts.instances2dict([files.instances])
            lists = [cityscapes_files.list_path(folder, image_id)], [files.instances]
            matches.update(scripts.matchGtWithPreds(*lists, instances, args))
            bar.update()
    with _exits_as_errors():
        precisions = scripts.evaluateMatches(matches, args)
        averages = scripts.computeAverages(precisions, args)
    return {
        "AP": _or_none(averages["allAp"]),
        "AP50": _or_none(averages["allAp50%"]),
        "per_class": {
            name: {"AP": _or_none(row["ap"]), "AP50": _or_none(row["ap50%"])}
            for name, row in averages["classes"].items()
        },
    }


def _or_none(value) -> Optional[float]:
    return None if math.isnan(value) else float(value)


def _merge(result, part):
    for name, row in part.pop("per_class").items():
        result["per_class"].setdefault(name, {}).update(row)
    result.update(part)
