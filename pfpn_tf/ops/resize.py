"""Bilinear resizing of feature maps.

Shapes: B images · H, W size of the feature map · C channels.
"""

import tensorflow as tf


def resize_bilinear(x: tf.Tensor, hw) -> tf.Tensor:
    """Bilinear resize with half-pixel centres, in the dtype of `x`.

    Args:
      x: [B, H, W, C] float.
      hw: target (height, width), ints or an int tensor.

    Returns:
      [B, height, width, C] of the dtype of `x`.
    """
    if x.dtype != tf.float64:
        # tf.image.resize computes in float32. XLA gives the gradient of half precision another type
        # than TensorFlow expects and fails to compile, so the casts stand outside.
        return tf.cast(tf.image.resize(tf.cast(x, tf.float32), hw, "bilinear"), x.dtype)
    rows = _interpolation_matrix(tf.shape(x)[1], hw[0], x.dtype)
    columns = _interpolation_matrix(tf.shape(x)[2], hw[1], x.dtype)
    x = tf.einsum("oh,bhwc->bowc", rows, x)
    return tf.einsum("ow,bhwc->bhoc", columns, x)


def _interpolation_matrix(size_in, size_out, dtype):
    """[size_out, size_in] weights of a bilinear resize along one axis."""
    size_in, size_out = tf.cast(size_in, dtype), tf.cast(size_out, dtype)
    position = (tf.range(size_out) + 0.5) * (size_in / size_out) - 0.5
    position = tf.clip_by_value(position, 0.0, size_in - 1.0)
    return tf.nn.relu(1.0 - tf.abs(position[:, None] - tf.range(size_in)))
