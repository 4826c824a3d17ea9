"""Box arithmetic: areas, IoU, clipping and delta coding.

Shapes: ... any leading dimensions · N, M boxes.

Boxes are [..., 4] yxyx in absolute pixels with continuous coordinates: y2 and x2 are exclusive and
the height is y2 - y1. Deltas are (dy, dx, dh, dw).
"""

import math
from typing import Sequence

import tensorflow as tf

# Largest dh and dw: a box grows at most from a 16 px anchor to 1000 px, which keeps exp() finite.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Areas of boxes.

    Args:
      boxes: [..., 4] yxyx.

    Returns:
      [...] height times width.
    """
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return (y2 - y1) * (x2 - x1)


def iou_matrix(boxes_a: tf.Tensor, boxes_b: tf.Tensor) -> tf.Tensor:
    """Intersection over union of every box of one set with every box of another.

    Callers rely on the order of the float operations, inter / ((area_a + area_b) - inter): with
    ground truth as `boxes_a` it gives the bits that decide Detectron2's low-quality anchor matches.

    Args:
      boxes_a: [..., N, 4] yxyx.
      boxes_b: [..., M, 4] yxyx.

    Returns:
      [..., N, M]; 0 where both boxes are empty.
    """
    y1_a, x1_a, y2_a, x2_a = tf.unstack(boxes_a[..., :, tf.newaxis, :], axis=-1)  # 4 x [..., N, 1]
    y1_b, x1_b, y2_b, x2_b = tf.unstack(boxes_b[..., tf.newaxis, :, :], axis=-1)  # 4 x [..., 1, M]
    inter = tf.nn.relu(tf.minimum(x2_a, x2_b) - tf.maximum(x1_a, x1_b)) * tf.nn.relu(
        tf.minimum(y2_a, y2_b) - tf.maximum(y1_a, y1_b)
    )  # [..., N, M]
    area_a, area_b = (y2_a - y1_a) * (x2_a - x1_a), (y2_b - y1_b) * (x2_b - x1_b)
    return tf.math.divide_no_nan(inter, (area_a + area_b) - inter)


def clip(boxes: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
    """Clips boxes to images.

    Args:
      boxes: [..., N, 4] yxyx.
      hw: [..., 2] sizes of the images, any numeric type.

    Returns:
      [..., N, 4] with 0 <= y <= h and 0 <= x <= w.
    """
    hw = tf.cast(hw, boxes.dtype)
    limits = tf.concat([hw, hw], axis=-1)[..., tf.newaxis, :]  # [..., 1, 4]
    return tf.minimum(tf.maximum(boxes, tf.zeros([], boxes.dtype)), limits)


def is_empty(boxes: tf.Tensor) -> tf.Tensor:
    """[...] bool: the box has no height or no width (or a coordinate is NaN)."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.logical_not((y2 > y1) & (x2 > x1))


def encode(
    boxes: tf.Tensor, anchors: tf.Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> tf.Tensor:
    """Deltas that turn anchors into boxes; the inverse of `decode`.

    Args:
      boxes: [..., 4] yxyx.
      anchors: [..., 4] yxyx, broadcast against `boxes`.
      weights: factors of (dy, dx, dh, dw).

    Returns:
      [..., 4] deltas. An empty box or anchor (padding) gives dh = dw = 0 and stays finite.
    """
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    proper = (size > 0) & (anchor_size > 0)
    one = tf.ones([], boxes.dtype)
    shift = tf.math.divide_no_nan(centre - anchor_centre, anchor_size)
    log_scale = tf.math.log(tf.where(proper, size, one) / tf.where(proper, anchor_size, one))
    return tf.concat([shift, log_scale], axis=-1) * tf.constant(weights, boxes.dtype)


def decode(
    deltas: tf.Tensor,
    anchors: tf.Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp_small: bool = False,
) -> tf.Tensor:
    """Applies deltas to anchors.

    Args:
      deltas: [..., 4] (dy, dx, dh, dw); dh and dw are capped at log(1000 / 16).
      anchors: [..., 4] yxyx, broadcast against `deltas`.
      weights: the factors given to `encode`.
      clamp_small: whether -log(1000 / 16) is the least dh and dw.

    Returns:
      [..., 4] yxyx, not clipped.
    """
    deltas = deltas / tf.constant(weights, deltas.dtype)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    shift, log_scale = tf.split(deltas, 2, axis=-1)
    centre = shift * anchor_size + anchor_centre
    log_scale = tf.minimum(log_scale, MAX_LOG_SCALE)
    if clamp_small:
        log_scale = tf.maximum(log_scale, -MAX_LOG_SCALE)
    size = tf.exp(log_scale) * anchor_size
    return tf.concat([centre - 0.5 * size, centre + 0.5 * size], axis=-1)


def _centre_and_size(boxes):
    start, end = tf.split(boxes, 2, axis=-1)
    size = end - start  # [..., 2] h, w
    return start + 0.5 * size, size
