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
        self._truth = truth = cityscapes_files.CityscapesTruth(gt_dir)
        self._label_of = cityscapes_files.label_ids(categories_json or panoptic_json)
        self._image_ids = truth.image_ids
        if image_ids is not None:
            wanted = set(image_ids)
            self._image_ids = [i for i in truth.image_ids if i in wanted]
            if not self._image_ids:
                raise UserError(
                    f"{gt_dir}: none of its images is predicted; is it the ground truth of this"
                    " split?"
                )
        needed = self._label_of, self._image_ids, gt_dir
        self._read_map: Optional[cityscapes_files.MapReader] = None
        if semantic_dir:
            self._read_map = cityscapes_files.semantic_maps(semantic_dir, *needed)
        elif panoptic_json:
            self._read_map = cityscapes_files.panoptic_maps(panoptic_json, panoptic_dir, *needed)
        self._results: Optional[Dict[str, List[Dict[str, Any]]]] = None
        for image_id in self._image_ids:
            truth.instances(image_id)
        if instances_json:
            self._results = cityscapes_files.results_by_image(instances_json)
            for image_id in self._image_ids:
                cityscapes_files.check_results(
                    image_id,
                    self._results.get(image_id, []),
                    self._label_of,
                    truth.size(image_id),
                )

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
        truth, image_ids = self._truth, self._image_ids
        metrics: Dict[str, Any] = {"num_images": len(image_ids), "per_class": {}}
        with contextlib.ExitStack() as stack:
            output_dir = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
            if self._read_map:
                folder = _emptied(output_dir, output_folder.PIXEL_LEVEL)
                for image_id in image_ids:
                    labels = self._read_map(image_id, truth.size(image_id))
                    with atomic_write(_label_path(folder, image_id), "wb") as f:
                        f.write(panoptic_png.encode_grey(labels))
                _merge(metrics, _score_pixels(folder, truth, image_ids))
            if self._results is not None:
                folder = _emptied(output_dir, output_folder.INSTANCE_LEVEL)
                for image_id in image_ids:  # An image in which nothing was found is in no entry.
                    results = self._results.get(image_id, [])
                    cityscapes_files.write_instances(folder, image_id, results, self._label_of)
                _merge(metrics, _score_instances(folder, truth, image_ids))
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


def _score_pixels(folder, truth, image_ids):
    scripts = cityscapes_files.scripts("evaluation.evalPixelLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    bar = progress.Bar("Evaluating", len(image_ids), "image")
    with _exits_as_errors():
        confusion = scripts.generateMatrix(args)
        instances = scripts.generateInstanceStats(args)
    for image_id in image_ids:
        with _exits_as_errors():
            scripts.evaluatePair(
                _label_path(folder, image_id),
                truth.labels(image_id),
                confusion,
                instances,
                {},
                args,
            )
        bar.update()
    bar.close()

    label_names = {i: scripts.id2label[i].name for i in args.evalLabels}
    groups = scripts.category2labels
    iou = {name: scripts.getIouScoreForLabel(i, confusion, args) for i, name in label_names.items()}
    iiou = {
        name: scripts.getInstanceIouScoreForLabel(i, confusion, instances, args)
        for i, name in label_names.items()
    }
    group_iou = {g: scripts.getIouScoreForCategory(g, confusion, args) for g in groups}
    group_iiou = {
        g: scripts.getInstanceIouScoreForCategory(g, confusion, instances, args) for g in groups
    }
    scores = {
        "miou": iou,
        "iiou": iiou,
        "miou_categories": group_iou,
        "iiou_categories": group_iiou,
    }
    evaluated = [name for i, name in label_names.items() if not scripts.id2label[i].ignoreInEval]
    return {
        **{key: _or_none(scripts.getScoreAverage(values, args)) for key, values in scores.items()},
        "per_class": {
            name: {"iou": _or_none(iou[name]), "iiou": _or_none(iiou[name])} for name in evaluated
        },
    }


def _score_instances(folder, truth, image_ids):
    scripts = cityscapes_files.scripts("evaluation.evalInstanceLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    args.predictionPath = os.path.abspath(folder)
    bar = progress.Bar("Evaluating", len(image_ids), "image")
    scripts.setInstanceLabels(args)
    matches = {}
    for image_id in image_ids:
        path = truth.instances(image_id)
        with _exits_as_errors():
            instances = scripts.instances2dict([path])
            matches.update(
                scripts.matchGtWithPreds(
                    [cityscapes_files.list_path(folder, image_id)], [path], instances, args
                )
            )
        bar.update()
    bar.close()
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
