"""The least precision of logits, losses and norms under any Keras policy."""

import tensorflow as tf


def as_float32_or_more(x: tf.Tensor) -> tf.Tensor:
    """Casts half precision up to float32 and leaves float32 and float64 alone."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
