"""Training targets of the RPN, the box head and the mask head. They have no gradients.

Shapes: B images · A anchors of all levels · M ground-truth instances · N proposals ·
L = N + M candidate RoIs · R sampled RoIs · F mask slots · K thing classes · H, W padded size.
"""

from typing import Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import box_head, mask_head
from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.ops import masks as mask_ops
from pfpn_tf.ops import matching
from pfpn_tf.structures import GroundTruth, Proposals, RoiTargets, RpnTargets
from pfpn_tf.utils.scopes import in_scope

# The mask head runs on as many slots as the batch has foreground, rounded up to a multiple of this:
# a GPU searches for the fastest convolution once for each shape.
_MASK_SLOT_STEP = 16

# Mixed into the seed, so that RoIs and anchors draw different random numbers.
_ROI_STREAM = (0, 0x5BD1E995)


@in_scope("targets")
def rpn_targets(
    anchors: tf.Tensor, ground_truth: GroundTruth, seed: tf.Tensor, config: config_lib.Model
) -> RpnTargets:
    """Labels anchors and samples those that the RPN's losses count.

    An anchor is positive from `rpn_positive_iou` on, negative below `rpn_negative_iou`; the anchors
    that overlap an instance most are positive whatever the overlap (Faster R-CNN, section 3.1.2).

    Args:
      anchors: [A, 4] yxyx.
      ground_truth: instances of the batch.
      seed: [B, 2] int32 stateless seeds, one an image.
      config: thresholds and sample size.

    Returns:
      `RpnTargets`.
    """
    gt_boxes = tf.cast(ground_truth.boxes, anchors.dtype)  # [B, M, 4]
    labels, gt_index = matching.match_anchors(
        gt_boxes,
        ground_truth.class_ids >= 0,
        anchors,
        config.rpn_positive_iou,
        config.rpn_negative_iou,
        allow_low_quality=True,
    )  # [B, A]
    labels = matching.sample(
        labels, config.rpn_samples_per_image, config.rpn_positive_fraction, seed
    )
    matched = _gather_gt(gt_boxes, gt_index)  # [B, A, 4]
    # Every other anchor gets itself as target, which gives zero deltas.
    matched = tf.where((labels == 1)[..., tf.newaxis], matched, anchors)
    return RpnTargets(labels, box_ops.encode(matched, anchors), gt_index)


@in_scope("targets")
def roi_targets(
    proposals: Proposals,
    ground_truth: GroundTruth,
    num_classes: int,
    seed: tf.Tensor,
    config: config_lib.Model,
    for_xla: bool = False,
) -> RoiTargets:
    """Samples RoIs from proposals and ground-truth boxes, and labels them.

    RoIs are in the order: foreground, background, padding; within each, proposals by falling
    objectness, then ground truth. Ground truth is among the candidates so that the heads meet
    foreground from the first step on.

    Args:
      proposals: of the batch.
      ground_truth: instances of the batch.
      num_classes: K, the background's class id.
      seed: [B, 2] int32 stateless seeds, one an image.
      config: threshold and sample sizes.
      for_xla: the number of mask slots follows from the settings alone, and mask targets come from
        operations that XLA compiles.

    Returns:
      `RoiTargets`. R is `roi_samples_per_image`, or L where that is less. F is at most R: the
      largest number of foreground RoIs among the images, rounded up to a multiple of 16, or for
      XLA the largest number that the sample allows.
    """
    gt_boxes = tf.cast(ground_truth.boxes, proposals.boxes.dtype)  # [B, M, 4]
    candidates = tf.concat([proposals.boxes, gt_boxes], axis=1)  # [B, L, 4]
    candidate_valid = tf.concat([proposals.valid, ground_truth.class_ids >= 0], axis=1)
    labels, gt_index = matching.match_anchors(
        gt_boxes,
        ground_truth.class_ids >= 0,
        candidates,
        config.roi_positive_iou,
        config.roi_positive_iou,
        allow_low_quality=False,
    )  # [B, L]
    labels = tf.where(candidate_valid, labels, -1)
    num_samples = config.roi_samples_per_image
    seed = tf.bitwise.bitwise_xor(seed, _ROI_STREAM)
    labels = matching.sample(labels, num_samples, config.roi_positive_fraction, seed)
    if (proposals.boxes.shape[1] or 0) < num_samples:  # else R is static, even where L is not
        num_samples = tf.minimum(num_samples, tf.shape(labels)[1])
    chosen, labels = _foreground_first(labels, num_samples)  # [B, R]

    boxes = tf.gather(candidates, chosen, batch_dims=1)  # [B, R, 4]
    gt_index = tf.gather(gt_index, chosen, batch_dims=1)  # [B, R]
    valid, foreground = labels >= 0, labels == 1
    boxes = tf.where(valid[..., tf.newaxis], boxes, tf.zeros([], boxes.dtype))
    gt_class_ids = _gather_gt(ground_truth.class_ids, gt_index)  # [B, R]
    class_ids = tf.where(foreground, gt_class_ids, tf.where(valid, num_classes, -1))
    matched = _gather_gt(gt_boxes, gt_index)  # [B, R, 4]
    matched = tf.where(foreground[..., tf.newaxis], matched, boxes)

    slots = _num_mask_slots(foreground, config, for_xla)
    return RoiTargets(
        boxes=boxes,
        valid=valid,
        class_ids=class_ids,
        gt_index=gt_index,
        deltas=box_ops.encode(matched, boxes, box_head.DELTA_WEIGHTS),
        mask_boxes=boxes[:, :slots],
        mask_class_ids=tf.where(foreground, class_ids, -1)[:, :slots],
        masks=mask_ops.mask_targets(
            ground_truth.masks,
            boxes[:, :slots],
            gt_index[:, :slots],
            2 * mask_head.POOLED_SIZE,
            for_xla,
        ),
    )


def _gather_gt(values: tf.Tensor, gt_index: tf.Tensor) -> tf.Tensor:
    """Rows of `values` [B, M, ...] by index [B, N]; zeros if M is 0."""
    padding = [[0, 0], [0, 1]] + [[0, 0]] * (values.shape.rank - 2)
    return tf.gather(tf.pad(values, padding), gt_index, batch_dims=1)  # [B, N, ...]


def _foreground_first(labels, num_samples) -> Tuple[tf.Tensor, tf.Tensor]:
    """The labels 1, then 0, then -1, each in their order: indices and labels, [B, L] -> [B, R]."""
    length = tf.shape(labels)[1]
    key = (1 - labels) * length + tf.range(length)  # [B, L], all distinct
    _, index = tf.math.top_k(-key, num_samples)
    return index, tf.gather(labels, index, batch_dims=1)


def _num_mask_slots(foreground: tf.Tensor, config, for_xla: bool) -> tf.Tensor:
    """F for the foreground flags of the RoIs, [B, R]: at least one slot, at most R."""
    if for_xla:
        most = matching.most_positives(config.roi_samples_per_image, config.roi_positive_fraction)
        return tf.minimum(max(most, 1), tf.shape(foreground)[1])
    most = tf.reduce_max(tf.math.count_nonzero(foreground, axis=1, dtype=tf.int32))
    steps = tf.maximum((most + _MASK_SLOT_STEP - 1) // _MASK_SLOT_STEP, 1)
    return tf.minimum(steps * _MASK_SLOT_STEP, tf.shape(foreground)[1])
