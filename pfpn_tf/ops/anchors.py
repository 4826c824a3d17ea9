"""Anchors of the region proposal network.

Shapes: A anchors per cell (one per aspect ratio) · Hl, Wl size of a level.

As in Detectron2 the anchors of cell (i, j) are centred at (i * stride, j * stride), without the
half stride.
"""

from typing import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(size: float, aspect_ratios: Sequence[float]) -> np.ndarray:
    """Anchors around the origin.

    Args:
      size: square root of the anchors' area, in pixels.
      aspect_ratios: height / width of each anchor.

    Returns:
      [A, 4] float64 yxyx.
    """
    ratios = np.asarray(aspect_ratios, np.float64)
    width = np.sqrt(float(size) ** 2 / ratios)
    height = ratios * width
    return np.stack([-height / 2, -width / 2, height / 2, width / 2], axis=-1)


def level_anchors(
    level_hw: tf.Tensor,
    stride: int,
    size: float,
    aspect_ratios: Sequence[float],
    dtype: tf.DType = tf.float32,
) -> tf.Tensor:
    """Anchors of every cell of one pyramid level.

    Args:
      level_hw: [2] int32 size (Hl, Wl) of the feature map.
      stride: pixels of the input per cell.
      size: square root of the anchors' area, in pixels.
      aspect_ratios: height / width of each anchor of a cell.
      dtype: of the result. The anchors are rounded to it before they are moved to their cells.

    Returns:
      [Hl * Wl * A, 4] yxyx pixels, in the order row, column, aspect ratio.
    """
    cells = tf.constant(cell_anchors(size, aspect_ratios), dtype)  # [A, 4]
    y = tf.cast(tf.range(level_hw[0]) * stride, dtype)
    x = tf.cast(tf.range(level_hw[1]) * stride, dtype)
    y, x = tf.meshgrid(y, x, indexing="ij")  # 2 x [Hl, Wl]
    centres = tf.stack([y, x, y, x], axis=-1)  # [Hl, Wl, 4]
    anchors = centres[:, :, tf.newaxis, :] + cells  # [Hl, Wl, A, 4]
    return tf.reshape(anchors, [-1, 4])
