"""Convolution with its norm and activation, the norms, resizing, initialisers.

Shapes: B images · H, W size of the feature map · C channels · G groups.

All layers are NHWC and follow the Keras dtype policy; float64 works throughout.
"""

from typing import Callable, Optional

import tensorflow as tf

from pfpn_tf.ops import convolution
from pfpn_tf.ops.group_norm import EPSILON as NORM_EPSILON
from pfpn_tf.ops.group_norm import as_float32_or_more, group_norm


def msra_initializer() -> tf.keras.initializers.Initializer:
    """Normal with variance 2 / fan_out (He et al.)."""
    return tf.keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def xavier_initializer() -> tf.keras.initializers.Initializer:
    """Uniform in +-sqrt(3 / fan_in), what Caffe2 calls Xavier."""
    return tf.keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")


def normal_initializer(stddev: float) -> tf.keras.initializers.Initializer:
    return tf.keras.initializers.RandomNormal(stddev=stddev)


def resize_bilinear(x: tf.Tensor, hw) -> tf.Tensor:
    """Bilinear resize with half-pixel centres, in the dtype of `x`.

    Args:
      x: [B, H, W, C] float.
      hw: target (height, width), ints or an int tensor.

    Returns:
      [B, height, width, C] of the dtype of `x`.
    """
    if x.dtype != tf.float64:
        # It computes in float32 anyway. Of half precision XLA gives the gradient another type than
        # TensorFlow says it has, and does not compile what follows.
        return tf.cast(tf.image.resize(tf.cast(x, tf.float32), hw, "bilinear"), x.dtype)
    # tf.image.resize computes in float32, whatever it is given.
    rows = _interpolation_matrix(tf.shape(x)[1], hw[0], x.dtype)
    columns = _interpolation_matrix(tf.shape(x)[2], hw[1], x.dtype)
    x = tf.einsum("oh,bhwc->bowc", rows, x)
    return tf.einsum("ow,bhwc->bhoc", columns, x)


def _interpolation_matrix(size_in, size_out, dtype):
    """[size_out, size_in] weights of a bilinear resize along one axis."""
    size_in, size_out = tf.cast(size_in, dtype), tf.cast(size_out, dtype)
    position = (tf.range(size_out) + 0.5) * (size_in / size_out) - 0.5
    position = tf.clip_by_value(position, 0.0, size_in - 1.0)
    return tf.nn.relu(1.0 - tf.abs(position[:, None] - tf.range(size_in)))


class FrozenBatchNorm(tf.keras.layers.Layer):
    """Batch norm as a fixed affine map: statistics, scale and shift never change."""

    def build(self, input_shape):
        shape = (input_shape[-1],)

        def add(name, initializer):
            return self.add_weight(
                name,
                shape,
                initializer=initializer,
                trainable=False,
                experimental_autocast=False,
            )

        self.gamma = add("gamma", "ones")
        self.beta = add("beta", "zeros")
        self.moving_mean = add("moving_mean", "zeros")
        self.moving_variance = add("moving_variance", "ones")
        super().build(input_shape)

    def scale_and_shift(self):
        """scale, shift: [C], with norm(x) = x * scale + shift; float32 or more."""
        gamma, beta, mean, variance = (
            as_float32_or_more(v)
            for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        scale = gamma / tf.sqrt(variance + NORM_EPSILON)
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
            "frozen_bn": lambda: FrozenBatchNorm(name="norm"),
            "group_norm": lambda: GroupNorm(relu=relu, name="norm"),
            "sync_bn": lambda: tf.keras.layers.BatchNormalization(
                momentum=0.9, epsilon=NORM_EPSILON, synchronized=True, name="norm"
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
        elif isinstance(self.norm, FrozenBatchNorm):
            with tf.name_scope("norm"):
                self.norm.build((None, None, None, self.filters))
        super().build(input_shape)

    def call(self, x, training=False):
        if isinstance(self.norm, FrozenBatchNorm) and training:
            # One product per kernel value replaces several per pixel, in both directions. Inference
            # does without: rounding the kernel once more would move detections as far as all other
            # rounding together. An exported model may have it; see `fold_norm`.
            kernel, shift = self._folded()
            x = tf.nn.bias_add(self._convolve(x, kernel), tf.cast(shift, x.dtype))
        else:
            x = self._convolve(x, self.kernel)
            if self.norm is None:
                x = tf.nn.bias_add(x, tf.cast(self.bias, x.dtype))
            else:
                x = self.norm(x, training=training)
        return tf.nn.relu(x) if self.relu and not isinstance(self.norm, GroupNorm) else x

    def fold_norm(self):
        """Turns the frozen batch norm into part of the kernel and a bias, for good.

        For export: the layer computes the same, but faster, and its checkpoints fit no longer.
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
        # At stride 1 SAME is this very padding. Explicit padding as an argument of conv2d would
        # keep oneDNN out of the gradient, which then takes ten times as long on a CPU.
        pad = self.kernel_size // 2
        if pad and self.strides > 1:
            x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        padding = "SAME" if self.strides == 1 else "VALID"
        return convolution.conv2d(x, kernel, self.strides, padding, self.groups, self.dilation)


def fold_frozen_norms(model: tf.keras.Model) -> None:
    """`Conv.fold_norm` on every convolution of a built model with a frozen batch norm."""
    for module in model.submodules:
        if isinstance(module, Conv) and isinstance(module.norm, FrozenBatchNorm):
            module.fold_norm()
