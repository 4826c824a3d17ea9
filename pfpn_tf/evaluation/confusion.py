"""Which classes are taken for which others: a picture, and the largest mistakes in words.

Shapes: C classes; row of a confusion matrix: ground truth, column: prediction, column C: void.
"""

from typing import List, NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELLS = ((24, 34), (60, 20))  # cell size in pixels up to so many classes
_SMALLEST_CELL = 13
_NUMBERS_FROM = 34  # cell size that has room for a number
# Colours of a cell that has all pixels of its row.
_RIGHT, _WRONG = np.array([33, 102, 172]), np.array([200, 60, 20])
_TEXT, _GRID, _ABSENT = (25, 25, 25), (222, 222, 222), (243, 243, 243)
_MAX_NAME = 26


class Mistake(NamedTuple):
    """Pixels of one class that were predicted as another one, or as void.

    Attributes:
      pixels: how many; share: of the ground-truth class's pixels.
    """

    truth: str
    prediction: str
    pixels: int
    share: float


def largest_mistakes(confusion: np.ndarray, names: Sequence[str], count: int = 15) -> List[Mistake]:
    """The mistakes that cost the most pixels, largest first.

    Args:
      confusion: [C, C + 1] pixels.
      names: of the C classes.
    """
    wrong = np.array(confusion, np.int64)
    np.fill_diagonal(wrong, 0)
    columns = [*names, "void"]
    mistakes = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        row, column = divmod(int(flat), wrong.shape[1])
        pixels = int(wrong[row, column])
        if pixels:
            share = pixels / int(confusion[row].sum())
            mistakes.append(Mistake(names[row], columns[column], pixels, share))
    return mistakes


def draw(confusion: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The matrix as a picture: blue where a row's pixels are right, red where they went instead.

    Colours follow the square root of the share, so that one pixel in a hundred can still be seen.
    Rows of classes that do not occur are grey.

    Args:
      confusion: [C, C + 1] pixels.
      names: of the C classes.

    Returns:
      [h, w, 3] uint8.
    """
    count = len(names)
    cell = next((size for most, size in _CELLS if count <= most), _SMALLEST_CELL)
    font = ImageFont.load_default(min(max(cell - 3, 10), 14))
    rows = [_short(name) for name in names]
    columns = [*rows, "void"]
    margin = int(max(font.getlength(name) for name in columns)) + 12
    title_px = 30
    width, height = margin + cell * (count + 1) + 12, title_px + margin + cell * count + 12
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    title = ImageFont.load_default(14)
    pen.text((8, 8), "Rows: ground truth. Columns: predicted as.", _TEXT, title)

    top = title_px + margin
    colors = _colors(confusion)
    for i in range(count):
        for j in range(count + 1):
            x, y = margin + j * cell, top + i * cell
            color = tuple(int(c) for c in colors[i, j])
            pen.rectangle((x, y, x + cell, y + cell), fill=color, outline=_GRID)
    if cell >= _NUMBERS_FROM:
        _write_numbers(pen, confusion, colors, margin, top, cell)
    for i, name in enumerate(rows):
        pen.text((margin - 6, top + (i + 0.5) * cell), name, _TEXT, font, anchor="rm")
    _write_columns(picture, columns, font, margin, top, cell)
    return np.asarray(picture)


def _shares(confusion):
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _colors(confusion):
    strength = np.sqrt(_shares(confusion))[..., None]  # [C, C + 1, 1]
    target = np.broadcast_to(_WRONG, (*confusion.shape, 3)).copy()
    target[np.arange(len(confusion)), np.arange(len(confusion))] = _RIGHT
    colors = 255 + strength * (target - 255)
    colors[confusion.sum(axis=1) == 0] = _ABSENT
    return colors.round()


def _write_numbers(pen, confusion, colors, left, top, cell):
    """Percent in the cells that have at least one."""
    font = ImageFont.load_default(12)
    for (i, j), share in np.ndenumerate(100 * _shares(confusion)):
        if share >= 0.5:
            color = "white" if colors[i, j].sum() < 420 else _TEXT
            pen.text(
                (left + (j + 0.5) * cell, top + (i + 0.5) * cell),
                f"{share:.0f}",
                color,
                font,
                anchor="mm",
            )


def _write_columns(picture, names, font, left, bottom, cell):
    """Names upwards from `bottom`."""
    for i, name in enumerate(names):
        length = int(font.getlength(name)) + 4
        strip = Image.new("RGB", (length, cell), "white")
        ImageDraw.Draw(strip).text((0, cell / 2), name, _TEXT, font, anchor="lm")
        picture.paste(strip.rotate(90, expand=True), (left + i * cell, bottom - length - 4))


def _short(name):
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
