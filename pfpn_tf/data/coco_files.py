"""COCO panoptic and instance files: reading them with checks, and predictions on their way out.

A panoptic PNG stores the segment id of each pixel as R + 256 G + 65536 B; 0 is void.

Shapes: h, w original image size · D instances.
"""

import contextlib
import json
import os
from typing import Any, Callable, Dict, Generator, Iterable, List, Optional, Sequence, Set

import cv2
import numpy as np

from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_COLOR_TYPES = (2, 6)  # Truecolour, without and with alpha (which is ignored).


def decode_panoptic_pixels(png: bytes, name: str) -> np.ndarray:
    """The pixels of a panoptic PNG, whose three bytes are the segment id.

    Args:
      png: the file's bytes.
      name: what an error calls the file.

    Returns:
      [h, w, 3] uint8 RGB.

    Raises:
      UserError: not an 8-bit RGB PNG, or damaged.
    """
    if png[:8] != _PNG_SIGNATURE or len(png) < 33:
        raise UserError(f"{name}: not a PNG file; panoptic maps are 8-bit RGB PNGs.")
    bit_depth, color_type = png[24], png[25]
    if bit_depth != 8 or color_type not in _RGB_COLOR_TYPES:
        raise UserError(
            f"{name}: a panoptic map must be an 8-bit RGB PNG (id = R + 256 G + 65536 B), this one"
            f" has bit depth {bit_depth} and PNG color type {color_type}; was it saved as grey or"
            " palette?"
        )
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        rgb = cv2.imdecode(np.frombuffer(png, np.uint8), flags)
    except cv2.error:  # A header that claims an absurd size.
        rgb = None
    if rgb is None or (b"IEND" not in png[-32:] and b"IEND" not in png):
        raise UserError(f"{name}: damaged PNG, cannot be decoded.")
    return rgb


def decode_panoptic_png(png: bytes, name: str) -> np.ndarray:
    """Segment ids of a panoptic PNG.

    Args, Raises: as `decode_panoptic_pixels`.

    Returns:
      [h, w] uint32.
    """
    # Four bytes R, G, B, 255 read as one little-endian number; the mask drops the 255.
    rgba = cv2.cvtColor(decode_panoptic_pixels(png, name), cv2.COLOR_RGB2RGBA)
    ids = rgba.view("<u4")[..., 0]  # [h, w, 4] -> [h, w]
    ids &= 0xFFFFFF
    return ids


def encode_panoptic_png(panoptic_ids: np.ndarray) -> bytes:
    """The inverse of `decode_panoptic_png`.

    Args:
      panoptic_ids: [h, w] integer ids below 2**24.
    """
    ids = np.asarray(panoptic_ids).astype(np.uint32)
    bgr = np.stack([ids >> 16, (ids >> 8) & 255, ids & 255], axis=-1).astype(np.uint8)
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()


def read_panoptic_png(
    directory: str,
    file_name: str,
    image_id: Any,
    what: str,
    decode: Callable[[bytes, str], np.ndarray] = decode_panoptic_png,
) -> np.ndarray:
    """`decode_panoptic_png` or `decode_panoptic_pixels` of a file; errors name the image, the file
    and what it is.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = os.path.join(directory, file_name)
    try:
        with open(path, "rb") as f:
            png = f.read()
    except OSError as error:
        raise UserError(
            f"Image {image_id}: {what} PNG {path} cannot be read ({error.strerror})."
        ) from None
    return decode(png, f"Image {image_id}: {what} PNG {path}")


def png_folder(json_path: str) -> str:
    """Where the PNGs of a panoptic JSON are by default: in the folder of its name."""
    return json_path[: -len(".json")] if json_path.endswith(".json") else os.path.dirname(json_path)


def load_json(path: str, what: str) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it cannot be read or is not JSON; the message names `what` and the place.
    """
    try:
        with open(path, "rb") as f:
            return json.load(f)
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None


def load_panoptic_json(path: str, what: str, with_categories: bool) -> Dict[str, Any]:
    """A COCO panoptic JSON file, checked as far as telling its images apart takes.

    `check_annotation` checks the rest, for the images that are used.

    Args:
      path: the JSON file.
      what: what an error calls it, e.g. "prediction".
      with_categories: whether `categories` must be there.

    Raises:
      UserError: something is missing or of the wrong type; names file and annotation.
    """
    content = load_json(path, f"The {what} JSON")
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        hint = ""
        if isinstance(content, list):
            hint = " It is a list: is it a file of instance results?"
        raise UserError(
            f'The {what} JSON {path} must be an object with a list "annotations".{hint}'
        )
    if with_categories:
        _check_categories(content, path, what)
    for index, annotation in enumerate(content["annotations"]):
        where = f"The {what} JSON {path}: annotation number {index}"
        if not isinstance(annotation, dict):
            raise UserError(f"{where} is not an object.")
        if "image_id" not in annotation:
            raise UserError(f'{where} has no "image_id".')
        if isinstance(annotation["image_id"], (list, dict)):
            raise UserError(f"{where}: the image id must be a number or a string.")
    return content


def _check_categories(content, path, what):
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories:
        raise UserError(f'The {what} JSON {path} has no list "categories".')
    for category in categories:
        if not isinstance(category, dict) or "id" not in category or "isthing" not in category:
            raise UserError(
                f'The {what} JSON {path}: each category needs "id" and "isthing", this one does not'
                f" have them: {json.dumps(category)[:200]}. Is it an instances JSON?"
            )
        if not isinstance(category["id"], (int, str)):
            raise UserError(
                f"The {what} JSON {path}: category id {json.dumps(category['id'])} must be a"
                " number."
            )


def check_annotation(annotation: Dict[str, Any], path: str, what: str, areas: bool = False) -> None:
    """Checks the annotation of one image in a panoptic JSON, down to each segment.

    Args:
      annotation: of `load_panoptic_json`.
      path, what: the JSON file and what an error calls it.
      areas: whether areas are used, and so have to be numbers where they are given.

    Raises:
      UserError: something is missing or of the wrong type; names image, file and segment.
    """
    where = f"Image {annotation['image_id']}: in the {what} JSON {path}"
    if not isinstance(annotation.get("file_name"), str):
        raise UserError(f'{where} the annotation has no "file_name", or it is not a string.')
    if not isinstance(annotation.get("segments_info"), list):
        raise UserError(f'{where} the annotation has no list "segments_info".')
    for segment in annotation["segments_info"]:
        if not isinstance(segment, dict) or "id" not in segment:
            raise UserError(
                f'{where} an entry of segments_info has no "id": {json.dumps(segment)[:200]}.'
            )
        if not _is_whole(segment["id"]):
            raise UserError(
                f"{where} segment id {json.dumps(segment['id'])} is not a whole number."
            )
        if "category_id" not in segment or isinstance(segment["category_id"], (list, dict)):
            raise UserError(f'{where} segment {segment["id"]} has no usable "category_id".')
        if areas and "area" in segment and not isinstance(segment["area"], (int, float)):
            raise UserError(f"{where} the area of segment {segment['id']} is not a number.")


def _is_whole(value):
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def instance_results(
    image_id: Any,
    boxes: np.ndarray,
    scores: np.ndarray,
    category_ids: Sequence[int],
    masks: Iterable[np.ndarray],
) -> List[Dict[str, Any]]:
    """COCO instance results of one image.

    Args:
      image_id: the dataset's image id.
      boxes: [D, 4] float yxyx pixels of the original image.
      scores: [D] float.
      category_ids: [D] the dataset's own ids.
      masks: D arrays [h, w] of 0 and 1.

    Returns:
      One dict per instance with `bbox` (x, y, width, height) and `segmentation` (compressed RLE).
    """
    from pycocotools import mask as mask_utils

    results = []
    for box, score, category_id, mask in zip(boxes, scores, category_ids, masks):
        y1, x1, y2, x2 = (float(v) for v in box)
        rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
        results.append(
            {
                "image_id": image_id,
                "category_id": int(category_id),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
                "segmentation": {
                    "size": [int(v) for v in rle["size"]],
                    "counts": rle["counts"].decode(),
                },
            }
        )
    return results


class PredictionWriter:
    """Writes predictions in COCO format while they arrive; a context manager.

    Layout: `panoptic/<image id>.png`, `panoptic.json`, `instances.json`, `semantic/<image id>.png`.
    The JSON files get their names when the block ends without an error, each PNG as soon as it is
    complete. A semantic PNG is grey and holds category ids, its largest value (255, or 65535 where
    ids need 16 bits) what has none.
    """

    def __init__(
        self,
        directory: str,
        categories: Sequence[Dict[str, Any]],
        panoptic: bool = True,
        instances: bool = True,
        semantic_category_ids: Optional[Sequence[Optional[int]]] = None,
    ):
        """Opens the files.

        Args:
          directory: made if need be.
          categories: COCO categories, written into the panoptic JSON.
          panoptic, instances: which kinds to write.
          semantic_category_ids: [S] category id of each semantic class, None for a class that has
            none; None: no semantic PNGs.
        """
        self.panoptic_json = os.path.join(directory, "panoptic.json") if panoptic else None
        self.panoptic_dir = os.path.join(directory, "panoptic")
        self.instances_json = os.path.join(directory, "instances.json") if instances else None
        self.semantic_dir = os.path.join(directory, "semantic")
        self.writes_semantic = semantic_category_ids is not None
        if semantic_category_ids is not None:
            self._category_of_class = _semantic_table(semantic_category_ids)
        self._categories = list(categories)
        self._file_names: Set[str] = set()

    def __enter__(self):
        self._files = contextlib.ExitStack()
        if self.panoptic_json:
            os.makedirs(self.panoptic_dir, exist_ok=True)
            self._panoptic = _JsonList(
                self._files.enter_context(atomic_write(self.panoptic_json)), '{"annotations": ['
            )
        if self.instances_json:
            self._instances = _JsonList(
                self._files.enter_context(atomic_write(self.instances_json)), "["
            )
        return self

    def __exit__(self, kind, value, traceback):
        if kind is None and self.panoptic_json:
            self._panoptic.close(f'], "categories": {json.dumps(self._categories)}}}')
        if kind is None and self.instances_json:
            self._instances.close("]")
        return self._files.__exit__(kind, value, traceback)

    def add_panoptic(
        self, image_id: Any, panoptic_ids: np.ndarray, segments_info: List[dict]
    ) -> None:
        """Writes one panoptic map, named after the image id."""
        file_name = self._file_name(image_id)
        with atomic_write(os.path.join(self.panoptic_dir, file_name), "wb") as f:
            f.write(encode_panoptic_png(panoptic_ids))
        self._panoptic.add(
            {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}
        )

    def add_instances(self, results: List[Dict[str, Any]]) -> None:
        """Writes the results of `instance_results`."""
        for result in results:
            self._instances.add(result)

    def move_panoptic(self, annotation: Dict[str, Any], directory: str) -> None:
        """Takes over a panoptic map that another writer has written.

        Args:
          annotation: its entry of that writer's `panoptic.json`.
          directory: where its PNG is; it is moved.
        """
        file_name = self._file_name(annotation["image_id"])
        os.replace(
            os.path.join(directory, annotation["file_name"]),
            os.path.join(self.panoptic_dir, file_name),
        )
        self._panoptic.add({**annotation, "file_name": file_name})

    def add_semantic(self, image_id: Any, labels: np.ndarray) -> None:
        """Writes one semantic map, named after the image id.

        Args:
          image_id: the dataset's image id.
          labels: [h, w] semantic class, S where undefined.
        """
        png = cv2.imencode(
            ".png", self._category_of_class[labels], [cv2.IMWRITE_PNG_COMPRESSION, 1]
        )[1]
        with atomic_write(
            os.path.join(self.semantic_dir, f"{_plain_name(image_id)}.png"), "wb"
        ) as f:
            f.write(png.tobytes())

    def move_semantic(self, directory: str) -> None:
        """Takes over the semantic maps that another writer has left in `directory`, if it had any
        image.
        """
        os.makedirs(self.semantic_dir, exist_ok=True)
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            os.replace(os.path.join(directory, name), os.path.join(self.semantic_dir, name))

    def _file_name(self, image_id):
        name = _plain_name(image_id)
        unique, count = name, 1
        while unique in self._file_names:
            count += 1
            unique = f"{name}_{count}"
        self._file_names.add(unique)
        return unique + ".png"


def _plain_name(image_id):
    """A file name of letters and digits for an image id."""
    if isinstance(image_id, int):
        return f"{image_id:012d}"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in str(image_id))


def _semantic_table(category_ids):
    """[S + 1] value in a semantic PNG of each class, and of what is undefined."""
    dtype = (
        np.uint8 if max((i for i in category_ids if i is not None), default=0) < 255 else np.uint16
    )
    void = np.iinfo(dtype).max
    return np.array([void if i is None else i for i in category_ids] + [void], dtype)


class _JsonList:
    """A JSON list written entry by entry."""

    def __init__(self, file, opening):
        self._file = file
        self._separator = opening + "\n"

    def add(self, entry):
        self._file.write(self._separator + json.dumps(entry))
        self._separator = ",\n"

    def close(self, closing):
        if self._separator != ",\n":  # No entry yet.
            self._file.write(self._separator)
        self._file.write("\n" + closing + "\n")


def read_entries(path: str) -> Generator[Dict[str, Any], None, None]:
    """The entries of a list that `PredictionWriter` wrote, one by one: each is on a line of its
    own.
    """
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.startswith('{"image_id"'):
                yield json.loads(line.rstrip(",\n"))
