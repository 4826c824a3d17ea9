"""Non-maximum suppression with static output widths.

Shapes: B images · L pyramid levels · k candidates per level · N proposals · R RoIs · K thing
classes · D detections.

Candidates are ranked by falling score, of equal scores the lower index first, and TensorFlow's
kernel gets the rank in the form of a score. So it has no ties to break, and any range of logits is
safe. The kept ranks tell which boxes and scores to gather from the caller's tensors, in their own
precision. Only the suppression itself computes in float32.
"""

from typing import Tuple

import tensorflow as tf

from pfpn_tf.ops import boxes as box_ops


def rpn_nms(
    boxes: tf.Tensor,
    logits: tf.Tensor,
    iou_threshold: float,
    max_outputs: int,
    for_xla: bool = False,
    by_offset: bool = False,
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Suppression within each pyramid level, then the best of all levels together.

    Args:
      boxes: [B, L, k, 4] yxyx, already clipped.
      logits: [B, L, k]; -inf marks padding.
      iou_threshold: a box is dropped when its IoU with a better kept box of its level is above
        this.
      max_outputs: N.
      for_xla: whether XLA compiles it. XLA lacks TensorFlow's kernel; [k, k] IoU matrices give the
        same result in thirty times its time on a CPU.
      by_offset: as `class_nms`, for the levels; not for XLA.

    Returns:
      boxes [B, N, 4], logits [B, N] and valid [B, N] bool, by falling logit. Empty boxes and
      padding never come out; rows without a box are zeros at the end.
    """
    usable = (logits > logits.dtype.min) & ~box_ops.is_empty(boxes)  # [B, L, k]
    if for_xla:
        index, valid = _choose_by_matrix(boxes, logits, usable, iou_threshold, max_outputs)
    else:
        index, valid = _choose_by_kernel(
            boxes, logits, usable, iou_threshold, max_outputs, by_offset
        )
    return (
        tf.where(valid[..., tf.newaxis], tf.gather(_flatten(boxes, [4]), index, batch_dims=1), 0),
        tf.where(valid, tf.gather(_flatten(logits, []), index, batch_dims=1), 0),
        valid,
    )


def _flatten(values, inner):
    """[B, L, k, *inner] -> [B, L*k, *inner]."""
    batch, levels, candidates = tf.unstack(tf.shape(values)[:3])
    return tf.reshape(values, [batch, levels * candidates, *inner])


def _masked(logits, usable):
    return tf.where(usable, logits, tf.constant(-float("inf"), logits.dtype))


def _choose_by_kernel(boxes, logits, usable, iou_threshold, max_outputs, by_offset):
    """Index [B, N] into the L*k candidates and whether it counts [B, N]."""
    flat = _flatten(_masked(logits, usable), [])
    count = tf.shape(flat)[1]
    order = tf.math.top_k(flat, k=count).indices  # [B, L*k] candidates by falling logit
    place = tf.math.top_k(-order, k=count).indices  # [B, L*k] the inverse permutation
    place = tf.where(usable, tf.reshape(place, tf.shape(logits)), -1)
    kept_place, num = _suppress(
        tf.transpose(boxes, [0, 2, 1, 3]),  # [B, k, L, 4]
        tf.transpose(place, [0, 2, 1]),  # [B, k, L]
        iou_threshold,
        max_outputs,
        by_offset,
    )
    return tf.gather(order, kept_place, batch_dims=1), tf.sequence_mask(num, max_outputs)


def _choose_by_matrix(boxes, logits, usable, iou_threshold, max_outputs):
    """As `_choose_by_kernel`, by matrices.

    Each round keeps the boxes that no better box kept by the round before overlaps. After n rounds
    the n best boxes are decided; in practice a few rounds decide all.
    """
    candidates = logits.shape[2] or tf.shape(logits)[2]
    order = tf.math.top_k(_masked(logits, usable), k=candidates).indices  # [B, L, k]
    boxes = tf.gather(boxes, order, batch_dims=2)
    usable = tf.gather(usable, order, batch_dims=2)
    better = tf.range(candidates) < tf.range(candidates)[:, tf.newaxis]  # [k, k] column before row
    overlap = box_ops.iou_matrix(boxes, boxes) > iou_threshold
    suppresses = tf.cast(overlap & better, tf.float32)  # [B, L, k, k]

    def keep_more(kept, _):
        hits = tf.linalg.matvec(suppresses, tf.cast(kept, tf.float32))
        return usable & (hits == 0.0), kept

    kept, _ = tf.while_loop(
        lambda kept, before: tf.reduce_any(kept != before),
        keep_more,
        keep_more(usable, usable),
    )
    # Level and then index order equal logits, so this goes back to the caller's order.
    place = tf.math.top_k(-order, k=candidates).indices  # [B, L, k] the inverse permutation
    flat = _flatten(_masked(logits, tf.gather(kept, place, batch_dims=2)), [])
    shortfall = tf.maximum(max_outputs - tf.shape(flat)[1], 0)
    flat = tf.pad(flat, [[0, 0], [0, shortfall]], constant_values=flat.dtype.min)
    best, index = tf.math.top_k(flat, k=max_outputs)  # [B, N]
    valid = best > flat.dtype.min
    return tf.where(valid, index, 0), valid


def class_nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
    by_offset: bool = False,
) -> Tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Suppression within each class, then the best detections of all classes together.

    Every RoI can be detected as several classes. All candidates above the score threshold take
    part.

    Args:
      boxes: [B, R, K, 4] yxyx, a box of each RoI per class.
      scores: [B, R, K] without the background; 0 or less in padded RoIs.
      score_threshold: candidates have a higher score.
      iou_threshold: a box is dropped when its IoU with a better kept box of its class is above
        this.
      max_detections: D.
      class_agnostic: a better kept box of any class drops a box.
      by_offset: keep classes apart by moving the boxes of class c by c times the greatest
        coordinate plus 1, as others do. Rounding then decides between IoUs close to the threshold.

    Returns:
      boxes [B, D, 4], scores [B, D], class_ids [B, D] int32 and num_detections [B] int32, by
      falling score. Padded rows are zeros, with class_id -1. Candidates with a NaN or infinite box
      or score never come out.
    """
    batch, rois, classes = tf.unstack(tf.shape(scores))
    flat_boxes = tf.reshape(boxes, [batch, rois * classes, 4])  # [B, R, K, 4] -> [B, R*K, 4]
    flat_scores = tf.reshape(scores, [batch, rois * classes])  # [B, R, K] -> [B, R*K]
    finite = tf.math.is_finite(tf.reduce_sum(flat_boxes, axis=-1)) & tf.math.is_finite(flat_scores)
    candidates = tf.where(finite & (flat_scores > score_threshold))  # [n, 2] of the whole batch
    # Only the candidates are sorted: a few hundred among 80,000 scores.
    by_score = tf.argsort(
        tf.gather_nd(flat_scores, candidates), direction="DESCENDING", stable=True
    )
    candidates = tf.gather(candidates, by_score)  # [n, 2]
    place = tf.tensor_scatter_nd_update(
        tf.fill([batch, rois * classes], -1), candidates, tf.range(tf.shape(candidates)[0])
    )
    columns = 1 if class_agnostic else classes
    kept_place, num = _suppress(
        tf.reshape(boxes, [batch, -1, columns, 4]),
        tf.reshape(place, [batch, -1, columns]),
        iou_threshold,
        max_detections,
        by_offset,
    )
    valid = tf.sequence_mask(num, max_detections)
    # The extra row lets padded rows gather something when there is no candidate.
    index = tf.gather(tf.pad(tf.cast(candidates[:, 1], tf.int32), [[0, 1]]), kept_place)  # [B, D]
    return (
        tf.where(valid[..., tf.newaxis], tf.gather(flat_boxes, index, batch_dims=1), 0),
        tf.where(valid, tf.gather(flat_scores, index, batch_dims=1), 0),
        tf.where(valid, index % classes, -1),
        num,
    )


def _suppress(boxes, place, iou_threshold, max_outputs, by_offset):
    """Independent suppression in each column, merged.

    Args:
      boxes: [B, n, columns, 4].
      place: [B, n, columns] int32 place of each candidate, unique in its image, 0 the best; -1 no
        candidate.

    Returns:
      places [B, max_outputs] int32 of the kept candidates, rising, 0 as padding; their number [B]
      int32.
    """
    if by_offset:
        used = tf.where(place[..., tf.newaxis] >= 0, boxes, 0)
        distance = tf.reduce_max(used, axis=[1, 2, 3], keepdims=True) + 1
        boxes += tf.cast(tf.range(tf.shape(boxes)[2])[:, tf.newaxis], boxes.dtype) * distance
    # Scores are positive, since the kernel fills unused places with -1 and counts them. They are
    # exact below 2**24.
    best = 2.0**24
    score = tf.where(place >= 0, best - tf.cast(place, tf.float32), 0.0)
    # CombinedNonMaxSuppression exists on the CPU alone; TensorFlow need not try a GPU.
    with tf.device("CPU:0"):
        kept = tf.image.combined_non_max_suppression(
            tf.cast(boxes, tf.float32),
            score,
            max_output_size_per_class=max_outputs,
            max_total_size=max_outputs,
            iou_threshold=iou_threshold,
            score_threshold=0.0,
            clip_boxes=False,  # it would clip to [0, 1]
        )
    valid = kept.nmsed_scores > 0.0
    kept_place = tf.where(valid, tf.cast(best - kept.nmsed_scores, tf.int32), 0)
    return kept_place, tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
