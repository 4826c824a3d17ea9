"""Panoptic PNGs: the only place that reads and writes them. It also writes grey PNGs.

A panoptic PNG has 8 bits a channel and stores the segment id of each pixel as R + 256 G + 65536 B;
0 is void. An alpha channel is ignored.

Shapes: h, w size of the map.
"""

import struct
from typing import Any, Optional, Tuple

import cv2
import numpy as np

from pfpn_tf.data.coco_json import DataError, existing_path

MAX_ID = 2**24 - 1
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_COLOR_TYPES = (2, 6)  # Truecolour, without and with alpha.
_MAX_PIXELS = 1 << 30  # OpenCV's own limit.


def decode_ids(png: bytes, name: str, hw: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """Segment ids of a panoptic PNG.

    Args:
      png: the file's bytes.
      name: what an error calls the file.
      hw: the size (height, width) that the file must have, if it is known.

    Returns:
      [h, w] uint32.

    Raises:
      DataError: not an 8-bit RGB PNG, damaged, or of another size.
    """
    if png[:8] != _SIGNATURE or len(png) < 33:
        raise DataError(f"{name}: not a PNG file; panoptic maps are 8-bit RGB PNGs.")
    width, height, bit_depth, color_type = struct.unpack(">IIBB", png[16:26])
    if bit_depth != 8 or color_type not in _RGB_COLOR_TYPES:
        raise DataError(
            f"{name}: a panoptic map must be an 8-bit RGB PNG (id = R + 256 G + 65536 B), this one"
            f" has bit depth {bit_depth} and PNG color type {color_type}; was it saved as grey or"
            " palette?"
        )
    if hw is not None and (height, width) != tuple(hw):
        raise DataError(
            f"{name} is {width}x{height}, but its image is {hw[1]}x{hw[0]} (width x height)."
        )
    rgb = None
    if 0 < height * width <= _MAX_PIXELS and is_whole(png):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        rgb = cv2.imdecode(np.frombuffer(png, np.uint8), flags)
    if rgb is None:
        raise DataError(f"{name}: damaged PNG, cannot be decoded.")
    # Four bytes R, G, B, 255 read as one little-endian number; the mask drops the 255.
    ids = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]  # [h, w, 4] -> [h, w]
    ids &= MAX_ID
    return ids


def is_whole(png: bytes) -> bool:
    """Whether the chunks of a PNG follow one another up to its end.

    OpenCV takes memory for whatever length a damaged chunk claims.
    """
    position = len(_SIGNATURE)
    while position + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, position)
        if png[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + length
    return False


def encode_ids(panoptic_ids: np.ndarray) -> bytes:
    """The inverse of `decode_ids`.

    Args:
      panoptic_ids: [h, w] integer ids, at most `MAX_ID`.
    """
    ids = np.asarray(panoptic_ids).astype(np.uint32)
    bgr = np.stack([ids >> 16, (ids >> 8) & 255, ids & 255], axis=-1).astype(np.uint8)
    return cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1].tobytes()


def encode_grey(pixels: np.ndarray) -> bytes:
    """A PNG of labels or a mask, [h, w] uint8 or uint16."""
    # Level 1 is the fastest to read by a factor of 3, at little cost in size.
    return cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def read(directory: str, file_name: str, image_id: Any, what: str) -> np.ndarray:
    """`decode_ids` of a file; errors name the image, the file and what it is.

    Raises:
      DataError: the file is missing or damaged.
    """
    path = existing_path(directory, file_name)
    name = f"Image {image_id}: {what} PNG {path}"
    return decode_ids(read_bytes(path, name), name)


def read_bytes(path: str, name: str) -> bytes:
    """The content of a file.

    Raises:
      DataError: it cannot be read; begins with `name`.
    """
    try:
        with open(path, "rb") as f:
            return f.read()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character.
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name} cannot be read ({reason}).") from None
