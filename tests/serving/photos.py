"""Pictures with shapes in them, smooth enough for a JPEG."""

import io

import numpy as np
from PIL import Image


def photo(height, width, seed=0):
    """[height, width, 3] uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


def encode(image, suffix="PNG", **options):
    """The bytes of a file; options are Pillow's."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, suffix, **options)
    return stream.getvalue()
