"""The confusion picture and the list of mistakes."""

import numpy as np
import pytest

from pfpn_tf.evaluation import confusion

MATRIX = np.array([[90, 10, 0, 0], [0, 40, 0, 60], [0, 0, 0, 0]])
NAMES = ["sky", "sea", "a class with a very long name that is cut"]


def test_largest_mistakes():
    assert confusion.largest_mistakes(MATRIX, NAMES) == [
        ("sea", "void", 60, 0.6),
        ("sky", "sea", 10, 0.1),
    ]
    assert len(confusion.largest_mistakes(MATRIX, NAMES, count=1)) == 1


def test_colours_of_cells():
    """Right is blue, wrong is red, more is darker; an absent class has a grey row."""
    colors = confusion._colors(MATRIX)
    blue, red, fainter = colors[0, 0], colors[1, 3], colors[0, 1]
    assert blue[2] > blue[0] and red[0] > red[2] and fainter[0] > fainter[2]
    assert fainter.sum() > red.sum()
    np.testing.assert_array_equal(colors[0, 2], 255)
    assert len(np.unique(colors[2])) == 1 and colors[2, 0, 0] < 255


@pytest.mark.parametrize("count", [1, 3, 24, 25, 61, 133])
def test_picture_has_room_for_everything(count):
    rng = np.random.default_rng(0)
    picture = confusion.draw(
        rng.integers(0, 9, (count, count + 1)), [f"class {i}" for i in range(count)]
    )
    assert picture.dtype == np.uint8 and picture.ndim == 3
    assert picture[:, :3].min() == 255 and picture[-3:].min() == 255  # nothing is cut off
    assert picture.shape[0] < 2200
