"""DeepLabV3's head on a dilated backbone, with which Table 1a compares Semantic FPN.

After Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (2017), the
paper's reference [11].

Shapes: B images · H, W padded size · h, w size of c5 · S semantic classes.
"""

import tensorflow as tf

from pfpn_tf.model import layers
from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.ops.resize import resize_bilinear
from pfpn_tf.structures import Pyramid

CHANNELS = 256
RATES_AT_STRIDE_16 = (6, 12, 18)
LOGITS_STRIDE = 4  # what loss and fusion expect


class DeepLabV3Head(tf.keras.layers.Layer):
    """Five parallel views of c5 (ASPP), merged by 1x1 and 3x3 convolutions; a class per pixel.

    The views: a 1x1 convolution, three dilated 3x3 convolutions and the mean of the whole map.

    Differs from DeepLabV3: group norm in place of batch norm, as everywhere in our heads; the
    logits are brought to stride 4 here and the rest of the way by loss and fusion.

    Args:
      num_classes: S.
      output_stride: stride of c5; the rates follow from it (6, 12, 18 at 16; twice that at 8).
    """

    def __init__(self, num_classes: int, output_stride: int, **kwargs):
        super().__init__(**kwargs)
        self.output_stride = output_stride

        def conv(name, kernel_size, dilation=1):
            return layers.Conv(
                CHANNELS, kernel_size, norm="group_norm", relu=True, dilation=dilation, name=name
            )

        self.pointwise = conv("pointwise", 1)
        self.dilated = [
            conv(f"dilated_{i}", 3, max(1, rate * 16 // output_stride))
            for i, rate in enumerate(RATES_AT_STRIDE_16)
        ]
        self.pooled = conv("pooled", 1)
        self.merge = conv("merge", 1)
        self.refine = conv("refine", 3)
        self.predictor = layers.Conv(num_classes, 1, name="predictor")

    def call(self, pyramid: Pyramid, training: bool = False) -> tf.Tensor:
        """{"p5": [B, h, w, _], ...} -> logits [B, H / 4, W / 4, S]."""
        del training  # it makes no difference
        x = pyramid["p5"]
        pooled = self.pooled(tf.reduce_mean(x, axis=(1, 2), keepdims=True))  # [B, 1, 1, 256]
        views = [self.pointwise(x), *(conv(x) for conv in self.dilated)]
        views.append(pooled + tf.zeros_like(views[0]))
        x = self.refine(self.merge(tf.concat(views, axis=-1)))
        logits = self.predictor(x)
        hw = tf.shape(logits)[1:3] * (self.output_stride // LOGITS_STRIDE)
        return as_float32_or_more(resize_bilinear(logits, hw))
