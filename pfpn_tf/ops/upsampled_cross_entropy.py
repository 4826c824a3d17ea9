"""Softmax cross-entropy of logits after 4x bilinear upsampling, without the upsampled logits.

At full resolution the logits of one 832 x 1344 image and 54 classes take 240 MB, and several times
that with their gradient. Value and gradient are therefore computed together, one row of tiles after
the other, and only the gradient at stride 4 is kept. It cannot be differentiated again.

Shapes: B images · h, w size of the logits · S classes · T side of a tile of them · m, n tiles down
and across.
"""

import numpy as np
import tensorflow as tf

from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.utils.scopes import custom_gradient

_UPSAMPLING = 4
_TILE = 8  # pixels of the logits; a row of tiles at full resolution stays near the cache


def upsampled_cross_entropy(logits: tf.Tensor, labels: tf.Tensor, void: int) -> tf.Tensor:
    """Sum of the softmax cross-entropy over the pixels of the upsampled logits.

    Upsampling is bilinear with half-pixel centres.

    Args:
      logits: [B, h, w, S].
      labels: [B, 4 h, 4 w] uint8 classes.
      void: label of the pixels that do not count.

    Returns:
      Scalar of the logits' type, float32 at least.
    """
    logits = as_float32_or_more(logits)
    bottom, right = -tf.shape(logits)[1] % _TILE, -tf.shape(logits)[2] % _TILE
    # The interpolation needs each border pixel twice. Whole tiles need void below and to the right.
    logits = tf.pad(logits, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    logits = tf.pad(logits, [[0, 0], [0, bottom], [0, right], [0, 0]])
    padding = [[0, 0], [0, _UPSAMPLING * bottom], [0, _UPSAMPLING * right]]
    labels = tf.pad(labels, padding, constant_values=void)

    @custom_gradient
    def loss_of(logits):
        loss, gradient = _loss_and_gradient(logits, labels, void)
        return loss, lambda upstream: upstream * gradient

    return loss_of(logits)


def _loss_and_gradient(logits, labels, void):
    """The sum, and its gradient in the shape of `logits`.

    Args:
      logits: [B, m T + 2, n T + 2, S] with a border of one pixel.
      labels: [B, 4 m T, 4 n T].
      void: as in `upsampled_cross_entropy`.
    """
    batch, rows, columns, classes = tf.unstack(tf.shape(logits))

    def add_strip(index, total, shared_rows, gradients):
        """Adds one row of tiles.

        The strip before has two rows in common with this one; `shared_rows` is their gradient.
        """
        row = index * _TILE
        strip = tf.gather(logits, row + tf.range(_TILE + 2), axis=1)
        strip_labels = tf.gather(labels, _UPSAMPLING * row + tf.range(_UPSAMPLING * _TILE), axis=1)
        strip_labels = tf.cast(strip_labels, tf.int32)
        labelled = strip_labels != void
        with tf.GradientTape() as tape:
            tape.watch(strip)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels=tf.where(labelled, strip_labels, 0), logits=_upsample(strip)
            )
            loss = tf.reduce_sum(tf.where(labelled, losses, tf.zeros([], losses.dtype)))
        gradient = tape.gradient(loss, strip)
        gradient += tf.pad(shared_rows, [[0, 0], [0, _TILE], [0, 0], [0, 0]])
        gradients = gradients.write(index, gradient[:, :_TILE])
        return index + 1, total + loss, gradient[:, _TILE:], gradients

    num_strips = (rows - 2) // _TILE
    static_shape = [logits.shape[0], _TILE, *logits.shape[2:]]
    _, total, last_rows, gradients = tf.while_loop(
        lambda index, *_: index < num_strips,
        add_strip,
        (
            0,
            tf.zeros([], logits.dtype),
            tf.zeros_like(logits[:, :2]),
            tf.TensorArray(logits.dtype, num_strips, element_shape=static_shape),
        ),
        parallel_iterations=1,  # one strip at full resolution at a time
    )
    gradient = tf.transpose(gradients.stack(), [1, 0, 2, 3, 4])  # [B, m, T, n T + 2, S]
    gradient = tf.reshape(gradient, [batch, rows - 2, columns, classes])
    return total, tf.concat([gradient, last_rows], axis=1)


def _upsample(strip):
    """Upsamples one row of tiles. [B, T + 2, n T + 2, S] -> [B, 4 T, 4 n T, S]"""
    batch, _, columns, classes = tf.unstack(tf.shape(strip))
    interpolation = tf.constant(_interpolation_matrix(), strip.dtype)  # [4 T, T + 2]
    strip = tf.matmul(interpolation, tf.reshape(strip, [batch, _TILE + 2, columns * classes]))
    strip = tf.reshape(strip, [batch * _UPSAMPLING * _TILE, columns, classes])
    tile_columns = tf.range(0, columns - 2, _TILE)[:, None] + tf.range(_TILE + 2)  # [n, T + 2]
    tiles = tf.gather(strip, tile_columns, axis=1)  # [B * 4 T, n, T + 2, S]
    tiles = tf.matmul(interpolation, tiles)  # [B * 4 T, n, 4 T, S]
    return tf.reshape(tiles, [batch, _UPSAMPLING * _TILE, -1, classes])


def _interpolation_matrix():
    """[4 T, T + 2]: 4x bilinear upsampling of T pixels that have a neighbour on either side.

    Output 4 i + j has its centre at i + (j + 0.5) / 4 - 0.5, in input pixels.
    """
    position = (np.arange(_UPSAMPLING * _TILE) + 0.5) / _UPSAMPLING - 0.5
    neighbours = np.arange(-1, _TILE + 1)
    return np.maximum(1.0 - np.abs(position[:, np.newaxis] - neighbours), 0.0)
