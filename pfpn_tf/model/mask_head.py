"""The mask head: a 28x28 mask of one class for each RoI.

Shapes: B images · F RoIs · P pooled size (14) · C channels · K thing classes.
"""

import tensorflow as tf

from pfpn_tf.model import layers
from pfpn_tf.ops.precision import as_float32_or_more

POOLED_SIZE = 14
NUM_CONVS = 4


class MaskHead(tf.keras.layers.Layer):
    """Four 3x3 convolutions, a 2x2 deconvolution of stride 2, a 1x1 convolution to K masks.

    The head computes only the mask of the wanted class. The deconvolution does not overlap, so it
    is a matrix product that makes four pixels of each. The head puts these in place at the end,
    when each has one channel instead of C.

    Args:
      channels: width of the convolutions.
      num_classes: K.
      norm: "none" or "group_norm", for the 3x3 convolutions.
    """

    def __init__(self, channels: int, num_classes: int, norm: str = "none", **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.num_classes = num_classes
        self.convs = [
            layers.Conv(channels, 3, norm=norm, relu=True, name=f"conv{i + 1}")
            for i in range(NUM_CONVS)
        ]

    def build(self, input_shape):
        channels = self.channels
        self.deconv_kernel = self.add_weight(  # [in, 2, 2, out]
            "deconv_kernel",
            (channels, 2, 2, channels),
            # MSRA for a transposed convolution counts input channels times taps.
            initializer=layers.normal_initializer((2.0 / (4 * channels)) ** 0.5),
        )
        self.deconv_bias = self.add_weight("deconv_bias", (channels,), initializer="zeros")
        self.predictor_kernel = self.add_weight(
            "predictor_kernel",
            (self.num_classes, channels),
            initializer=layers.normal_initializer(0.001),
        )
        self.predictor_bias = self.add_weight(
            "predictor_bias", (self.num_classes,), initializer="zeros"
        )
        super().build(input_shape)

    def call(self, rois: tf.Tensor, class_ids: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Mask logits of one class for each RoI.

        Args:
          rois: [B, F, P, P, C] pooled features.
          class_ids: [B, F] int32; ids outside 0..K-1 (padding) give values without meaning.
          training: whether norms gather statistics.

        Returns:
          [B, F, 2 P, 2 P].
        """
        batch, num_rois = tf.shape(rois)[0], tf.shape(rois)[1]
        size, channels = rois.shape[2], self.channels
        x = tf.reshape(rois, [-1, size, size, rois.shape[4]])  # [B, F, P, P, C] -> [B*F, P, P, C]
        for conv in self.convs:
            x = conv(x, training=training)
        x = tf.reshape(x, [-1, channels])  # [B*F * P * P, C]
        x = tf.matmul(x, tf.reshape(self.deconv_kernel, [channels, 4 * channels]))
        x = tf.nn.relu(tf.nn.bias_add(x, tf.tile(self.deconv_bias, [4])))
        x = tf.reshape(x, [-1, size * size * 4, channels])  # [B*F, P * P * 4, C]

        ids = tf.clip_by_value(tf.reshape(class_ids, [-1]), 0, self.num_classes - 1)  # [B*F]
        kernel = tf.gather(self.predictor_kernel, ids)  # [B*F, C]
        bias = tf.gather(self.predictor_bias, ids)  # [B*F]
        logits = tf.matmul(x, kernel[:, :, None])[..., 0] + bias[:, None]  # [B*F, P * P * 4]
        logits = tf.reshape(logits, [-1, size, size, 2, 2])  # row, column, row and column in 2x2
        logits = tf.transpose(logits, [0, 1, 3, 2, 4])
        logits = tf.reshape(logits, [batch, num_rois, 2 * size, 2 * size])
        return as_float32_or_more(logits)
