"""Matching of anchors or proposals to ground truth, and the balanced random sample of the labels.

Shapes: B images · M padded ground-truth boxes · A anchors or proposals.

Labels are 1 positive, 0 negative, -1 ignored.
"""

from typing import Tuple

import tensorflow as tf

from pfpn_tf.ops import boxes as box_ops


def match_anchors(
    gt_boxes: tf.Tensor,
    gt_valid: tf.Tensor,
    anchors: tf.Tensor,
    positive_iou: float,
    negative_iou: float,
    allow_low_quality: bool,
) -> Tuple[tf.Tensor, tf.Tensor]:
    """Labels anchors by their best IoU with a ground-truth box.

    Args:
      gt_boxes: [B, M, 4] yxyx; M may be 0.
      gt_valid: [B, M] bool; padded boxes are never matched.
      anchors: [A, 4], or [B, A, 4] if they differ between the images (proposals).
      positive_iou: anchors with at least this IoU are positive.
      negative_iou: anchors below this IoU are negative; those between the two are ignored.
      allow_low_quality: an anchor is positive, too, if its IoU equals the best IoU of some
        ground-truth box exactly. As in Detectron2 it stays matched to its own best box, and a box
        that overlaps no anchor, whose best IoU is 0, makes all anchors positive.

    Returns:
      labels [B, A] int32, and gt_index [B, A] int32 of the best box (the first of equals; 0 without
      any box).
    """

    def match(gt_boxes, gt_valid, anchors):
        # The padding row keeps the reductions defined when M is 0.
        gt_boxes = tf.pad(gt_boxes, [[0, 1], [0, 0]])
        gt_valid = tf.pad(gt_valid, [[0, 1]])[:, tf.newaxis]  # [M+1, 1]
        # Ground truth comes first, since the order of the float operations decides low-quality
        # matches.
        iou = tf.where(gt_valid, box_ops.iou_matrix(gt_boxes, anchors), -1)  # [M+1, A]
        best = tf.reduce_max(iou, axis=0)  # [A]
        # tf.argmax does not promise the first of equals.
        rows = tf.range(tf.shape(iou)[0])[:, tf.newaxis]  # [M+1, 1]
        gt_index = tf.reduce_min(tf.where(iou == best, rows, tf.shape(iou)[0]), axis=0)
        labels = tf.where(best >= positive_iou, 1, tf.where(best < negative_iou, 0, -1))
        if allow_low_quality:
            best_of_gt = tf.reduce_max(iou, axis=1, keepdims=True)  # [M+1, 1]
            low_quality = tf.reduce_any((iou == best_of_gt) & gt_valid, axis=0)  # [A]
            labels = tf.where(low_quality, 1, labels)
        return labels, gt_index

    spec = tf.TensorSpec(anchors.shape[-2:-1], tf.int32)
    per_image = (gt_boxes, gt_valid) if anchors.shape.rank == 2 else (gt_boxes, gt_valid, anchors)
    # Image by image: the IoU matrix of a large image takes a hundred megabytes.
    return tf.map_fn(
        lambda image: match(*(*image, anchors)[:3]), per_image, fn_output_signature=(spec, spec)
    )


def most_positives(num_samples: int, positive_fraction: float) -> int:
    """The largest number of positives that `sample` keeps of an image."""
    return int(num_samples * positive_fraction)


def sample(
    labels: tf.Tensor, num_samples: int, positive_fraction: float, seed: tf.Tensor
) -> tf.Tensor:
    """Keeps a random balanced sample of the labels of each image.

    At most `positive_fraction` of the sample is positive, the rest negative; fewer positives make
    room for more negatives. The sample of an image depends on its labels and its seed alone.

    Args:
      labels: [B, A] int32.
      num_samples: labels kept per image; with fewer candidates nothing is dropped.
      positive_fraction: largest share of positives.
      seed: [B, 2] int32 stateless seeds.

    Returns:
      [B, A] int32: `labels` with -1 where not sampled.
    """
    at_most_positive = most_positives(num_samples, positive_fraction)

    def sample_image(image):
        labels, seed = image
        count = tf.size(labels)
        # XLA makes other floats of the same random bits, so the bits themselves give the order.
        bits = tf.random.stateless_uniform([count], seed, None, None, tf.int32, alg="philox")
        order = tf.cast(bits & 0x7FFFFF, tf.float32)  # as many bits as a float's mantissa has

        def pick(label, at_most, room):
            """Indices of `at_most` anchors with the label in random order; whether each is used."""
            score, index = tf.math.top_k(
                tf.where(labels == label, order, -1.0), k=tf.minimum(at_most, count)
            )
            return index, (score >= 0.0) & (tf.range(tf.size(index)) < room)

        positive, use_positive = pick(1, at_most_positive, at_most_positive)
        num_positives = tf.reduce_sum(tf.cast(use_positive, tf.int32))
        negative, use_negative = pick(0, num_samples, num_samples - num_positives)
        kept = tf.concat([tf.where(use_positive, 1, -1), tf.where(use_negative, 0, -1)], axis=0)
        index = tf.concat([positive, negative], axis=0)
        # An index that is unused as a negative may be used as a positive, so the maximum counts.
        return tf.tensor_scatter_nd_max(tf.fill([count], -1), index[:, tf.newaxis], kept)

    sampled = tf.map_fn(
        sample_image, (labels, seed), fn_output_signature=tf.TensorSpec(labels.shape[1:], tf.int32)
    )
    return tf.reshape(sampled, tf.shape(labels))
