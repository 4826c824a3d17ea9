"""RoIAlign on a feature pyramid.

An output cell is a weighted sum of at most T x T feature vectors, and their weights are products of
a row weight and a column weight (see `axis_taps`). Each level is pooled by one sparse matrix
product. XLA has no such product: for XLA a loop over the taps adds gathered vectors, which takes
four times as long elsewhere.

Shapes: B images · Hl, Wl size of a level · C channels · R RoIs per image · n = B * R · P output
size · T taps of an output cell per axis · S rows of a table of feature vectors.
"""

import math
from typing import Dict

import tensorflow as tf

from pfpn_tf.ops import boxes as box_ops
from pfpn_tf.ops.axis_taps import AxisTaps, axis_taps
from pfpn_tf.utils.scopes import custom_gradient, in_scope

# A square RoI of this side goes to the level of stride 2**4 (FPN paper, equation 1).
CANONICAL_SIZE_PX = 224.0
CANONICAL_LEVEL = 4

_LEVELS = (2, 3, 4, 5)


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
    return tf.cast(tf.clip_by_value(level, _LEVELS[0], _LEVELS[-1]), tf.int32)


@in_scope("roi_align")
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
      for_xla: whether XLA compiles it, which needs a `sampling_ratio` other than 0.
      level_rule: as `roi_levels`.

    Returns:
      [B, R, P, P, C] in the features' type. Differentiable in the features alone.
    """
    levels = [pyramid[f"p{level}"] for level in _LEVELS]
    dtype, channels = levels[0].dtype, levels[0].shape[-1]
    batch, num_rois = tf.unstack(tf.shape(boxes)[:2])
    boxes = tf.stop_gradient(tf.reshape(boxes, [-1, 4]))  # [B, R, 4] -> [n, 4]
    level_index = roi_levels(boxes, level_rule) - _LEVELS[0]  # [n]
    hw = tf.gather([tf.shape(level)[1:3] for level in levels], level_index)  # [n, 2]
    stride = tf.gather(tf.constant([2.0**level for level in _LEVELS], boxes.dtype), level_index)
    image = tf.repeat(tf.range(batch), num_rois)  # [n]

    sum_dtype = tf.float64 if dtype == tf.float64 else tf.float32
    tables = [tf.cast(tf.reshape(level, [-1, channels]), sum_dtype) for level in levels]
    # The taps of all levels and both axes at once: one by one they would be most of the graph.
    borders = tf.split(boxes / stride[:, None] - 0.5, 2, axis=1)  # 2 x [n, 2]
    start, end, limit = (tf.reshape(tf.transpose(x), [-1]) for x in (*borders, hw))  # 3 x [2n]
    taps = axis_taps(start, end, limit, output_size, sampling_ratio)
    # The samples' mean in place of their sum.
    taps = taps._replace(weight=taps.weight / tf.cast(taps.samples, start.dtype)[:, None, None])
    rows, columns = (AxisTaps(*parts) for parts in zip(*(tf.split(x, 2) for x in taps)))
    # From here on a row's pixel is the place of its first feature vector in the level's table.
    first = (image * hw[:, 0])[:, None, None]
    rows = rows._replace(pixel=(first + rows.pixel) * hw[:, 1, None, None])
    pool = _pool_by_loop if for_xla else _pool_by_sparse_product
    pooled = pool(tables, level_index, rows, columns)  # [n, P, P, C]
    pooled = tf.reshape(pooled, [batch, num_rois, output_size, output_size, channels])
    return tf.cast(pooled, dtype)


def _pool_by_sparse_product(tables, level_index, rows, columns):
    """A product per level: each runs on one thread, the levels run side by side.

    Args:
      tables: the feature vectors [S, C] of each level.
      level_index: [n] into `tables`.
      rows, columns: `AxisTaps` whose pixels add up to a row of the table.

    Returns:
      [n, P, P, C].
    """
    # The RoIs of a level stand together, so that its matrix is a part of the list of all.
    order = tf.argsort(level_index, stable=True)  # [n]
    level_index, rows, columns = tf.nest.map_structure(
        lambda x: tf.gather(x, order), (level_index, rows, columns)
    )
    levels = tf.range(len(tables))
    num_rois = tf.math.count_nonzero(level_index[:, None] == levels, 0, dtype=tf.int32)
    first_roi = tf.gather(tf.cumsum(num_rois, exclusive=True), level_index)
    output_row = tf.range(tf.size(order)) - first_roi  # [n] place of a RoI in its level
    num_pairs = tf.math.unsorted_segment_sum(
        rows.num_taps * columns.num_taps, level_index, len(tables)
    )
    indices, weights = _matrix(output_row, rows, columns, tables[0].dtype)
    size = rows.pixel.shape[1]
    parts = zip(
        tables,
        tf.split(indices, num_pairs * size * size, num=len(tables)),
        tf.split(weights, num_pairs * size * size, num=len(tables)),
        tf.unstack(num_rois),
    )
    pooled = [
        tf.reshape(
            _product(*matrix, count * size * size, table), [count, size, size, table.shape[-1]]
        )
        for table, *matrix, count in parts
    ]
    return tf.dynamic_stitch(tf.split(order, num_rois, num=len(tables)), pooled)


def _matrix(output_row, rows, columns, dtype):
    """The matrix that pools RoIs: a non-zero for each pair of a row tap and a column tap.

    Args:
      output_row: [n] place of each RoI among the outputs.
      rows, columns: `AxisTaps`.
      dtype: of the weights.

    Returns:
      indices [m P P, 2] int64 and weights [m P P], for m pairs, RoI by RoI.
    """
    size = rows.pixel.shape[1]

    def in_use(taps):
        return tf.range(tf.shape(taps.pixel)[2]) < taps.num_taps[:, None]  # [n, T]

    pairs = tf.where(in_use(rows)[:, :, None] & in_use(columns)[:, None])
    roi, row_tap, column_tap = tf.unstack(pairs, axis=1)  # 3 x [m]
    of_row, of_column = tf.stack([roi, row_tap], 1), tf.stack([roi, column_tap], 1)

    def outer(name, combine):
        """Combines row and column for all P x P cells of the pairs. [m, P, P]"""
        row = tf.gather_nd(tf.transpose(getattr(rows, name), [0, 2, 1]), of_row)
        column = tf.gather_nd(tf.transpose(getattr(columns, name), [0, 2, 1]), of_column)
        return combine(row[:, :, None], column[:, None, :])

    cell = tf.reshape(tf.range(size * size), [size, size])
    output = tf.gather(output_row * (size * size), roi)[:, None, None] + cell  # [m, P, P]
    indices = tf.reshape(tf.stack([output, outer("pixel", tf.add)], -1), [-1, 2])
    weights = tf.reshape(outer("weight", tf.multiply), [-1])
    return tf.cast(indices, tf.int64), tf.cast(weights, dtype)


def _product(indices, weights, num_outputs, table):
    """Multiplies a sparse matrix of `num_outputs` rows with a table [S, C]."""
    shape = tf.cast([num_outputs, tf.shape(table)[0]], tf.int64)
    matrix = tf.SparseTensor(indices, weights, shape)

    # The product's own gradient would also build that of the weights, which takes gigabytes.
    @custom_gradient
    def product(dense):
        def gradient(upstream):
            return tf.sparse.sparse_dense_matmul(matrix, upstream, adjoint_a=True)

        return tf.sparse.sparse_dense_matmul(matrix, dense), gradient

    return product(table)


def _pool_by_loop(tables, level_index, rows, columns):
    """As `_pool_by_sparse_product`; no shape depends on how the RoIs spread over the levels."""
    sizes = tf.stack([tf.shape(table)[0] for table in tables])
    start = tf.gather(tf.cumsum(sizes, exclusive=True), level_index)[:, None, None]
    rows = rows._replace(pixel=rows.pixel + start)
    row_taps, column_taps = tf.shape(rows.pixel)[2], tf.shape(columns.pixel)[2]

    def for_all_taps(add, total):
        """Applies total = add(total, place [n, P, P], weight [n, P, P, 1]) to all pairs of taps."""

        def step(t, total):
            i, j = t // column_taps, t % column_taps
            place = rows.pixel[:, :, None, i] + columns.pixel[:, None, :, j]
            weight = rows.weight[:, :, None, i] * columns.weight[:, None, :, j]
            return t + 1, add(total, place, tf.cast(weight[..., None], total.dtype))

        return tf.while_loop(
            lambda t, _: t < row_taps * column_taps, step, (0, total), parallel_iterations=1
        )[1]

    @custom_gradient
    def pool(dense):
        def gradient(upstream):
            return for_all_taps(
                lambda total, place, weight: tf.tensor_scatter_nd_add(
                    total, place[..., None], upstream * weight
                ),
                tf.zeros_like(dense),
            )

        cells = tf.concat([tf.shape(rows.pixel)[:2], tf.shape(columns.pixel)[1:2]], 0)
        pooled = for_all_taps(
            lambda total, place, weight: total + tf.gather(dense, place) * weight,
            tf.zeros(tf.concat([cells, [dense.shape[-1]]], 0), dense.dtype),
        )
        return pooled, gradient

    return pool(tf.concat(tables, 0))
