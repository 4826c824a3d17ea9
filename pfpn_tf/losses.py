"""The training losses of section 3.2.

L = lambda_i (L_class + L_box + L_mask) + lambda_s L_semantic, plus the two losses of the RPN.

Every loss is a plain sum with a count that divides it; `panoptic_fpn_losses` divides by that number
counted over all replicas. The gradients of the replicas therefore add up to the gradient of one
replica with the whole batch, however unevenly RoIs and pixels are spread.

Shapes: B images · A anchors of all levels · R RoIs · F mask slots · K thing classes ·
S semantic classes · h, w size of the semantic logits.
"""

from typing import Dict, Optional, Tuple

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.ops.precision import as_float32_or_more
from pfpn_tf.ops.upsampled_cross_entropy import upsampled_cross_entropy
from pfpn_tf.structures import GroundTruth, TrainOutputs
from pfpn_tf.utils.scopes import in_scope

VOID = 255


@in_scope("losses")
def panoptic_fpn_losses(
    outputs: TrainOutputs,
    ground_truth: GroundTruth,
    config: config_lib.Config,
    step: Optional[tf.Tensor] = None,
) -> Dict[str, tf.Tensor]:
    """All losses of one training step, normalised and weighted.

    The paper's formula puts lambda_i on L_class, L_box and L_mask alone, so the RPN's losses keep
    weight 1; lambda_i = 0 switches the instance branch off and them with it.

    Args:
      outputs: the network's; a branch it lacks has no loss.
      ground_truth: its semantic labels.
      config: loss weights and the RPN's sample size.
      step: [] int64 training step, which --alternate_losses needs.

    Returns:
      Scalars rpn_objectness, rpn_box, class, box, mask, semantic and their sum, total. Each is this
      replica's share: over the replicas they add up to the loss of the global batch. A loss that
      has nothing to count (no foreground, no labelled pixel) is 0, and so is its gradient.
    """
    sums, counts = sums_and_counts(outputs, ground_truth, config.model)
    return weighted_means(sums, _sum_over_replicas(counts), config.train, step)


def sums_and_counts(
    outputs: TrainOutputs, ground_truth: GroundTruth, config: config_lib.Model
) -> Tuple[Dict[str, tf.Tensor], Dict[str, tf.Tensor]]:
    """This replica's sum of each loss, and the int64 count that divides it, by name.

    Args: as `panoptic_fpn_losses`.
    """
    sums, counts = {}, {}
    if outputs.rpn_targets is not None:
        # The paper leaves the RPN's losses to Faster R-CNN, ref. [48]. Both are divided by the
        # anchors that may be sampled, even where fewer were. Plain L1 where Faster R-CNN has smooth
        # L1, as in Detectron2.
        rpn = outputs.rpn_targets
        losses = _binary_cross_entropy(outputs.objectness_logits, rpn.labels == 1)  # [B, A]
        sums["rpn_objectness"] = _masked_sum(losses, rpn.labels >= 0)
        sums["rpn_box"] = _l1_sum(outputs.anchor_deltas, rpn.deltas, rpn.labels == 1)
        anchors = tf.shape(rpn.labels, tf.int64)[0] * config.rpn_samples_per_image
        counts["rpn_objectness"] = counts["rpn_box"] = anchors
    if outputs.roi_targets is not None:
        rois, class_logits = outputs.roi_targets, outputs.class_logits
        assert class_logits is not None  # The network sets all fields of a branch, or none.
        # L_c and L_b are divided by the number of sampled RoIs, background included (section 3.2).
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.maximum(rois.class_ids, 0), logits=as_float32_or_more(class_logits)
        )  # [B, R]
        sums["class"] = _masked_sum(losses, rois.valid)
        num_classes = class_logits.shape[-1] - 1
        foreground = (rois.class_ids >= 0) & (rois.class_ids < num_classes)
        sums["box"] = _l1_sum(outputs.box_deltas, rois.deltas, foreground)
        counts["class"] = counts["box"] = tf.math.count_nonzero(rois.valid)
        # L_m is divided by the number of foreground RoIs (section 3.2) times the pixels of a mask.
        losses = _binary_cross_entropy(outputs.mask_logits, rois.masks)  # [B, F, 28, 28]
        foreground = rois.mask_class_ids >= 0  # [B, F]
        sums["mask"] = _masked_sum(losses, foreground[:, :, tf.newaxis, tf.newaxis])
        mask_pixels = rois.masks.shape[-2] * rois.masks.shape[-1]
        counts["mask"] = tf.math.count_nonzero(foreground) * mask_pixels
    if outputs.semantic_logits is not None:
        # L_s is divided by the number of labelled pixels (section 3.2), at full resolution.
        logits, labels = outputs.semantic_logits, ground_truth.semantic
        sums["semantic"] = upsampled_cross_entropy(logits, labels, VOID)
        counts["semantic"] = tf.math.count_nonzero(labels != VOID)
    return sums, counts


def weighted_means(
    sums: Dict[str, tf.Tensor],
    counts: Dict[str, tf.Tensor],
    train: config_lib.Train,
    step: Optional[tf.Tensor] = None,
) -> Dict[str, tf.Tensor]:
    """weight * sum / count of each loss, and their sum, total; see `panoptic_fpn_losses`."""
    weights = {
        **dict.fromkeys(("rpn_objectness", "rpn_box"), float(train.instance_loss_weight > 0)),
        **dict.fromkeys(("class", "box", "mask"), train.instance_loss_weight),
        "semantic": train.semantic_loss_weight,
    }
    if train.alternate_losses:  # Table 3c: in each step those of one branch are 0.
        assert step is not None
        semantic_step = step % 2 == 1
        weights = {
            name: tf.where(semantic_step == (name == "semantic"), weight, 0.0)
            for name, weight in weights.items()
        }
    losses = {}
    for name, value in sums.items():
        weight = tf.cast(weights[name], value.dtype)
        losses[name] = weight * value / tf.cast(tf.maximum(counts[name], 1), value.dtype)
    losses["total"] = tf.add_n(list(losses.values()))
    return losses


def _binary_cross_entropy(logits, labels):
    logits = as_float32_or_more(logits)
    labels = tf.cast(labels, logits.dtype)
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)


def _l1_sum(deltas, targets, mask):
    deltas = as_float32_or_more(deltas)
    return _masked_sum(tf.abs(deltas - tf.cast(targets, deltas.dtype)), mask[..., tf.newaxis])


def _masked_sum(losses, mask):
    return tf.reduce_sum(tf.where(mask, losses, tf.zeros([], losses.dtype)))


def _sum_over_replicas(counts):
    """Int64 counts summed over the replicas, all in one exchange."""
    replica_context = tf.distribute.get_replica_context()
    if replica_context is None or replica_context.num_replicas_in_sync == 1:
        return counts
    names = sorted(counts)
    vector = tf.stack([tf.cast(counts[name], tf.float64) for name in names])
    vector = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
    return dict(zip(names, tf.unstack(vector)))
