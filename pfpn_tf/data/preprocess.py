"""Decode, resize, normalise, pad: the same functions for training, evaluation and serving.

Shapes: H, W size in · h, w size out. Images are RGB.
"""

from typing import Sequence

import tensorflow as tf

BLOCK = 16  # output rows that share one matrix product in the resize
FIXED_POINT = 2.0**22  # Pillow rounds its filter weights to this many steps


def decode_image(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG or BMP as stored: grey becomes RGB, alpha is dropped, EXIF is not applied.

    The accurate JPEG transform gives the very pixels of Pillow and OpenCV; the default one does
    not.

    Args:
      image_bytes: [] string.

    Returns:
      [H, W, 3] uint8.
    """
    image = tf.cond(
        tf.strings.substr(image_bytes, 0, 2) == b"BM",
        lambda: tf.io.decode_image(image_bytes, channels=3, expand_animations=False),
        # It decodes PNG, too.
        lambda: tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    return tf.ensure_shape(image, [None, None, 3])


def resized_hw(
    hw: tf.Tensor, min_side: tf.Tensor, max_side: tf.Tensor, resize: str = "pillow"
) -> tf.Tensor:
    """The size at which the shorter side is `min_side`, or less to keep the longer within
    `max_side`.

    Args:
      hw: [..., 2] int sizes, or a pair of ints.
      min_side: [...] int.
      max_side: [] int.
      resize: "pillow": scaled to `min_side`, then to `max_side` (Detectron2); "opencv": by the
        smaller of the two factors (MMDetection). They differ by a pixel for a few sizes.

    Returns:
      [..., 2] int32, at least 1.
    """
    hw = tf.cast(hw, tf.float64)  # sizes that end on .5 need the precision
    short, long = tf.reduce_min(hw, -1), tf.reduce_max(hw, -1)
    min_side, max_side = tf.cast(min_side, tf.float64), tf.cast(max_side, tf.float64)
    if resize == "opencv":
        return scaled_hw(hw, tf.minimum(max_side / long, min_side / short))
    scaled = hw * (min_side / short)[..., tf.newaxis]
    longest = long * (min_side / short)
    shrink = tf.where(longest > max_side, max_side / longest, tf.ones_like(longest))
    return scaled_hw(scaled, shrink)


def scaled_hw(hw: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """[..., 2] sizes times [...] factors, rounded half up; [..., 2] int32, at least 1."""
    scaled = tf.cast(hw, tf.float64) * tf.cast(factor, tf.float64)[..., tf.newaxis]
    return tf.maximum(tf.cast(tf.floor(scaled + 0.5), tf.int32), 1)


def resize_image(image: tf.Tensor, hw: tf.Tensor, resize: str = "pillow") -> tf.Tensor:
    """Pillow's BILINEAR or OpenCV's INTER_LINEAR, equal to it in every value.

    Args:
      image: [H, W, 3] uint8.
      hw: [2] int, or a pair of ints.
      resize: "pillow": antialiased, first the columns, then the rows, rounded after each; "opencv":
        each pixel from its four neighbours.

    Returns:
      [h, w, 3] uint8.
    """
    with tf.device("CPU:0"):  # where decoded images are
        h, w = tf.unstack(tf.cast(hw, tf.int32))
        in_h, in_w = tf.unstack(tf.shape(image)[:2])

        def pillow():
            columns = tf.reshape(tf.transpose(image, [1, 0, 2]), [in_w, in_h * 3])
            columns = tf.reshape(_resize_rows(columns, w), [w, in_h, 3])  # [W, H*3] -> [w, H, 3]
            rows = tf.reshape(tf.transpose(columns, [1, 0, 2]), [in_h, w * 3])
            return tf.reshape(_resize_rows(rows, h), [h, w, 3])  # [H, w*3] -> [h, w, 3]

        # At its own size every value comes out as it went in.
        same = tf.equal(h, in_h) & tf.equal(w, in_w)
        resized = (lambda: _resize_opencv(image, h, w)) if resize == "opencv" else pillow
        return tf.cond(same, lambda: tf.identity(image), resized)


def _resize_rows(x, n_out):
    """Resizes axis 0 of x [n, k] uint8 -> [n_out, k] uint8.

    Each block of output rows is a small matrix times the window of input rows it can see, so the
    cost is that of the filter's few taps and not of a full [n_out, n] matrix.
    """
    n = tf.shape(x)[0]
    ratio = tf.cast(n, tf.float64) / tf.cast(n_out, tf.float64)
    support = tf.maximum(ratio, 1.0)  # of the triangle filter; grows when shrinking
    blocks = (n_out + BLOCK - 1) // BLOCK
    centres = (
        tf.cast(tf.reshape(tf.range(blocks * BLOCK), [blocks, BLOCK]), tf.float64) + 0.5
    ) * ratio
    first = tf.cast(tf.floor(centres[:, 0] - support), tf.int32)  # [blocks]
    window = tf.cast(tf.math.ceil(BLOCK * ratio + 2 * support), tf.int32) + 1
    source = first[:, tf.newaxis] + tf.range(window)  # [blocks, window]
    inside = tf.cast((source >= 0) & (source < n), tf.float64)
    distance = tf.abs(tf.cast(source, tf.float64)[:, tf.newaxis] + 0.5 - centres[:, :, tf.newaxis])
    weights = tf.maximum(1.0 - distance / support, 0.0)  # [blocks, BLOCK, window]
    weights *= inside[:, tf.newaxis]
    weights = tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))
    weights = tf.floor(weights * FIXED_POINT + 0.5) / FIXED_POINT
    # Fixed-point weights times grey levels have up to 30 bits: float64 adds them up without
    # rounding, as Pillow's integers do. One grey level more or less can change what a network
    # detects.
    values = tf.gather(x, tf.clip_by_value(source, 0, n - 1))  # [blocks, window, k]
    values = tf.matmul(weights, tf.cast(values, tf.float64))  # [blocks, BLOCK, k]
    out = tf.cast(values + 0.5, tf.uint8)  # round half up, as Pillow does
    return tf.reshape(out, [blocks * BLOCK, -1])[:n_out]  # [blocks, BLOCK, k] -> [n_out, k]


def _resize_opencv(image, h, w):
    """OpenCV's INTER_LINEAR of uint8 in its whole numbers: weights are multiples of 1 / 2048."""
    left, right, fraction = _neighbours(tf.shape(image)[1], w)
    # At the sides the outer pixel counts alone; above and below, the same row counts twice, which
    # rounds otherwise.
    fraction = tf.where(left == right, 0.0, fraction)
    near, far = (weight[:, tf.newaxis] for weight in _fixed_point_weights(fraction))
    image = tf.cast(image, tf.int32)
    rows = tf.gather(image, left, axis=1) * near + tf.gather(image, right, axis=1) * far
    rows = tf.bitwise.right_shift(rows, 4)  # [H, w, 3]

    top, bottom, fraction = _neighbours(tf.shape(image)[0], h)
    near, far = (weight[:, tf.newaxis, tf.newaxis] for weight in _fixed_point_weights(fraction))
    upper = tf.bitwise.right_shift(tf.gather(rows, top) * near, 16)
    lower = tf.bitwise.right_shift(tf.gather(rows, bottom) * far, 16)
    return tf.cast(tf.bitwise.right_shift(upper + lower + 2, 2), tf.uint8)  # [h, w, 3]


def _neighbours(n_in, n_out):
    """The source indices before and after each output's position, clamped, and the share of the
    second: 3 x [n_out].
    """
    scale = 1.0 / (tf.cast(n_out, tf.float64) / tf.cast(n_in, tf.float64))
    position = (tf.cast(tf.range(n_out), tf.float64) + 0.5) * scale - 0.5
    position = tf.cast(position, tf.float32)
    first = tf.floor(position)
    index = tf.cast(first, tf.int32)
    return tf.maximum(index, 0), tf.minimum(index + 1, n_in - 1), position - first


def _fixed_point_weights(fraction):
    """Weights of the first and the second neighbour in 1 / 2048, rounded half to even."""
    return [tf.cast(tf.round(2048.0 * x), tf.int32) for x in (1.0 - fraction, fraction)]


def nearest_indices(n_in: tf.Tensor, n_out: tf.Tensor) -> tf.Tensor:
    """[n_out] int32, floor((i + 0.5) * n_in / n_out) in whole numbers: which source index to
    take.
    """
    n_in, n_out = tf.cast(n_in, tf.int64), tf.cast(n_out, tf.int64)
    return tf.cast((2 * tf.range(n_out) + 1) * n_in // (2 * n_out), tf.int32)


def normalize(image: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """(image - mean) / std per channel, float32."""
    h, w = tf.unstack(tf.shape(image)[:2])
    # As rows of 3 * w values, which takes half as long as pixels of three.
    rows = tf.cast(tf.reshape(image, [h, 3 * w]), tf.float32)
    mean, std = (tf.tile(tf.constant(values, tf.float32), [w]) for values in (mean, std))
    return tf.reshape((rows - mean) / std, [h, w, 3])


def pad_to(image: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
    """Pads right and bottom with zeros.

    Args:
      image: [H, W, 3].
      hw: [2] int, not less than H, W.

    Returns:
      [h, w, 3].
    """
    missing = tf.cast(hw, tf.int32) - tf.shape(image)[:2]
    return tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])


def padded_hw(hw: tf.Tensor, divisor: int) -> tf.Tensor:
    """The next multiples of `divisor` at or above hw ([..., 2] int)."""
    hw = tf.cast(hw, tf.int32)
    return (hw + divisor - 1) // divisor * divisor
