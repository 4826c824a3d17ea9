"""Cityscapes' own metrics, computed by cityscapesscripts, and the files its server takes.

IoU and iIoU score a label for each pixel, AP scores instance masks. Both are written in the format
of the benchmark and read back by cityscapesscripts' functions, so that the numbers are those of
csEvalPixelLevelSemanticLabeling and csEvalInstanceLevelSemanticLabeling on the same files.

cityscapesscripts keeps settings in global objects, stops the process at an error and leaves caches
in the working directory and beside itself; here it gets copies, its exits become errors, and
nothing is left behind.

Shapes: h, w original image size.
"""

import contextlib
import copy
import glob
import importlib
import io
import math
import os
import tempfile
import warnings
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import cv2
import numpy as np
from PIL import Image

from pfpn_tf.data import coco_json, panoptic_png
from pfpn_tf.evaluation import report
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

PIXEL_LEVEL = "pixel_level"
INSTANCE_LEVEL = "instance_level"
_LABELS = "_gtFine_labelIds.png"
_INSTANCES = "_gtFine_instanceIds.png"
_UNLABELED = 0


def score_files(
    gt_dir: str,
    panoptic_json: str = "",
    panoptic_dir: str = "",
    instances_json: str = "",
    semantic_dir: str = "",
    categories_json: str = "",
    output_dir: str = "",
    only_predicted: bool = False,
) -> Dict[str, Any]:
    """IoU, iIoU and AP of predictions in COCO format, as far as these are given.

    Args:
      gt_dir: folder of one split's city folders, e.g. gtFine/val.
      panoptic_json, panoptic_dir: a panoptic prediction, whose classes are scored as labels.
      instances_json: COCO instance results with masks.
      semantic_dir: label maps of `coco_format.PredictionWriter.add_semantic`, scored instead of
        the panoptic prediction.
      categories_json: a JSON with the COCO categories of the predictions, by Cityscapes' names;
        ids may be label ids or train ids. Empty: panoptic_json.
      output_dir: where the files for the server go, `pixel_level` and `instance_level`; empty:
        they are not kept.
      only_predicted: leave out images without a prediction, instead of refusing.

    Returns:
      Fractions, None where a class occurs nowhere: `miou`, `iiou` over classes and
      `miou_categories`, `iiou_categories` over Cityscapes' groups of classes; `AP`, `AP50`;
      `per_class` by name `iou`, `iiou`, `AP`, `AP50`; `num_images`.

    Raises:
      UserError: cityscapesscripts is not installed, or a file is missing or does not fit; says
        which.
    """
    truth = _Truth(gt_dir)
    label_of = label_ids(categories_json or panoptic_json)
    maps: Union[_SemanticMaps, _PanopticMaps, None] = None
    results: Optional[Dict[str, List[Dict[str, Any]]]] = None
    if semantic_dir:
        maps = _SemanticMaps(semantic_dir, label_of)
    elif panoptic_json:
        maps = _PanopticMaps(panoptic_json, panoptic_dir, label_of)
    if instances_json:
        results = _results_by_image(instances_json)
    image_ids = truth.image_ids
    if only_predicted:
        predicted = maps.image_ids if maps else results or ()
        image_ids = [i for i in image_ids if i in predicted]
        if not image_ids:
            raise UserError(
                f"{gt_dir}: none of its images is predicted; is it the ground truth of this split?"
            )
    elif maps:
        truth.check_complete(maps.image_ids, maps.name)

    with contextlib.ExitStack() as stack:
        output_dir = output_dir or stack.enter_context(tempfile.TemporaryDirectory())
        metrics = {"num_images": len(image_ids), "per_class": {}}
        if maps:
            folder = os.path.join(output_dir, PIXEL_LEVEL)
            for image_id in image_ids:
                write_labels(folder, image_id, maps.read(image_id, truth.size(image_id)))
            _merge(metrics, _score_pixels(folder, truth, image_ids))
        if results is not None:
            folder = os.path.join(output_dir, INSTANCE_LEVEL)
            for image_id in image_ids:  # An image in which nothing was found is in no entry.
                write_instances(
                    folder, image_id, results.get(image_id, []), label_of, truth.size(image_id)
                )
            _merge(metrics, _score_instances(folder, truth, image_ids))
    return metrics


def score_written(
    gt_dir: str, directory: str, categories_json: str, semantic: bool
) -> Dict[str, Any]:
    """`score_files` of the folder that a `coco_format.PredictionWriter` has filled.

    The files for the server go there, too.

    Args:
      gt_dir: folder of one split's city folders, e.g. gtFine/val; only the images that are
        predicted count.
      directory: with panoptic.json, panoptic/, instances.json and semantic/, as far as there are
        such.
      categories_json: dataset_info.json.
      semantic: whether the semantic maps have all classes; they then count, as in the paper,
        instead of the panoptic maps.
    """

    def existing(name):
        path = os.path.join(directory, name)
        return path if os.path.exists(path) else ""

    return score_files(
        gt_dir,
        panoptic_json=existing("panoptic.json"),
        instances_json=existing("instances.json"),
        semantic_dir=existing("semantic") if semantic else "",
        categories_json=categories_json,
        output_dir=directory,
        only_predicted=True,
    )


def label_ids(categories_json: str) -> Dict[int, int]:
    """category_id -> Cityscapes label id, by name.

    Args:
      categories_json: a JSON with COCO categories, such as a panoptic JSON or dataset_info.json.

    Raises:
      UserError: there are no categories, or one is no class of Cityscapes.
    """
    known = _scripts("helpers.labels").name2label
    content = (
        coco_json.load_json(categories_json, "The JSON of the categories")
        if categories_json
        else {}
    )
    categories = content.get("categories") if isinstance(content, dict) else None
    if not categories:
        raise UserError(
            f"The JSON of the predictions {categories_json} has no categories, which tell"
            " Cityscapes' classes by name; give the ground truth's panoptic JSON as well"
            " (--gt_panoptic_json)."
        )
    unknown = [c.get("name") for c in categories if c.get("name") not in known]
    if unknown:
        raise UserError(
            f"{categories_json}: {', '.join(map(repr, unknown[:5]))} is no class of Cityscapes; its"
            " metrics need categories by the names of cityscapesscripts."
        )
    return {c["id"]: known[c["name"]].id for c in categories}


def write_labels(folder: str, image_id: str, labels: np.ndarray) -> None:
    """Writes one image for the pixel-level benchmark: `folder`/IMAGE_ID_labelIds.png.

    Args:
      folder: made if need be.
      image_id: city_sequence_frame.
      labels: [h, w] uint8 label ids, 0 unlabelled.
    """
    with atomic_write(_label_path(folder, image_id), "wb") as f:
        f.write(_png(labels))


def write_instances(
    folder: str,
    image_id: str,
    results: Sequence[Mapping[str, Any]],
    label_of: Mapping[int, int],
    hw: Sequence[int],
) -> None:
    """Writes one image for the instance-level benchmark: `folder`/IMAGE_ID.txt and its masks.

    Args:
      folder: made if need be.
      image_id: city_sequence_frame.
      results: COCO instance results of the image.
      label_of: from `label_ids`.
      hw: the image's height and width.

    Raises:
      UserError: a result has no mask of this size, or another category.
    """
    from pycocotools import mask as mask_utils

    lines = []
    for index, result in enumerate(results):
        mask, category_id = result.get("segmentation"), result.get("category_id")
        if not isinstance(mask, dict) or list(mask.get("size", ())) != list(hw):
            raise UserError(
                f"Image {image_id}: instance {index} needs a segmentation in RLE of the image's"
                f" size {list(hw)} (height, width)."
            )
        if category_id is None or category_id not in label_of:
            raise UserError(
                f"Image {image_id}: instance {index} has the unknown category_id {category_id!r}."
            )
        name = f"masks/{image_id}_{index:03d}.png"
        with atomic_write(os.path.join(folder, name), "wb") as f:
            f.write(_png(mask_utils.decode(mask) * 255))
        lines.append(f"{name} {label_of[category_id]} {float(result['score'])!r}\n")
    with atomic_write(_list_path(folder, image_id)) as f:
        f.writelines(lines)


def _label_path(folder, image_id):
    return os.path.join(folder, f"{image_id}_labelIds.png")


def _list_path(folder, image_id):
    return os.path.join(folder, f"{image_id}.txt")


def _png(pixels) -> bytes:
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


# -- what is scored ---------------------------------------------------------------------------


class _Truth:
    """The ground truth of a split: two PNGs for each image."""

    def __init__(self, directory):
        paths = sorted(glob.glob(os.path.join(glob.escape(directory), "*", f"*{_LABELS}")))
        if not paths:
            raise UserError(
                f"{directory}: holds no CITY/*{_LABELS}; give the folder of one split, e.g."
                " gtFine/val, as the ground truth of Cityscapes."
            )
        self._directory = directory
        self._paths = {os.path.basename(path)[: -len(_LABELS)]: path for path in paths}

    @property
    def image_ids(self):
        return list(self._paths)

    def check_complete(self, predicted, name):
        """Refuses a prediction that lacks an image."""
        missing = [i for i in self._paths if i not in predicted]
        if missing:
            more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
            raise UserError(
                f"Image {missing[0]}{more}: not in {name}, but in the ground truth"
                f" {self._directory}."
            )

    def labels(self, image_id) -> str:
        return self._paths[image_id]

    def instances(self, image_id) -> str:
        path = self._paths[image_id][: -len(_LABELS)] + _INSTANCES
        if not os.path.exists(path):
            raise UserError(f"Image {image_id}: the ground truth {path} does not exist.")
        return path

    def size(self, image_id):
        """(height, width)."""
        try:
            with Image.open(self._paths[image_id]) as image:
                return image.size[::-1]
        except OSError:
            raise UserError(
                f"Image {image_id}: the ground truth {self._paths[image_id]} is no readable PNG."
            ) from None


class _PanopticMaps:
    """Labels from a panoptic prediction."""

    def __init__(self, json_path, directory, label_of):
        content = coco_json.load_panoptic_json(json_path, "prediction", with_categories=False)
        self.name = f"the prediction JSON {json_path}"
        self.image_ids = {a["image_id"]: a for a in content["annotations"]}
        self._json_path = json_path
        self._directory = directory or coco_json.png_folder(json_path)
        self._label_of = label_of

    def read(self, image_id, hw):
        annotation = coco_json.checked_annotation(
            self.image_ids[image_id], self._json_path, "prediction"
        )
        ids = panoptic_png.read(self._directory, annotation["file_name"], image_id, "prediction")
        _check_size(ids, hw, image_id, annotation["file_name"])
        labels = np.full(ids.shape, _UNLABELED, np.uint8)
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in self._label_of:
                raise UserError(
                    f"Image {image_id}: prediction {annotation['file_name']}: segment"
                    f" {segment['id']} has the unknown category_id {segment['category_id']!r}."
                )
            labels[ids == segment["id"]] = self._label_of[segment["category_id"]]
        return labels


class _SemanticMaps:
    """Labels from the semantic branch's own maps."""

    def __init__(self, directory, label_of):
        self.name = f"the folder of semantic maps {directory}"
        if not os.path.isdir(directory):
            raise UserError(f"{directory}: no such folder; it should hold the semantic maps.")
        self.image_ids = {
            os.path.splitext(n)[0] for n in os.listdir(directory) if n.endswith(".png")
        }
        self._directory = directory
        self._table = np.full(256, _UNLABELED, np.uint8)
        for category_id, label in label_of.items():
            self._table[category_id] = label

    def read(self, image_id, hw):
        path = os.path.join(self._directory, f"{image_id}.png")
        category_ids = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if category_ids is None or category_ids.dtype != np.uint8 or category_ids.ndim != 2:
            raise UserError(f"Image {image_id}: {path} is not a readable 8-bit grey PNG.")
        _check_size(category_ids, hw, image_id, path)
        return self._table[category_ids]


def _check_size(pixels, hw, image_id, name):
    if pixels.shape != tuple(hw):
        raise UserError(
            f"Image {image_id}: prediction {name} is {pixels.shape[0]} x {pixels.shape[1]} (height"
            f" x width), the ground truth {hw[0]} x {hw[1]}; predict at the original image size."
        )


def _results_by_image(path):
    results = coco_json.load_json(path, "The instance results JSON")
    if not isinstance(results, list):
        raise UserError(f"The instance results JSON {path} must be a list of results.")
    by_image = {}
    for index, result in enumerate(results):
        if not isinstance(result, dict) or not isinstance(result.get("image_id"), str):
            raise UserError(
                f'The instance results JSON {path}: entry {index} has no text as "image_id", such'
                ' as "frankfurt_000000_000294".'
            )
        if not isinstance(result.get("score"), (int, float)) or not math.isfinite(result["score"]):
            raise UserError(f"The instance results JSON {path}: entry {index} has no finite score.")
        by_image.setdefault(result["image_id"], []).append(result)
    return by_image


# -- cityscapesscripts ------------------------------------------------------------------------


def _scripts(name):
    """A module of cityscapesscripts."""
    try:
        return importlib.import_module(f"cityscapesscripts.{name}")
    except ImportError as error:
        raise UserError(
            f"Cityscapes' metrics need cityscapesscripts ({error}): pip install -e .[eval]."
        ) from None


@contextlib.contextmanager
def _exits_as_errors():
    """What cityscapesscripts prints is dropped, unless it stops: then it is the error's message."""
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
    scripts = _scripts("evaluation.evalPixelLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    progress = report.Progress(len(image_ids))
    with _exits_as_errors():
        confusion = scripts.generateMatrix(args)
        instances = scripts.generateInstanceStats(args)
    for image_id in image_ids:
        truth.instances(image_id)  # Which the call reads by name.
        with _exits_as_errors():
            scripts.evaluatePair(
                _label_path(folder, image_id),
                truth.labels(image_id),
                confusion,
                instances,
                {},
                args,
            )
        progress.advance()
    progress.close()

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
    scripts = _scripts("evaluation.evalInstanceLevelSemanticLabeling")
    args = copy.copy(scripts.args)
    args.quiet, args.JSONOutput = True, False
    args.predictionPath = os.path.abspath(folder)
    progress = report.Progress(len(image_ids))
    scripts.setInstanceLabels(args)
    matches = {}
    for image_id in image_ids:
        path = truth.instances(image_id)
        with _exits_as_errors():
            instances = scripts.instances2dict([path])
            matches.update(
                scripts.matchGtWithPreds([_list_path(folder, image_id)], [path], instances, args)
            )
        progress.advance()
    progress.close()
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
