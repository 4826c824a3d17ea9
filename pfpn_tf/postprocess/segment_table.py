"""The table of the segments of one panoptic map, and the ids of its pixels.

Shapes: h, w original size · D detections · S semantic classes · K thing classes · N = D + S rows.
"""

import numpy as np
import tensorflow as tf

from pfpn_tf import structures


def result_signature(outputs: structures.InferenceOutputs) -> structures.PanopticResult:
    """`tf.TensorSpec`s of one image's `PanopticResult` for these network outputs."""
    detections, logits = outputs.detections, outputs.semantic_logits
    rows = 0 if detections is None else detections.scores.shape[-1]
    rows += 0 if logits is None else logits.shape[-1]
    row = lambda dtype, *shape: tf.TensorSpec([rows, *shape], dtype)  # noqa: E731
    return structures.PanopticResult(
        panoptic_ids=tf.TensorSpec([None, None], tf.int32),
        num_segments=tf.TensorSpec([], tf.int32),
        segment_ids=row(tf.int32),
        category_ids=row(tf.int32),
        is_thing=row(tf.bool),
        scores=row(tf.float32),
        areas=row(tf.int32),
        boxes=row(tf.float32, 4),
    )


def segment_table(
    codes: tf.Tensor,
    class_ids: tf.Tensor,
    scores: tf.Tensor,
    stuff_scores: tf.Tensor,
    thing_category_ids: np.ndarray,
    stuff_category_ids: np.ndarray,
    stuff_area_threshold_px: int,
) -> structures.PanopticResult:
    """Numbers the segments that remain and measures them.

    Args:
      codes: [h, w] int32: 0 nothing, 1..D detections, D + 1 + class stuff, D + 1 + S nothing.
      class_ids: [D] int32 of the detections. scores: [D]. stuff_scores: [S] by semantic class.
      thing_category_ids: [K] int32.
      stuff_category_ids: [S] int32; stuff whose category is -1 is left out.
      stuff_area_threshold_px: stuff with fewer pixels is left out.

    Returns:
      `PanopticResult` of one image. Ids run from 1, in the order of the codes.
    """
    things, stuff = scores.shape[0], len(stuff_category_ids)
    by_row = _histograms(codes, things + stuff + 2)  # [h, codes]
    by_column = _histograms(tf.transpose(codes), things + stuff + 2)  # [w, codes]
    of_segments = slice(1, things + stuff + 1)
    areas = tf.reduce_sum(by_row, 0)[of_segments]  # [N]
    (y0, y1), (x0, x1) = _extent(by_row), _extent(by_column)
    boxes = tf.cast(tf.stack([y0, x0, y1, x1], -1), tf.float32)[of_segments]  # [N, 4]
    thing_categories = tf.gather(tf.constant(thing_category_ids), tf.maximum(class_ids, 0))
    categories = tf.concat([thing_categories, tf.constant(stuff_category_ids, tf.int32)], 0)
    is_thing = tf.range(things + stuff) < things

    least = tf.where(is_thing, 1, tf.maximum(1, stuff_area_threshold_px))
    keep = (areas >= least) & (is_thing | (categories >= 0))  # [N]
    ids = tf.where(keep, tf.cumsum(tf.cast(keep, tf.int32)), 0)
    kept_first = tf.argsort(tf.where(keep, 0, 1), stable=True)

    def rows(column, keep=keep):
        return tf.gather(tf.where(keep, column, tf.zeros([], column.dtype)), kept_first)

    return structures.PanopticResult(
        panoptic_ids=tf.gather(tf.concat([[0], ids, [0]], 0), codes),
        num_segments=tf.reduce_max(ids),
        segment_ids=rows(ids),
        category_ids=rows(categories),
        is_thing=tf.gather(is_thing & keep, kept_first),
        scores=rows(tf.concat([tf.cast(scores, tf.float32), stuff_scores], 0)),
        areas=rows(areas),
        boxes=rows(boxes, keep[:, tf.newaxis]),
    )


def _histograms(codes, num_codes):
    """How often each code occurs in each row: [h, w] int32 -> [h, num_codes] int32."""
    return tf.raw_ops.DenseBincount(
        input=codes, size=num_codes, weights=tf.zeros([0], tf.int32), binary_output=False
    )


def _extent(histograms):
    """First and one past the last line where each code occurs: [n, codes] -> two [codes] int32."""
    lines = tf.range(tf.shape(histograms)[0])[:, None]
    present = histograms > 0
    first = tf.reduce_min(tf.where(present, lines, tf.int32.max), 0)
    last = tf.reduce_max(tf.where(present, lines, -1), 0)
    return first, last + 1
