"""Replies of a model, wherever they come from, to files.

OUTPUT/predictions.json            COCO panoptic JSON: images, annotations, categories
OUTPUT/predictions/NAME.png        its panoptic maps
OUTPUT/pictures/NAME_overlay.png   the same over the image, for people
OUTPUT/replies/NAME.json           if asked for: what TensorFlow Serving's REST interface replies

A reply is that of the signature `serving_rest` for one image: name to array, `panoptic_png` to
bytes, `error` to str. No TensorFlow here: clients use this, too.
"""

import base64
import contextlib
import io
import json
import os
import re
import stat
from typing import (
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT

from pfpn_tf.data import panoptic_png, predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils import visualize
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write, matching

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif"),
    *(".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    # Nothing here reads these, so they are named as files without a prediction.
    *(".avif", ".heic", ".heif", ".jp2"),
)
_BY_PILLOW = ("WEBP", "TIFF", "PPM")
_DIRECT = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")  # what the model decodes
_PICTURE_SIDE, MAX_SCALE = 1000, 8  # smaller images are enlarged towards this, up to this factor
_NAME_BYTES = 200  # of a name, so that NAME_overlay.png is within the 255 of file systems


class Failure(NamedTuple):
    """A file without a prediction, and why."""

    path: str
    reason: str


class Refused(UserError):
    """The model, or the server, does not take this image; the text says why."""


def refusal(message: str) -> str:
    """The sentence in an error of TensorFlow, or of a server, that says what is wrong."""
    return message.partition("assertion failed: [")[2].partition("\n")[0].rpartition("]")[0] or (
        message
    )


def reason(error: Exception) -> str:
    """What an error of a file says, without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_images(patterns: Sequence[str]) -> List[str]:
    """Files that files, folders and globs name, without repetition, in order.

    Args:
      patterns: of a list that was split at its commas; what has a name with commas in it, and is
        the only one, is found all the same.

    Raises:
      UserError: one of them names nothing.
    """
    for comma in (",", ", "):
        if len(patterns) > 1 and os.path.exists(comma.join(patterns)):
            patterns = [comma.join(patterns)]
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
            found = [path for path in matching(pattern) if os.path.isfile(path)]
            if not found:
                advice = (
                    " A name with a comma stands in double quotes: --images='\"a,b.jpg\",c.jpg'."
                )
                raise UserError(
                    f"--images={pattern}: no such file or folder, and no file matches it as a "
                    f"pattern.{advice if len(patterns) > 1 else ''}"
                )
        paths += found
    return list(dict.fromkeys(paths))


def read_image(path: str) -> bytes:
    """The bytes of an image file, as PNG if the model cannot decode its format (WebP, TIFF, ...).

    Raises:
      Refused: it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Refused("not a regular file")
        with open(path, "rb") as f:
            content = f.read()
    except Refused:
        raise
    except (OSError, ValueError, MemoryError) as error:  # ValueError: of an impossible name.
        raise Refused(reason(error)) from None
    if content.startswith(_DIRECT):
        return content
    try:
        pixels = upright_pixels(content, _BY_PILLOW)
        return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    except Image.UnidentifiedImageError:
        return content  # The model says what is wrong with it.
    except Exception as error:  # Damaged files lead Pillow to many kinds of errors.
        raise Refused(f"cannot be decoded: {error}") from None


def upright_pixels(image_bytes: bytes, formats: Optional[Tuple[str, ...]] = None) -> np.ndarray:
    """[h, w, 3] uint8 RGB of an encoded image, turned as its EXIF orientation asks, by Pillow.

    Args:
      image_bytes: the file.
      formats: those that it may have, by Pillow's names.

    Raises:
      UserError: its values have no range that is known: neither 8 nor 16 bits a channel.
    """
    with Image.open(io.BytesIO(image_bytes), formats=formats) as stored:
        tags = getattr(stored, "tag_v2", {})  # of a TIFF
        bits, signs = tags.get(BITSPERSAMPLE, (16,)), tags.get(SAMPLEFORMAT, (1,))
        if stored.mode == "F" or stored.mode.startswith("I") and (bits, signs) != ((16,), (1,)):
            kind = {1: "", 2: "signed ", 3: "floating-point "}.get(signs[0], "")
            raise UserError(
                f"mode {stored.mode} with {kind}values of {bits[0] if tags else 32} bits has no"
                " fixed range; scale them to 0..255, and save the image with 8 bits a channel (or"
                " to 0..65535, with 16 bits without sign)"
            )
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8
            high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
            return np.repeat(high[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def decode_ids(png: bytes) -> np.ndarray:
    """[h, w] int32 segment ids of a reply's panoptic PNG."""
    return panoptic_png.decode_ids(png, "The reply's map").astype(np.int32)


def encode_ids(panoptic_ids: np.ndarray) -> bytes:
    """The panoptic PNG of a reply with [h, w] segment ids."""
    return panoptic_png.encode_ids(panoptic_ids)


def rest_reply(reply: Mapping[str, Any]) -> Dict[str, Any]:
    """The JSON with which TensorFlow Serving's REST interface answers a request of one image."""
    row = {}
    for name, value in reply.items():
        if isinstance(value, bytes):
            row[f"{name}_bytes"] = {"b64": base64.b64encode(value).decode("ascii")}
        else:
            row[name] = np.asarray(value).tolist()
    return {"predictions": [row]}


class Writer:
    """Writes the files named at the head of this module; a context manager.

    predictions.json gets its name when the block ends, with or without an error: it then holds what
    has been written so far.

    Attributes:
      count: of images written.
      error: with which predictions.json could not be written, so that entries of images are lost.
    """

    def __init__(
        self, output_dir: str, info: DatasetInfo, overlays: bool = True, replies: bool = False
    ):
        """Opens predictions.json.

        Args:
          output_dir: made if need be.
          info: the dataset's categories.
          overlays: whether to draw pictures.
          replies: whether to write REST replies.
        """
        self.count = 0
        self._output_dir = output_dir
        self._info = info
        self._overlays = overlays
        self._replies = replies
        self.error: Optional[OSError] = None
        self._predictions = predictions.PredictionWriter(
            output_dir, info.coco_categories(), instances=False, panoptic_name="predictions"
        ).__enter__()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.finish()

    def finish(self) -> None:
        """Ends predictions.json, unless it could not be written; nothing more can be written."""
        self._predictions.__exit__(type(self.error) if self.error else None, self.error, None)

    def write(self, name: str, file_name: str, pixels: Callable[[], np.ndarray], reply) -> None:
        """All files of one image, or none, and its entries in predictions.json.

        Args:
          name: of its files, without suffix; a number becomes the image id.
          file_name: of the image.
          pixels: returns the image, [h, w, 3] uint8, if it is to be drawn on.
          reply: see the head of this module.

        Raises:
          OSError, ValueError: one of them cannot be drawn or written.
        """
        ids = decode_ids(reply["panoptic_png"])
        segments = predictions.segments_info(reply)
        contents = {}
        if self._overlays:
            drawn = draw(pixels(), ids, segments, self._info)
            picture = cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]))[1].tobytes()
            contents[os.path.join("pictures", f"{name}_overlay.png")] = picture
        if self._replies:
            text = json.dumps(rest_reply(reply))
            contents[os.path.join("replies", f"{name}.json")] = text.encode()
        with contextlib.ExitStack() as written:
            for path, content in contents.items():
                path = os.path.join(self._output_dir, path)
                with atomic_write(path, "wb") as f:
                    f.write(content)
                written.callback(os.unlink, path)
            try:
                self._predictions.add_panoptic(
                    _image_id(name),
                    reply["panoptic_png"],
                    segments,
                    file_name=f"{name}.png",
                    image={"file_name": file_name, "height": ids.shape[0], "width": ids.shape[1]},
                )
            except OSError as error:
                if error.filename is None:  # Not of the map, whose error has its name.
                    error.filename = os.path.join(self._output_dir, "predictions.json")
                    self.error = error
                raise
            written.pop_all()  # Nothing has failed, so the files stay.
        self.count += 1


def draw(image: np.ndarray, ids: np.ndarray, segments, info: DatasetInfo) -> np.ndarray:
    """The panoptic map over its image, small images enlarged so that labels have room."""
    scale = float(np.clip(_PICTURE_SIDE // max(ids.shape), 1, MAX_SCALE))
    return visualize.overlay_panoptic(image, ids, segments, info, scale)


def readable(name: str) -> str:
    """A file name as a JSON can hold it: without control characters, and all UTF-8."""
    text = os.fsencode(name).decode(errors="replace")
    return "".join("_" if char < " " else char for char in text)


def _image_id(name):
    """A name that is a number is one in predictions.json."""
    return int(name) if re.fullmatch("[0-9]{1,18}", name) else name


def unique_names(paths: Sequence[str]) -> Dict[str, str]:
    """path -> its name without suffix; shortened if too long, numbered if it occurs twice, also as
    another writing of the same number.
    """
    names, taken = {}, set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        stem = readable(stem).encode()[:_NAME_BYTES].decode(errors="ignore")
        name, count = stem, 1
        while str(_image_id(name)).lower() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(str(_image_id(name)).lower())
        names[path] = name
    return names
