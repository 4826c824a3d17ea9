"""ResNet and ResNeXt backbones.

Shapes: B images · H, W padded size, multiples of 32. Level l (c2..c5) has stride 2**l.
"""

import functools
from typing import Dict, NamedTuple, Tuple

import tensorflow as tf

from pfpn_tf.model import layers

STAGES = ("c2", "c3", "c4", "c5")


class Architecture(NamedTuple):
    """Sizes of a backbone.

    Attributes:
      blocks: residual blocks of c2..c5.
      groups: groups of the 3x3 convolutions (ResNeXt's cardinality).
      width: channels of the 3x3 convolutions in c2; doubles with each stage.
      stem_channels: channels of the first convolution.
      c2_channels: output channels of c2; doubles with each stage.
    """

    blocks: Tuple[int, int, int, int]
    groups: int = 1
    width: int = 64
    stem_channels: int = 64
    c2_channels: int = 256


ARCHITECTURES = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), groups=32, width=128),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), groups=32, width=256),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), groups=64, width=256),
    "resnext152_32x8d": Architecture((3, 8, 36, 3), groups=32, width=256),
    # For tests and smoke runs: the same code in a hundredth of the time.
    "resnet_tiny": Architecture((1, 1, 1, 1), width=8, stem_channels=16, c2_channels=16),
    "resnext_tiny": Architecture((1, 1, 1, 1), groups=4, width=8, stem_channels=16, c2_channels=16),
}


class Bottleneck(tf.keras.layers.Layer):
    """1x1, 3x3, 1x1 convolutions and the shortcut; ReLU after the sum.

    Args:
      arch: sizes of the backbone.
      s: stage, 0 for c2.
      project: whether the shortcut is a 1x1 convolution (the first block of a stage).
      norm, stride_in_1x1: as in `ResNet`.
      strides: 1 or 2.
      dilation: step between the taps of the 3x3 convolution.
    """

    def __init__(self, arch, s, project, norm, stride_in_1x1=True, strides=1, dilation=1, **kwargs):
        super().__init__(**kwargs)
        width, filters = arch.width * 2**s, arch.c2_channels * 2**s
        stride_1x1, stride_3x3 = (strides, 1) if stride_in_1x1 else (1, strides)
        self.conv1 = layers.Conv(width, 1, stride_1x1, norm=norm, relu=True, name="conv1")
        self.conv2 = layers.Conv(
            width, 3, stride_3x3, arch.groups, norm, relu=True, dilation=dilation, name="conv2"
        )
        self.conv3 = layers.Conv(filters, 1, norm=norm, name="conv3")
        self.shortcut = (
            layers.Conv(filters, 1, strides, norm=norm, name="shortcut") if project else None
        )

    def call(self, x, training=False):
        residual = self.conv1(x, training=training)
        residual = self.conv2(residual, training=training)
        residual = self.conv3(residual, training=training)
        shortcut = self.shortcut(x, training=training) if self.shortcut else x
        return tf.nn.relu(residual + shortcut)


class ResNet(tf.keras.layers.Layer):
    """The backbone.

    Args:
      backbone: a key of `ARCHITECTURES`.
      norm: "frozen_bn", "group_norm" or "sync_bn".
      stride_in_1x1: stride of a stage in the first 1x1 convolution, else in the 3x3.
      freeze_stages: 0 trains all, 1 freezes the stem, 2 the stem and c2, ... No gradient is
        computed for frozen stages.
      output_stride: stride of c5: 32, or 16 or 8 with dilation (Figure 5b). A dilated network
        computes what the plain one does, only at more places: its c5, read at every second (16)
        or fourth (8) place, is the plain one's. The weights are the same.
      recompute: keep no more than the output of each stage for the gradient, and compute the stage
        a second time then.
    """

    def __init__(
        self,
        backbone,
        norm="frozen_bn",
        stride_in_1x1=True,
        freeze_stages=0,
        output_stride=32,
        recompute=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        arch = ARCHITECTURES[backbone]
        self.freeze_stages = freeze_stages
        self.recompute = recompute
        self.stem = layers.Conv(arch.stem_channels, 7, 2, norm=norm, relu=True, name="stem")
        self.stem.trainable = freeze_stages < 1
        self.stages = []
        stride, dilation = 4, 1  # of the stages so far
        for s, num_blocks in enumerate(arch.blocks):
            halves = s > 0 and stride < output_stride
            stride *= 2 if halves else 1
            first_dilation, dilation = dilation, dilation * (2 if s > 0 and not halves else 1)
            if stride_in_1x1:  # the first 3x3 comes after the place of the stride
                first_dilation = dilation
            blocks = [
                Bottleneck(
                    arch,
                    s,
                    project=b == 0,
                    norm=norm,
                    stride_in_1x1=stride_in_1x1,
                    strides=2 if halves and b == 0 else 1,
                    dilation=dilation if b > 0 else first_dilation,
                    name=f"{STAGES[s]}_{b}",
                )
                for b in range(num_blocks)
            ]
            for block in blocks:
                block.trainable = freeze_stages < s + 2
            self.stages.append(blocks)

    def call(self, images: tf.Tensor, training: bool = False) -> Dict[str, tf.Tensor]:
        """[B, H, W, 3] -> {"c2": [B, H / 4, W / 4, C], ..., "c5": [B, H / 32, W / 32, 8 C]}.

        With another `output_stride`, no level has a larger stride than that.
        """
        x = self._until_frozen(self.stem(images, training=training), 1)
        # ReLU returns nothing negative, so padding with zeros equals padding with -inf.
        x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
        features = {}
        for s, name in enumerate(STAGES):
            stage = functools.partial(self._stage, s, training)
            if training and self.recompute and s + 2 > self.freeze_stages:
                stage = tf.recompute_grad(stage)
            x = self._until_frozen(stage(x), s + 2)
            features[name] = x
        return features

    def _stage(self, s, training, x):
        for block in self.stages[s]:
            x = block(x, training=training)
        return x

    def _until_frozen(self, x, stage):
        return tf.stop_gradient(x) if stage <= self.freeze_stages else x
