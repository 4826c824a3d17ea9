"""Replies of a model, wherever they come from, to files.

OUTPUT/predictions.json            COCO panoptic JSON: images, annotations, categories
OUTPUT/predictions/NAME.png        its panoptic maps
OUTPUT/pictures/NAME_overlay.png   the same over the image, for people
OUTPUT/replies/NAME.json           if asked for: what TensorFlow Serving's REST interface replies

A reply is that of the signature `serving_default` for one image: name to array, `panoptic_png` to
bytes. No TensorFlow here: clients use this, too.
"""

import base64
import collections
import glob
import io
import itertools
import json
import os
from concurrent import futures
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Sequence,
)

import cv2
import numpy as np
from PIL import Image, ImageOps

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils import visualize
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_DIRECT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")  # what the model decodes
_AHEAD = 4  # items read, and results written, while the network works
_PICTURE_SIDE = 1000  # overlays of smaller images are enlarged towards this


class Failure(NamedTuple):
    """A file without a prediction, and why."""

    path: str
    reason: str


class Refused(UserError):
    """The model, or the server, does not take this image; the text says why."""


def refusal(message: str) -> str:
    """The sentence in an error of TensorFlow, or of a server, that says what is wrong."""
    text = message.partition("assertion failed: [")[2].partition("\n")[0].rpartition("]")[0]
    return text.removeprefix("image_bytes[0]: ") or message


def find_images(patterns: Sequence[str]) -> List[str]:
    """Files that files, folders and globs name, without repetition, in order.

    Raises:
      UserError: one of them names nothing.
    """
    paths = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = [
                os.path.join(pattern, name)
                for name in sorted(os.listdir(pattern))
                if name.lower().endswith(SUFFIXES)
            ]
            if not found:
                raise UserError(
                    f"--images={pattern}: no image in this folder ({', '.join(SUFFIXES)})."
                )
        elif os.path.isfile(pattern):
            found = [pattern]
        else:
            found = [
                path for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)
            ]
            if not found:
                raise UserError(
                    f"--images={pattern}: no such file or folder, and no file matches it as a "
                    "pattern."
                )
        paths += found
    return list(dict.fromkeys(paths))


def read_image(path: str) -> bytes:
    """The bytes of an image file, as PNG if the model cannot decode its format (WebP and others).

    Raises:
      OSError: it cannot be read.
    """
    with open(path, "rb") as f:
        content = f.read()
    if content and not content.startswith(_DIRECT):
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None:
            return cv2.imencode(".png", pixels)[1].tobytes()
    return content


def upright_pixels(image_bytes: bytes) -> np.ndarray:
    """[h, w, 3] uint8 RGB of an encoded image, turned as its EXIF orientation asks."""
    with Image.open(io.BytesIO(image_bytes)) as stored:
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8
            high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            return np.repeat(high[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def decode_ids(png: bytes) -> np.ndarray:
    """[h, w] int32 segment ids of a panoptic PNG."""
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None  # The exported network has encoded it.
    channels = bgr.astype(np.int32)
    return channels[..., 2] + 256 * channels[..., 1] + 65536 * channels[..., 0]


def encode_ids(panoptic_ids: np.ndarray) -> bytes:
    """The panoptic PNG of [h, w] segment ids."""
    channels = np.stack([panoptic_ids >> 16, panoptic_ids >> 8, panoptic_ids], -1) & 255
    return cv2.imencode(".png", channels.astype(np.uint8))[1].tobytes()


def segments_info(reply: Mapping[str, Any]) -> List[Dict[str, Any]]:
    """COCO's segments_info of one image's table: `bbox` is x, y, w, h; things have `score`."""
    segments = []
    for i in range(int(reply["num_segments"])):
        y0, x0, y1, x1 = (int(c) for c in reply["boxes"][i])
        segment = {
            "id": int(reply["segment_ids"][i]),
            "category_id": int(reply["category_ids"][i]),
            "isthing": int(reply["is_thing"][i]),
            "area": int(reply["areas"][i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
        }
        if segment["isthing"]:
            segment["score"] = round(float(reply["scores"][i]), 6)
        segments.append(segment)
    return segments


def rest_reply(reply: Mapping[str, Any]) -> Dict[str, Any]:
    """The JSON with which TensorFlow Serving's REST interface answers a request of one image."""
    row = {}
    for name, value in reply.items():
        if isinstance(value, bytes):
            row[f"{name}_bytes"] = {"b64": base64.b64encode(value).decode("ascii")}
        else:
            row[name] = np.asarray(value).tolist()
    return {"predictions": [row]}


def overlapped(
    items: Iterable[Any],
    load: Callable[[Any], Any],
    work: Callable[[Any], Any],
    write: Callable[[Any, Any], Any],
    workers: int = 1,
) -> Iterator[Any]:
    """Runs `write(item, work(load(item)))` for each item; steps of different items overlap.

    Args:
      items: read as they are needed.
      load, write: run in a thread each, one item after the other, in order.
      work: runs in `workers` threads.

    Yields:
      What `write` returns, in the order of the items.

    Raises:
      What a step raises, in place of its item's result; what has not begun then never does.
    """
    loader, writer = futures.ThreadPoolExecutor(1), futures.ThreadPoolExecutor(1)
    worker = futures.ThreadPoolExecutor(workers)
    waiting: Deque[futures.Future] = collections.deque()

    def submit(item):
        loaded = loader.submit(load, item)
        worked = worker.submit(lambda: work(loaded.result()))
        waiting.append(writer.submit(lambda: write(item, worked.result())))

    try:
        items = iter(items)
        for item in itertools.islice(items, _AHEAD + workers):
            submit(item)
        while waiting:
            yield waiting.popleft().result()
            for item in itertools.islice(items, 1):
                submit(item)
    finally:
        for pool in (loader, worker, writer):
            pool.shutdown(wait=True, cancel_futures=True)


class Writer:
    """Writes the files named at the head of this module.

    Args:
      output_dir: made if need be.
      info: the dataset's categories.
      overlays: whether to draw pictures.
      replies: whether to write REST replies.
    """

    def __init__(
        self, output_dir: str, info: DatasetInfo, overlays: bool = True, replies: bool = False
    ):
        self._output_dir = output_dir
        self._info = info
        self._overlays = overlays
        self._replies = replies
        self._images: List[Dict[str, Any]] = []
        self._annotations: List[Dict[str, Any]] = []

    def write(self, name: str, file_name: str, pixels: Callable[[], np.ndarray], reply):
        """Files of one image, and its entries for `finish`.

        Args:
          name: of its files, without suffix; a number becomes the image id.
          file_name: of the image.
          pixels: returns the image, [h, w, 3] uint8, if it is to be drawn on.
          reply: see the head of this module.
        """
        segments = segments_info(reply)
        png = reply["panoptic_png"]
        self._write_bytes(os.path.join("predictions", f"{name}.png"), png)
        ids = decode_ids(png)
        if self._overlays:
            drawn = draw(pixels(), ids, segments, self._info)
            encoded = cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]))[1].tobytes()
            self._write_bytes(os.path.join("pictures", f"{name}_overlay.png"), encoded)
        if self._replies:
            with atomic_write(os.path.join(self._output_dir, "replies", f"{name}.json")) as f:
                json.dump(rest_reply(reply), f)
        image_id = int(name) if name.isdigit() else name
        self._images.append(
            {
                "id": image_id,
                "file_name": file_name,
                "height": ids.shape[0],
                "width": ids.shape[1],
            }
        )
        self._annotations.append(
            {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
        )

    def finish(self):
        """Writes predictions.json."""
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._info.coco_categories(),
        }
        with atomic_write(os.path.join(self._output_dir, "predictions.json")) as f:
            json.dump(content, f, ensure_ascii=False)

    def _write_bytes(self, path, content):
        with atomic_write(os.path.join(self._output_dir, path), "wb") as f:
            f.write(content)


def draw(image: np.ndarray, ids: np.ndarray, segments, info: DatasetInfo) -> np.ndarray:
    """The panoptic map over its image, small images enlarged so that labels have room."""
    scale = float(np.clip(_PICTURE_SIDE // max(ids.shape), 1, 3))
    return visualize.overlay_panoptic(image, ids, segments, info, scale)


def answer_files(
    paths: Sequence[str],
    answer: Callable[[bytes], Mapping[str, Any]],
    writer: Writer,
    workers: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> List[Failure]:
    """Writes the answer for every file. Reading, answering and writing overlap.

    Args:
      paths: image files.
      answer: encoded image to reply; raises `Refused`.
      writer: where the answers go; its `finish` is called.
      workers: how many answers are asked for at a time.
      progress: called after each file.

    Returns:
      The files that could not be read or are refused; the others are done all the same.
    """
    names = unique_names(paths)

    def load(path):
        try:
            return read_image(path)
        except OSError as error:
            return Failure(path, error.strerror or str(error))

    def work(image_bytes):
        if isinstance(image_bytes, Failure):
            return image_bytes
        try:
            return image_bytes, answer(image_bytes)
        except Refused as error:
            return error

    def write(path, result):
        if isinstance(result, Failure):
            return result
        if isinstance(result, Refused):
            return Failure(path, str(result))
        image_bytes, reply = result
        writer.write(
            names[path], os.path.basename(path), lambda: upright_pixels(image_bytes), reply
        )

    failures = []
    for failure in overlapped(paths, load, work, write, workers):
        failures += [failure] if failure else []
        progress()
    writer.finish()
    return failures


def unique_names(paths: Sequence[str]) -> Dict[str, str]:
    """path -> its name without suffix, numbered where that name occurs twice."""
    names, taken = {}, set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, count = stem, 1
        while name.lower() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name.lower())
        names[path] = name
    return names
