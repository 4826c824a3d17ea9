"""Convolution with its norm and activation, the norms, resizing, initialisers.

Shapes: B images · H, W size of the feature map · C channels · G groups.

All layers are NHWC and follow the Keras dtype policy; float64 works throughout.
"""

from typing import Callable, Optional

import tensorflow as tf

NORM_EPSILON = 1e-5


def as_float32_or_more(x: tf.Tensor) -> tf.Tensor:
    """Casts half precision up to float32 and leaves float32 and float64 alone."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


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
    """Group normalisation (Wu and He) over (H, W, C / G), biased variance.

    Statistics come from centred values, so that a mean far larger than the deviation costs no
    accuracy, and are taken in float32 or more.

    Args:
      groups: number of groups; the largest divisor of C up to it is used.
      relu: apply ReLU to the result; its gradient is then part of this layer's.

    Attributes:
      training_method: in training, "kernel": the fastest on the device; "arithmetic": by the
        definition, which XLA compiles well. Inference takes the former.
    """

    def __init__(self, groups: int = 32, relu: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.relu = relu
        self.training_method = "kernel"

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
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        arguments = (x, gamma, beta, self.groups, self.relu)
        if training and self.training_method == "arithmetic":
            return _group_norm(*arguments)
        return group_norm(*arguments)


def group_norm(x, gamma, beta, groups: int, relu: bool) -> tf.Tensor:
    """Group norm with a hand-written gradient: few passes over x in either direction.

    Args:
      x: [B, H, W, C].
      gamma, beta: [C].
      groups: G, a divisor of C.
      relu: whether to clamp the result at 0.

    Returns:
      [B, H, W, C].
    """

    gamma, beta = tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)
    if x.dtype == tf.float64 or tf.config.list_logical_devices("GPU"):
        return _group_norm(x, gamma, beta, groups, relu)

    # One image after the other, so that no answer depends on how many are asked for.
    arguments = (gamma, beta, groups, relu)
    if x.shape[0] is None:
        return tf.cond(
            tf.equal(tf.shape(x)[0], 1),
            lambda: _group_norm_of_one_image(x, *arguments),
            lambda: _group_norm_of_each_image(x, *arguments),
        )
    images = [_group_norm_of_one_image(image, *arguments) for image in tf.split(x, x.shape[0])]
    return tf.concat(images, 0) if len(images) > 1 else images[0]


# So that a graph holds it once for all layers, and only takes it up when there are several images.
@tf.function(autograph=False, experimental_attributes={"_noinline": True})
def _group_norm_of_each_image(x, gamma, beta, groups, relu):
    """`group_norm` of any number of images."""
    return tf.map_fn(
        lambda image: _group_norm_of_one_image(image[None], gamma, beta, groups, relu)[0],
        x,
        fn_output_signature=tf.TensorSpec(x.shape[1:], x.dtype),
    )


def _group_norm(x, gamma, beta, groups, relu):
    """`group_norm` by its definition."""

    @tf.custom_gradient
    def forward(x, gamma, beta):
        dtype, weight_dtype = x.dtype, gamma.dtype
        gamma, beta = as_float32_or_more(gamma), as_float32_or_more(beta)
        mean = _group_mean(_pixel_mean(x), groups)
        centred = x - tf.cast(mean, dtype)
        rstd = tf.math.rsqrt(_group_mean(_pixel_mean(tf.square(centred)), groups) + NORM_EPSILON)
        y = centred * tf.cast(rstd * gamma, dtype) + tf.cast(beta, dtype)
        y = tf.nn.relu(y) if relu else y

        def gradient(dy):
            if relu:
                dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
            # With n = centred * rstd: dx = rstd * (g - mean(g) - n * mean(g * n)), g = dy * gamma,
            # means over the group.
            pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], gamma.dtype)
            mean_dy = _pixel_mean(dy)  # [B, 1, 1, C]
            mean_dy_n = _pixel_mean(dy * centred) * rstd
            slope = rstd * rstd * _group_mean(gamma * mean_dy_n, groups)
            offset = rstd * _group_mean(gamma * mean_dy, groups)
            dx = (
                dy * tf.cast(rstd * gamma, dtype)
                - centred * tf.cast(slope, dtype)
                - tf.cast(offset, dtype)
            )
            dgamma = tf.reduce_sum(mean_dy_n, axis=(0, 1, 2)) * pixels
            dbeta = tf.reduce_sum(mean_dy, axis=(0, 1, 2)) * pixels
            return dx, tf.cast(dgamma, weight_dtype), tf.cast(dbeta, weight_dtype)

        return y, gradient

    return forward(x, gamma, beta)


def _group_norm_of_one_image(x, gamma, beta, groups, relu):
    """`group_norm` of [1, H, W, C] in less time on a CPU: batch norm's kernels do the passes.

    Batch norm of one image gives the statistics of each channel, and those of a group follow; a
    product and a sum for each channel turn its result into group norm's.

    Never with `is_training=False`, which would take the group's statistics: on CPUs that kernel
    leaves pointers to them in itself, and the same node at work for another image or request
    normalises with what they point to by then.
    """

    def channel_norm(x, scale, offset):
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=tf.zeros([0]), variance=tf.zeros([0]),
            epsilon=NORM_EPSILON, is_training=True,
        )  # fmt: skip

    def group_mean(x):
        return tf.reshape(_group_mean(x, groups), [-1])

    @tf.custom_gradient
    def forward(x, gamma, beta):
        weight_dtype = gamma.dtype
        gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
        one, zero = tf.ones_like(gamma), tf.zeros_like(gamma)
        pixels = tf.cast(tf.shape(x)[1] * tf.shape(x)[2], tf.float32)
        n, channel_mean, variance, *_ = channel_norm(x, one, zero)
        variance *= 1.0 - 1.0 / pixels  # the kernel divides by one pixel less
        deviation = tf.sqrt(variance + NORM_EPSILON)
        # The kernel adds up one pixel after the other, which a large mean does not bear: what it
        # misses is the mean of n. Means count from about that of the group, to lose no digits.
        channel_mean -= group_mean(channel_mean)
        missed = tf.math.multiply_no_nan(deviation, _pixel_sum(n)) / pixels
        true_mean = channel_mean + missed
        mean = group_mean(true_mean)
        rstd = tf.math.rsqrt(group_mean(variance + tf.square(true_mean - mean)) + NORM_EPSILON)
        # Group norm without gamma and beta is n * slope + shift.
        slope = tf.math.multiply_no_nan(deviation, rstd)  # [C]
        shift = (channel_mean - mean) * rstd
        if x.dtype == tf.float32:
            y = _multiply_add(n, slope * gamma, shift * gamma + beta)
        else:  # the kernel rounds once, and scales by float32
            y = channel_norm(x, slope * gamma, shift * gamma + beta).y
        y = tf.nn.relu(y) if relu else y

        def gradient(dy):
            if relu:
                dy = tf.raw_ops.ReluGrad(gradients=dy, features=y)
            direct, dy_n, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=dy, x=n, scale=rstd * gamma, reserve_space_1=zero, reserve_space_2=one,
                reserve_space_3=tf.zeros([0]), epsilon=0.0, is_training=False,
            )  # fmt: skip
            dgamma = slope * dy_n + shift * dbeta
            # What is missing for statistics that depend on x: as in `_group_norm`.
            a = -rstd * group_mean(gamma * dgamma) / pixels
            b = -rstd * group_mean(gamma * dbeta) / pixels
            dx = direct + _multiply_add(n, slope * a, shift * a + b)
            return dx, tf.cast(dgamma, weight_dtype), tf.cast(dbeta, weight_dtype)

        return y, gradient

    return forward(x, gamma, beta)


def _multiply_add(x, scale, offset):
    """x * scale + offset in one pass on a CPU. [B, H, W, C], [C], [C] -> [B, H, W, C]"""
    scale, offset = tf.cast(scale, x.dtype), tf.cast(offset, x.dtype)
    if x.dtype != tf.float32:
        return x * scale + offset
    # TensorFlow's graph optimiser makes one kernel of these two, and of a ReLU or a sum after them.
    x = tf.nn.conv2d(x, scale[None, None, None], 1, "VALID")  # one group for each channel
    return tf.nn.bias_add(x, offset)


def _pixel_sum(x):
    """[1, H, W, C] -> [C] in float32."""
    # Products with ones take half the time of sums; those of a row at a time add up as exactly.
    ones = tf.ones([tf.shape(x)[1], 1, tf.shape(x)[2]])
    return tf.reduce_sum(tf.matmul(ones, tf.cast(x[0], tf.float32)), axis=(0, 1))


def _pixel_mean(x):
    """[B, H, W, C] -> [B, 1, 1, C] in float32 or more."""
    # One axis after the other takes a CPU half the time of both at once, and adds up as exactly.
    x = tf.reduce_mean(as_float32_or_more(x), axis=1, keepdims=True)
    return tf.reduce_mean(x, axis=2, keepdims=True)


def _group_mean(x, groups):
    """Means over the channels of each group, repeated for them. [B, 1, 1, C] -> [B, 1, 1, C]"""
    channels = x.shape[-1]
    x = tf.reshape(x, [-1, groups, channels // groups])
    x = tf.tile(
        tf.reduce_mean(x, axis=-1, keepdims=True), [1, 1, channels // groups]
    )  # not tf.repeat: 33 nodes
    return tf.reshape(x, [-1, 1, 1, channels])


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
            x = tf.nn.bias_add(self._convolve(x, kernel, training), tf.cast(shift, x.dtype))
        else:
            x = self._convolve(x, self.kernel, training)
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

    def _convolve(self, x, kernel, training):
        kernel = tf.cast(kernel, x.dtype)
        # At stride 1 SAME is this very padding. Explicit padding as an argument of conv2d would
        # keep oneDNN out of the gradient, which then takes ten times as long on a CPU.
        pad = self.kernel_size // 2
        if pad and self.strides > 1:
            x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        padding = "SAME" if self.strides == 1 else "VALID"
        if training and self.groups > 1 and not tf.config.list_logical_devices("GPU"):
            return _grouped_conv2d_on_cpu(
                x, kernel, self.strides, padding, self.groups, self.dilation
            )
        return tf.nn.conv2d(x, kernel, self.strides, padding, dilations=self.dilation)


def _grouped_conv2d_on_cpu(x, kernel, strides, padding, groups, dilation):
    """A grouped convolution whose gradient is fast on CPUs, where the kernel's own takes seconds.

    Some groups at a time, as many as fill 64 channels, form one dense convolution whose kernel is
    zero between the groups.
    """
    size, _, group_in, filters = kernel.shape
    group_out = filters // groups
    per_part = max(1, min(groups, 64 // group_in))
    while groups % per_part:
        per_part -= 1
    parts = groups // per_part
    # [k, k, in, G * out] -> [parts, k, k, g, in, g, out], zero where the two g differ
    kernel = tf.reshape(kernel, [size, size, 1, group_in, parts, per_part, group_out])
    kernel = tf.transpose(kernel, [4, 0, 1, 2, 3, 5, 6])
    kernel *= tf.eye(per_part, dtype=kernel.dtype)[:, None, :, None]
    shape = [parts, size, size, per_part * group_in, per_part * group_out]
    kernels = tf.unstack(tf.reshape(kernel, shape))
    inputs = tf.split(x, parts, axis=-1)
    outputs = [
        tf.nn.conv2d(i, k, strides, padding, dilations=dilation) for i, k in zip(inputs, kernels)
    ]
    return tf.concat(outputs, axis=-1)


def fold_frozen_norms(model: tf.keras.Model) -> None:
    """`Conv.fold_norm` on every convolution of a built model with a frozen batch norm."""
    for module in model.submodules:
        if isinstance(module, Conv) and isinstance(module.norm, FrozenBatchNorm):
            module.fold_norm()
