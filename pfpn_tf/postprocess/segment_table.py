"""The table of the segments of one panoptic map, and the ids of its pixels.

Shapes: h, w original size · D detections · S semantic classes · K thing classes · N = D + S rows.
"""

import tensorflow as tf

from pfpn_tf import structures


def result_signature(outputs: structures.InferenceOutputs) -> structures.PanopticResult:
    """`tf.TensorSpec`s of one image's `PanopticResult` for these network outputs."""
    rows = table_width(outputs)
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


def table_width(outputs: structures.InferenceOutputs) -> int:
    """N, the static number of rows of the segment table: every detection and every class."""
    detections = outputs.detections.scores.shape[-1] if outputs.detections is not None else 0
    return detections + (
        outputs.semantic_logits.shape[-1] if outputs.semantic_logits is not None else 0
    )


def segment_table(
    codes, detections, thing_category_ids, stuff_category_ids, stuff_area_threshold_px
):
    """Final ids and the table.

    Args:
      codes: [h, w] int32: 0 nothing, 1..D instances, D + 1 + class stuff.
      detections: of the image, or None.
      thing_category_ids: [K]. stuff_category_ids: [S], -1 for classes to leave out.
      stuff_area_threshold_px: smaller stuff is left out.
    """
    things = detections.scores.shape[0] if detections is not None else 0
    stuff = len(stuff_category_ids)
    # One code past the last class is what labels of not-a-number logits get: void.
    num_codes = things + stuff + 2
    by_row = _histograms(codes, num_codes)  # [h, codes]
    by_column = _histograms(tf.transpose(codes), num_codes)  # [w, codes]
    kept = slice(1, things + stuff + 1)
    areas = tf.reduce_sum(by_row, 0)[kept]  # [N]
    categories = tf.concat(
        [
            (
                tf.gather(
                    tf.constant(thing_category_ids, tf.int32), tf.maximum(detections.class_ids, 0)
                )
                if things
                else tf.zeros([0], tf.int32)
            ),
            tf.constant(stuff_category_ids, tf.int32),
        ],
        0,
    )
    is_thing = tf.constant([True] * things + [False] * stuff)
    least = tf.constant([1] * things + [max(1, stuff_area_threshold_px)] * stuff, tf.int32)
    keep = (areas >= least) & (is_thing | (categories >= 0))
    ids = tf.where(keep, tf.cumsum(tf.cast(keep, tf.int32)), 0)  # [N]
    scores = tf.zeros([stuff], tf.float32)
    if things:
        scores = tf.concat([tf.cast(detections.scores, tf.float32), scores], 0)
    (y0, y1), (x0, x1) = _extent(by_row), _extent(by_column)
    boxes = tf.cast(tf.stack([y0, x0, y1, x1], -1), tf.float32)[kept]  # [N, 4]

    index = tf.range(things + stuff)
    order = tf.argsort(tf.where(keep, index, index + things + stuff))  # kept rows first
    valid = tf.gather(keep, order)

    def rows(column, empty):
        shape = tf.concat([tf.shape(valid), tf.ones([tf.rank(column) - 1], tf.int32)], 0)
        return tf.where(tf.reshape(valid, shape), tf.gather(column, order), empty)

    return structures.PanopticResult(
        panoptic_ids=tf.gather(tf.concat([[0], ids, [0]], 0), codes),
        num_segments=tf.reduce_max(ids),
        segment_ids=tf.gather(ids, order),
        category_ids=rows(categories, 0),
        is_thing=rows(is_thing, False),
        scores=rows(scores, 0.0),
        areas=rows(areas, 0),
        boxes=rows(boxes, 0.0),
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
