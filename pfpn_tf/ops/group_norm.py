"""Group normalisation (Wu and He, "Group Normalization", 2018).

Shapes: B images · H, W size of the feature map · C channels · G groups.

Every device and XLA run the same sums, products and inverse square root. The gradient is written
out, so that each direction reads the map few times.
"""

import tensorflow as tf

from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.utils.scopes import custom_gradient

EPSILON = 1e-5


def group_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, groups: int, relu: bool = False
) -> tf.Tensor:
    """(x - mean) / sqrt(variance + 1e-5) * gamma + beta, then ReLU if asked for.

    Mean and biased variance are those of an image's (H, W, C / G) values in a group. All arithmetic
    is in float32 at least, whatever the type of `x`, because squares of float16 overflow from 256
    on. The code centres values by their rounded mean and then by what the rounding left, so that a
    mean far above the deviation costs no accuracy. It can be differentiated once.

    Args:
      x: [B, H, W, C] float.
      gamma, beta: [C].
      groups: G, a divisor of C.
      relu: whether ReLU follows.

    Returns:
      [B, H, W, C] of the type of `x`.
    """

    @custom_gradient
    def normalize(x, gamma, beta):
        wide_gamma, wide_beta = as_float32_or_more(gamma), as_float32_or_more(beta)
        wide_x = as_float32_or_more(x)
        centred = wide_x - _group_mean(_pixel_mean(wide_x), groups)
        rest = _group_mean(_pixel_mean(centred), groups)  # [B, 1, 1, C], nearly 0
        variance = _group_mean(_pixel_mean(tf.square(centred)), groups) - tf.square(rest)
        rstd = tf.math.rsqrt(tf.nn.relu(variance) + EPSILON)  # [B, 1, 1, C]
        scale = rstd * wide_gamma
        y = tf.cast(centred * scale + (wide_beta - rest * scale), x.dtype)
        y = tf.nn.relu(y) if relu else y

        def gradient(dy):
            if relu:
                dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
            dy = as_float32_or_more(dy)
            # With n = (centred - rest) * rstd and g = dy * gamma,
            # dx = rstd * (g - mean(g) - n * mean(g n)), where the means are over the group.
            mean_dy = _pixel_mean(dy)  # [B, 1, 1, C]
            mean_dy_n = (_pixel_mean(dy * centred) - rest * mean_dy) * rstd
            offset = rstd * _group_mean(wide_gamma * mean_dy, groups)
            slope = rstd * rstd * _group_mean(wide_gamma * mean_dy_n, groups)
            dx = dy * scale - (centred * slope + (offset - rest * slope))
            pixels = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), rstd.dtype)
            dgamma = tf.reduce_sum(mean_dy_n, axis=(0, 1, 2)) * pixels
            dbeta = tf.reduce_sum(mean_dy, axis=(0, 1, 2)) * pixels
            return tf.cast(dx, x.dtype), tf.cast(dgamma, gamma.dtype), tf.cast(dbeta, beta.dtype)

        return y, gradient

    return normalize(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))


def _pixel_mean(x):
    """[B, H, W, C] -> [B, 1, 1, C]"""
    # The mean of each column's mean takes half the time of both axes at once on a CPU, and smaller
    # sums round less.
    return tf.reduce_mean(tf.reduce_mean(x, axis=1, keepdims=True), axis=2, keepdims=True)


def _group_mean(x, groups):
    """Replaces each channel's value by the mean of its group. [B, 1, 1, C] -> [B, 1, 1, C]"""
    channels = x.shape[-1]
    x = tf.reshape(x, [-1, groups, channels // groups])
    x = tf.reduce_mean(x, axis=-1, keepdims=True) + tf.zeros_like(x)
    return tf.reshape(x, [-1, 1, 1, channels])
