"""Photos on their way into TFRecords: checked, upright, and in a format that TensorFlow decodes.

Shapes: h, w size of the upright photo.
"""

import io
from typing import NamedTuple, Optional, Tuple

import cv2
import numpy as np
from PIL import Image

from pfpn_tf.data import panoptic_png
from pfpn_tf.data.coco_json import DataError

TURNED = (
    "photos carry an EXIF orientation; they are turned upright, and their annotations are taken to"
    " be of the upright picture"
)
KEPT_AS_STORED = (
    "photos carry an EXIF orientation, but are annotated as they are stored; the orientation is"
    " dropped"
)
FITS_AS_STORED = (
    "photos carry an EXIF orientation, but the borders of their segments fit the picture as it is"
    " stored; remove the orientation if the annotations are right"
)
_CLEARLY = 1.15  # Of real photos the right frame's edges are 1.2 to 2 times as strong.
_ORIENTATION_TAG = 0x0112
_TURNS = {  # EXIF orientation -> how the stored pixels become upright
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}
_BACK = {6: 8, 8: 6}  # the turns that do not undo themselves
_TIFF = (b"II*\0", b"MM\0*")
_TIFF_SIZE = 0x0100, 0x0101  # tags of width and height
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
_JPEG += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]


class Photo(NamedTuple):
    """A photo whose stored pixels are [h, w].

    Attributes:
      encoded: the file's bytes.
      format: "jpeg" or "png".
      orientation: the EXIF orientation by which it was turned, 1 if it was not.
      note: what was done with an orientation, else empty.
    """

    encoded: bytes
    format: str
    orientation: int = 1
    note: str = ""


def upright_photo(path: str, content: bytes, hw: Tuple[int, int]) -> Photo:
    """The photo as it goes into a record.

    JPEG and PNG stay as they are, byte for byte, unless they carry an EXIF orientation. Other
    formats (BMP, WebP, TIFF) become PNG, without loss.

    Args:
      path: names the file in errors.
      content: its bytes.
      hw: the size of its annotation: that of the upright photo or, if it was annotated without
        regard to EXIF, of the stored one.

    Raises:
      DataError: not an image, damaged, or of another size.
    """
    stored_hw, orientation = _header(path, content)
    upright_hw = size_upright(path, content)
    if hw not in (upright_hw, stored_hw):
        raise DataError(
            f"{path}: the image is {_describe(upright_hw)}, but annotated as {_describe(hw)}."
        )
    pixels = _decode(content)
    if pixels is not None and orientation > 1 and content.startswith(_TIFF):
        pixels = _TURNS[_BACK.get(orientation, orientation)](pixels)  # OpenCV turns TIFF always.
    if pixels is None or pixels.shape[:2] != stored_hw:
        raise _unreadable(path, content)
    is_jpeg = content.startswith(b"\xff\xd8")
    if orientation == 1:
        if is_jpeg or content.startswith(b"\x89PNG"):
            return Photo(content, "jpeg" if is_jpeg else "png")
        return Photo(cv2.imencode(".png", pixels)[1].tobytes(), "png")
    done = 1, KEPT_AS_STORED
    if hw == upright_hw:
        done = orientation, TURNED
        pixels = _TURNS[orientation](pixels)
    pixels = np.ascontiguousarray(pixels)
    if is_jpeg:
        return Photo(cv2.imencode(".jpg", pixels, _JPEG)[1].tobytes(), "jpeg", *done)
    return Photo(cv2.imencode(".png", pixels)[1].tobytes(), "png", *done)


def size_upright(path: str, content: bytes) -> Tuple[int, int]:
    """The size of the upright photo; args and raises as `upright_photo`."""
    stored_hw, orientation = _header(path, content)
    return stored_hw[::-1] if orientation >= 5 else stored_hw


def fits_as_stored(photo: Photo, ids: np.ndarray) -> bool:
    """Whether a turned photo has clearly stronger edges at the borders of its segments if they are
    taken to be of the picture as it is stored. A turn that changes the size cannot be told so.

    Args:
      photo: the photo.
      ids: [h, w] segment ids.
    """
    if photo.orientation == 1:
        return False
    grey = cv2.imdecode(np.frombuffer(photo.encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    grey = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1)
    edges = np.minimum(np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1)), 100)
    back = _TURNS[_BACK.get(photo.orientation, photo.orientation)]
    stored_edges = back(edges[..., None])[..., 0]
    low, high = (f(ids.astype(np.float32), np.ones((3, 3))) for f in (cv2.erode, cv2.dilate))
    borders = low != high
    if stored_edges.shape != ids.shape or not borders.any():
        return False
    return bool(stored_edges[borders].mean() > _CLEARLY * edges[borders].mean())


def _header(path, content):
    """((height, width) of the stored pixels, EXIF orientation)."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if image.format == "TIFF":  # Newer versions of Pillow give its upright size.
                width, height = (image.tag_v2[tag] for tag in _TIFF_SIZE)
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Pillow's parsers raise whatever they stumble over.
        raise _unreadable(path, content) from None
    return (height, width), orientation if orientation in _TURNS else 1


def _unreadable(path, content):
    return DataError(f"{path}: not a readable image ({len(content)} bytes).")


def _decode(content) -> Optional[np.ndarray]:
    if content.startswith(b"\x89PNG") and not panoptic_png.is_whole(content):
        return None
    try:
        return cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error:  # A header that claims an absurd size.
        return None


def _describe(hw: Tuple[int, int]) -> str:
    return f"{hw[1]}x{hw[0]} (width x height)"
