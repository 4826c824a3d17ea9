"""Reads a dataset in COCO panoptic format, checks it and gives one plain record per image.

The format: a JSON with images, categories and annotations, one annotation per image with its
segments_info; a folder of PNGs whose pixels hold segment ids (R + 256 G + 256^2 B, 0 is void); a
folder of photos. A COCO instances JSON may be added: it then provides the instances (masks that
overlap, polygons or RLE, crowds); without it they are the thing segments of the panoptic map.

The Cityscapes layout, as cityscapesscripts' createPanopticImgs leaves it, is read too: string image
ids, and photos that are found through the image id because the file names in its JSON do not exist.

Images without any annotation, such as COCO's test-dev, make records as well (`CocoImages`).

No TensorFlow in here: the converter's worker processes use it.
"""

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np

from pfpn_tf.data import categories as categories_lib
from pfpn_tf.utils.errors import UserError

_CITYSCAPES_SPLITS = ("train", "val", "test")


class DataError(UserError):
    """What is wrong with one image of a dataset; the message names file, image and segment."""


class Segment(NamedTuple):
    """A segment of the panoptic map, as the JSON has it."""

    id: int
    category_id: int
    area: int
    bbox_xywh: Tuple[float, float, float, float]
    iscrowd: bool


class Instance(NamedTuple):
    """An instance annotation; `mask` is [h, w] uint8, 0 or 1, and may overlap others."""

    id: int
    category_id: int
    area: float
    bbox_xywh: Tuple[float, float, float, float]
    iscrowd: bool
    mask: np.ndarray


class Record(NamedTuple):
    """All that a TFRecord holds about one image.

    Attributes:
      image_id: as in the JSON, a number or a string.
      file_name: of the photo, without folder.
      image_bytes: the encoded photo, JPEG or PNG.
      image_format: "jpeg" or "png".
      hw: its size as stored (EXIF orientation is not applied).
      category_map: [h, w] uint8 category index (see `categories.py`), 255 void.
      panoptic_png: the panoptic PNG's bytes; empty without annotations.
      segments: of the panoptic map.
      instances: things only.
    """

    image_id: Union[int, str]
    file_name: str
    image_bytes: bytes
    image_format: str
    hw: Tuple[int, int]
    category_map: np.ndarray
    panoptic_png: bytes
    segments: List[Segment]
    instances: List[Instance]


class CocoImages:
    """Images of a split without annotations: `len()`, and by position `read(position)`: a `Record`.

    It can be pickled and is not changed by reading, so worker processes can share it.

    Attributes:
      source: path of the JSON.
      info: the dataset's categories.
      images: entries of the JSON.
    """

    def __init__(self, image_info_json, image_dir, info, image_ids=()):
        """Parses the JSON file; photos are opened by `read` only.

        Args:
          image_info_json: path of a COCO JSON with images, such as image_info_test-dev2017.json.
          image_dir: folder of the photos (Cityscapes: of its city folders).
          info: categories of the dataset; COCO's own list for test images has no stuff.
          image_ids: ids, as text, of the images to use; none: all images.

        Raises:
          UserError: a file is missing or malformed, or lacks one of `image_ids`; says which and
            where.
        """
        self._open(image_info_json, image_dir, _load_json(os.fspath(image_info_json), ("images",)))
        self.info = info
        self._select(image_ids)

    def _open(self, source, image_dir, content):
        self.source = os.fspath(source)
        self.image_dir = _existing_folder(image_dir, "photos (--image_dir)")
        self.images = [
            self._checked(image, ("id", "file_name", "height", "width"), f"images[{i}]")
            for i, image in enumerate(content["images"])
        ]
        self._check_unique_ids()

    def _select(self, image_ids):
        if image_ids:
            by_id = {str(image["id"]): image for image in self.images}
            unknown = [image_id for image_id in image_ids if image_id not in by_id]
            if unknown:
                raise UserError(f"{self.source}: has no image with id {', '.join(unknown)}.")
            self.images = [by_id[image_id] for image_id in image_ids]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_string_ids(self) -> bool:
        """Whether image ids are strings (Cityscapes) rather than numbers (COCO)."""
        return bool(self.images) and isinstance(self.images[0]["id"], str)

    def read(self, position: int) -> Record:
        """The record of image `position`: all void, and with an empty panoptic PNG.

        Raises:
          DataError: the image is missing or unreadable, or of another size than the JSON says.
        """
        image = self.images[position]
        hw = (image["height"], image["width"])
        path, image_bytes = self._read_image_file(image)
        image_bytes, image_format = _checked_image(path, image_bytes, hw)
        void = np.full(hw, categories_lib.VOID, np.uint8)
        name = os.path.basename(path)
        return Record(image["id"], name, image_bytes, image_format, hw, void, b"", [], [])

    def _checked(self, entry, keys, where, source=None):
        source = source or self.source
        if not isinstance(entry, dict):
            raise UserError(f"{source}: {where} must be an object, not {entry!r}.")
        missing = [key for key in keys if key not in entry]
        if missing:
            raise UserError(f"{source}: {where} lacks {', '.join(missing)}.")
        return entry

    def _check_unique_ids(self):
        seen = set()
        for image in self.images:
            if image["id"] in seen:
                raise UserError(f"{self.source}: image id {image['id']} occurs twice.")
            seen.add(image["id"])

    def _read_image_file(self, image):
        name = image["file_name"]
        candidates = [os.path.join(self.image_dir, name)]
        if isinstance(image["id"], str):  # Cityscapes: <city>_<sequence>_<frame>
            photo = f"{image['id']}_leftImg8bit.png"
            city = image["id"].split("_")[0]
            for folder in (city, "", *(os.path.join(s, city) for s in _CITYSCAPES_SPLITS)):
                candidates.append(os.path.join(self.image_dir, folder, photo))
        for path in candidates:
            try:
                with open(path, "rb") as f:
                    return path, f.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
        tried = "" if len(candidates) == 1 else f" (nor {', '.join(candidates[1:3])})"
        raise DataError(
            f"{candidates[0]}: no such image{tried}; {self.source} lists it as "
            f"image {image['id']}."
        )


class CocoPanoptic(CocoImages):
    """A split of a dataset with its annotations."""

    def __init__(self, panoptic_json, panoptic_dir, image_dir, instances_json=None, image_ids=()):
        """Parses the JSON files; photos and PNGs are opened by `read` only.

        Args:
          panoptic_json: path of the panoptic JSON.
          panoptic_dir: folder of its PNGs.
          image_dir: folder of the photos (Cityscapes: of its city folders).
          instances_json: optional path of a COCO instances JSON of the same images.
          image_ids: ids, as text, of the images to use; none: all images.

        Raises:
          UserError: a file is missing or malformed, or lacks one of `image_ids`; says which and
            where.
        """
        content = _load_json(os.fspath(panoptic_json), ("images", "annotations", "categories"))
        self._open(panoptic_json, image_dir, content)
        self.panoptic_dir = _existing_folder(panoptic_dir, "panoptic PNGs (--panoptic_dir)")
        self.info = categories_lib.DatasetInfo.from_coco_categories(
            content["categories"], source=self.source
        )
        self._annotations = self._annotations_by_image(content["annotations"])
        self._instances = None
        if instances_json:
            self.instances_json = os.fspath(instances_json)
            self._instances = self._instances_by_image(
                _load_json(self.instances_json, ("images", "annotations", "categories"))
            )
        self._select(image_ids)

    def read(self, position: int) -> Record:
        """The record of image `position`, checked.

        Raises:
          DataError: the image, its PNG or its annotation is missing, unreadable or contradictory.
        """
        image = self.images[position]
        hw = (image["height"], image["width"])
        path, image_bytes = self._read_image_file(image)
        image_bytes, image_format = _checked_image(path, image_bytes, hw)
        ids, png_path, png_bytes = self._read_panoptic_png(image, hw)
        segments, category_map = self._segments(image, ids, png_path)
        if self._instances is None:
            instances = _instances_from_segments(ids, segments, self.info)
        else:
            instances = self._annotated_instances(image, hw)
        return Record(
            image["id"],
            os.path.basename(path),
            image_bytes,
            image_format,
            hw,
            category_map,
            png_bytes,
            segments,
            instances,
        )

    # -- the JSON files -----------------------------------------------------------------------

    def _annotations_by_image(self, annotations) -> Dict[Any, Dict]:
        by_image = {}
        known = {image["id"] for image in self.images}
        for i, annotation in enumerate(annotations):
            keys = ("image_id", "file_name", "segments_info")
            self._checked(annotation, keys, f"annotations[{i}]")
            image_id = annotation["image_id"]
            if image_id not in known:
                raise UserError(
                    f"{self.source}: annotations[{i}] is for image {image_id}, which is "
                    "not among the images."
                )
            if image_id in by_image:
                raise UserError(f"{self.source}: image {image_id} has two annotations.")
            by_image[image_id] = annotation
        return by_image

    def _instances_by_image(self, content) -> Dict[Any, List[Dict]]:
        for category in content["categories"]:
            known = self.info.by_id.get(category["id"])
            if known is None or not known.is_thing or known.name != category["name"]:
                raise UserError(
                    f"{self.instances_json}: category {category['id']} ({category['name']}) is "
                    f"{'no category' if known is None else repr(known)} in "
                    f"{self.source}; the categories of instances must be its things."
                )
        by_image: Dict[Any, List[Dict]] = {image["id"]: [] for image in content["images"]}
        keys = ("id", "image_id", "category_id", "bbox", "segmentation")
        for i, annotation in enumerate(content["annotations"]):
            self._checked(annotation, keys, f"annotations[{i}]", self.instances_json)
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        return by_image

    # -- the files of one image ---------------------------------------------------------------

    def _read_panoptic_png(self, image, hw):
        annotation = self._annotations.get(image["id"])
        if annotation is None:
            raise DataError(
                f"{self.source}: image {image['id']} ({image['file_name']}) has no " "annotation."
            )
        path = os.path.join(self.panoptic_dir, annotation["file_name"])
        try:
            with open(path, "rb") as f:
                png_bytes = f.read()
        except OSError as error:
            raise DataError(
                f"{path}: the panoptic PNG of image {image['id']} cannot be read "
                f"({error.strerror})."
            ) from None
        pixels = _decode(png_bytes, cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(f"{path}: not a readable 8-bit RGB PNG with segment ids.")
        if pixels.shape[:2] != hw:
            raise DataError(
                f"{path}: the panoptic PNG is {_size(pixels.shape)}, but {self.source} "
                f"gives image {image['id']} as {_size(hw)}."
            )
        blue, green, red = (pixels[..., i].astype(np.int32) for i in range(3))
        return red + 256 * green + 65536 * blue, path, png_bytes

    def _segments(self, image, ids, png_path):
        """The segments with what the JSON leaves out, and the [h, w] uint8 category indices."""
        present, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        index_of_id = np.full(len(present), categories_lib.VOID, np.uint8)
        position = {segment_id: i for i, segment_id in enumerate(present.tolist())}
        listed = {0}
        segments = []
        where = f"{self.source}: image {image['id']} ({image['file_name']}): "
        entries = self._annotations[image["id"]]["segments_info"]
        if not isinstance(entries, list):
            raise DataError(f"{where}segments_info must be a list, not {entries!r}.")
        for i, entry in enumerate(entries):
            problem = _segment_problem(entry)
            if problem:
                raise DataError(f"{where}segments_info[{i}] {problem}.")
            segment_id, category_id = entry["id"], entry["category_id"]
            if segment_id in listed:
                raise DataError(
                    f"{where}segment {segment_id} is "
                    f"{'void' if segment_id == 0 else 'listed twice'}."
                )
            if category_id not in self.info.by_id:
                raise DataError(
                    f"{where}segment {segment_id} has the unknown category {category_id}."
                )
            if segment_id not in position:
                raise DataError(f"{where}segment {segment_id} has no pixel in {png_path}.")
            listed.add(segment_id)
            at = position[segment_id]
            index_of_id[at] = self.info.category_to_index[category_id]
            bbox = entry.get("bbox") or _tight_xywh(ids == segment_id)
            area = entry.get("area", int(counts[at]))
            segments.append(
                Segment(segment_id, category_id, area, tuple(bbox), bool(entry.get("iscrowd", 0)))
            )
        unlisted = sorted(set(position) - listed)
        if unlisted:
            raise DataError(
                f"{png_path}: segment {unlisted[0]} has "
                f"{counts[position[unlisted[0]]]} pixels, but "
                f"{self.source} does not list it for image {image['id']}."
            )
        return segments, index_of_id[inverse].reshape(ids.shape)

    def _annotated_instances(self, image, hw):
        if image["id"] not in self._instances:
            raise DataError(
                f"{self.instances_json}: does not list image {image['id']} ({image['file_name']})."
            )
        instances = []
        for annotation in self._instances[image["id"]]:
            where = f"{self.instances_json}: image {image['id']}: annotation {annotation['id']}"
            if annotation["category_id"] not in self.info.category_to_class_id:
                raise DataError(
                    f"{where} has category {annotation['category_id']}, which is no thing."
                )
            if not _is_box(annotation["bbox"]):
                raise DataError(f"{where} must have four numbers as bbox.")
            mask = _decode_segmentation(annotation["segmentation"], hw, where)
            instances.append(
                Instance(
                    annotation["id"],
                    annotation["category_id"],
                    annotation.get("area", int(mask.sum())),
                    tuple(annotation["bbox"]),
                    bool(annotation.get("iscrowd", 0)),
                    mask,
                )
            )
        return instances


def _segment_problem(entry) -> Optional[str]:
    """What is malformed in an entry of segments_info; None if nothing is."""
    if not isinstance(entry, dict):
        return f"must be an object, not {entry!r}"
    for key in ("id", "category_id"):
        if key not in entry:
            return f"lacks {key}"
        if not isinstance(entry[key], int):
            return f"must have a whole number as {key}, not {entry[key]!r}"
    if not isinstance(entry.get("area", 0), (int, float)):
        return f"must have a number as area, not {entry['area']!r}"
    if entry.get("bbox") and not _is_box(entry["bbox"]):
        return f"must have four numbers as bbox, not {entry['bbox']!r}"
    return None


def _is_box(value) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 4
        and all(isinstance(v, (int, float)) for v in value)
    )


def _instances_from_segments(ids, segments, info) -> List[Instance]:
    """Thing segments as instances, with the box that encloses their pixels."""
    instances = []
    for segment in segments:
        if segment.category_id in info.category_to_class_id:
            mask = (ids == segment.id).astype(np.uint8)
            instances.append(
                Instance(
                    segment.id,
                    segment.category_id,
                    int(mask.sum()),
                    _tight_xywh(mask),
                    segment.iscrowd,
                    mask,
                )
            )
    return instances


def _decode_segmentation(segmentation, hw, where) -> np.ndarray:
    """COCO polygons, or RLE compressed or not, to an [h, w] uint8 mask."""
    from pycocotools import mask as mask_lib

    try:
        if isinstance(segmentation, list):
            if not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
                raise DataError(f"{where}: a polygon needs at least three x, y pairs.")
            rle = mask_lib.merge(mask_lib.frPyObjects(segmentation, *hw))
        else:
            if list(segmentation["size"]) != list(hw):
                raise DataError(
                    f"{where}: mask of {_size(segmentation['size'])} on an image of {_size(hw)}."
                )
            rle = segmentation
            if isinstance(segmentation["counts"], list):
                rle = mask_lib.frPyObjects(segmentation, *hw)
        return np.ascontiguousarray(mask_lib.decode(rle))
    except DataError:
        raise
    except Exception as error:  # pycocotools raises whatever its parser stumbles over
        raise DataError(f"{where}: its segmentation cannot be decoded ({error}).") from None


def _checked_image(path, image_bytes, hw) -> Tuple[bytes, str]:
    """The photo as JPEG or PNG bytes that TensorFlow decodes to `hw`, and which of both it is."""
    pixels = _decode(image_bytes, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise DataError(f"{path}: not a readable image ({len(image_bytes)} bytes).")
    if pixels.shape[:2] != hw:
        rotated = pixels.shape[1::-1] == hw
        hint = " An EXIF orientation is not applied: rotate the file or swap the sizes."
        raise DataError(
            f"{path}: the image is {_size(pixels.shape)}, but its JSON says {_size(hw)}."
            f"{hint if rotated else ''}"
        )
    if image_bytes.startswith(b"\xff\xd8"):
        return image_bytes, "jpeg"
    if image_bytes.startswith(b"\x89PNG"):
        return image_bytes, "png"
    return cv2.imencode(".png", pixels)[1].tobytes(), "png"  # BMP, WebP, TIFF: kept without loss


def _decode(data: bytes, mode) -> Optional[np.ndarray]:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error:  # an empty file, or a header that claims absurd sizes
        return None


def _tight_xywh(mask) -> Tuple[int, int, int, int]:
    """The smallest box around the pixels of `mask`, which has at least one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y, x = int(rows[0]), int(columns[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _size(hw) -> str:
    return f"{hw[1]}x{hw[0]} (width x height)"


def _existing_folder(path, content) -> str:
    path = os.fspath(path)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; it should hold the {content}.")
    return path


def _load_json(path, keys):
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from None
    missing = [
        k for k in keys if not isinstance(content, dict) or not isinstance(content.get(k), list)
    ]
    if missing:
        raise UserError(f"{path}: lacks the list {', '.join(missing)}; expected COCO's format.")
    return content
