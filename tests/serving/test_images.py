"""Decoding in graph: every odd file against Pillow, every bad one refused with a reason."""

import io
import json

import cv2
import numpy as np
from PIL import Image, ImageOps
import pytest
import tensorflow as tf

from pfpn_tf.serving import images

MAX_PIXELS = 40_000_000


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(image_bytes):
    header = images.read_header(image_bytes, MAX_PIXELS)
    return images.decode_upright(image_bytes, header)


def manifest(test_data):
    folder = test_data("data/bad_and_odd_images")
    return folder, json.loads((folder / "manifest.json").read_text())


def file_bytes(array, suffix, **kwargs):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, suffix, **kwargs)
    return stream.getvalue()


RNG = np.random.default_rng(0)
PHOTO = cv2.resize(RNG.integers(0, 255, (6, 9, 3), np.uint8), (45, 31), interpolation=cv2.INTER_CUBIC)


def test_good_and_odd_files_equal_pillow(test_data):
    folder, files = manifest(test_data)
    checked = 0
    for entry in files:
        name = entry["file"]
        if entry["kind"] == "bad" or name.endswith(".webp"):
            continue
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
        checked += 1
    assert checked == 29


def test_bad_files_are_refused_with_a_reason(test_data):
    folder, files = manifest(test_data)
    for entry in files:
        name = entry["file"]
        if entry["kind"] != "bad" and not name.endswith(".webp"):
            continue
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            decode((folder / name).read_bytes())
        reasons = ("Not a JPEG", "too large", "no size", "Invalid PNG", "Invalid JPEG", "jpeg", "PNG")
        assert any(reason in str(error.value) for reason in reasons), (name, str(error.value))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["little", "big"])
def test_exif_orientation(orientation, order):
    exif = Image.Exif()
    exif.endian = "<" if order == "little" else ">"
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    data = file_bytes(PHOTO, "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)).astype(int)
    image = decode(data).numpy()
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_exif_orientation_out_of_range_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(file_bytes(PHOTO, "JPEG", exif=exif)).shape == PHOTO.shape


def test_size_is_refused_before_decoding():
    """A header that claims more than the limit, on a file with no pixels at all."""
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (9000).to_bytes(4, "big") + (9000).to_bytes(4, "big")
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large.*9000"):
        decode(header + b"\x08\x02\0\0\0")
    for side in (70_000, 2**31 + 5, 0):
        damaged = header[:16] + side.to_bytes(4, "big") + (1).to_bytes(4, "big")
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(damaged)


def test_every_prefix_of_a_jpeg_and_of_noise_is_handled():
    """Cut anywhere, or bytes overwritten: an error or an image, and never a crash."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_bytes(PHOTO, "JPEG", exif=exif)
    rng = np.random.default_rng(1)
    outcomes = []
    for i in range(80):
        damaged = bytearray(data[: rng.integers(0, len(data))] if i % 2 else data)
        for position in rng.integers(0, max(1, min(len(damaged), 200)), 3):
            if damaged:
                damaged[position] = rng.integers(0, 256)
        try:
            outcomes.append(decode(bytes(damaged)).shape)
        except tf.errors.InvalidArgumentError:
            outcomes.append(None)
    assert None in outcomes


def test_bmp_with_either_row_first():
    data = bytearray(file_bytes(PHOTO, "BMP"))
    np.testing.assert_array_equal(decode(bytes(data)), PHOTO)
    data[22:26] = (-PHOTO.shape[0]).to_bytes(4, "little", signed=True)
    np.testing.assert_array_equal(decode(bytes(data)), PHOTO[::-1])


def test_gif_gives_its_first_frame():
    frames = [Image.fromarray(PHOTO[..., 0]), Image.fromarray(255 - PHOTO[..., 0])]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    image = decode(stream.getvalue()).numpy()
    assert np.abs(image[..., 0].astype(int) - PHOTO[..., 0]).max() <= 1
