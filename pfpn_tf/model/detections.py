"""From box-head outputs to detections.

Shapes: B images · R RoIs (proposals) · K thing classes · D detections.
"""

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import box_head
from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.ops import nms
from pfpn_tf.structures import Detections, Proposals
from pfpn_tf.utils.scopes import in_scope


@in_scope("detections")
def detect(
    proposals: Proposals,
    class_logits: tf.Tensor,
    box_deltas: tf.Tensor,
    image_hw: tf.Tensor,
    config: config_lib.Model,
) -> Detections:
    """Scores and refines every proposal for every class, then keeps the best after NMS.

    Args:
      proposals: `Proposals` [B, R, ...].
      class_logits: [B, R, K + 1], background last.
      box_deltas: [B, R, K, 4].
      image_hw: [B, 2] int32 content size.
      config: settings of the model.

    Returns:
      `Detections` without masks, D = config.max_detections.
    """
    scores = tf.nn.softmax(class_logits)[..., :-1]  # [B, R, K]
    boxes = box_ops.decode(
        box_deltas,
        proposals.boxes[:, :, None, :],
        box_head.DELTA_WEIGHTS,
        config.clamp_small_deltas,
    )
    boxes = box_ops.clip(boxes, image_hw[:, None, :])
    scores = tf.where(proposals.valid[:, :, None], scores, tf.zeros_like(scores))
    return Detections(
        *nms.class_nms(
            boxes,
            scores,
            config.score_threshold,
            config.nms_threshold,
            config.max_detections,
            config.class_agnostic_nms,
            config.nms_by_offset,
        )
    )
