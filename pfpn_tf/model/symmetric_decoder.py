"""The symmetric decoder that the paper compares FPN with (Figure 5c).

Shapes: B images · Hl, Wl size of level l, stride 2**l · Cl channels of backbone level l.
"""

from typing import Dict

import tensorflow as tf

from pfpn_tf.model import resnet
from pfpn_tf.ops.resize import resize_bilinear
from pfpn_tf.structures import Pyramid


class SymmetricDecoder(tf.keras.layers.Layer):
    """Repeats the backbone from c5 up to c2: as many blocks of the same sizes.

    As in U-Net, a stage takes the backbone's features and the doubled output of the stage below,
    side by side. The paper shows only a picture. The blocks are the backbone's, with group norm,
    because no checkpoint has batch statistics for them.

    Args:
      backbone: a key of `resnet.ARCHITECTURES`.
    """

    def __init__(self, backbone: str, **kwargs):
        super().__init__(**kwargs)
        arch = resnet.ARCHITECTURES[backbone]
        self.stages = {
            level: [
                resnet.Bottleneck(arch, s, project=b == 0, norm="group_norm", name=f"{level}_{b}")
                for b in range(arch.blocks[s])
            ]
            for s, level in enumerate(("p2", "p3", "p4", "p5"))
        }

    def call(self, features: Dict[str, tf.Tensor], training: bool = False) -> Pyramid:
        """{"c2": [B, H2, W2, C2], ...} -> {"p2": [B, H2, W2, C2], ..., "p5": [B, H5, W5, C5]}."""
        pyramid, below = {}, None
        for level in ("p5", "p4", "p3", "p2"):
            x = features[f"c{level[1:]}"]
            if below is not None:
                x = tf.concat([x, resize_bilinear(below, tf.shape(x)[1:3])], axis=-1)
            for block in self.stages[level]:
                x = block(x, training=training)
            pyramid[level] = below = x
        return {level: pyramid[level] for level in sorted(pyramid)}
