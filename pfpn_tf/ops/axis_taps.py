"""Where RoIAlign samples along one axis (Detectron2's ROIAlignV2: half-pixel aligned).

Bilinear sampling and averaging are linear and act on each axis alone. So along an axis an output
cell is a weighted sum of a few pixels, here called its taps.

Shapes: n RoIs · P output size · g samples of an output cell · T taps of an output cell.
"""

from typing import NamedTuple, Tuple

import tensorflow as tf


class AxisTaps(NamedTuple):
    """The samples in output cell p of RoI i sum to sum_t weight[i, p, t] * line[pixel[i, p, t]].

    Attributes:
      pixel: [n, P, T] int32.
      weight: [n, P, T]; zero from `num_taps` on.
      samples: [n] int32 samples per output cell.
      num_taps: [n] int32 leading taps in use.
    """

    pixel: tf.Tensor
    weight: tf.Tensor
    samples: tf.Tensor
    num_taps: tf.Tensor


def axis_taps(
    start: tf.Tensor, end: tf.Tensor, limit: tf.Tensor, output_size: int, sampling_ratio: int
) -> AxisTaps:
    """Taps of every output cell.

    Args:
      start, end: [n] RoI borders in pixels, already moved by the half pixel.
      limit: [n] or [1] int32 size of the feature map.
      output_size: P.
      sampling_ratio: samples per output cell; 0: as `adaptive_samples`.

    Returns:
      `AxisTaps`.
    """
    if sampling_ratio:
        samples = tf.fill(tf.shape(start), sampling_ratio)
        pixel, weight = interpolate(
            start, end, limit, output_size, samples, tf.range(sampling_ratio)
        )
        flat = [tf.shape(start)[0], output_size, 2 * sampling_ratio]
        return AxisTaps(tf.reshape(pixel, flat), tf.reshape(weight, flat), samples, 2 * samples)

    samples = adaptive_samples(start, end, output_size)  # [n]
    # Without RoIs the maximum is the lowest int.
    most_samples = tf.maximum(tf.reduce_max(samples), 1)
    pixel, weight = interpolate(start, end, limit, output_size, samples, tf.range(most_samples))
    # These samples lie at most one pixel apart, so g of them touch at most g + 1 neighbouring
    # pixels, whose weights are added up. A sample that rounding moves past the last of them has a
    # weight of rounding size there.
    first = pixel[:, :, 0, 0]  # [n, P]
    tap = pixel - first[:, :, None, None]  # [n, P, g, 2]
    tap = tf.minimum(tap, samples[:, None, None, None])
    cell = tf.reshape(tf.range(tf.size(first)), tf.shape(first))  # [n, P]
    most_taps = most_samples + 1
    weight = tf.math.unsorted_segment_sum(
        weight, cell[:, :, None, None] * most_taps + tap, tf.size(first) * most_taps
    )
    pixel = first[:, :, None] + tf.range(most_taps)  # [n, P, T]
    pixel = tf.minimum(pixel, limit[:, None, None] - 1)
    return AxisTaps(pixel, tf.reshape(weight, tf.shape(pixel)), samples, samples + 1)


def adaptive_samples(start: tf.Tensor, end: tf.Tensor, output_size: int) -> tf.Tensor:
    """[n] int32 samples per output cell with sampling ratio 0: ceil(RoI side / P), at least 1."""
    return tf.maximum(tf.cast(tf.math.ceil((end - start) / output_size), tf.int32), 1)


def interpolate(
    start: tf.Tensor,
    end: tf.Tensor,
    limit: tf.Tensor,
    output_size: int,
    samples: tf.Tensor,
    chosen: tf.Tensor,
) -> Tuple[tf.Tensor, tf.Tensor]:
    """Linear interpolation at some of the samples of every output cell.

    Args:
      start, end, limit, output_size: as in `axis_taps`.
      samples: [n] int32 samples per output cell of each RoI.
      chosen: [g] int32 the samples wanted, counted from 0; those a RoI does not have get no weight.

    Returns:
      pixel [n, P, g, 2] int32 and weight [n, P, g, 2] of the two neighbours of each sample.
    """
    dtype = start.dtype
    cell = ((end - start) / output_size)[:, None]  # [n, 1]
    cell_start = start[:, None] + tf.range(output_size, dtype=dtype) * cell  # [n, P]
    samples = samples[:, None, None]  # [n, 1, 1]
    offset = (tf.cast(chosen, dtype) + 0.5) * cell[..., None] / tf.cast(samples, dtype)
    position = cell_start[..., None] + offset  # [n, P, g]
    last = tf.cast(limit - 1, dtype)[:, None, None]
    # A sample counts up to one pixel outside the map; there it takes the border's value.
    counts = (position >= -1.0) & (position <= last + 1.0) & (chosen < samples)
    position = tf.clip_by_value(position, 0.0, last)
    low = tf.floor(position)
    upper = position - low
    pixel = tf.cast(tf.stack([low, tf.minimum(low + 1.0, last)], axis=-1), tf.int32)
    weight = tf.where(counts[..., None], tf.stack([1.0 - upper, upper], axis=-1), 0.0)
    return pixel, weight
