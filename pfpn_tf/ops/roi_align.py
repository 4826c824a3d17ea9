"""RoIAlign on one feature map or a feature pyramid (Detectron2's ROIAlignV2: half-pixel aligned).

Shapes: B images · Hl, Wl size of a level · C channels · R RoIs per image · n = B * R · P output
size · T taps of an output cell per axis · S rows of a table of feature vectors.

Bilinear sampling and averaging are both linear and separable, so an output cell is a weighted sum
of at most T x T feature vectors whose weights are products of a row weight and a column weight.
Both are computed per axis, and a level is pooled by one sparse matrix product.
"""

import math
from typing import Dict, NamedTuple, Optional, Tuple

import tensorflow as tf

from pfpn_tf.ops import boxes as box_ops

# A square RoI of this side goes to the level of stride 2**4 (FPN paper, equation 1).
CANONICAL_SIZE_PX = 224.0
CANONICAL_LEVEL = 4


class AxisTaps(NamedTuple):
    """Weights of one axis: the samples in output cell p of RoI i sum to sum_t weight[i, p, t] *
    line[pixel[i, p, t]].

    Attributes:
      pixel: [n, P, T] int32.
      weight: [n, P, T]; zero in unused taps.
      samples: [n] int32 samples per output cell.
      num_taps: [n] int32 leading taps in use, or None if all are.
    """

    pixel: tf.Tensor
    weight: tf.Tensor
    samples: tf.Tensor
    num_taps: Optional[tf.Tensor]


def roi_levels(boxes: tf.Tensor, rule: str = "detectron2") -> tf.Tensor:
    """The pyramid level of each RoI, by the square root of its area.

    Args:
      boxes: [..., 4] yxyx pixels of the network input.
      rule: whose rounding decides at sides of 112, 224 and 448: "detectron2" or "mmdetection".

    Returns:
      [...] int32 in 2..5.
    """
    side = tf.sqrt(tf.nn.relu(box_ops.area(boxes)))

    def log2(x):  # as exact as the dtype can say
        return tf.cast(tf.math.log(tf.cast(x, tf.float64)) / math.log(2.0), x.dtype)

    if rule == "mmdetection":
        level = tf.floor(log2(side / (CANONICAL_SIZE_PX / 4) + 1e-6)) + (CANONICAL_LEVEL - 2)
    else:
        level = tf.floor(CANONICAL_LEVEL + log2(side / CANONICAL_SIZE_PX + 1e-8))
    return tf.cast(tf.clip_by_value(level, 2, 5), tf.int32)


def multilevel_roi_align(
    pyramid: Dict[str, tf.Tensor],
    boxes: tf.Tensor,
    output_size: int,
    sampling_ratio: int,
    for_xla: bool = False,
    level_rule: str = "detectron2",
) -> tf.Tensor:
    """Pools each RoI from the pyramid level of its size.

    Args:
      pyramid: "p2".."p5", level l with stride 2**l: [B, Hl, Wl, C]. Other levels ("p6") are
        ignored.
      boxes: [B, R, 4] yxyx pixels of the network input; zeros in padded rows.
      output_size: P.
      sampling_ratio: samples per output cell and axis; 0: ceil(RoI side / P), for each RoI and
        axis.
      for_xla: sums of gathered rows, which XLA can compile if `sampling_ratio` is not 0, instead of
        a sparse matrix product per level, which takes a quarter of the time outside XLA.
      level_rule: as `roi_levels`.

    Returns:
      [B, R, P, P, C] in the features' type. Differentiable in the features alone.
    """
    levels = [pyramid[f"p{level}"] for level in range(2, 6)]
    level_index = tf.reshape(roi_levels(boxes, level_rule) - 2, [-1])  # [B, R] -> [n]
    return _pool(levels, [4, 8, 16, 32], level_index, boxes, output_size, sampling_ratio, for_xla)


def roi_align(
    features: tf.Tensor,
    boxes: tf.Tensor,
    output_size: int,
    sampling_ratio: int,
    stride: int = 1,
    for_xla: bool = False,
) -> tf.Tensor:
    """Pools each RoI from one feature map.

    Args:
      features: [B, Hl, Wl, C].
      boxes: [B, R, 4] yxyx pixels of the network input.
      output_size, sampling_ratio, for_xla: as in `multilevel_roi_align`.
      stride: pixels of the network input per feature cell.

    Returns:
      [B, R, P, P, C] in the features' type. Differentiable in the features alone.
    """
    level_index = tf.zeros([tf.size(boxes) // 4], tf.int32)
    return _pool([features], [stride], level_index, boxes, output_size, sampling_ratio, for_xla)


def _pool(levels, strides, level_index, boxes, output_size, sampling_ratio, for_xla):
    """`levels` [B, Hl, Wl, C] each, `level_index` [n] into them; returns [B, R, P, P, C]."""
    pool = _pool_levels_gather if for_xla else _pool_levels_sparse
    batch, rois = tf.unstack(tf.shape(boxes)[:2])
    channels = levels[0].shape[-1]
    image = tf.repeat(tf.range(batch), rois)  # [n]
    boxes = tf.stop_gradient(tf.reshape(boxes, [-1, 4]))  # [B, R, 4] -> [n, 4]
    pooled = pool(levels, strides, level_index, image, boxes, output_size, sampling_ratio)
    pooled = tf.reshape(pooled, [batch, rois, output_size, output_size, channels])
    return tf.cast(pooled, levels[0].dtype)


def _sum_dtype(levels):
    return tf.float64 if levels[0].dtype == tf.float64 else tf.float32


def _pool_levels_sparse(levels, strides, level_index, image, boxes, output_size, sampling_ratio):
    """A sparse product per level: each runs on one thread, the levels run side by side."""
    dtype = _sum_dtype(levels)
    level_hw = tf.stack([tf.shape(level)[1:3] for level in levels])  # [levels, 2]
    hw = tf.gather(level_hw, level_index)  # [n, 2]
    # The taps of all levels at once: per level they would be most of the graph.
    rows, columns = _taps(
        boxes / tf.gather(tf.constant(strides, boxes.dtype), level_index)[:, tf.newaxis],
        hw,
        image * hw[:, 0] * hw[:, 1],
        output_size,
        sampling_ratio,
        dtype,
    )
    rois, pooled = [], []
    for index, level in enumerate(levels):
        members = tf.cast(tf.where(level_index == index)[:, 0], tf.int32)  # [n of this level]
        table = tf.cast(tf.reshape(level, [-1, level.shape[-1]]), dtype)  # [B, Hl, Wl, C] -> [S, C]
        product = _pool_sparse(table, _taps_of(rows, members), _taps_of(columns, members))
        rois.append(members)
        pooled.append(tf.reshape(product, [-1, output_size**2 * level.shape[-1]]))
    return pooled[0] if len(levels) == 1 else tf.dynamic_stitch(rois, pooled)  # [n, P*P*C]


def _taps_of(taps, members):
    """The `AxisTaps` of some of the RoIs."""
    return AxisTaps(*(None if value is None else tf.gather(value, members) for value in taps))


def _pool_levels_gather(levels, strides, level_index, image, boxes, output_size, sampling_ratio):
    """All levels in one table: no shape depends on how the RoIs spread over them."""
    dtype = _sum_dtype(levels)
    batch, channels = tf.shape(levels[0])[0], levels[0].shape[-1]
    table = tf.concat([tf.reshape(level, [batch, -1, channels]) for level in levels], axis=1)
    table = tf.cast(tf.reshape(table, [-1, channels]), dtype)  # [B, sum of Hl*Wl, C] -> [S, C]
    level_hw = tf.stack([tf.shape(level)[1:3] for level in levels])  # [levels, 2]
    cells = tf.math.reduce_prod(level_hw, axis=1)  # [levels]
    first_cell = image * tf.reduce_sum(cells) + tf.gather(
        tf.cumsum(cells, exclusive=True), level_index
    )
    roi_strides = tf.gather(tf.constant(strides, boxes.dtype), level_index)  # [n]
    rows, columns = _taps(
        boxes / roi_strides[:, tf.newaxis],
        tf.gather(level_hw, level_index),
        first_cell,
        output_size,
        sampling_ratio,
        dtype,
    )
    return _pool_gather(table, rows, columns)


def _taps(boxes, hw, first_cell, output_size, sampling_ratio, dtype):
    """Taps of both axes.

    Args:
      boxes: [n, 4] in cells of their feature map.
      hw: [n, 2] or [1, 2] int32 size of it.
      first_cell: [n] int32 table row of its cell (0, 0).
      dtype: of the weights.

    Returns:
      `AxisTaps` of the rows, whose `pixel` is the table row of the line's first cell, and of the
      columns. The weights of an output cell sum to 1.
    """
    boxes = boxes - 0.5
    axes = []
    for axis in (0, 1):
        taps = axis_taps(
            boxes[:, axis], boxes[:, axis + 2], hw[:, axis], output_size, sampling_ratio
        )
        mean = taps.weight / tf.cast(taps.samples, boxes.dtype)[:, tf.newaxis, tf.newaxis]
        axes.append(taps._replace(weight=tf.cast(mean, dtype)))
    rows, columns = axes
    line = first_cell[:, tf.newaxis, tf.newaxis] + rows.pixel * hw[:, 1, tf.newaxis, tf.newaxis]
    return rows._replace(pixel=line), columns


def axis_taps(
    start: tf.Tensor, end: tf.Tensor, limit: tf.Tensor, output_size: int, sampling_ratio: int
) -> AxisTaps:
    """Samples and interpolation along one axis.

    Args:
      start, end: [n] RoI borders in feature cells, already moved by the half pixel.
      limit: [n] or [1] int32 size of the feature map.
      output_size, sampling_ratio: as in `multilevel_roi_align`.

    Returns:
      `AxisTaps`.
    """
    adaptive = sampling_ratio == 0
    if adaptive:
        samples = adaptive_samples(start, end, output_size)  # [n]
        most_samples = tf.maximum(
            tf.reduce_max(samples), 1
        )  # of an empty tensor it is the lowest int
    else:
        samples = tf.fill(tf.shape(start), sampling_ratio)
        most_samples = sampling_ratio
    pixel, weight = interpolate(start, end, limit, output_size, samples, tf.range(most_samples))
    if not adaptive:
        flat = [tf.shape(start)[0], output_size, 2 * sampling_ratio]
        return AxisTaps(tf.reshape(pixel, flat), tf.reshape(weight, flat), samples, None)

    # Adaptive samples lie at most one pixel apart: g of them touch at most g + 1 neighbouring
    # pixels. Their weights are added up per pixel. (A sample that rounding moves past the last of
    # these has a weight of rounding size there.)
    first = pixel[:, :, 0, 0]  # [n, P]
    tap = tf.minimum(
        pixel - first[..., tf.newaxis, tf.newaxis], samples[:, tf.newaxis, tf.newaxis, tf.newaxis]
    )
    num_cells, most_taps = tf.size(first), most_samples + 1
    segment = (
        tf.reshape(tf.range(num_cells), tf.shape(first))[..., tf.newaxis, tf.newaxis] * most_taps
        + tap
    )
    weight = tf.math.unsorted_segment_sum(weight, segment, num_cells * most_taps)  # [n*P*T]
    weight = tf.reshape(weight, [-1, output_size, most_taps])
    pixel = tf.minimum(
        first[..., tf.newaxis] + tf.range(most_taps), limit[:, tf.newaxis, tf.newaxis] - 1
    )
    return AxisTaps(pixel, weight, samples, samples + 1)


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
    """Linear interpolation at some of the samples of every output cell of one axis.

    Args:
      start, end, limit, output_size: as in `axis_taps`.
      samples: [n] int32 samples per output cell of each RoI.
      chosen: [c] int32 the samples wanted, counted from 0; those a RoI does not have get no weight.

    Returns:
      pixel [n, P, c, 2] int32 and weight [n, P, c, 2] of the two neighbours of each sample.
    """
    cell = ((end - start) / output_size)[:, tf.newaxis]  # [n, 1]
    cell_start = start[:, tf.newaxis] + tf.range(output_size, dtype=start.dtype) * cell  # [n, P]
    samples = samples[:, tf.newaxis, tf.newaxis]  # [n, 1, 1]
    offset = (
        (tf.cast(chosen, start.dtype) + 0.5) * cell[..., tf.newaxis] / tf.cast(samples, start.dtype)
    )
    position = cell_start[..., tf.newaxis] + offset  # [n, P, c]
    last = tf.cast(limit - 1, start.dtype)[:, tf.newaxis, tf.newaxis]
    # A sample counts up to one pixel outside the map; there it takes the border's value.
    counts = (position >= -1.0) & (position <= last + 1.0) & (chosen < samples)
    position = tf.clip_by_value(position, 0.0, last)
    low = tf.floor(position)
    upper = position - low
    pixel = tf.cast(tf.stack([low, tf.minimum(low + 1.0, last)], axis=-1), tf.int32)
    weight = tf.where(counts[..., tf.newaxis], tf.stack([1.0 - upper, upper], axis=-1), 0.0)
    return pixel, weight


def _pool_sparse(table, rows, columns):
    """Pools by one sparse [n*P*P, S] matrix with a non-zero per tap; returns [n*P*P, C]."""
    if rows.num_taps is None:
        row, column, value = _all_taps(rows, columns)
    else:
        row, column, value = _used_taps(rows, columns)
    num_outputs = tf.size(rows.pixel[:, :, 0]) * tf.shape(columns.pixel)[1]
    shape = tf.cast([num_outputs, tf.shape(table)[0]], tf.int64)
    indices = tf.stack([tf.cast(row, tf.int64), tf.cast(column, tf.int64)], axis=-1)
    weights = tf.SparseTensor(indices, value, shape)

    # The product's own gradient would also build that of the weights, which takes gigabytes.
    @tf.custom_gradient
    def product(dense):
        def gradient(upstream):
            return tf.sparse.sparse_dense_matmul(weights, upstream, adjoint_a=True)

        return tf.sparse.sparse_dense_matmul(weights, dense), gradient

    return product(table)


def _all_taps(rows, columns):
    """Output row, table row and weight of all taps: 3 x [n*P*P*T*T]."""
    n, size, taps = tf.unstack(tf.shape(rows.pixel))
    pixel = (
        rows.pixel[:, :, tf.newaxis, :, tf.newaxis] + columns.pixel[:, tf.newaxis, :, tf.newaxis, :]
    )  # [n, P, P, T, T]
    value = (
        rows.weight[:, :, tf.newaxis, :, tf.newaxis]
        * columns.weight[:, tf.newaxis, :, tf.newaxis, :]
    )
    output = tf.repeat(tf.range(n * size * size), taps * taps)
    return output, tf.reshape(pixel, [-1]), tf.reshape(value, [-1])


def _used_taps(rows, columns):
    """As `_all_taps`, without the padding of RoIs that need fewer taps than the largest one."""
    row_tap = _Compact(rows)
    column_tap = _Compact(columns)
    # Each tap of a row cell meets all column taps of the same RoI, which follow each other.
    meets = tf.gather(column_tap.per_roi, row_tap.roi)  # [row taps]
    total = tf.reduce_sum(meets)
    row_index = tf.repeat(tf.range(tf.size(meets)), meets)  # [total]
    shift = tf.gather(column_tap.first_of_roi, row_tap.roi) - tf.cumsum(meets, exclusive=True)
    column_index = tf.range(total) + tf.gather(shift, row_index)  # [total]
    size = tf.shape(columns.pixel)[1]
    output = tf.gather(row_tap.cell * size, row_index) + tf.gather(
        column_tap.cell % size, column_index
    )
    pixel = tf.gather(row_tap.pixel, row_index) + tf.gather(column_tap.pixel, column_index)
    value = tf.gather(row_tap.weight, row_index) * tf.gather(column_tap.weight, column_index)
    return output, pixel, value


class _Compact:
    """The used taps of an axis in one list, in the order RoI, cell, tap.

    Attributes:
      roi, cell, pixel, weight: [taps] of each tap; `cell` counts through all RoIs.
      per_roi, first_of_roi: [n] number of taps of a RoI and the index of its first one.
    """

    def __init__(self, axis):
        size, most_taps = tf.unstack(tf.shape(axis.pixel)[1:])
        used = tf.range(most_taps) < axis.num_taps[:, tf.newaxis, tf.newaxis]  # [n, 1, T]
        used = tf.where(tf.broadcast_to(used, tf.shape(axis.pixel)))  # [taps, 3]
        self.roi = tf.cast(used[:, 0], tf.int32)
        self.cell = self.roi * size + tf.cast(used[:, 1], tf.int32)
        self.pixel = tf.gather_nd(axis.pixel, used)
        self.weight = tf.gather_nd(axis.weight, used)
        self.per_roi = axis.num_taps * size
        self.first_of_roi = tf.cumsum(self.per_roi, exclusive=True)


def _pool_gather(table, rows, columns):
    """Pools by adding one gathered and weighted feature vector per tap; returns [n*P*P, C]."""

    def tap(i, j):
        """Table row [n*P*P] and weight [n*P*P, 1] of row tap i and column tap j."""
        pixel = rows.pixel[:, :, tf.newaxis, i] + columns.pixel[:, tf.newaxis, :, j]
        weight = rows.weight[:, :, tf.newaxis, i] * columns.weight[:, tf.newaxis, :, j]
        return tf.reshape(pixel, [-1]), tf.reshape(weight, [-1, 1])

    row_taps, column_taps = tf.shape(rows.pixel)[2], tf.shape(columns.pixel)[2]
    num_outputs = tf.size(rows.pixel[:, :, 0]) * tf.shape(columns.pixel)[1]

    def for_all_taps(body, start):
        """Adds body(sum, row, weight) over all taps."""

        def step(t, total):
            return t + 1, body(total, *tap(t // column_taps, t % column_taps))

        def more(t, _):
            return t < row_taps * column_taps

        return tf.while_loop(more, step, (0, start), parallel_iterations=1)[1]

    @tf.custom_gradient
    def product(dense):
        def gradient(upstream):
            return for_all_taps(
                lambda total, row, weight: tf.tensor_scatter_nd_add(
                    total, row[:, tf.newaxis], upstream * weight
                ),
                tf.zeros_like(dense),
            )

        pooled = for_all_taps(
            lambda total, row, weight: total + tf.gather(dense, row) * weight,
            tf.zeros([num_outputs, dense.shape[-1]], dense.dtype),
        )
        return pooled, gradient

    return product(table)
