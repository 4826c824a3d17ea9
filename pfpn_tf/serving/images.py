"""Encoded images to pixels, in graph, for input that nobody has checked.

The size is read from the file's header and tested before anything of that size is allocated. What
is no image, or a damaged one, ends in `tf.errors.InvalidArgumentError` that says why.

JPEG (grey, CMYK, progressive; EXIF orientation is applied), PNG (grey, palette, alpha, 16 bit),
GIF (first frame) and BMP. Alpha is dropped; 16-bit values keep their high byte.

Shapes: n bytes of a file · h, w size of the upright image.
"""

from typing import NamedTuple

import tensorflow as tf

MAX_SIDE = 65535
"""Longest side in pixels: JPEG's own limit, and it bounds what one row or column can cost."""

_JPEG, _PNG, _GIF, _BMP = range(4)
_MAX_JPEG_SEGMENTS = 4096  # bounds the scan of a file made of empty segments
_MAX_EXIF_ENTRIES = 1024
_ORIENTATION_TAG = 0x0112


class Header(NamedTuple):
    """What a file says about itself.

    Attributes:
      format: [] int32.
      hw: [2] int32 size of the upright image.
      orientation: [] int32 EXIF orientation 1..8; 1 is upright.
    """

    format: tf.Tensor
    hw: tf.Tensor
    orientation: tf.Tensor


def read_header(image_bytes: tf.Tensor, max_pixels: int) -> Header:
    """Format, size and orientation, without decoding.

    Args:
      image_bytes: [] string.
      max_pixels: larger images are refused.

    Raises (when the graph runs):
      InvalidArgumentError: no JPEG, PNG, GIF or BMP, no size in it, or too large.
    """
    data = _Bytes(image_bytes)
    starts = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"]
    matches = tf.stack([tf.strings.substr(image_bytes, 0, len(s)) == s for s in starts])
    known = tf.debugging.Assert(
        tf.reduce_any(matches),
        [
            "Not a JPEG, PNG, GIF or BMP image. Its length, and its first bytes:",
            data.size,
            data.at(tf.range(4)),
        ],
        summarize=4,
    )
    with tf.control_dependencies([known]):
        kind = tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32)
    height, width, orientation = tf.switch_case(
        kind,
        [
            lambda: _jpeg_header(data),
            lambda: _png_header(data),
            lambda: _gif_header(data),
            lambda: _bmp_header(data),
        ],
    )
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    checks = [
        tf.debugging.Assert(
            (height > 0) & (width > 0),
            ["The image has no size in its header; is the file cut off? Bytes:", data.size],
        ),
        tf.debugging.Assert(
            (pixels <= max_pixels) & (height <= MAX_SIDE) & (width <= MAX_SIDE),
            [
                "Image too large: height, width",
                height,
                width,
                "; most pixels",
                max_pixels,
                "; longest side",
                MAX_SIDE,
            ],
        ),
    ]
    with tf.control_dependencies(checks):
        hw = tf.where(orientation >= 5, tf.stack([width, height]), tf.stack([height, width]))
    return Header(kind, hw, orientation)


def decode_upright(image_bytes: tf.Tensor, header: Header) -> tf.Tensor:
    """The pixels of a file whose header has been read and accepted.

    Args:
      image_bytes: [] string.
      header: from `read_header` of the same bytes.

    Returns:
      [h, w, 3] uint8 RGB.

    Raises (when the graph runs):
      InvalidArgumentError: the pixel data are damaged.
    """
    # Without this the decoder, being stateless, could run before the size check.
    with tf.control_dependencies([header.hw]):
        image_bytes = tf.identity(image_bytes)
    image = tf.switch_case(
        header.format,
        [
            lambda: tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_png(image_bytes, channels=3),
            lambda: tf.ensure_shape(
                tf.io.decode_image(image_bytes, channels=3, expand_animations=False),
                [None, None, 3],
            ),
            lambda: _decode_bmp(image_bytes),
        ],
    )
    image = _turn(tf.ensure_shape(image, [None, None, 3]), header.orientation)
    same = tf.debugging.Assert(
        tf.reduce_all(tf.shape(image)[:2] == header.hw),
        ["The image is not of the size its header says:", header.hw],
    )
    with tf.control_dependencies([same]):
        return tf.identity(image)


class _Bytes:
    """Random access to a file's bytes; zero past the end."""

    def __init__(self, image_bytes):
        self.size = tf.strings.length(image_bytes)
        # One byte more, so that an empty file has something to gather from.
        self._data = tf.io.decode_raw(image_bytes + b"\0", tf.uint8)

    def at(self, position):
        """Bytes at any positions, int32."""
        inside = (position >= 0) & (position < self.size)
        return tf.cast(tf.gather(self._data, tf.where(inside, position, self.size)), tf.int32)

    def big(self, position, count):
        """Big-endian number; what does not fit an int32 comes out negative."""
        value = self.at(position)
        for i in range(1, count):
            value = value * 256 + self.at(position + i)
        return value

    def little(self, position, count):
        value = self.at(position + count - 1)
        for i in range(count - 2, -1, -1):
            value = value * 256 + self.at(position + i)
        return value

    def number(self, position, count, little):
        return tf.where(little, self.little(position, count), self.big(position, count))


def _png_header(data):
    return data.big(20, 4), data.big(16, 4), tf.constant(1)


def _gif_header(data):
    return data.little(8, 2), data.little(6, 2), tf.constant(1)


def _bmp_header(data):
    return (
        tf.abs(data.little(22, 4)),
        data.little(18, 4),
        tf.constant(1),
    )  # negative height: top row first


def _jpeg_header(data):
    """Walks the segments up to the frame header."""

    def step(count, position, exif, height, width):
        marker = data.at(position + 1)
        length = data.big(position + 2, 2)
        filler = marker == 0xFF
        alone = ((marker >= 0xD0) & (marker <= 0xD8)) | (
            marker == 0x01
        )  # markers without a segment
        frame = (
            (marker >= 0xC0)
            & (marker <= 0xCF)
            & (marker != 0xC4)
            & (marker != 0xC8)
            & (marker != 0xCC)
        )
        frame &= ~(filler | alone)
        is_exif = (
            (marker == 0xE1) & (exif == 0) & (data.big(position + 4, 4) == 0x45786966)
        )  # "Exif"
        # Scan or end of image before a frame: there is no size. Nor where no marker stands.
        lost = (data.at(position) != 0xFF) | (marker == 0xDA) | (marker == 0xD9) | (marker == 0x00)
        advance = tf.where(filler, 1, tf.where(alone, 2, 2 + tf.maximum(length, 2)))
        height = tf.where(frame & ~lost, data.big(position + 5, 2), height)
        width = tf.where(frame & ~lost, data.big(position + 7, 2), width)
        exif = tf.where(is_exif, position + 10, exif)
        position = tf.where(lost | frame, data.size, position + advance)
        return count + 1, position, exif, height, width

    zero = tf.constant(0)
    _, _, exif, height, width = tf.while_loop(
        lambda count, position, *_: (count < _MAX_JPEG_SEGMENTS) & (position + 3 < data.size),
        step,
        (zero, zero + 2, zero, zero, zero),
        parallel_iterations=1,
    )
    return height, width, _exif_orientation(data, exif)


def _exif_orientation(data, start):
    """The orientation in the TIFF structure at `start`; 1 if there is none or no valid one."""
    little = data.at(start) == 0x49  # "II", else "MM"
    directory = start + data.number(start + 4, 4, little)
    count = tf.minimum(data.number(directory, 2, little), _MAX_EXIF_ENTRIES)
    entries = directory + 2 + 12 * tf.range(count)
    tags = data.number(entries, 2, little)
    values = data.number(entries + 8, 2, little)
    value = tf.reduce_max(tf.where(tags == _ORIENTATION_TAG, values, 1))
    found = (start > 0) & (count > 0) & (value >= 1) & (value <= 8)
    return tf.where(found, value, 1)


def _decode_bmp(image_bytes):
    """24-bit BMP; a 32-bit one has alpha, which is dropped; 8-bit grey is repeated."""
    image = tf.io.decode_bmp(image_bytes)
    channels = tf.shape(image)[-1]
    return tf.gather(image, tf.where(channels >= 3, [0, 1, 2], [0, 0, 0]), axis=-1)


def _turn(image, orientation):
    """Rotates and mirrors an image as its EXIF orientation asks."""

    def has(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    image = tf.cond(has(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(has(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(has(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)
