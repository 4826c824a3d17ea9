"""Convolutions with channel groups and dilation, made of operations that every device has.

On CPUs without oneDNN, TensorFlow has no gradient of either, and it cannot run a convolution with
groups that the graph optimiser has merged with a bias.

The result of an empty batch is undefined: oneDNN gives it the shape of the input.

Shapes: B images · H, W size of the feature map · I input channels · O output channels · k side of
the kernel.
"""

import tensorflow as tf

from pfpn_tf.utils.scopes import custom_gradient

DENSE_CHANNELS = 64
_GROUPS_SCOPE = "channel_groups_"


def conv2d(
    x: tf.Tensor,
    kernel: tf.Tensor,
    strides: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> tf.Tensor:
    """Convolution of NHWC, padded with dilation * (k // 2) zeros on all four sides.

    One dense convolution, whose kernel is zero between the groups, computes as many groups as fill
    64 input channels. On a CPU with oneDNN it takes about as long as TensorFlow's convolution with
    groups, and its gradient a tenth of the time.

    Args:
      x: [B, H, W, I].
      kernel: [k, k, I / groups, O].
      strides: step in both directions.
      groups: each takes its share of the input channels and gives its share of the output's.
      dilation: step between the kernel's taps; more than 1 needs strides of 1.

    Returns:
      [B, H', W', O].
    """
    size, _, group_in, filters = kernel.shape
    padding = "SAME"
    # At stride 1 SAME pads the same. The explicit padding of tf.nn.conv2d would keep oneDNN out of
    # the gradient, which takes ten times as long on a CPU without it.
    if size > 1 and strides > 1:
        pad = [size // 2] * 2
        x, padding = tf.pad(x, [[0, 0], pad, pad, [0, 0]]), "VALID"
    if groups == 1:
        return _dense(x, kernel, strides, padding, dilation)
    together = max(1, min(groups, DENSE_CHANNELS // group_in))
    while groups % together:
        together -= 1
    parts = groups // together
    # [k, k, I / G, O] -> [parts, k, k, g, I / G, g, O / G], zero where the two g differ
    kernel = tf.reshape(kernel, [size, size, 1, group_in, parts, together, filters // groups])
    kernel = tf.transpose(kernel, [4, 0, 1, 2, 3, 5, 6])
    kernel *= tf.eye(together, dtype=kernel.dtype)[:, None, :, None]
    shape = [parts, size, size, together * group_in, together * filters // groups]
    kernels = tf.unstack(tf.reshape(kernel, shape))
    with tf.name_scope(f"{_GROUPS_SCOPE}{together}"):
        outputs = [
            _dense(part, part_kernel, strides, padding, dilation)
            for part, part_kernel in zip(tf.split(x, parts, axis=-1), kernels)
        ]
    return tf.concat(outputs, axis=-1)


def groups_in_one_kernel(name: str) -> int:
    """How many channel groups `conv2d` has put into the kernel of the operation of this name, with
    zeros between them that the definition does not multiply.
    """
    _, found, rest = name.rpartition(_GROUPS_SCOPE)
    return int(rest.split("/")[0].split("_")[0]) if found else 1


def _dense(x, kernel, strides, padding, dilation):
    """`conv2d` of one group."""
    if dilation == 1:
        return tf.nn.conv2d(x, kernel, strides, padding)
    assert strides == 1
    return _dilated(x, kernel, dilation)


def _dilated(x, kernel, dilation):
    """A dilated convolution with a gradient made of operations that every device has."""

    @custom_gradient
    def forward(x, kernel):
        def gradient(dy):
            # The input's gradient is a convolution of dy with the mirrored kernel.
            mirrored = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])  # [k, k, O, I]
            dx = tf.nn.conv2d(dy, mirrored, 1, "SAME", dilations=dilation)
            # A tap's gradient is the product of dy and the map, shifted by the tap's place.
            size = kernel.shape[0]
            pad = dilation * (size // 2)
            padded = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
            height, width = tf.shape(x)[1], tf.shape(x)[2]
            pixels_dy = tf.reshape(dy, [-1, dy.shape[-1]])  # [B * H * W, O]
            taps = []
            for i in range(size):
                for j in range(size):
                    top, left = i * dilation, j * dilation
                    seen = padded[:, top : top + height, left : left + width]
                    seen = tf.reshape(seen, [-1, x.shape[-1]])  # [B * H * W, I]
                    taps.append(tf.matmul(seen, pixels_dy, transpose_a=True))
            return dx, tf.reshape(tf.stack(taps), kernel.shape)

        return tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilation), gradient

    return forward(x, kernel)
