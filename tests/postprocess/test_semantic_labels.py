"""Labels of pixels against interpolation at full size."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.postprocess import semantic_labels as labels_lib
from tests.reference import fusion as reference


def semantic_labels(logits, image_hw, original_hw):
    return labels_lib.semantic_labels(tf.constant(logits), image_hw, original_hw).numpy()


def test_equal_logits_give_the_lowest_class():
    logits = np.zeros((8, 16, 5), np.float32)
    logits[..., 2:4] = 1
    assert np.all(semantic_labels(logits, [32, 64], [32, 64]) == 2)


def test_what_is_not_a_number_never_wins():
    logits = np.full((8, 16, 5), np.nan, np.float32)
    assert np.all(semantic_labels(logits, [32, 64], [32, 64]) == 5)
    logits[..., 3] = -1e9
    logits[:, 8:, 1] = np.inf
    labels = semantic_labels(logits, [32, 64], [32, 64])
    assert np.all(labels[:, :30] == 3) and np.all(labels[:, 34:] == 1)


@pytest.mark.parametrize(
    "image_hw, original_hw, strip_pixels",
    [
        ((62, 90), (81, 130), 1000),  # 7 rows of 130 columns
        ((80, 1333), (300, 5000), 1000),  # strips of one row
        ((400, 24), (2500, 150), labels_lib.STRIP_PIXELS),
    ],
)
def test_equal_to_interpolation_at_full_size(image_hw, original_hw, strip_pixels, monkeypatch):
    monkeypatch.setattr(labels_lib, "STRIP_PIXELS", strip_pixels)
    size = [-(-side // 32) * 8 for side in image_hw]
    logits = np.float32(np.random.default_rng(5).normal(size=(*size, 3)))
    labels = semantic_labels(logits, image_hw, original_hw)
    values = reference.semantic_values(logits, image_hw, original_hw)
    top = np.sort(values, -1)
    clear = top[..., -1] - top[..., -2] > 1e-5  # float32 interpolation decides closer ones
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(labels[clear], values.argmax(-1)[clear])


@pytest.mark.parametrize("slope", [0.2, 20.0])
def test_a_class_can_win_between_logits_alone(slope):
    """Class 2 is first at no logit, but between those where 0 and 1 change places."""
    side = np.arange(24, dtype=np.float32)[None, :, None] * np.float32(slope)
    wave = np.where(np.arange(24) % 2, 1.0, -1.0).astype(np.float32)[None, :, None]
    logits = np.concatenate(
        [side + 10 * wave, side - 10 * wave, side + 4 + 0 * wave, side - 50], -1
    )
    logits = np.tile(logits, [16, 1, 1])
    labels = semantic_labels(logits, [64, 96], [64, 96])
    values = reference.semantic_values(logits, (64, 96), (64, 96))
    np.testing.assert_array_equal(labels, values.argmax(-1))
    assert set(np.unique(labels)) == {0, 1, 2}
