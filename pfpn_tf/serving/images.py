"""Encoded images to pixels, in graph, for input that nobody has checked.

The size is read from the file's header and tested before anything of that size is allocated. What
is no image, or a damaged one, gives an error text, so that the others of its batch are answered.

JPEG (grey, CMYK, progressive), PNG (grey, palette, alpha, 16 bit), GIF (first frame) and BMP. The
EXIF orientation of JPEG and PNG is applied. Alpha is dropped; 16-bit values keep their high byte.

Shapes: n bytes of a file · h, w size of the upright image.
"""

from typing import NamedTuple, Tuple

import tensorflow as tf

MAX_SIDE = 65535
"""Longest side in pixels: JPEG's own limit, and it bounds what one row or column can cost."""

# JPEG, PNG, GIF, BMP
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
_BMP = 3  # index in _STARTS
_MAX_STEPS = 16384  # bounds the scan of a file made of empty segments, chunks or blocks
_MAX_EXIF_ENTRIES = 1024
_ORIENTATION_TAG = 0x0112


class Header(NamedTuple):
    """What a file says about itself.

    Attributes:
      error: [] string, why the file cannot be decoded; empty if it may be. The others count only
        then.
      format: [] int32, index into `_STARTS`.
      hw: [2] int32 size of the upright image.
      orientation: [] int32 EXIF orientation 1..8; 1 is upright.
      num_bytes: [] int32, how much of the file its first picture takes.
    """

    error: tf.Tensor
    format: tf.Tensor
    hw: tf.Tensor
    orientation: tf.Tensor
    num_bytes: tf.Tensor

    @classmethod
    def signature(cls) -> "Header":
        """`tf.TensorSpec`s of a header."""
        one = tf.TensorSpec([], tf.int32)
        return cls(tf.TensorSpec([], tf.string), one, tf.TensorSpec([2], tf.int32), one, one)


def read_header(image_bytes: tf.Tensor, max_pixels: int) -> Header:
    """Format, size and orientation of a file ([] string), without decoding.

    Images of more than `max_pixels` are an error.
    """
    data = _Bytes(image_bytes)
    matches = tf.stack([tf.strings.substr(image_bytes, 0, len(s)) == s for s in _STARTS])
    kind = tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32)
    height, width, exif, num_bytes = tf.switch_case(
        kind,
        [
            lambda: _jpeg_header(data),
            lambda: _png_header(data),
            lambda: _gif_header(data),
            lambda: _bmp_header(data),
        ],
    )
    orientation = _exif_orientation(data, exif)
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    webp = (data.big(0, 4) == _word(b"RIFF")) & (data.big(8, 4) == _word(b"WEBP"))
    error = _first_error(
        (webp, "WebP is not supported; send it as JPEG, PNG, GIF or BMP"),
        (data.size == 0, "the file is empty"),
        (
            ~tf.reduce_any(matches),
            "not a JPEG, PNG, GIF or BMP image; it has {} bytes and begins with {}",
            data.size,
            data.at(tf.range(4)),
        ),
        (
            (kind == _BMP) & ~_is_plain_bmp(data),
            "the BMP is cut off, compressed or of the OS/2 kind; send it as PNG",
        ),
        (
            (height <= 0) | (width <= 0),
            "no size in the header of the image, which has {} bytes; is the file cut off?",
            data.size,
        ),
        (
            (pixels > max_pixels) | (height > MAX_SIDE) | (width > MAX_SIDE),
            "the image is too large: {} x {} (height x width); at most %d pixels and %d a side"
            % (max_pixels, MAX_SIDE),
            height,
            width,
        ),
    )
    hw = tf.where(orientation >= 5, tf.stack([width, height]), tf.stack([height, width]))
    return Header(error, kind, hw, orientation, num_bytes)


def decode_upright(image_bytes: tf.Tensor, header: Header) -> Tuple[tf.Tensor, tf.Tensor]:
    """The pixels of a file whose header has no error.

    Args:
      image_bytes: [] string.
      header: from `read_header` of the same bytes.

    Returns:
      (image [h, w, 3] uint8 RGB, error [] string): of damaged pixel data one black pixel, with an
      error that is not empty.
    """

    def decode(content):
        image = tf.switch_case(
            header.format,
            [
                lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"),
                lambda: tf.io.decode_png(content, channels=3),
                lambda: tf.ensure_shape(
                    tf.io.decode_image(content + b";", channels=3, expand_animations=False),
                    [None, None, 3],
                ),
                lambda: _decode_bmp(content),
            ],
        )
        return tf.ensure_shape(image, [None, None, 3])

    # An error of the decoder would fail the whole batch; the data set makes an empty image of it.
    content = tf.data.Dataset.from_tensors(tf.strings.substr(image_bytes, 0, header.num_bytes))
    nothing = tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))
    decoded = content.map(decode).ignore_errors().concatenate(nothing).take(1)
    image = _turn(decoded.get_single_element(), header.orientation)
    damaged = tf.reduce_any(tf.shape(image)[:2] != header.hw)
    message = "the pixel data are damaged or cut off; the header says {} (height, width)"
    error = _first_error((damaged, message, header.hw))
    return tf.cond(damaged, lambda: tf.zeros([1, 1, 3], tf.uint8), lambda: image), error


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def upright_pixels(image_bytes: tf.Tensor) -> tf.Tensor:
    """[h, w, 3] uint8 RGB of a file ([] string) that a model has answered: what the model saw."""
    return decode_upright(image_bytes, read_header(image_bytes, MAX_SIDE**2))[0]


def _first_error(*checks):
    """The text of the first (wrong, text, *values) that is wrong, with the values for its {}."""
    error = tf.constant("")
    for wrong, text, *values in reversed(checks):
        error = tf.where(wrong, tf.strings.format(text, tuple(values)), error)
    return error


def _word(four_bytes):
    return int.from_bytes(four_bytes, "big", signed=True)


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
        """Big-endian numbers; what does not fit an int32 comes out negative."""
        return self._number(position, [256 ** (count - 1 - i) for i in range(count)])

    def little(self, position, count):
        return self._number(position, [256**i for i in range(count)])

    def number(self, position, count, little):
        return tf.where(little, self.little(position, count), self.big(position, count))

    def _number(self, position, factors):
        taken = self.at(tf.expand_dims(position, -1) + list(range(len(factors))))  # [..., count]
        return tf.reduce_sum(taken * tf.constant(factors), -1)


def _walk(step, first, condition):
    """`state = step(state)` from `first` on while `condition(state)`, at most _MAX_STEPS times."""
    _, state = tf.while_loop(
        lambda count, state: (count < _MAX_STEPS) & condition(state),
        lambda count, state: (count + 1, step(state)),
        (tf.constant(0), tuple(tf.convert_to_tensor(value) for value in first)),
        parallel_iterations=1,
    )
    return state


def _png_header(data):
    """The size stands at a fixed place; eXIf may come anywhere after it."""

    def step(state):
        position, exif = state
        length, kind = data.big(position, 4), data.big(position + 4, 4)
        found = kind == _word(b"eXIf")
        ends = found | (kind == _word(b"IEND")) | (length < 0) | (length > data.size)
        position, here = tf.where(ends, data.size, position + 12 + length), position + 8
        return position, tf.where(found, here, exif)

    _, exif = _walk(step, (8, 0), lambda state: state[0] + 8 < data.size)
    return data.big(20, 4), data.big(16, 4), exif, data.size


def _gif_header(data):
    """The size of the canvas, and where the first frame ends: the decoder would unpack them all."""

    def table_size(flags):
        entries = tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7))
        return tf.where(flags >= 128, 3 * entries, 0)

    def step(state):
        # Either at the length of a data block, or at the byte that says what comes next.
        position, in_blocks, in_frame, frame, end = state
        value = data.at(position)
        last_block = in_blocks & (value == 0)
        is_extension, is_frame = ~in_blocks & (value == 0x21), ~in_blocks & (value == 0x2C)
        fields = data.little(position + tf.constant([1, 3, 5, 7]), 2)  # left, top, width, height
        frame = tf.where(is_frame, fields, frame)
        advance = tf.where(is_frame, 11 + table_size(data.at(position + 9)), 2)
        advance = tf.where(in_blocks, 1 + value, advance)
        end = tf.where(last_block & in_frame, position + 1, end)
        lost = ~(in_blocks | is_extension | is_frame) | (end > 0)
        return (
            tf.where(lost, data.size, position + advance),
            ~last_block,
            is_frame | (in_frame & in_blocks),
            frame,
            end,
        )

    width, height = data.little(6, 2), data.little(8, 2)
    first = (13 + table_size(data.at(10)), False, False, tf.zeros([4], tf.int32), 0)
    *_, frame, end = _walk(step, first, lambda state: state[0] < data.size)
    inside = tf.reduce_all(frame[:2] + frame[2:] <= tf.stack([width, height]))
    found = inside & tf.reduce_all(frame[2:] > 0)
    # A frame that is not all there is the decoder's to refuse.
    end = tf.where(end > 0, end, data.size)
    return tf.where(found, height, 0), tf.where(found, width, 0), tf.constant(0), end


def _bmp_header(data):
    height = tf.abs(data.little(22, 4))  # negative: top row first
    return height, data.little(18, 4), tf.constant(0), data.size


def _is_plain_bmp(data):
    return (data.little(14, 4) >= 40) & ((data.little(30, 4) == 0) | (data.little(30, 4) == 3))


def _jpeg_header(data):
    """Walks the segments up to the frame header."""

    def step(state):
        position, exif, height, width = state
        marker = data.at(position + 1)
        length = data.big(position + 2, 2)
        filler = marker == 0xFF
        # Markers without a segment.
        alone = ((marker >= 0xD0) & (marker <= 0xD8)) | (marker == 0x01)
        frame = (marker >= 0xC0) & (marker <= 0xCF)
        frame &= (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        is_exif = (marker == 0xE1) & (exif == 0) & (data.big(position + 4, 4) == _word(b"Exif"))
        # Scan or end of image before a frame: there is no size. Nor where no marker stands.
        lost = (data.at(position) != 0xFF) | (marker == 0xDA) | (marker == 0xD9) | (marker == 0x00)
        advance = tf.where(filler, 1, tf.where(alone, 2, 2 + tf.maximum(length, 2)))
        return (
            tf.where(lost | frame, data.size, position + advance),
            tf.where(is_exif, position + 10, exif),
            tf.where(frame & ~lost, data.big(position + 5, 2), height),
            tf.where(frame & ~lost, data.big(position + 7, 2), width),
        )

    _, exif, height, width = _walk(step, (2, 0, 0, 0), lambda state: state[0] + 3 < data.size)
    return height, width, exif, data.size


def _exif_orientation(data, start):
    """The orientation in the TIFF structure at `start`; 1 if there is no valid one, or `start` is
    0.
    """
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
    """24 bits, 32 bits (alpha is dropped), or 8 bits with a palette."""
    image = tf.io.decode_bmp(image_bytes)
    data = _Bytes(image_bytes)
    # Entries of the palette are B, G, R, 0, after the headers.
    entries = data.at(14 + data.little(14, 4) + 4 * tf.range(256)[:, None] + tf.constant([2, 1, 0]))
    return tf.cond(
        tf.shape(image)[-1] == 1,
        lambda: tf.gather(tf.cast(entries, tf.uint8), tf.cast(image[..., 0], tf.int32)),
        lambda: image[..., :3],
    )


def _turn(image, orientation):
    """Rotates and mirrors an image as its EXIF orientation asks."""

    def has(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    image = tf.cond(has(5, 6, 7, 8), lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    image = tf.cond(has(2, 3, 6, 7), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(has(3, 4, 7, 8), lambda: tf.reverse(image, [0]), lambda: image)
