"""Panoptic fusion (section 3.1 of the paper, "Panoptic inference"), in graph, at the original size.

Shapes: B images · D detections · P mask size · S semantic classes · h4, w4 padded size / 4 ·
h, w original size · N = D + S rows of the segment table.

Instances enter by falling score; each takes the free pixels of its mask, unless too much of the
mask is taken already. Stuff fills what is left, small regions become void. Two things keep this
fast and small:

* The semantic logits never exist at full size: tiles are interpolated by two small matrix products
  and reduced to labels at once, and only for classes that can win there.
* Each instance touches only the window of its box, on a canvas of one byte a pixel.

With a GPU, instances are still fused by the CPU: the loop asks for sizes and counts at every turn,
and a GPU would wait for each. Semantic labels are the GPU's, strip by strip with all classes.

Ties: of equal semantic logits the lowest class wins; a mask value of exactly 0.5 is inside.
"""

from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.postprocess import instances

SEMANTIC_STRIDE = 4
# Small enough that few classes matter in a tile, large enough that its work outweighs the calls.
TILE_ROWS, TILE_COLUMNS = 64, 64
# Of a strip that a GPU labels at once: half a GiB in all for 54 classes.
STRIP_PIXELS = 2**18


class FusionTables(NamedTuple):
    """From the network's classes to the dataset's category ids.

    Attributes:
      thing_category_ids: [K] int32 by class id.
      stuff_category_ids: [S] int32 by semantic class; -1 where the class is no stuff (the class of
        all things, or each thing class when the branch predicts all classes).
    """

    thing_category_ids: np.ndarray
    stuff_category_ids: np.ndarray


def fusion_tables(info, semantic_targets: str) -> FusionTables:
    """`FusionTables` of a dataset.

    Args:
      info: `DatasetInfo`.
      semantic_targets: "other" or "all", as the network was trained.
    """
    categories = info.semantic_category_ids(semantic_targets)
    stuff = np.where(info.semantic_is_thing(semantic_targets), -1, categories)
    return FusionTables(np.asarray(info.thing_category_ids, np.int32), stuff.astype(np.int32))


def panoptic_fusion(
    outputs: structures.InferenceOutputs,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    tables: FusionTables,
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold_px: int,
) -> structures.PanopticResult:
    """Panoptic maps of a batch whose images may differ in size.

    Args:
      outputs: of the network; a branch it lacks contributes nothing.
      image_hw: [B, 2] int content size in the network input.
      original_hw: [B, 2] int.
      tables: `FusionTables`.
      score_threshold, overlap_threshold, stuff_area_threshold_px: the settings `fusion_*`.

    Returns:
      `PanopticResult` with a leading B; maps are padded with 0 on the right and at the bottom to
      the largest original size of the batch.
    """
    padded_hw = tf.reduce_max(original_hw, 0)

    def fuse_one(image_outputs, hw, full_hw):
        result = fuse_image(
            image_outputs,
            hw,
            full_hw,
            tables,
            score_threshold,
            overlap_threshold,
            stuff_area_threshold_px,
        )
        rest = padded_hw - full_hw
        return result._replace(
            panoptic_ids=tf.pad(result.panoptic_ids, [[0, rest[0]], [0, rest[1]]])
        )

    return map_images(fuse_one, outputs, image_hw, original_hw, result_signature(outputs))


def map_images(function, outputs, image_hw, original_hw, signature):
    """Applies `function(image_outputs, image_hw, original_hw)` to each image of a batch.

    Args:
      function: takes `InferenceOutputs` without the batch axis and two [2] int32 sizes; returns a
        structure whose tensors have one shape over the batch.
      outputs: batched `InferenceOutputs`; branches may be None.
      image_hw: [B, 2]. original_hw: [B, 2].
      signature: structure of `tf.TensorSpec` that `function` returns.

    Returns:
      The structure, stacked.
    """
    absent = [value is None for value in outputs]
    elements = (
        tuple(() if none else value for none, value in zip(absent, outputs)),
        tf.cast(image_hw, tf.int32),
        tf.cast(original_hw, tf.int32),
    )

    def apply(element):
        parts, hw, full_hw = element
        parts = [None if none else part for none, part in zip(absent, parts)]
        return function(structures.InferenceOutputs(*parts), hw, full_hw)

    return tf.map_fn(apply, elements, fn_output_signature=signature)


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


def fuse_image(
    outputs: structures.InferenceOutputs,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    tables: FusionTables,
    score_threshold: float,
    overlap_threshold: float,
    stuff_area_threshold_px: int,
    labels: Optional[tf.Tensor] = None,
    for_gpu: bool = False,
) -> structures.PanopticResult:
    """The panoptic map of one image.

    Args:
      outputs: `InferenceOutputs` without the batch axis.
      image_hw: [2] int32. original_hw: [2] int32.
      tables, score_threshold, overlap_threshold, stuff_area_threshold_px: as `panoptic_fusion`.
      labels: [h, w] from `semantic_labels`, if the caller has them already.
      for_gpu: as `semantic_labels`, for the labels that the caller does not have.

    Returns:
      `PanopticResult` of one image. Ids run from 1: instances by falling score, then stuff by
      class.
    """
    detections = outputs.detections
    width = detections.scores.shape[0] if detections is not None else 0
    if detections is None:
        canvas = tf.zeros(original_hw, tf.uint8)
    else:
        with tf.device("CPU:0"):
            canvas = instance_canvas(
                detections, image_hw, original_hw, score_threshold, overlap_threshold
            )
    if labels is None and outputs.semantic_logits is not None:
        labels = semantic_labels(outputs.semantic_logits, image_hw, original_hw, for_gpu)
    codes = tf.cast(canvas, tf.int32)  # [h, w]: 0 free, 1..D detections
    stuff_category_ids = np.zeros(0, np.int32)
    if labels is not None:
        stuff_category_ids = tables.stuff_category_ids
        codes = tf.where(codes > 0, codes, width + 1 + tf.cast(labels, tf.int32))  # D + 1 + class
    return _segment_table(
        codes, detections, tables.thing_category_ids, stuff_category_ids, stuff_area_threshold_px
    )


def instance_canvas(
    detections: structures.Detections,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    score_threshold: float,
    overlap_threshold: float,
) -> tf.Tensor:
    """Which instance owns each pixel of one image.

    Args:
      detections: of one image, by falling score.
      image_hw: [2] int32. original_hw: [2] int32.
      score_threshold: instances below it are left out.
      overlap_threshold: an instance with more than this share of its mask taken is left out.

    Returns:
      [h, w] uint8 (uint16 above 255 detections): 1 + index of the detection, 0 where free.
    """
    width = detections.scores.shape[0]
    dtype = tf.uint8 if width < 256 else tf.uint16
    # Writing a window of an array costs per element, whatever its size: a word of 8 bytes holds
    # several pixels. Windows grow to whole words; no mask reaches 0.5 outside the box's own window.
    lanes = tf.int64.size // dtype.size
    boxes = instances.scale_boxes(detections.boxes, image_hw, original_hw)
    windows = instances.box_windows(boxes)  # [D, 4]
    words = (windows + [0, 0, 0, lanes - 1]) // [1, lanes, 1, lanes]
    windows = words * [1, lanes, 1, lanes]
    boxes = tf.cast(boxes, tf.float64)
    probs = instances.mask_probabilities(detections.mask_logits)  # [D, P, P]
    strong = tf.cast(detections.scores, tf.float64) >= score_threshold
    # Scores fall, so the strong ones are the first.
    count = tf.minimum(tf.math.count_nonzero(strong, dtype=tf.int32), detections.num_detections)

    def add_instance(i, canvas):
        word = words[i]
        mask = instances.paste_window(probs[i], boxes[i], windows[i])  # [wh, ww]
        current = tf.bitcast(canvas[word[0] : word[2], word[1] : word[3]], dtype)
        current = tf.reshape(current, tf.shape(mask))
        free = mask & tf.equal(current, 0)
        area, free_area = _count(mask), _count(free)
        # An instance with no free pixel would be a segment without pixels, which the file format
        # forbids; the overlap rule alone lets it pass at a threshold of 1.
        accepted = (free_area > 0) & ((area - free_area) / area <= overlap_threshold)
        updated = tf.where(free & accepted, tf.cast(i + 1, dtype), current)
        updated = tf.reshape(updated, [word[2] - word[0], word[3] - word[1], lanes])
        canvas = tf.raw_ops.TensorStridedSliceUpdate(
            input=canvas,
            begin=word[:2],
            end=word[2:],
            strides=[1, 1],
            value=tf.bitcast(updated, tf.int64),
        )
        return i + 1, canvas

    _, canvas = tf.while_loop(
        lambda i, _: i < count,
        add_instance,
        (0, tf.zeros([original_hw[0], -(-original_hw[1] // lanes)], tf.int64)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
        # The next mask is pasted while this one is counted.
        parallel_iterations=2,
    )
    return tf.reshape(tf.bitcast(canvas, dtype), [original_hw[0], -1])[:, : original_hw[1]]


def _count(mask):
    """Pixels of a [h, w] bool, as float64: float32 row sums stay exact, their total may not."""
    return tf.reduce_sum(tf.cast(tf.reduce_sum(tf.cast(mask, tf.float32), 1), tf.float64))


def _segment_table(
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


def semantic_labels(
    logits: tf.Tensor,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    for_gpu: bool = False,
) -> tf.Tensor:
    """The semantic class of every pixel of one original image.

    The same as: 4x bilinear to the padded size, crop to the content, one bilinear resize to the
    original size (half-pixel centres, no antialiasing), argmax. Both interpolations act on rows and
    columns apart and are linear, so their product is at most three neighbouring logits each way.

    Args:
      logits: [h4, w4, S] float at 1/4 of the padded input; S is static.
      image_hw: [2] int32 content size. original_hw: [2] int32.
      for_gpu: few large operations, as a GPU wants them, in place of many small ones with less
        work in all, which are placed on the CPU. Either runs on any device.

    Returns:
      [h, w] uint8 (uint16 above 254 classes) class with the largest logit, the lowest of equals;
      S where no logit is a number. What else a NaN or an infinity reaches depends on `for_gpu`.
    """
    size = tf.shape(logits)
    rows = _Taps(original_hw[0], image_hw[0], size[0])
    columns = _Taps(original_hw[1], image_hw[1], size[1])
    if for_gpu:
        return _label_strips(logits, rows, columns)
    with tf.device("CPU:0"):
        return _label_tiles(logits, rows, columns)


def _label_dtype(num_classes):
    return tf.uint8 if num_classes < 255 else tf.uint16


def _label_strips(logits, rows, columns):
    """`semantic_labels` in few large operations.

    No matrix products, which a GPU may compute in TF32.
    """
    num_classes = logits.shape[-1]
    dtype = _label_dtype(num_classes)
    falling = tf.range(num_classes, 0, -1, dtype=logits.dtype)
    num_rows = tf.maximum(STRIP_PIXELS // tf.maximum(columns.size, 1), 1)

    def strip(top):
        values = rows.interpolate(logits, top, tf.minimum(top + num_rows, rows.size), axis=0)
        values = columns.interpolate(values, 0, columns.size, axis=1)  # [rows, w, S]
        best = tf.equal(values, tf.reduce_max(values, -1, keepdims=True))
        rank = tf.reduce_max(tf.cast(best, values.dtype) * falling, -1)  # S - class
        return tf.cast(num_classes - tf.cast(rank, tf.int32), dtype)

    return _loop(rows.size, num_rows, strip, dtype)


def _label_tiles(logits, rows, columns):
    """`semantic_labels` tile by tile, with the classes that can win there."""
    num_classes = logits.shape[-1]
    dtype = _label_dtype(num_classes)
    height, width = rows.size, columns.size
    possible = _possible_classes(logits)  # [h4, w4, S]
    # In this layout the gather below copies whole lines, and both products are plain matrix
    # products.
    logits = tf.transpose(logits, [1, 2, 0])  # [w4, S, h4]
    falling = tf.range(num_classes, 0, -1, dtype=logits.dtype)

    def strip(top):
        row_weights, y0, y1 = rows.matrix(top, tf.minimum(top + TILE_ROWS, height), logits.dtype)
        num_rows = tf.shape(row_weights)[0]

        def tile(left):
            right = tf.minimum(left + TILE_COLUMNS, width)
            column_weights, x0, x1 = columns.matrix(left, right, logits.dtype)
            classes = tf.where(tf.reduce_any(possible[y0:y1, x0:x1], [0, 1]))[:, 0]  # [n]
            values = tf.gather(logits[x0:x1], classes, axis=1)[:, :, y0:y1]  # [x, n, y]
            values = tf.matmul(tf.reshape(values, [-1, y1 - y0]), row_weights, transpose_b=True)
            values = tf.matmul(column_weights, tf.reshape(values, [x1 - x0, -1]))
            values = tf.reshape(values, [right - left, -1, num_rows])  # [tile w, n, tile h]
            # max and compare are several times faster than tf.argmax on a CPU
            best = tf.equal(values, tf.reduce_max(values, 1, keepdims=True))
            rank = tf.cast(best, values.dtype) * tf.gather(falling, classes)[:, None]  # S - class
            labels = num_classes - tf.cast(tf.reduce_max(rank, 1), tf.int32)
            return tf.cast(labels, dtype)

        return tf.transpose(_loop(width, TILE_COLUMNS, tile, dtype))  # [tile h, w]

    return _loop(height, TILE_ROWS, strip, dtype)


def _possible_classes(logits):
    """Where each class can be the largest after interpolation; of a photo that is few.

    An interpolated value mixes at most 3x3 neighbouring logits, so it lies between the least and
    the greatest of them. A class whose greatest is below another's least is out.

    Args:
      logits: [h4, w4, S].

    Returns:
      [h4, w4, S] bool for mixtures of each logit and its 8 neighbours; all if one is not finite.
    """

    def greatest_of_3x3(x):
        return tf.nn.max_pool2d(x[None], 3, 1, "SAME")[0]

    bound = tf.reduce_max(-greatest_of_3x3(-logits), -1, keepdims=True)  # [h4, w4, 1]
    # Far more than rounding adds to sums of so few terms. A logit that is not finite makes the
    # bound not a number, and nothing is below that.
    bound -= 1e-5 * tf.reduce_max(tf.abs(logits)) + 0.0 * tf.reduce_sum(logits)
    return ~(greatest_of_3x3(logits) < bound)


class _Taps:
    """One axis of "4x up, crop, resize": which logits each output line needs, and how much.

    Attributes:
      size: n. index: [n, 4] int32 rising. weights: [n, 4] float64, with sum 1.
    """

    def __init__(self, output_size, content_size, logits_size):
        self.size = output_size
        ratio = tf.cast(content_size, tf.float64) / tf.cast(output_size, tf.float64)
        lines = tf.cast(tf.range(output_size), tf.float64)
        low, high, part = _neighbours((lines + 0.5) * ratio - 0.5, content_size)
        index, weights = [], []
        for line, share in ((low, 1.0 - part), (high, part)):
            position = (tf.cast(line, tf.float64) + 0.5) / SEMANTIC_STRIDE - 0.5
            before, after, fraction = _neighbours(position, logits_size)
            index += [before, after]
            weights += [share * (1.0 - fraction), share * fraction]
        self.index = tf.stack(index, -1)
        self.weights = tf.stack(weights, -1)

    def matrix(self, start, end, dtype):
        """Weights of output lines start..end: ([lines, logits], first logit, one past the last)."""
        index = self.index[start:end]
        first, last = index[0, 0], index[-1, -1] + 1
        one_hot = tf.one_hot(index - first, last - first, dtype=tf.float64)  # [lines, 4, logits]
        weights = tf.reduce_sum(one_hot * self.weights[start:end, :, None], 1)
        return tf.cast(weights, dtype), first, last

    def interpolate(self, values, start, end, axis):
        """Output lines start..end of `values`, whose lines along `axis` are those of the logits."""
        index = self.index[start:end]
        weights = tf.cast(self.weights[start:end], values.dtype)
        shape = [1] * len(values.shape)
        shape[axis] = -1
        return tf.add_n(
            [
                tf.gather(values, index[:, tap], axis=axis) * tf.reshape(weights[:, tap], shape)
                for tap in range(index.shape[-1])
            ]
        )


def _neighbours(position, size):
    """The two lines around each position, clamped to the border, and the second one's share."""
    position = tf.clip_by_value(position, 0.0, tf.cast(size - 1, tf.float64))
    low = tf.floor(position)
    high = tf.minimum(low + 1.0, tf.cast(size - 1, tf.float64))
    return tf.cast(low, tf.int32), tf.cast(high, tf.int32), position - low


def _loop(size, step, function, dtype):
    """Concatenates function(0), function(step), ... up to `size` along the first axis."""
    count = (size + step - 1) // step
    parts = tf.TensorArray(dtype, count, element_shape=[None, None], infer_shape=False)
    _, parts = tf.while_loop(
        lambda i, _: i < count,
        lambda i, parts: (i + 1, parts.write(i, function(i * step))),
        (0, parts),
    )
    return parts.concat()
