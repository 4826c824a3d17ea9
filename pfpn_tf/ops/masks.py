"""Ground-truth masks cropped to RoIs.

Shapes: B images · H, W padded size · M padded ground-truth instances · F RoIs · P side of the mask
targets · T taps of an output cell per axis (see `axis_taps`).
"""

import tensorflow as tf

from pfpn_tf.ops.axis_taps import adaptive_samples, axis_taps, interpolate


def mask_targets(
    gt_masks: tf.Tensor,
    boxes: tf.Tensor,
    gt_index: tf.Tensor,
    size: int,
    for_xla: bool = False,
) -> tf.Tensor:
    """Cuts each RoI's part out of its ground-truth mask, as 0 and 1.

    RoIAlign pools the mask at its own scale with one sample per pixel or more (ratio 0), and a mean
    of 0.5 or more is 1. The code compares the sum of the samples with half their number, so that
    exact sums stay exact.

    Args:
      gt_masks: [B, M, H, W] uint8, 0 or 1; M may be 0.
      boxes: [B, F, 4] yxyx pixels.
      gt_index: [B, F] int32 mask of each RoI. An index outside 0..M-1 (an image without masks)
        counts as an empty mask.
      size: P.
      for_xla: whether XLA compiles it. XLA has no sparse matrix products; the loop over the samples
        takes their place and eight times as long.

    Returns:
      [B, F, P, P] in the boxes' type.
    """
    targets = _looped_targets if for_xla else _sparse_targets
    return tf.cast(targets(gt_masks, boxes, gt_index, size), boxes.dtype)


def _sparse_targets(gt_masks, boxes, gt_index, size):
    """Bool [B, F, P, P], image by image: the sparse product needs the masks as floats."""
    # By index: TensorFlow would keep a list of uint8 masks on the CPU, and a GPU would wait for it.
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
    rows, columns = (
        axis_taps(boxes[:, axis], boxes[:, axis + 2], limit[None], size, sampling_ratio=0)
        for axis, limit in ((0, height), (1, width))
    )
    cells = tf.shape(boxes)[0] * size  # F * P

    # Each output row of a RoI is a sparse sum of the rows of its mask.
    has_mask = (gt_index >= 0) & (gt_index < num_masks)  # [F]
    used = tf.where((rows.weight > 0) & has_mask[:, None, None])  # [taps, 3]: F, P, T
    mask_row = tf.gather(gt_index, used[:, 0]) * height + tf.gather_nd(rows.pixel, used)
    row_weights = tf.SparseTensor(
        tf.stack([used[:, 0] * size + used[:, 1], tf.cast(mask_row, tf.int64)], axis=1),
        tf.gather_nd(rows.weight, used),
        tf.cast([cells, num_masks * height], tf.int64),
    )
    mask_rows = tf.cast(tf.reshape(masks, [num_masks * height, width]), boxes.dtype)
    lines = tf.sparse.sparse_dense_matmul(row_weights, mask_rows)  # [F*P, W]

    # Each output column is a dense sum over the width.
    place = tf.reshape(tf.range(cells), [-1, size, 1]) * width + columns.pixel  # [F, P, T]
    column_weights = tf.math.unsorted_segment_sum(columns.weight, place, cells * width)
    by_roi = [-1, size, width]
    sums = tf.matmul(
        tf.reshape(lines, by_roi), tf.reshape(column_weights, by_roi), transpose_b=True
    )  # [F, P, P]
    samples = tf.cast(rows.samples * columns.samples, boxes.dtype)  # [F]
    return sums >= 0.5 * samples[:, None, None]


def _looped_targets(gt_masks, boxes, gt_index, size):
    """Bool [B, F, P, P]."""
    batch, num_masks, height, width = tf.unstack(tf.shape(gt_masks))
    num_rois = tf.shape(boxes)[1]
    mask_rows = tf.reshape(gt_masks, [batch * num_masks * height, width])
    mask_rows = tf.pad(mask_rows, [[0, 1], [0, 0]])  # an empty row for RoIs without a mask
    has_mask = tf.reshape((gt_index >= 0) & (gt_index < num_masks), [-1, 1])  # [B*F, 1]
    first_row = (tf.range(batch)[:, None] * num_masks + gt_index) * height  # [B, F]
    first_row = tf.reshape(first_row, [-1, 1])  # [B*F, 1]
    boxes = tf.reshape(boxes, [-1, 4]) - 0.5  # [B, F, 4] -> [B*F, 4]

    def sum_samples(axis, limit, lines_at):
        """Adds up weighted lines [B*F, P, W]; returns their sum and the number of samples [B*F].

        `lines_at(pixel [B*F, P])` gives the lines of one of the two neighbours of a sample.
        """
        start, end = boxes[:, axis], boxes[:, axis + 2]
        samples = adaptive_samples(start, end, size)

        def step(sample, total):
            pixel, weight = interpolate(start, end, limit[None], size, samples, sample[None])
            for side in (0, 1):
                lines = tf.cast(lines_at(pixel[:, :, 0, side]), boxes.dtype)
                total += lines * weight[:, :, 0, side, None]
            return sample + 1, total

        most_samples = tf.reduce_max(samples)
        zeros = tf.zeros([batch * num_rois, size, width], boxes.dtype)
        _, total = tf.while_loop(
            lambda sample, _: sample < most_samples, step, (tf.constant(0), zeros)
        )
        return total, samples

    def mask_line(pixel):
        row = tf.where(has_mask, first_row + pixel, tf.shape(mask_rows)[0] - 1)
        return tf.gather(mask_rows, row)

    lines, row_samples = sum_samples(0, height, mask_line)
    column_weights, column_samples = sum_samples(
        1, width, lambda pixel: tf.range(width) == pixel[..., None]
    )
    sums = tf.matmul(lines, column_weights, transpose_b=True)  # [B*F, P, P]
    samples = tf.cast(row_samples * column_samples, boxes.dtype)[:, None, None]
    return tf.reshape(sums >= 0.5 * samples, [batch, num_rois, size, size])
