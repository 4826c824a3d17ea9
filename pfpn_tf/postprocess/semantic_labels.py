"""The semantic class of every pixel of an original image.

Shapes: S semantic classes · h4, w4 padded size / 4 · h, w original size.
"""

import tensorflow as tf

SEMANTIC_STRIDE = 4
# Small enough that few classes matter in a tile, large enough that its work outweighs the calls.
TILE_ROWS, TILE_COLUMNS = 64, 64
# Of a strip that a GPU labels at once: half a GiB in all for 54 classes.
STRIP_PIXELS = 2**18


def semantic_labels(
    logits: tf.Tensor,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    for_gpu: bool = False,
) -> tf.Tensor:
    """The semantic class of every pixel of one original image.

    The same as: 4x bilinear to the padded size, crop to the content, one bilinear resize to the
    original size (half-pixel centres, no antialiasing), argmax. Both interpolations act on rows and
    columns apart and are linear, so their product is at most three neighbouring logits each way.

    Args:
      logits: [h4, w4, S] float at 1/4 of the padded input; S is static.
      image_hw: [2] int32 content size. original_hw: [2] int32.
      for_gpu: few large operations, as a GPU wants them, in place of many small ones with less
        work in all, which are placed on the CPU. Either runs on any device.

    Returns:
      [h, w] uint8 (uint16 above 254 classes) class with the largest logit, the lowest of equals;
      S where no logit is a number. What else a NaN or an infinity reaches depends on `for_gpu`.
    """
    size = tf.shape(logits)
    rows = _Taps(original_hw[0], image_hw[0], size[0])
    columns = _Taps(original_hw[1], image_hw[1], size[1])
    if for_gpu:
        return _label_strips(logits, rows, columns)
    with tf.device("CPU:0"):
        return _label_tiles(logits, rows, columns)


def _label_dtype(num_classes):
    return tf.uint8 if num_classes < 255 else tf.uint16


def _label_strips(logits, rows, columns):
    """`semantic_labels` in few large operations.

    No matrix products, which a GPU may compute in TF32.
    """
    num_classes = logits.shape[-1]
    dtype = _label_dtype(num_classes)
    falling = tf.range(num_classes, 0, -1, dtype=logits.dtype)
    num_rows = tf.maximum(STRIP_PIXELS // tf.maximum(columns.size, 1), 1)

    def strip(top):
        values = rows.interpolate(logits, top, tf.minimum(top + num_rows, rows.size), axis=0)
        values = columns.interpolate(values, 0, columns.size, axis=1)  # [rows, w, S]
        best = tf.equal(values, tf.reduce_max(values, -1, keepdims=True))
        rank = tf.reduce_max(tf.cast(best, values.dtype) * falling, -1)  # S - class
        return tf.cast(num_classes - tf.cast(rank, tf.int32), dtype)

    return _loop(rows.size, num_rows, strip, dtype)


def _label_tiles(logits, rows, columns):
    """`semantic_labels` tile by tile, with the classes that can win there."""
    num_classes = logits.shape[-1]
    dtype = _label_dtype(num_classes)
    height, width = rows.size, columns.size
    possible = _possible_classes(logits)  # [h4, w4, S]
    # In this layout the gather below copies whole lines, and both products are plain matrix
    # products.
    logits = tf.transpose(logits, [1, 2, 0])  # [w4, S, h4]
    falling = tf.range(num_classes, 0, -1, dtype=logits.dtype)

    def strip(top):
        row_weights, y0, y1 = rows.matrix(top, tf.minimum(top + TILE_ROWS, height), logits.dtype)
        num_rows = tf.shape(row_weights)[0]

        def tile(left):
            right = tf.minimum(left + TILE_COLUMNS, width)
            column_weights, x0, x1 = columns.matrix(left, right, logits.dtype)
            classes = tf.where(tf.reduce_any(possible[y0:y1, x0:x1], [0, 1]))[:, 0]  # [n]
            values = tf.gather(logits[x0:x1], classes, axis=1)[:, :, y0:y1]  # [x, n, y]
            values = tf.matmul(tf.reshape(values, [-1, y1 - y0]), row_weights, transpose_b=True)
            values = tf.matmul(column_weights, tf.reshape(values, [x1 - x0, -1]))
            values = tf.reshape(values, [right - left, -1, num_rows])  # [tile w, n, tile h]
            # max and compare are several times faster than tf.argmax on a CPU
            best = tf.equal(values, tf.reduce_max(values, 1, keepdims=True))
            rank = tf.cast(best, values.dtype) * tf.gather(falling, classes)[:, None]  # S - class
            labels = num_classes - tf.cast(tf.reduce_max(rank, 1), tf.int32)
            return tf.cast(labels, dtype)

        return tf.transpose(_loop(width, TILE_COLUMNS, tile, dtype))  # [tile h, w]

    return _loop(height, TILE_ROWS, strip, dtype)


def _possible_classes(logits):
    """Where each class can be the largest after interpolation; of a photo that is few.

    An interpolated value mixes at most 3x3 neighbouring logits, so it lies between the least and
    the greatest of them. A class whose greatest is below another's least is out.

    Args:
      logits: [h4, w4, S].

    Returns:
      [h4, w4, S] bool for mixtures of each logit and its 8 neighbours; all if one is not finite.
    """

    def greatest_of_3x3(x):
        return tf.nn.max_pool2d(x[None], 3, 1, "SAME")[0]

    bound = tf.reduce_max(-greatest_of_3x3(-logits), -1, keepdims=True)  # [h4, w4, 1]
    # Far more than rounding adds to sums of so few terms. A logit that is not finite makes the
    # bound not a number, and nothing is below that.
    bound -= 1e-5 * tf.reduce_max(tf.abs(logits)) + 0.0 * tf.reduce_sum(logits)
    return ~(greatest_of_3x3(logits) < bound)


class _Taps:
    """One axis of "4x up, crop, resize": which logits each output line needs, and how much.

    Attributes:
      size: n. index: [n, 4] int32 rising. weights: [n, 4] float64, with sum 1.
    """

    def __init__(self, output_size, content_size, logits_size):
        self.size = output_size
        ratio = tf.cast(content_size, tf.float64) / tf.cast(output_size, tf.float64)
        lines = tf.cast(tf.range(output_size), tf.float64)
        low, high, part = _neighbours((lines + 0.5) * ratio - 0.5, content_size)
        index, weights = [], []
        for line, share in ((low, 1.0 - part), (high, part)):
            position = (tf.cast(line, tf.float64) + 0.5) / SEMANTIC_STRIDE - 0.5
            before, after, fraction = _neighbours(position, logits_size)
            index += [before, after]
            weights += [share * (1.0 - fraction), share * fraction]
        self.index = tf.stack(index, -1)
        self.weights = tf.stack(weights, -1)

    def matrix(self, start, end, dtype):
        """Weights of output lines start..end: ([lines, logits], first logit, one past the last)."""
        index = self.index[start:end]
        first, last = index[0, 0], index[-1, -1] + 1
        one_hot = tf.one_hot(index - first, last - first, dtype=tf.float64)  # [lines, 4, logits]
        weights = tf.reduce_sum(one_hot * self.weights[start:end, :, None], 1)
        return tf.cast(weights, dtype), first, last

    def interpolate(self, values, start, end, axis):
        """Output lines start..end of `values`, whose lines along `axis` are those of the logits."""
        index = self.index[start:end]
        weights = tf.cast(self.weights[start:end], values.dtype)
        shape = [1] * len(values.shape)
        shape[axis] = -1
        return tf.add_n(
            [
                tf.gather(values, index[:, tap], axis=axis) * tf.reshape(weights[:, tap], shape)
                for tap in range(index.shape[-1])
            ]
        )


def _neighbours(position, size):
    """The two lines around each position, clamped to the border, and the second one's share."""
    position = tf.clip_by_value(position, 0.0, tf.cast(size - 1, tf.float64))
    low = tf.floor(position)
    high = tf.minimum(low + 1.0, tf.cast(size - 1, tf.float64))
    return tf.cast(low, tf.int32), tf.cast(high, tf.int32), position - low


def _loop(size, step, function, dtype):
    """Concatenates function(0), function(step), ... up to `size` along the first axis."""
    count = (size + step - 1) // step
    parts = tf.TensorArray(dtype, count, element_shape=[None, None], infer_shape=False)
    _, parts = tf.while_loop(
        lambda i, _: i < count,
        lambda i, parts: (i + 1, parts.write(i, function(i * step))),
        (0, parts),
    )
    return parts.concat()
