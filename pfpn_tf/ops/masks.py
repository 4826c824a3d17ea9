"""Ground-truth masks cropped to RoIs.

Shapes: B images · H, W padded size · M padded ground-truth instances · F RoIs · P side of the mask targets · T taps
of an output cell per axis (see `roi_align`).
"""

import tensorflow as tf

from pfpn_tf.ops import roi_align


def mask_targets(
    gt_masks: tf.Tensor, boxes: tf.Tensor, gt_index: tf.Tensor, size: int
) -> tf.Tensor:
    """The part of its ground-truth mask that each RoI sees, as 0 and 1.

    RoIAlign of the mask at its own scale with one sample per pixel or more (ratio 0), then >= 0.5. Sums of samples
    are compared with half their number, so that sums which are exact stay so.

    Args:
      gt_masks: [B, M, H, W] uint8, 0 or 1; M may be 0.
      boxes: [B, F, 4] yxyx pixels.
      gt_index: [B, F] int32 mask of each RoI. An index outside 0..M-1 (an image without masks) counts as an empty
        mask.
      size: P.

    Returns:
      [B, F, P, P] in the boxes' type.
    """

    def image_targets(image):
        masks, boxes, gt_index = image
        return _image_targets(masks, boxes, gt_index, size)

    # Image by image: the sparse product needs the masks as floats, four times their size.
    targets = tf.map_fn(
        image_targets,
        (gt_masks, boxes, gt_index),
        fn_output_signature=tf.TensorSpec([None, size, size], tf.bool),
    )
    return tf.cast(tf.ensure_shape(targets, [None, None, size, size]), boxes.dtype)


def _image_targets(masks, boxes, gt_index, size):
    """Bool [F, P, P] of one image: `masks` [M, H, W], `boxes` [F, 4], `gt_index` [F]."""
    num_masks, height, width = tf.unstack(tf.shape(masks))
    boxes = boxes - 0.5
    rows, columns = [
        roi_align.axis_taps(boxes[:, axis], boxes[:, axis + 2], limit, size, sampling_ratio=0)
        for axis, limit in ((0, height[tf.newaxis]), (1, width[tf.newaxis]))
    ]
    has_mask = (gt_index >= 0) & (gt_index < num_masks)  # [F]

    # Down the columns: each output row is a sparse combination of the rows of its mask.
    used = tf.range(tf.shape(rows.pixel)[2]) < rows.num_taps[:, tf.newaxis, tf.newaxis]
    used = tf.where((rows.weight > 0) & used & has_mask[:, tf.newaxis, tf.newaxis])  # [taps, 3]
    row_weights = tf.SparseTensor(
        tf.stack(
            [
                used[:, 0] * size + used[:, 1],
                tf.cast(tf.gather(gt_index, used[:, 0]) * height + tf.gather_nd(rows.pixel, used), tf.int64),
            ],
            axis=1,
        ),
        tf.gather_nd(rows.weight, used),
        tf.cast([tf.shape(boxes)[0] * size, num_masks * height], tf.int64),
    )
    lines = tf.cast(tf.reshape(masks, [num_masks * height, width]), boxes.dtype)
    lines = tf.sparse.sparse_dense_matmul(row_weights, lines)  # [F*P, W]

    # Along the rows: the weights are spread over the width for a dense product.
    line = tf.range(tf.shape(boxes)[0] * size)[:, tf.newaxis]  # [F*P, 1]
    position = line * width + tf.reshape(columns.pixel, [-1, tf.shape(columns.pixel)[2]])  # [F*P, T]
    column_weights = tf.math.unsorted_segment_sum(
        tf.reshape(columns.weight, tf.shape(position)), position, tf.size(line) * width
    )
    by_roi = [-1, size, width]
    sums = tf.matmul(
        tf.reshape(lines, by_roi), tf.reshape(column_weights, by_roi), transpose_b=True
    )  # [F, P, P]
    samples = tf.cast(rows.samples * columns.samples, boxes.dtype)  # [F]
    return sums >= 0.5 * samples[:, tf.newaxis, tf.newaxis]
