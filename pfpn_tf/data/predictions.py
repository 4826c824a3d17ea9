"""Predictions in COCO format, on their way to files: panoptic, instance and semantic.

Shapes: h, w original image size · D instances.
"""

import contextlib
import hashlib
import json
import os
import urllib.parse
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Union

import numpy as np

from pfpn_tf.data import coco_masks, panoptic_png
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

_MAX_NAME = 150  # characters of a file name before it is shortened


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
    results = []
    for box, score, category_id, mask in zip(boxes, scores, category_ids, masks):
        y1, x1, y2, x2 = (float(v) for v in box)
        results.append(
            {
                "image_id": image_id,
                "category_id": int(category_id),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
                "segmentation": coco_masks.encode_rle(mask),
            }
        )
    return results


def segments_info(table: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """COCO's segments_info of one image, with a `score` for each segment.

    Args:
      table: arrays by name, as in `structures.PanopticResult` or a server's reply.
    """
    segments = []
    for i in range(int(table["num_segments"])):
        y1, x1, y2, x2 = (int(v) for v in table["boxes"][i])
        segment = {
            "id": int(table["segment_ids"][i]),
            "category_id": int(table["category_ids"][i]),
            "isthing": int(table["is_thing"][i]),
            "iscrowd": 0,
            "area": int(table["areas"][i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(table["scores"][i]),
        }
        segments.append(segment)
    return segments


def file_stem(image_id: Any) -> str:
    """The name, without suffix, of the files of an image; different ids have different names.

    Numbers have 12 digits, as COCO's. In texts every character but letters, digits and -_. becomes
    %XX of its UTF-8 bytes; long ones end in a hash.
    """
    if isinstance(image_id, int):
        return f"{image_id:012d}"
    stem = urllib.parse.quote(image_id, safe="")
    if stem.startswith("."):
        stem = "%2E" + stem[1:]
    if len(stem) > _MAX_NAME:
        stem = f"{stem[:_MAX_NAME]}-{hashlib.sha256(image_id.encode()).hexdigest()[:16]}"
    return stem


class PredictionWriter:
    """Writes predictions in COCO format while they arrive; a context manager.

    Layout: `panoptic/<stem>.png`, `panoptic.json`, `instances.json`, `semantic/<stem>.png`; the
    stem is that of the image id (`file_stem`). The JSON files get their names when the block ends
    without an error, each PNG as soon as it is complete. A semantic PNG is grey and holds category
    ids; pixels of no category have its largest value, 255, or 65535 where ids need 16 bits.
    """

    def __init__(
        self,
        directory: str,
        categories: Sequence[Dict[str, Any]],
        panoptic: bool = True,
        instances: bool = True,
        semantic_category_ids: Optional[Sequence[Optional[int]]] = None,
        panoptic_name: str = "panoptic",
    ):
        """Opens the files.

        Args:
          directory: made if need be.
          categories: COCO categories, written into the panoptic JSON.
          panoptic, instances: which kinds to write.
          semantic_category_ids: [S] category id of each semantic class, None for a class that has
            none; None: no semantic PNGs.
          panoptic_name: of the panoptic JSON, without suffix, and of its folder.

        Raises:
          UserError: category ids do not fit semantic PNGs.
        """
        self.panoptic_json = os.path.join(directory, f"{panoptic_name}.json") if panoptic else None
        self.panoptic_dir = os.path.join(directory, panoptic_name)
        self.instances_json = os.path.join(directory, "instances.json") if instances else None
        self.semantic_dir = os.path.join(directory, "semantic")
        if semantic_category_ids is not None:
            self._category_of_class = _semantic_table(semantic_category_ids)
        self._categories = list(categories)
        self._paths: Set[str] = set()
        self._images: List[Dict[str, Any]] = []

    def __enter__(self):
        self._files = contextlib.ExitStack()
        if self.panoptic_json:
            os.makedirs(self.panoptic_dir, exist_ok=True)
            self._panoptic = _JsonList(self._open(self.panoptic_json), '{"annotations": [')
        if self.instances_json:
            self._instances = _JsonList(self._open(self.instances_json), "[")
        return self

    def _open(self, path):
        return self._files.enter_context(atomic_write(path))

    def __exit__(self, kind, value, traceback):
        if kind is None and self.panoptic_json:
            images = f'"images": {json.dumps(self._images)},\n' if self._images else ""
            self._panoptic.close(f'],\n{images}"categories": {json.dumps(self._categories)}}}')
        if kind is None and self.instances_json:
            self._instances.close("]")
        return self._files.__exit__(kind, value, traceback)

    def add_panoptic(
        self,
        image_id: Any,
        panoptic_ids: Union[np.ndarray, bytes],
        segments_info: List[dict],
        file_name: Optional[str] = None,
        image: Optional[Dict[str, Any]] = None,
    ) -> None:
        """Writes one panoptic map.

        Args:
          image_id: the dataset's image id.
          panoptic_ids: [h, w] segment ids, or their PNG.
          segments_info: the segments as in COCO's JSON.
          file_name: of the PNG, if not by the image id.
          image: `file_name`, `height` and `width` of the image, to be listed in the JSON.
        """
        file_name = file_name or file_stem(image_id) + ".png"
        png = panoptic_ids
        if not isinstance(png, bytes):
            png = panoptic_png.encode_ids(png)
        _write_bytes(self._unused(self.panoptic_dir, file_name), png)
        self._panoptic.add(
            {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}
        )
        if image is not None:
            self._images.append({"id": image_id, **image})

    def add_instances(self, results: Iterable[Dict[str, Any]]) -> None:
        """Writes the results of `instance_results`."""
        for result in results:
            self._instances.add(result)

    def add_semantic(self, image_id: Any, labels: np.ndarray) -> None:
        """Writes one semantic map.

        Args:
          image_id: the dataset's image id.
          labels: [h, w] semantic class, S where undefined.
        """
        png = panoptic_png.encode_grey(self._category_of_class[labels])
        _write_bytes(self._unused(self.semantic_dir, file_stem(image_id) + ".png"), png)

    def take_over(self, directory: str) -> None:
        """Adds what another writer, made with the same arguments, has left in `directory`; its PNGs
        are moved.
        """
        if self.panoptic_json:
            source = os.path.join(directory, os.path.basename(self.panoptic_dir))
            for annotation in read_entries(f"{source}.json"):
                name = annotation["file_name"]
                os.replace(os.path.join(source, name), self._unused(self.panoptic_dir, name))
                self._panoptic.add(annotation)
        if self.instances_json:
            self.add_instances(read_entries(os.path.join(directory, "instances.json")))
        source = os.path.join(directory, "semantic")
        for name in os.listdir(source) if os.path.isdir(source) else ():
            os.makedirs(self.semantic_dir, exist_ok=True)
            os.replace(os.path.join(source, name), self._unused(self.semantic_dir, name))

    def _unused(self, directory, name):
        """The path of a new map; refuses ids that share a name, such as 1 and "000000000001"."""
        path = os.path.join(directory, name)
        if path in self._paths:
            raise UserError(f"{path} would hold the maps of two images; their ids must differ.")
        self._paths.add(path)
        return path


def _write_bytes(path, content):
    with atomic_write(path, "wb") as f:
        f.write(content)


def _semantic_table(category_ids):
    """[S + 1] value in a semantic PNG of each class, and of what is undefined."""
    largest = max((i for i in category_ids if i is not None), default=0)
    if largest >= 65535:
        raise UserError(
            f"Category id {largest} does not fit the 16 bits of a semantic PNG, which holds ids up"
            " to 65534. Give the category a smaller id, or use --nosave_predictions."
        )
    dtype = np.uint8 if largest < 255 else np.uint16
    void = np.iinfo(dtype).max
    return np.array([void if i is None else i for i in category_ids] + [void], dtype)


class _JsonList:
    """A JSON list written entry by entry."""

    def __init__(self, file, opening):
        self._write = file.write
        self._write(opening)
        self._separator = "\n"

    def add(self, entry):
        self._write(self._separator + json.dumps(entry))
        self._separator = ",\n"

    def close(self, closing):
        self._write(f"\n{closing}\n")


def read_entries(path: str) -> Iterator[Dict[str, Any]]:
    """The entries of a list that `PredictionWriter` wrote, one by one: each is on a line of its
    own.
    """
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.startswith('{"image_id"'):
                yield json.loads(line.rstrip(",\n"))
