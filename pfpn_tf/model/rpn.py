"""Region proposal network: head, anchors, proposals.

Shapes: B images · Hl, Wl size of level l · a anchors per cell (aspect ratios) · Al = Hl * Wl * a
anchors of level l, by row, column, ratio · L levels · k candidates of a level · N proposals.
"""

from typing import Dict, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import layers
from pfpn_tf.ops import anchors as anchor_ops
from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.ops import nms
from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.structures import Proposals, Pyramid
from pfpn_tf.utils.scopes import in_scope

PerLevel = Dict[str, tf.Tensor]


class RPNHead(tf.keras.layers.Layer):
    """A 3x3 convolution, then objectness and deltas by 1x1, shared by all levels.

    Args:
      channels: channels of the pyramid and of the 3x3 convolution.
      num_anchors: anchors per cell.
    """

    def __init__(self, channels: int, num_anchors: int, **kwargs):
        super().__init__(**kwargs)

        def conv(name, filters, kernel_size, relu=False):
            initializer = layers.normal_initializer(0.01)
            return layers.Conv(
                filters, kernel_size, relu=relu, kernel_initializer=initializer, name=name
            )

        self.conv = conv("conv", channels, 3, relu=True)
        self.objectness = conv("objectness", num_anchors, 1)
        self.deltas = conv("deltas", 4 * num_anchors, 1)

    def call(self, pyramid: Pyramid) -> Tuple[PerLevel, PerLevel]:
        """Returns objectness_logits {level: [B, Al]} and anchor_deltas {level: [B, Al, 4]}."""
        objectness_logits, anchor_deltas = {}, {}
        for level, features in pyramid.items():
            hidden = self.conv(features)
            batch = tf.shape(features)[0]
            logits = as_float32_or_more(self.objectness(hidden))
            deltas = as_float32_or_more(self.deltas(hidden))
            objectness_logits[level] = tf.reshape(logits, [batch, -1])  # [B, Hl, Wl, a] -> [B, Al]
            # [B, Hl, Wl, 4 a] -> [B, Al, 4]
            anchor_deltas[level] = tf.reshape(deltas, [batch, -1, 4])
        return objectness_logits, anchor_deltas


@in_scope("rpn")
def pyramid_anchors(pyramid: Pyramid, config: config_lib.Model, dtype: tf.DType) -> PerLevel:
    """{level: [Al, 4]} anchors of every cell of the padded feature maps."""
    return {
        level: anchor_ops.level_anchors(
            tf.shape(pyramid[level])[1:3],
            2 ** int(level[1:]),
            size,
            config.anchor_aspect_ratios,
            dtype,
        )
        for level, size in zip(config_lib.LEVELS, config.anchor_sizes)
    }


def all_levels(per_level: PerLevel, axis: int) -> tf.Tensor:
    """Joins what the levels have for their anchors, p2 first, along an axis."""
    return tf.concat([per_level[level] for level in config_lib.LEVELS], axis)


@in_scope("rpn")
def propose(
    objectness_logits: PerLevel,
    anchor_deltas: PerLevel,
    anchors: PerLevel,
    image_hw: tf.Tensor,
    config: config_lib.Model,
    training: bool,
    for_xla: bool = False,
) -> Proposals:
    """The best boxes of the RPN, without gradient.

    The best candidates of each level by logit are decoded, clipped to their image and filtered by
    NMS within the level; the best of all levels remain.

    Args:
      objectness_logits: {level: [B, Al]}.
      anchor_deltas: {level: [B, Al, 4]}.
      anchors: {level: [Al, 4]}.
      image_hw: [B, 2] int32 content size, without the padding.
      config: settings of the model.
      training: which of the two numbers of candidates to take.
      for_xla: as `nms.rpn_nms`.

    Returns:
      `Proposals` with N = config.rpn_post_nms_top_k rows.
    """
    top_k = config.rpn_pre_nms_top_k_train if training else config.rpn_pre_nms_top_k_eval
    candidates = [
        _candidates(
            tf.stop_gradient(objectness_logits[level]),
            tf.stop_gradient(anchor_deltas[level]),
            anchors[level],
            top_k,
        )
        for level in config_lib.LEVELS
    ]
    # [B, L, k], [B, L, k, 4], [B, L, k, 4]
    logits, deltas, boxes = (tf.stack(parts, axis=1) for parts in zip(*candidates))
    boxes = box_ops.decode(deltas, boxes, clamp_small=config.clamp_small_deltas)
    boxes = box_ops.clip(boxes, image_hw[:, None])
    return Proposals(
        *nms.rpn_nms(
            boxes,
            logits,
            config.rpn_nms_threshold,
            config.rpn_post_nms_top_k,
            for_xla,
            config.nms_by_offset and not training,
        )
    )


def _candidates(logits, deltas, anchors, top_k):
    """The `top_k` best anchors of one level: logits [B, k], deltas and anchors [B, k, 4].

    Rows beyond the anchors of the level have a logit of -inf, and zeros.
    """
    count = tf.minimum(top_k, tf.shape(logits)[1])
    logits, index = tf.math.top_k(logits, count)  # [B, k]
    missing = top_k - count
    logits = tf.pad(logits, [[0, 0], [0, missing]], constant_values=-float("inf"))
    boxes = [tf.gather(deltas, index, batch_dims=1), tf.gather(anchors, index)]
    boxes = [tf.pad(x, [[0, 0], [0, missing], [0, 0]]) for x in boxes]
    boxes = [tf.ensure_shape(x, [None, top_k, 4]) for x in boxes]
    return tf.ensure_shape(logits, [None, top_k]), *boxes
