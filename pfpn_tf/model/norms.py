"""The norms that follow a convolution.

Shapes: B images · H, W size of the feature map · C channels.
"""

import tensorflow as tf

from pfpn_tf.ops.group_norm import EPSILON, group_norm
from pfpn_tf.ops.precision import as_float32_or_more


class FrozenBatchNorm(tf.keras.layers.Layer):
    """Batch norm as a fixed affine map: statistics, scale and shift never change."""

    def build(self, input_shape):
        shape, fixed = input_shape[-1:], {"trainable": False, "experimental_autocast": False}
        self.gamma = self.add_weight("gamma", shape, initializer="ones", **fixed)
        self.beta = self.add_weight("beta", shape, initializer="zeros", **fixed)
        self.moving_mean = self.add_weight("moving_mean", shape, initializer="zeros", **fixed)
        self.moving_variance = self.add_weight(
            "moving_variance", shape, initializer="ones", **fixed
        )
        super().build(input_shape)

    def scale_and_shift(self):
        """scale, shift: [C], with norm(x) = x * scale + shift; float32 or more."""
        gamma, beta, mean, variance = (
            as_float32_or_more(v)
            for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        scale = gamma / tf.sqrt(variance + EPSILON)
        return scale, beta - mean * scale

    def call(self, x, training=False):
        del training  # it makes no difference
        scale, shift = self.scale_and_shift()
        return x * tf.cast(scale, x.dtype) + tf.cast(shift, x.dtype)


class GroupNorm(tf.keras.layers.Layer):
    """`ops.group_norm` with its weights gamma and beta.

    Args:
      groups: number of groups; the largest divisor of C up to it is used.
      relu: apply ReLU to the result.
    """

    def __init__(self, groups: int = 32, relu: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.relu = relu

    def build(self, input_shape):
        channels = input_shape[-1]
        while channels % self.groups:
            self.groups -= 1
        for name, initializer in (("gamma", "ones"), ("beta", "zeros")):
            weight = self.add_weight(
                name, (channels,), initializer=initializer, experimental_autocast=False
            )
            setattr(self, name, weight)
        super().build(input_shape)

    def call(self, x, training=False):
        del training  # it makes no difference
        return group_norm(x, self.gamma, self.beta, self.groups, self.relu)


NORMS = (GroupNorm, FrozenBatchNorm, tf.keras.layers.BatchNormalization)
