"""The feature pyramid.

Shapes: B images · Hl, Wl size of level l, stride 2**l · C pyramid channels.
"""

from typing import Dict, Tuple

import tensorflow as tf

from pfpn_tf.model import layers, resnet
from pfpn_tf.structures import Pyramid
from pfpn_tf.utils.scopes import custom_gradient


class FPN(tf.keras.layers.Layer):
    """Lateral 1x1 convolutions, top-down sums, 3x3 output convolutions; p6 for the RPN.

    Args:
      channels: channels of every level.
      norm: "none" or "group_norm".
    """

    def __init__(self, channels: int = 256, norm: str = "none", **kwargs):
        super().__init__(**kwargs)

        def conv(name, kernel_size):
            return layers.Conv(
                channels,
                kernel_size,
                norm=norm,
                kernel_initializer=layers.xavier_initializer(),
                name=name,
            )

        self.lateral = {level: conv(f"lateral_{level}", 1) for level in resnet.STAGES}
        self.output_convs = {f"p{level}": conv(f"output_p{level}", 3) for level in range(2, 6)}

    def call(self, features: Dict[str, tf.Tensor], training: bool = False) -> Pyramid:
        """{"c2": [B, H2, W2, _], ...} -> {"p2": [B, H2, W2, C], ..., "p6"}."""
        merged = self.lateral["c5"](features["c5"], training=training)
        pyramid = {"p5": self.output_convs["p5"](merged, training=training)}
        for level in (4, 3, 2):
            lateral = self.lateral[f"c{level}"](features[f"c{level}"], training=training)
            merged = lateral + _double(merged)
            pyramid[f"p{level}"] = self.output_convs[f"p{level}"](merged, training=training)
        pyramid["p6"] = pyramid["p5"][:, ::2, ::2]
        return {level: pyramid[level] for level in sorted(pyramid)}


@custom_gradient
def _double(x):
    """Nearest-neighbour upsampling by 2. [B, H, W, C] -> [B, 2 H, 2 W, C]"""

    def gradient(dy):
        # TensorFlow's own gradient takes twice as long on a CPU, and XLA lacks it.
        return 4.0 * tf.nn.avg_pool2d(dy, 2, 2, "VALID")

    return tf.image.resize(x, 2 * tf.shape(x)[1:3], "nearest"), gradient


def branch_pyramids(pyramid: Pyramid, groups: int) -> Tuple[Pyramid, Pyramid]:
    """Shares the channels of the pyramid between the two branches (Table 3d).

    Differs from the paper: it does not say whether the convolutions of the FPN are grouped as well;
    here they are not, so only the branches' inputs are apart.

    Args:
      pyramid: C channels at every level.
      groups: 1: both branches see all of it; 2: the first C / 2 channels are for the instance
        branch, the others for the semantic branch.

    Returns:
      The pyramids of the instance branch and of the semantic branch, C / groups channels each.
    """
    if groups == 1:
        return pyramid, pyramid
    halves = {level: tf.split(features, 2, axis=-1) for level, features in pyramid.items()}
    instance, semantic = ({level: half[i] for level, half in halves.items()} for i in (0, 1))
    return instance, semantic
