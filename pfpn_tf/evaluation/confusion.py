"""Which classes are taken for which others: a picture, and the largest mistakes in words.

Shapes: C classes; row of a confusion matrix: ground truth, column: prediction, column C: void.
"""

import warnings
from typing import List, Sequence, Tuple

import numpy as np

_DPI = 100
# Colours of a cell that has all pixels of its row.
_RIGHT, _WRONG = np.array([33, 102, 172]), np.array([200, 60, 20])
_ABSENT = (243, 243, 243)
_MOST_WITH_NUMBERS = 24  # classes whose cells have room for a number
_MAX_NAME = 26


def largest_mistakes(
    confusion: np.ndarray, names: Sequence[str], count: int = 15
) -> List[Tuple[str, str, int, float]]:
    """The mistakes that cost the most pixels, largest first.

    Args:
      confusion: [C, C + 1] pixels.
      names: of the C classes.

    Returns:
      Of each the true class, the predicted one or void, pixels, and their share of the true class.
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
            mistakes.append((names[row], columns[column], pixels, share))
    return mistakes


def draw(confusion: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The matrix as a picture: blue where a row's pixels are right, red where they went instead.

    Colours follow the square root of the share, so that one pixel in a hundred can still be seen.
    Rows of classes that do not occur are grey. With few classes, cells from half a percent on show
    their percentage.

    Args:
      confusion: [C, C + 1] pixels.
      names: of the C classes.

    Returns:
      [h, w, 3] uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(names)
    side = 2.5 + max(count, 8) * (0.34 if count <= _MOST_WITH_NUMBERS else 0.145)  # inches
    figure = Figure((side, side), _DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.set_title("Rows: ground truth. Columns: predicted as.", loc="left", fontsize=10)
    colors = _colors(confusion)
    axes.imshow(colors)
    rows = [name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…" for name in names]
    columns = [*rows, "void"]
    axes.set_yticks(range(count), rows, fontsize=8, parse_math=False)
    axes.set_xticks(range(count + 1), columns, fontsize=8, parse_math=False, rotation=90)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for (i, j), share in np.ndenumerate(100 * _shares(confusion)):
        if count <= _MOST_WITH_NUMBERS and share >= 0.5:
            color = "white" if colors[i, j].sum() < 420 else "black"
            axes.text(j, i, f"{share:.0f}", color=color, size=8, ha="center", va="center")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _shares(confusion):
    return confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)


def _colors(confusion):
    strength = np.sqrt(_shares(confusion))[..., None]  # [C, C + 1, 1]
    target = np.broadcast_to(_WRONG, (*confusion.shape, 3)).copy()
    target[np.arange(len(confusion)), np.arange(len(confusion))] = _RIGHT
    colors = 255 + strength * (target - 255)
    colors[confusion.sum(axis=1) == 0] = _ABSENT
    return colors.round().astype(np.uint8)
