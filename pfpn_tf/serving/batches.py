"""The images of a request in groups that go through the network together."""

from typing import Any

import tensorflow as tf


def by_padded_size(function, padded_hw: tf.Tensor, most_pixels: int, signature) -> Any:
    """Calls `function` for the images of each padded size, some at a time.

    An image is never padded further for a larger one in its batch: the padding reaches into group
    normalisation and to the borders of the content, so an answer would depend on who else asks.

    Args:
      function: of [n] int32 places in the batch, to a structure of [n, ...] tensors.
      padded_hw: [B, 2] int32.
      most_pixels: of the images of one call, if they are more than one.
      signature: structure of one image's `tf.TensorSpec`s.

    Returns:
      The structure, with a leading B, in the order of the batch.
    """
    # A loop, not a branch for equal sizes beside one for mixed ones: the network stays in the graph
    # once.
    sides = tf.cast(padded_hw, tf.int64)
    _, size = tf.unique(sides[:, 0] * 2**32 + sides[:, 1])  # [B]
    order = tf.argsort(size, stable=True)  # [B] places: images of one size follow each other
    size, sides = tf.gather(size, order), tf.gather(sides, order)
    index = tf.range(tf.size(size), dtype=tf.int32)
    rank = tf.cast(index - tf.searchsorted(size, size), tf.int64)  # [B] among those of its size
    together = tf.maximum(most_pixels // (sides[:, 0] * sides[:, 1]), 1)  # [B]
    starts = tf.boolean_mask(index, rank % together == 0)  # [calls]
    ends = tf.concat([starts[1:], [tf.size(size)]], 0)
    num_calls = tf.size(starts)
    specs = tf.nest.flatten(signature)
    arrays = tuple(
        tf.TensorArray(spec.dtype, num_calls, infer_shape=False, element_shape=[None, *spec.shape])
        for spec in specs
    )

    def call(i, arrays):
        values = tf.nest.flatten(function(order[starts[i] : ends[i]]))
        return i + 1, tuple(array.write(i, value) for array, value in zip(arrays, values))

    # While one call does what cannot be divided among the cores, another keeps them busy.
    _, arrays = tf.while_loop(lambda i, _: i < num_calls, call, (0, arrays), parallel_iterations=2)
    values = [
        tf.ensure_shape(spread(array.concat(), order, tf.size(order)), [None, *spec.shape])
        for array, spec in zip(arrays, specs)
    ]
    return tf.nest.pack_sequence_as(signature, values)


def spread(rows: tf.Tensor, places: tf.Tensor, batch_size: tf.Tensor) -> tf.Tensor:
    """[n, ...] rows at their n places of a batch; zeros, or empty strings, at the others."""
    shape = tf.concat([[batch_size], tf.shape(rows)[1:]], 0)
    return tf.scatter_nd(places[:, tf.newaxis], rows, shape)
