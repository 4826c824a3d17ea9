import functools
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pfpn_tf.data import preprocess
from tests.reference import preprocess as reference


def photo(h, w, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (h, w, 3), np.uint8)


SIZES = [  # in -> out: shrink, grow, mixed, identity, one row, one pixel, ties at 4:3
    ((37, 53), (20, 31)),
    ((37, 53), (61, 80)),
    ((37, 53), (90, 17)),
    ((24, 40), (24, 40)),
    ((1, 40), (5, 20)),
    ((1, 1), (3, 2)),
    ((48, 64), (36, 48)),
    ((300, 11), (7, 4)),
]


@pytest.mark.parametrize("size, hw", SIZES)
def test_resize_is_pillows(size, hw, maybe_graph):
    image = photo(*size)
    resize = maybe_graph(preprocess.resize_image)
    ours = resize(tf.constant(image), tf.constant(hw)).numpy().astype(int)
    pillow = np.asarray(Image.fromarray(image).resize(hw[::-1], Image.BILINEAR)).astype(int)
    assert ours.shape == (*hw, 3)
    assert np.abs(ours - pillow).max() <= 1
    # Of tall images Pillow 13 shrinks the rows first, earlier ones the columns.
    if size[0] < 8 * size[1]:
        np.testing.assert_array_equal(ours, pillow)


def test_resize_is_pillows_on_photos(test_data):
    folder = test_data("data/bad_and_odd_images")
    for name, hw in (("photo_landscape.jpg", (800, 1199)), ("photo_portrait.jpg", (480, 320))):
        image = np.asarray(Image.open(folder / name))
        ours = preprocess.resize_image(tf.constant(image), hw).numpy().astype(int)
        pillow = np.asarray(Image.fromarray(image).resize(hw[::-1], Image.BILINEAR)).astype(int)
        np.testing.assert_array_equal(ours, pillow)


def test_opencvs_resize_and_sizes(test_data, maybe_graph):
    folder = test_data("golden/mmdetection")
    cases = np.load(folder / "resize_cases.npz")
    resize = maybe_graph(functools.partial(preprocess.resize_image, resize="opencv"))
    for k in range(12):
        expected = cases[f"resized_{k}"]
        ours = resize(tf.constant(cases[f"source_{k}"]), tf.constant(expected.shape[:2]))
        np.testing.assert_array_equal(ours, expected, err_msg=str(k))
    for case in json.loads((folder / "sizes.json").read_text()):
        (width, height), (max_side, min_side) = case["image_wh"], case["scale"]
        ours = preprocess.resized_hw((height, width), min_side, max_side, "opencv")
        assert ours.numpy()[::-1].tolist() == case["resized_wh"], case


@pytest.mark.parametrize("size, hw", [((9, 14), (5, 21)), ((48, 64), (36, 48)), ((1, 1), (2, 3))])
def test_labels_take_the_nearest(size, hw, maybe_graph):
    labels = np.random.RandomState(1).randint(0, 200, size, np.uint8)
    rows, columns = (maybe_graph(preprocess.nearest_indices)(n, m) for n, m in zip(size, hw))
    ours = labels[rows.numpy()[:, None], columns.numpy()]
    np.testing.assert_array_equal(ours, reference.resize_labels(labels, hw))


def test_sizes_follow_detectron2(maybe_graph):
    random = np.random.RandomState(2)
    sizes = [(427, 640), (640, 427), (500, 333), (612, 612), (150, 2500), (5000, 300), (1, 900)]
    sides = [800] * len(sizes) + random.choice([640, 672, 704, 736, 768, 800], 2000).tolist()
    sizes += random.randint(20, 2000, (2000, 2)).tolist()
    ours = maybe_graph(preprocess.resized_hw)(tf.constant(sizes), tf.constant(sides), 1333)
    expected = [reference.resized_hw(hw, side, 1333) for hw, side in zip(sizes, sides)]
    np.testing.assert_array_equal(ours, np.maximum(expected, 1))
    assert tuple(preprocess.resized_hw((427, 640), 800, 1333).numpy()) == (800, 1199)


def test_normalize_and_pad():
    image = preprocess.normalize(tf.constant(photo(2, 3)), (10.0, 20.0, 30.0), (1.0, 2.0, 4.0))
    np.testing.assert_allclose(
        image, (photo(2, 3).astype(np.float32) - [10, 20, 30]) / [1, 2, 4], rtol=1e-6
    )
    padded = preprocess.pad_to(image, (4, 5))
    assert padded.shape == (4, 5, 3)
    np.testing.assert_array_equal(padded[:2, :3], image)
    assert not np.any(padded[2:]) and not np.any(padded[:, 3:])
    assert preprocess.padded_hw((800, 1199), 32).numpy().tolist() == [800, 1216]


@pytest.mark.parametrize(
    "name",
    ["gray.jpg", "cmyk.jpg", "rgba.png", "palette.png", "photo.bmp", "exif_orientation_6.jpg"],
)
def test_decodes_as_pillow_does(test_data, name):
    data = (test_data("data/bad_and_odd_images") / name).read_bytes()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(preprocess.decode_image(tf.constant(data)), expected)
