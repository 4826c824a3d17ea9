"""The semantic segmentation branch (paper section 3.1, figure 3).

Shapes: B images · H, W padded size · C channels of the branch · S semantic classes.
"""

import tensorflow as tf

from pfpn_tf.model import layers
from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.ops.resize import resize_bilinear
from pfpn_tf.structures import Pyramid


class SemanticHead(tf.keras.layers.Layer):
    """Brings p2..p5 to stride 4 and one width, merges them, predicts a class per pixel.

    A stage is a 3x3 convolution, group norm, ReLU and, except on p2, 2x bilinear upsampling: three
    stages for p5, two for p4, one for p3. The final 4x upsampling is left to loss and fusion.

    The COCO-Stuff 2017 entry (section 4.2) had two convolutions a stage and "concat".

    Args:
      channels: width of the branch.
      num_classes: S.
      aggregation: "sum" or "concat".
      convs_per_stage: 3x3 convolutions, each with group norm and ReLU, before an upsampling.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        aggregation: str = "sum",
        convs_per_stage: int = 1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.aggregation = aggregation
        self.convs_per_stage = convs_per_stage
        self.stages = {
            f"p{level}": [
                layers.Conv(channels, 3, norm="group_norm", relu=True, name=f"p{level}_{i}")
                for i in range(max(1, level - 2) * convs_per_stage)
            ]
            for level in range(2, 6)
        }
        self.predictor = layers.Conv(num_classes, 1, name="predictor")

    def call(self, pyramid: Pyramid, training: bool = False) -> tf.Tensor:
        """{"p2": [B, H / 4, W / 4, _], ...} -> logits [B, H / 4, W / 4, S]."""
        if self.aggregation == "sum" and not training:
            x = self._sum_one_by_one(pyramid)
        else:
            merged = [self._to_stride_4(level, pyramid[level]) for level in self.stages]
            x = tf.add_n(merged) if self.aggregation == "sum" else tf.concat(merged, axis=-1)
        return as_float32_or_more(self.predictor(x))

    def _sum_one_by_one(self, pyramid):
        """Adds the levels one after the other, which takes less memory than all at once."""
        x = self._to_stride_4("p2", pyramid["p2"])
        for level in ("p3", "p4", "p5"):
            with tf.control_dependencies([x]):
                features = tf.identity(pyramid[level])
            x += self._to_stride_4(level, features)
        return x

    def _to_stride_4(self, level, x):
        for i, conv in enumerate(self.stages[level], 1):
            x = conv(x)
            if level != "p2" and i % self.convs_per_stage == 0:
                x = resize_bilinear(x, 2 * tf.shape(x)[1:3])
        return x
