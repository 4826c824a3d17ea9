"""The semantic class of every pixel of an original image.

It is the argmax of the logits after a 4x bilinear upsampling to the padded size, a crop to the
content and a bilinear resize to the original size, both with half-pixel centres and without
antialiasing. Both interpolations are linear and act on each axis alone, so a line of the original
is a weighted sum of at most three neighbouring lines of the logits.

The logits of all pixels would take 230 MB for 54 classes at 800 x 1333, so strips of rows are
labelled one after the other. On a GPU the matrix product may be in TF32, like the convolutions
before it.

Shapes: S semantic classes · h4, w4 padded size / 4 · h, w original size.
"""

from typing import Tuple

import tensorflow as tf

from pfpn_tf.utils.scopes import in_scope

SEMANTIC_STRIDE = 4
STRIP_PIXELS = 2**15  # 7 MB for 54 classes

# Far beyond any logit; the first leaves room for sums in float32.
_NOT_A_NUMBER, _NO_CLASS = -1e38, -1e20


@in_scope("labels")
def semantic_labels(logits: tf.Tensor, image_hw: tf.Tensor, original_hw: tf.Tensor) -> tf.Tensor:
    """Labels the pixels of one image.

    Args:
      logits: [h4, w4, S] float at 1/4 of the padded input; S is static.
      image_hw: [2] int32 content size. original_hw: [2] int32.

    Returns:
      [h, w] uint8 (uint16 above 254 classes) class with the largest logit, the lowest of equals;
      S where no logit is a number.
    """
    dtype = tf.uint8 if logits.shape[-1] < 255 else tf.uint16
    logits = tf.where(
        tf.math.is_nan(logits), _NOT_A_NUMBER, tf.clip_by_value(logits, _NOT_A_NUMBER, 1e38)
    )
    logits = tf.pad(logits, [[0, 0], [0, 0], [0, 1]], constant_values=_NO_CLASS)  # S + 1 classes
    height, width = original_hw[0], original_hw[1]
    strip_rows = tf.clip_by_value(STRIP_PIXELS // width, 1, height)
    num_strips = -(-height // strip_rows)
    columns, column_weights = _lines(width, width, image_hw[1], tf.shape(logits)[1])
    column_weights = tf.cast(column_weights, logits.dtype)
    lines = _lines(num_strips * strip_rows, height, image_hw[0], tf.shape(logits)[0])

    def label(strip):
        rows, row_weights = strip  # [n, 3], for a strip of n rows
        window = logits[rows[0, 0] : rows[-1, -1] + 1]  # [k, w4, S + 1]
        taps = [tf.gather(window, columns[:, i], axis=1) for i in range(3)]
        window = tf.add_n([tap * column_weights[:, i, None] for i, tap in enumerate(taps)])
        place = tf.one_hot(rows - rows[0, 0], tf.shape(window)[0], dtype=tf.float64)  # [n, 3, k]
        matrix = tf.cast(tf.reduce_sum(place * row_weights[..., None], 1), logits.dtype)  # [n, k]
        values = tf.tensordot(matrix, window, 1)  # [n, w, S + 1]
        # Of equals top_k takes the lowest, like argmax, which takes half as long again on a CPU.
        return tf.cast(tf.math.top_k(values, 1).indices[..., 0], dtype)

    labels = tf.map_fn(
        label,
        tuple(tf.reshape(x, [num_strips, strip_rows, 3]) for x in lines),
        fn_output_signature=tf.TensorSpec([None, None], dtype),
        parallel_iterations=1,
    )
    return tf.reshape(labels, [-1, width])[:height]


@in_scope("labels")
def class_scores(logits: tf.Tensor, image_hw: tf.Tensor) -> tf.Tensor:
    """How sure the network is of each class: its mean probability where it is the likeliest.

    Args:
      logits: [h4, w4, S] float at 1/4 of the padded input.
      image_hw: [2] int32 content size.

    Returns:
      [S] float32, of the cells of the logits; 0 for a class that is nowhere the likeliest.
    """
    content_hw = -(-image_hw // SEMANTIC_STRIDE)
    logits = logits[: content_hw[0], : content_hw[1]]
    highest = tf.reduce_max(logits, -1, keepdims=True)
    probs = 1.0 / tf.reduce_sum(tf.exp(logits - highest), -1)  # of the likeliest class
    probs = tf.reshape(tf.where(tf.math.is_finite(probs), probs, 0.0), [-1])
    classes = tf.reshape(tf.argmax(logits, -1, output_type=tf.int32), [-1])
    sums = tf.math.unsorted_segment_sum(
        tf.stack([probs, tf.ones_like(probs)], -1), classes, logits.shape[-1]
    )  # [S, 2]
    return tf.math.divide_no_nan(sums[:, 0], sums[:, 1])


def _lines(num_lines, output_size, content_size, logits_size) -> Tuple[tf.Tensor, tf.Tensor]:
    """The three lines of the logits that each line of the original adds up, and their weights.

    Args:
      num_lines: n, `output_size` or more; lines past the last equal the last.
      output_size, content_size, logits_size: of the original, the content and the logits.

    Returns:
      index [n, 3] int32, rising, and weight [n, 3] float64.
    """

    def inside(position, size):
        return tf.clip_by_value(position, 0.0, tf.cast(size - 1, tf.float64))

    ratio = tf.cast(content_size, tf.float64) / tf.cast(output_size, tf.float64)
    position = inside((tf.range(num_lines, dtype=tf.float64) + 0.5) * ratio - 0.5, content_size)
    low = tf.floor(position)  # of the two lines of the padded input around the position
    share = (position - low)[:, None]  # of the second line
    low, high = (
        inside((line + 0.5) / SEMANTIC_STRIDE - 0.5, logits_size)[:, None]
        for line in (low, inside(low + 1.0, content_size))
    )  # [n, 1], in lines of the logits
    index = tf.floor(low) + tf.range(3, dtype=tf.float64)  # [n, 3]

    def hat(line):
        return tf.nn.relu(1.0 - tf.abs(line - index))

    weights = (1.0 - share) * hat(low) + share * hat(high)
    return tf.cast(inside(index, logits_size), tf.int32), weights
