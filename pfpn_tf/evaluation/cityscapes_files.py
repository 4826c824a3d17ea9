"""The files of Cityscapes' benchmark: ground truth, predictions in COCO format on their way in, and
what its server takes.

Shapes: h, w original image size.
"""

import glob
import importlib
import os
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image

from pfpn_tf.data import coco_json, coco_masks, panoptic_png, predictions
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

_LABELS = "_gtFine_labelIds.png"
_INSTANCES = "_gtFine_instanceIds.png"
_UNLABELED = 0


def scripts(name: str) -> Any:
    """A module of cityscapesscripts."""
    try:
        return importlib.import_module(f"cityscapesscripts.{name}")
    except ImportError as error:
        raise UserError(
            f"Cityscapes' metrics need cityscapesscripts ({error}): pip install -e .[eval]."
        ) from None


def label_ids(categories_json: str) -> Dict[int, int]:
    """category_id -> Cityscapes label id, by name.

    Args:
      categories_json: a JSON with COCO categories, such as a panoptic JSON or dataset_info.json.

    Raises:
      UserError: there are no categories, or one is no class of Cityscapes.
    """
    known = scripts("helpers.labels").name2label
    content = (
        coco_json.load_json(categories_json, "The JSON of the categories")
        if categories_json
        else {}
    )
    categories = content.get("categories") if isinstance(content, dict) else None
    if not isinstance(categories, list) or not categories:
        raise UserError(
            f"The JSON of the predictions {categories_json} has no categories, which tell"
            " Cityscapes' classes by name; give the ground truth's panoptic JSON as well"
            " (--gt_panoptic_json)."
        )
    label_of = {}
    for category in coco_json.named_categories(categories, categories_json):
        name = category["name"]
        if name not in known:
            raise UserError(
                f"{categories_json}: category {name!r} is no class of Cityscapes; its metrics need"
                " categories by the names of cityscapesscripts."
            )
        label_of[category["id"]] = known[name].id
    return label_of


def write_instances(folder: str, image_id: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes one image for the instance-level benchmark: `folder`/IMAGE_ID.txt and its masks.

    Args:
      folder: made if need be.
      image_id: of the image.
      results: of `read_results`.
    """
    lines = []
    for index, result in enumerate(results):
        name, mask = f"masks/{image_id}_{index:03d}.png", result["segmentation"]
        with atomic_write(os.path.join(folder, name), "wb") as f:
            pixels = 255 * coco_masks.decode_mask(mask, tuple(mask["size"]), image_id)
            f.write(panoptic_png.encode_grey(pixels))
        lines.append(f"{name} {result['label']} {float(result['score'])!r}\n")
    with atomic_write(list_path(folder, image_id)) as f:
        f.writelines(lines)


def list_path(folder, image_id):
    return os.path.join(folder, f"{image_id}.txt")


class TruthFiles(NamedTuple):
    """The ground truth of one image.

    Attributes:
      labels, instances: paths of its two PNGs.
      hw: its height and width.
    """

    labels: str
    instances: str
    hw: Tuple[int, int]


def read_truth(directory: str, image_ids: Optional[Sequence[Any]] = None) -> Dict[str, TruthFiles]:
    """The ground truth of a split by image id, city_sequence_frame.

    Args:
      directory: of its city folders.
      image_ids: only those of these images; None: all.

    Raises:
      UserError: there is none, or a file is missing or no PNG.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(directory), "*", f"*{_LABELS}")))
    if not paths:
        raise UserError(
            f"{directory}: holds no CITY/*{_LABELS}; give the folder of one split, e.g."
            " gtFine/val, as the ground truth of Cityscapes."
        )
    by_id = {os.path.basename(path)[: -len(_LABELS)]: path for path in paths}
    if image_ids is not None:
        by_id = {i: path for i, path in by_id.items() if i in set(image_ids)}
        if not by_id:
            raise UserError(
                f"{directory}: none of its images is predicted; is it the ground truth of this"
                " split?"
            )
    return {image_id: _truth_files(image_id, path) for image_id, path in by_id.items()}


def _truth_files(image_id, labels):
    instances = labels[: -len(_LABELS)] + _INSTANCES
    if not os.path.exists(instances):
        raise UserError(f"Image {image_id}: the ground truth {instances} does not exist.")
    try:
        with Image.open(labels) as image:
            return TruthFiles(labels, instances, image.size[::-1])
    except OSError:
        raise UserError(
            f"Image {image_id}: the ground truth {labels} is no readable PNG."
        ) from None


MapReader = Callable[[str], Tuple[np.ndarray, str]]
"""Takes an image id; returns [h, w] uint8 label ids and the name of their file."""


def panoptic_maps(json_path, directory, label_of, truth, gt_dir) -> MapReader:
    """Checks that a panoptic prediction has all images; returns a reader of their labels."""
    content = coco_json.load_panoptic_json(json_path, "prediction", with_categories=False)
    listed = {a["image_id"]: a for a in content["annotations"]}
    missing = [i for i in truth if i not in listed]
    if missing:
        more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
        raise UserError(
            f"Image {missing[0]}{more}: not in the prediction JSON {json_path}, but in the ground"
            f" truth {gt_dir}."
        )
    directory = directory or coco_json.png_folder(json_path)
    annotations = {
        i: coco_json.checked_annotation(listed[i], json_path, "prediction") for i in truth
    }
    for image_id, annotation in annotations.items():
        path = coco_json.existing_path(directory, annotation["file_name"])
        if not os.path.isfile(path):
            raise UserError(f"Image {image_id}: {path} cannot be read (No such file or directory).")

    def read(image_id):
        annotation = annotations[image_id]
        ids = panoptic_png.read(directory, annotation["file_name"], image_id, "prediction")
        labels = np.full(ids.shape, _UNLABELED, np.uint8)
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in label_of:
                raise UserError(
                    f"Image {image_id}: prediction {annotation['file_name']}: segment"
                    f" {segment['id']} has the unknown category_id {segment['category_id']!r}."
                )
            labels[ids == segment["id"]] = label_of[segment["category_id"]]
        return labels, annotation["file_name"]

    return read


def semantic_maps(directory, label_of) -> MapReader:
    """A reader of the labels that `predictions.PredictionWriter.add_semantic` has written."""
    table = np.full(1 << 16, _UNLABELED, np.uint8)
    for category_id, label in label_of.items():
        table[category_id] = label

    def read(image_id):
        path = os.path.join(directory, f"{predictions.file_stem(image_id)}.png")
        return table[cv2.imread(path, cv2.IMREAD_UNCHANGED)], path

    return read


def read_results(
    path: str, label_of: Mapping[int, int], truth: Mapping[str, TruthFiles]
) -> Dict[str, List[Dict[str, Any]]]:
    """COCO instance results by image id: their label, score and segmentation.

    Args:
      path: of the JSON. Results of images without ground truth are left out.
      label_of: from `label_ids`.
      truth: from `read_truth`.

    Raises:
      UserError: an entry has no usable image id or score, no mask of the image's size, or an
        unknown category.
    """
    results = coco_json.load_json(path, "The instance results JSON")
    if not isinstance(results, list):
        raise UserError(f"The instance results JSON {path} must be a list of results.")
    by_image: Dict[str, List[Dict[str, Any]]] = {image_id: [] for image_id in truth}
    for index, result in enumerate(results):
        where = f"The instance results JSON {path}: entry {index}"
        if not isinstance(result, dict) or not isinstance(result.get("image_id"), str):
            raise UserError(
                f'{where} has no text as "image_id", such as "frankfurt_000000_000294".'
            )
        category_id = coco_json.field(result, "category_id", coco_json.WHOLE, where)
        score = coco_json.field(result, "score", coco_json.NUMBER, where)
        image_id, segmentation = result["image_id"], result.get("segmentation")
        if image_id not in truth:
            continue
        where = f"Image {image_id}: instance {len(by_image[image_id])}"
        if not isinstance(segmentation, dict):
            raise UserError(f"{where} needs a segmentation in RLE.")
        coco_masks.rle_runs(segmentation, truth[image_id].hw, where)
        if category_id not in label_of:
            raise UserError(f"{where} has the unknown category_id {category_id!r}.")
        by_image[image_id].append(
            {"label": label_of[category_id], "score": score, "segmentation": segmentation}
        )
    return by_image
