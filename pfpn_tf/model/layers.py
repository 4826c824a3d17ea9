"""Convolution with its norm and activation, initialisers.

Shapes: B images · H, W size of the feature map · C channels.

All layers are NHWC and follow the Keras dtype policy; float64 works throughout.
"""

from typing import Callable, Optional

import tensorflow as tf

from pfpn_tf.model import norms
from pfpn_tf.ops import convolution, group_norm
from pfpn_tf.ops.precision import as_float32_or_more


def msra_initializer() -> tf.keras.initializers.Initializer:
    """Normal with variance 2 / fan_out (He et al.)."""
    return tf.keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def xavier_initializer() -> tf.keras.initializers.Initializer:
    """Uniform in +-sqrt(3 / fan_in), what Caffe2 calls Xavier."""
    return tf.keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def normal_initializer(stddev: float) -> tf.keras.initializers.Initializer:
    return tf.keras.initializers.RandomNormal(stddev=stddev)


class Conv(tf.keras.layers.Layer):
    """Convolution, then norm, then ReLU, the last two optional.

    Padding is explicit, kernel // 2 zeros on all sides (times the dilation): SAME would shift by a
    pixel at stride 2. A convolution followed by a norm has no bias.

    Args:
      filters: output channels.
      kernel_size: side of the square kernel, odd.
      strides: step in both directions.
      groups: channel groups (ResNeXt).
      norm: "none", "frozen_bn", "group_norm" or "sync_bn".
      relu: whether ReLU follows.
      kernel_initializer: a new initialiser; default is `msra_initializer()`.
      dilation: step between the kernel's taps; more than 1 needs `strides` of 1.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        groups: int = 1,
        norm: str = "none",
        relu: bool = False,
        kernel_initializer: Optional[Callable] = None,
        dilation: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dilation = dilation
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.relu = relu
        self.kernel_initializer = kernel_initializer or msra_initializer()
        self.norm = {
            "none": lambda: None,
            "frozen_bn": lambda: norms.FrozenBatchNorm(name="norm"),
            "group_norm": lambda: norms.GroupNorm(relu=relu, name="norm"),
            "sync_bn": lambda: tf.keras.layers.BatchNormalization(
                momentum=0.9, epsilon=group_norm.EPSILON, synchronized=True, name="norm"
            ),
        }[norm]()

    def build(self, input_shape):
        size, channels = self.kernel_size, input_shape[-1]
        self.kernel = self.add_weight(
            "kernel",
            (size, size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            experimental_autocast=False,
        )
        if self.norm is None:
            self.bias = self.add_weight("bias", (self.filters,), initializer="zeros")
        elif isinstance(self.norm, norms.FrozenBatchNorm):
            with tf.name_scope("norm"):
                self.norm.build((None, None, None, self.filters))
        super().build(input_shape)

    def call(self, x, training=False):
        if isinstance(self.norm, norms.FrozenBatchNorm) and training:
            # Scaling the kernel replaces products per pixel, in both directions. Inference does
            # not scale it: rounding the kernel once more would move detections as far as all other
            # rounding together. Exports do; see `fold_norm`.
            kernel, shift = self._folded()
            x = tf.nn.bias_add(self._convolve(x, kernel), tf.cast(shift, x.dtype))
        else:
            x = self._convolve(x, self.kernel)
            if self.norm is None:
                x = tf.nn.bias_add(x, tf.cast(self.bias, x.dtype))
            else:
                x = self.norm(x, training=training)
        return tf.nn.relu(x) if self.relu and not isinstance(self.norm, norms.GroupNorm) else x

    def fold_norm(self):
        """Turns the frozen batch norm into part of the kernel and a bias, for good.

        An exported layer computes the same faster. Checkpoints no longer fit the layer.
        """
        kernel, shift = self._folded()
        self.kernel.assign(tf.cast(kernel, self.kernel.dtype))
        self.bias = self.norm.beta
        self.bias.assign(tf.cast(shift, self.bias.dtype))
        self.norm = None

    def _folded(self):
        scale, shift = self.norm.scale_and_shift()
        return as_float32_or_more(self.kernel) * scale, shift

    def _convolve(self, x, kernel):
        kernel = tf.cast(kernel, x.dtype)
        return convolution.conv2d(x, kernel, self.strides, self.groups, self.dilation)


def fold_frozen_norms(model: tf.keras.Model) -> None:
    """`Conv.fold_norm` on every convolution of a built model with a frozen batch norm."""
    for module in model.submodules:
        if isinstance(module, Conv) and isinstance(module.norm, norms.FrozenBatchNorm):
            module.fold_norm()
