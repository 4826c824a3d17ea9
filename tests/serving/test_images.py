"""Decoding in graph: every odd file against Pillow, every bad one refused with a reason."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from pfpn_tf.serving import images
from tests.serving.photos import encode, photo

MAX_PIXELS = 40_000_000


class Refused(Exception):
    """The file has an error, or its pixels have."""


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def read(image_bytes):
    return images.read_header(image_bytes, MAX_PIXELS)


def decode(image_bytes):
    header = read(image_bytes)
    if header.error.numpy():
        raise Refused(header.error.numpy().decode())
    image, error = decode_upright(image_bytes, header)
    if error.numpy():
        assert image.shape == (1, 1, 3)
        raise Refused(error.numpy().decode())
    return image


decode_upright = tf.function(
    images.decode_upright,
    input_signature=[tf.TensorSpec([], tf.string), images.Header.signature()],
)


# Bad files of the reference data, and what is said of them.
REASONS = {
    "truncated.jpg": r"the pixel data are damaged or cut off; the header says \[427 640\]",
    "header_only.jpg": "no size in the header of the image, which has 20 bytes",
    "text.jpg": r"not a JPEG, PNG, GIF or BMP image; it has \d+ bytes and begins with \[",
    "empty.jpg": "the file is empty",
    "page.png": "not a JPEG, PNG, GIF or BMP image",
    "corrupt.png": r"the pixel data are damaged or cut off; the header says \[107 160\]",
    "claims_60000x60000.png": "the image is too large: 60000 x 60000 .* at most 40000000 pixels",
    "photo.webp": "WebP is not supported; send it as JPEG, PNG, GIF or BMP",
}


def good_and_odd(test_data):
    """Folder, and an entry for each file with an image."""
    folder = test_data("data/bad_and_odd_images")
    files = json.loads((folder / "manifest.json").read_text())
    good = [entry for entry in files if entry["file"] not in REASONS]
    assert len(good) == 29 and len(files) == 29 + len(REASONS)
    return folder, good


PHOTO = photo(31, 45)


def test_good_and_odd_files_equal_pillow(test_data):
    folder, files = good_and_odd(test_data)
    for name in (entry["file"] for entry in files):
        image = decode((folder / name).read_bytes()).numpy()
        with Image.open(folder / name) as opened:
            upright = ImageOps.exif_transpose(opened)
            assert image.shape == (upright.height, upright.width, 3), name
            if upright.mode.startswith("I"):
                expected = np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, -1)
            elif upright.mode == "RGBA":
                expected = np.asarray(upright)[..., :3]
            else:
                expected = np.asarray(upright.convert("RGB"))
        difference = np.abs(image.astype(int) - expected)
        # JPEG: chroma rounding of the libraries; CMYK: two conversions
        allowed = 6 if name == "cmyk.jpg" else 2
        assert difference.max() <= allowed, (name, difference.max())


def test_bad_files_are_refused_with_a_reason(test_data):
    folder = test_data("data/bad_and_odd_images")
    for name, expected in REASONS.items():
        with pytest.raises(Refused, match="^" + expected):
            decode((folder / name).read_bytes())


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 65535])
@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_exif_orientation(orientation, order, suffix):
    exif = Image.Exif()
    exif.endian = "<" if order == "little" else ">"
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = encode(PHOTO, suffix, quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)).astype(int)
    image = decode(data).numpy()
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 3


def test_exif_behind_the_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTO, "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = len(data) - 12  # IEND
    moved = data[:start] + data[end:last] + data[start:end] + data[last:]
    np.testing.assert_array_equal(decode(moved), np.rot90(PHOTO, -1))


def test_size_is_refused_before_decoding():
    """A header that claims more than the limit, on a file with no pixels at all."""
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * (9000).to_bytes(4, "big")
    with pytest.raises(Refused, match="too large: 9000 x 9000"):
        decode(header + b"\x08\x02\0\0\0")
    for side in (70_000, 2**31 + 5, 0):
        damaged = header[:16] + side.to_bytes(4, "big") + (1).to_bytes(4, "big")
        with pytest.raises(Refused):
            decode(damaged)


def test_every_prefix_of_a_jpeg_and_of_noise_is_handled():
    """Cut anywhere, or bytes overwritten: an error or an image, and never a crash."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PHOTO, "JPEG", exif=exif)
    rng = np.random.default_rng(1)
    outcomes = []
    for i in range(80):
        damaged = bytearray(data[: rng.integers(0, len(data))] if i % 2 else data)
        for position in rng.integers(0, max(1, min(len(damaged), 200)), 3):
            if damaged:
                damaged[position] = rng.integers(0, 256)
        try:
            outcomes.append(decode(bytes(damaged)).shape)
        except Refused:
            outcomes.append(None)
    assert None in outcomes


def test_bmp_with_either_row_first():
    data = bytearray(encode(PHOTO, "BMP"))
    np.testing.assert_array_equal(decode(bytes(data)), PHOTO)
    data[22:26] = (-PHOTO.shape[0]).to_bytes(4, "little", signed=True)
    np.testing.assert_array_equal(decode(bytes(data)), PHOTO[::-1])


def test_bmp_with_a_palette():
    image = Image.fromarray(PHOTO).quantize(17)
    stream = io.BytesIO()
    image.save(stream, "BMP")
    np.testing.assert_array_equal(decode(stream.getvalue()), np.asarray(image.convert("RGB")))


def test_compressed_bmp_is_refused():
    data = bytearray(encode(PHOTO[..., 0], "BMP"))
    data[30] = 1  # run lengths, which the decoder would take for pixels
    with pytest.raises(Refused, match="the BMP is cut off, compressed"):
        decode(bytes(data))


def gif(*frames):
    stream = io.BytesIO()
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(stream, "GIF", save_all=True, append_images=others)
    return stream.getvalue()


def test_gif_is_read_up_to_its_first_frame():
    """What comes behind is neither unpacked nor looked at."""
    frame = PHOTO[..., 0]
    one, two = gif(frame), gif(frame, 255 - frame)
    end = int(read(two).num_bytes)
    assert len(one) // 2 < end < len(two) - 200
    image = decode(two[:end] + b"no GIF any more" * 9).numpy()
    np.testing.assert_array_equal(image, decode(one))
    assert np.abs(image[..., 0].astype(int) - frame).max() <= 1


def test_gif_frame_larger_than_its_canvas_is_refused():
    """The decoder would make room for the frame, whatever the canvas."""
    data = bytearray(gif(PHOTO[..., 0]))
    frame = data.index(b"\x2c\0\0\0\0\x2d\0\x1f\0")  # at 0, 0; 45 x 31
    data[frame + 5 : frame + 9] = b"\xff" * 4
    with pytest.raises(Refused, match="no size in the header"):
        decode(bytes(data))
