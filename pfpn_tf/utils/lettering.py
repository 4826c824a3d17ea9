"""Words in pictures: legible on light and dark ground, and never over one another.

Pictures are [h, w, 3] uint8 RGB and are written on; spots are (y, x) of an upper left corner.
"""

import functools
import importlib.util
import os
from typing import Iterable, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_COVERED_SHARE = 0.25  # of a picture by its tags, at most

Spot = Tuple[int, int]


@functools.lru_cache(maxsize=None)
def _font(text_px):
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    package = importlib.util.find_spec("matplotlib")  # Importing it would take long.
    assert package is not None and package.origin
    path = os.path.join(os.path.dirname(package.origin), "mpl-data", "fonts", "ttf")
    font = os.path.join(path, "DejaVuSans.ttf")
    return ImageFont.truetype(font, text_px, layout_engine=ImageFont.Layout.BASIC)


def _printable(text):
    return "".join(char if char.isprintable() else "?" for char in text)


def text_size(text: str, text_px: int) -> Tuple[int, int]:
    """(width, height) of a line of this font size, in pixels."""
    font = _font(text_px)
    return int(np.ceil(font.getlength(_printable(text)))), sum(font.getmetrics())


def write(canvas: np.ndarray, text: str, spot: Spot, color: Sequence[int], text_px: int) -> None:
    """Writes a line, as far as it is inside the picture."""
    width, height = text_size(text, text_px)
    window = canvas[spot[0] : spot[0] + height, spot[1] : spot[1] + width]
    if window.size:
        drawn = Image.fromarray(window)
        ImageDraw.Draw(drawn).text((0, 0), _printable(text), tuple(color), _font(text_px))
        window[:] = drawn


class Tags:
    """Dark plates with white text on one picture."""

    def __init__(self, canvas: np.ndarray, text_px: int):
        self._canvas = canvas
        self._text_px = text_px
        self._pad = text_px // 4
        self._covered = np.zeros(canvas.shape[:2], bool)
        self._pixels_left = _COVERED_SHARE * canvas.shape[0] * canvas.shape[1]

    def size(self, text: str) -> Tuple[int, int]:
        """(width, height) of the plate."""
        width, height = text_size(text, self._text_px)
        return width + 3 * self._pad, height + self._pad

    def draw(self, text: str, spots: Iterable[Spot], stripe: Sequence[int]) -> None:
        """Draws a plate at the first of the spots, moved into the picture, that is free.

        Nothing is drawn if there is none, or if plates would cover too much of the picture.

        Args:
          text: of the plate.
          spots: to try.
          stripe: colour at the left end.
        """
        width, height = self.size(text)
        spot = self._first_free(spots, width, height)
        if spot is None:
            return
        top, left = spot
        plate = self._canvas[top : top + height, left : left + width]
        plate[:] = plate * 0.25 + np.array([14, 14, 18], np.float32) * 0.75
        plate[:, : self._pad] = stripe
        start = top + self._pad // 2, left + 2 * self._pad
        write(self._canvas, text, start, (255, 255, 255), self._text_px)

    def _first_free(self, spots, width, height):
        if width * height > self._pixels_left:
            return None
        picture_height, picture_width = self._canvas.shape[:2]
        for top, left in spots:
            top = min(max(top, 0), picture_height - height)
            left = min(max(left, 0), picture_width - width)
            plate = np.s_[top : top + height, left : left + width]
            if top >= 0 and left >= 0 and not self._covered[plate].any():
                self._covered[plate] = True
                self._pixels_left -= width * height
                return top, left
        return None
