"""The box head: class scores and class-specific box deltas of RoIs.

Shapes: B images · R RoIs · P pooled size · C channels · K thing classes.
"""

from typing import Tuple

import tensorflow as tf

from pfpn_tf.model import layers
from pfpn_tf.ops.precision import as_float32_or_more

POOLED_SIZE = 7
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of (dy, dx, dh, dw): they bring the targets to about unit variance (Fast R-CNN)."""


class BoxHead(tf.keras.layers.Layer):
    """Two fully connected layers with ReLU, then class logits and deltas.

    The head keeps this form whatever the norm of the other heads: a group norm would need
    convolutions in its place.

    Args:
      channels: width of the fully connected layers.
      num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes

        def dense(name, units, initializer, activation=None):
            return tf.keras.layers.Dense(
                units, activation, kernel_initializer=initializer, name=name
            )

        self.fc1 = dense("fc1", channels, layers.xavier_initializer(), "relu")
        self.fc2 = dense("fc2", channels, layers.xavier_initializer(), "relu")
        self.classes = dense("classes", num_classes + 1, layers.normal_initializer(0.01))
        self.deltas = dense("deltas", 4 * num_classes, layers.normal_initializer(0.001))

    def call(self, rois: tf.Tensor) -> Tuple[tf.Tensor, tf.Tensor]:
        """[B, R, P, P, C] -> class_logits [B, R, K + 1], background last; deltas [B, R, K, 4]."""
        batch, num_rois = tf.shape(rois)[0], tf.shape(rois)[1]
        size = rois.shape[2] * rois.shape[3] * rois.shape[4]
        x = tf.reshape(rois, [batch * num_rois, size])  # [B, R, P, P, C] -> [B * R, P * P * C]
        x = self.fc2(self.fc1(x))
        logits = as_float32_or_more(self.classes(x))
        deltas = as_float32_or_more(self.deltas(x))
        return (
            tf.reshape(logits, [batch, num_rois, self.num_classes + 1]),
            tf.reshape(deltas, [batch, num_rois, self.num_classes, 4]),
        )


def deltas_of_class(deltas: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
    """The deltas of one class for each RoI; zeros where it is not a thing class.

    Args:
      deltas: [B, R, K, 4].
      class_ids: [B, R] int32.

    Returns:
      [B, R, 4].
    """
    num_classes = deltas.shape[2]
    is_thing = (class_ids >= 0) & (class_ids < num_classes)
    chosen = tf.gather(deltas, tf.where(is_thing, class_ids, 0), batch_dims=2)
    return tf.where(is_thing[..., None], chosen, tf.zeros_like(chosen))
