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
from pfpn_tf.postprocess.segment_table import segment_table
from pfpn_tf.postprocess.semantic_labels import semantic_labels


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
      tables: `FusionTables`.
      score_threshold, overlap_threshold, stuff_area_threshold_px: the settings `fusion_*`.
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
    return segment_table(
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
