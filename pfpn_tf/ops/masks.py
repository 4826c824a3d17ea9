"""Ground-truth masks cropped to RoIs.

Shapes: B images · H, W padded size · M padded ground-truth instances · F RoIs · P side of the mask
targets · T taps of an output cell per axis (see `axis_taps`).
"""

import tensorflow as tf

from pfpn_tf.ops import axis_taps


def mask_targets(
    gt_masks: tf.Tensor,
    boxes: tf.Tensor,
    gt_index: tf.Tensor,
    size: int,
    for_xla: bool = False,
) -> tf.Tensor:
    """The part of its ground-truth mask that each RoI sees, as 0 and 1.

    RoIAlign of the mask at its own scale with one sample per pixel or more (ratio 0), then >= 0.5.
    Sums of samples are compared with half their number, so that sums which are exact stay so.

    Args:
      gt_masks: [B, M, H, W] uint8, 0 or 1; M may be 0.
      boxes: [B, F, 4] yxyx pixels.
      gt_index: [B, F] int32 mask of each RoI. An index outside 0..M-1 (an image without masks)
        counts as an empty mask.
      size: P.
      for_xla: a loop over the samples, which XLA can compile, in place of sparse matrix products,
        which take an eighth of the time outside XLA.

    Returns:
      [B, F, P, P] in the boxes' type.
    """
    targets = _gather_targets if for_xla else _sparse_targets
    return tf.cast(targets(gt_masks, boxes, gt_index, size), boxes.dtype)


def _sparse_targets(gt_masks, boxes, gt_index, size):
    # Image by image: the sparse product needs the masks as floats, four times their size. By index,
    # since a list of uint8 masks would be kept by the CPU, with a GPU waiting for it.
    targets = tf.map_fn(
        lambda i: _image_targets(gt_masks[i], boxes[i], gt_index[i], size),
        tf.range(tf.shape(gt_masks)[0]),
        fn_output_signature=tf.TensorSpec([None, size, size], tf.bool),
    )
    return tf.ensure_shape(targets, [None, None, size, size])


def _image_targets(masks, boxes, gt_index, size):
    """Bool [F, P, P] of one image: `masks` [M, H, W], `boxes` [F, 4], `gt_index` [F]."""
    num_masks, height, width = tf.unstack(tf.shape(masks))
    boxes = boxes - 0.5
    rows, columns = [
        axis_taps.axis_taps(boxes[:, axis], boxes[:, axis + 2], limit, size, sampling_ratio=0)
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
                tf.cast(
                    tf.gather(gt_index, used[:, 0]) * height + tf.gather_nd(rows.pixel, used),
                    tf.int64,
                ),
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
    position = line * width + tf.reshape(
        columns.pixel, [-1, tf.shape(columns.pixel)[2]]
    )  # [F*P, T]
    column_weights = tf.math.unsorted_segment_sum(
        tf.reshape(columns.weight, tf.shape(position)), position, tf.size(line) * width
    )
    by_roi = [-1, size, width]
    sums = tf.matmul(
        tf.reshape(lines, by_roi), tf.reshape(column_weights, by_roi), transpose_b=True
    )  # [F, P, P]
    samples = tf.cast(rows.samples * columns.samples, boxes.dtype)  # [F]
    return sums >= 0.5 * samples[:, tf.newaxis, tf.newaxis]


def _gather_targets(gt_masks, boxes, gt_index, size):
    """Bool [B, F, P, P]."""
    batch, num_masks, height, width = tf.unstack(tf.shape(gt_masks))
    rois = tf.shape(boxes)[1]
    mask_rows = tf.reshape(gt_masks, [batch * num_masks * height, width])
    mask_rows = tf.pad(mask_rows, [[0, 1], [0, 0]])  # an empty row for RoIs without a mask
    has_mask = tf.reshape((gt_index >= 0) & (gt_index < num_masks), [-1])[:, tf.newaxis]  # [B*F, 1]
    first_row = (tf.range(batch)[:, tf.newaxis] * num_masks + gt_index) * height  # [B, F]
    first_row = tf.reshape(first_row, [-1, 1])  # [B*F, 1]
    boxes = tf.reshape(boxes, [-1, 4]) - 0.5  # [B, F, 4] -> [B*F, 4]
    zeros = tf.zeros([batch * rois, size, width], boxes.dtype)

    def for_all_samples(axis, limit, add):
        """Adds add(pixel [B*F, P], weight [B*F, P, 1]) for both neighbours of all samples, and the
        samples' number.
        """
        start, end = boxes[:, axis], boxes[:, axis + 2]
        samples = axis_taps.adaptive_samples(start, end, size)

        def step(sample, total):
            pixel, weight = axis_taps.interpolate(
                start, end, limit[tf.newaxis], size, samples, sample[tf.newaxis]
            )
            for side in (0, 1):
                total += add(pixel[:, :, 0, side], weight[:, :, 0, side, tf.newaxis])
            return sample + 1, total

        most_samples = tf.reduce_max(samples)
        start_of_loop = (tf.constant(0), zeros)
        _, total = tf.while_loop(lambda sample, _: sample < most_samples, step, start_of_loop)
        return total, samples

    def mask_line(pixel, weight):
        row = tf.where(has_mask, first_row + pixel, tf.shape(mask_rows)[0] - 1)
        return tf.cast(tf.gather(mask_rows, row), boxes.dtype) * weight  # [B*F, P, W]

    def spread(pixel, weight):
        return (
            tf.cast(tf.range(width) == pixel[..., tf.newaxis], boxes.dtype) * weight
        )  # [B*F, P, W]

    lines, row_samples = for_all_samples(0, height, mask_line)
    column_weights, column_samples = for_all_samples(1, width, spread)
    sums = tf.matmul(lines, column_weights, transpose_b=True)  # [B*F, P, P]
    samples = tf.cast(row_samples * column_samples, boxes.dtype)[:, tf.newaxis, tf.newaxis]
    return tf.reshape(sums >= 0.5 * samples, [batch, rois, size, size])
