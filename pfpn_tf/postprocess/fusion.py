"""Panoptic fusion (section 3.1 of the paper, "Panoptic inference"), in graph, at the original size.

The paper's three rules: (1) instances that overlap share the pixels by falling score; (2) an
instance takes its pixels from the stuff below it; (3) stuff labelled "other" or smaller than a
threshold becomes void. `instance_canvas` has the first, `fuse_image` the second and `segment_table`
the third.

Shapes: B images · D detections · S semantic classes · K thing classes · h, w original size ·
wh, ww size of a box's window.

Ties: of equal semantic logits the lowest class wins; a mask value of exactly 0.5 is inside.
"""

from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.postprocess import instances
from pfpn_tf.postprocess.segment_table import segment_table
from pfpn_tf.postprocess.semantic_labels import class_scores, semantic_labels
from pfpn_tf.utils.scopes import in_scope


class FusionSettings(NamedTuple):
    """The categories of the network's classes and the thresholds of the three rules.

    Attributes:
      thing_category_ids: [K] int32 by class id.
      stuff_category_ids: [S] int32 by semantic class; -1 where the class is no stuff (the class of
        all things, or each thing class when the branch predicts all classes).
      score_threshold: instances below it are left out.
      overlap_threshold: an instance with more than this share of its mask taken is left out.
      stuff_area_threshold_px: stuff with fewer pixels is left out.
    """

    thing_category_ids: np.ndarray
    stuff_category_ids: np.ndarray
    score_threshold: float = 0.5
    overlap_threshold: float = 0.5
    stuff_area_threshold_px: int = 4096


def fusion_settings(info, config) -> FusionSettings:
    """Takes the categories from a `DatasetInfo` and the thresholds from the model's settings."""
    categories = info.semantic_category_ids(config.semantic_targets)
    stuff = np.where(info.semantic_is_thing(config.semantic_targets), -1, categories)
    return FusionSettings(
        np.asarray(info.thing_category_ids, np.int32),
        stuff.astype(np.int32),
        config.fusion_score_threshold,
        config.fusion_overlap_threshold,
        config.fusion_stuff_area_threshold_px,
    )


def map_images(function, outputs, image_hw, original_hw, signature, *others):
    """Applies `function(image_outputs, image_hw, original_hw, *others)` to each image of a batch.

    Args:
      function: takes `InferenceOutputs` without the batch axis, two [2] int32 sizes and one value
        of each of the others; returns a structure whose tensors have one shape over the batch.
      outputs: batched `InferenceOutputs`; branches may be None.
      image_hw: [B, 2] int32. original_hw: [B, 2] int32.
      signature: structure of `tf.TensorSpec` that `function` returns.
      others: tensors [B, ...].

    Returns:
      The structure, stacked.
    """
    batched = outputs, image_hw, original_hw, *others

    def apply(i):
        return function(*tf.nest.map_structure(lambda x: None if x is None else x[i], batched))

    return tf.map_fn(apply, tf.range(tf.shape(image_hw)[0]), fn_output_signature=signature)


@in_scope("fusion")
def fuse_image(
    outputs: structures.InferenceOutputs,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    settings: FusionSettings,
    labels: Optional[tf.Tensor] = None,
) -> structures.PanopticResult:
    """The panoptic map of one image.

    Args:
      outputs: `InferenceOutputs` without the batch axis; a branch it lacks contributes nothing.
      image_hw: [2] int32 content size in the network input. original_hw: [2] int32.
      settings: `FusionSettings`.
      labels: [h, w] from `semantic_labels`, if the caller has them already.

    Returns:
      `PanopticResult` of one image. Ids run from 1: instances by falling score, then stuff by
      class.
    """
    class_ids, scores = tf.zeros([0], tf.int32), tf.zeros([0])
    codes = tf.zeros(original_hw, tf.int32)  # [h, w]
    if outputs.detections is not None:
        class_ids, scores = outputs.detections.class_ids, outputs.detections.scores
        # The loop asks for sizes and counts at every turn; a GPU would wait each time.
        with tf.device("CPU:0"):
            canvas = instance_canvas(outputs.detections, image_hw, original_hw, settings)
        codes = tf.cast(canvas, tf.int32)
    stuff_category_ids, stuff_scores = np.zeros(0, np.int32), tf.zeros([0])
    if outputs.semantic_logits is not None:
        stuff_category_ids = settings.stuff_category_ids
        stuff_scores = class_scores(outputs.semantic_logits, image_hw)
        if labels is None:
            labels = semantic_labels(outputs.semantic_logits, image_hw, original_hw)
        codes = tf.where(codes > 0, codes, 1 + scores.shape[0] + tf.cast(labels, tf.int32))
    return segment_table(
        codes,
        class_ids,
        scores,
        stuff_scores,
        settings.thing_category_ids,
        stuff_category_ids,
        settings.stuff_area_threshold_px,
    )


def instance_canvas(
    detections: structures.Detections,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    settings: FusionSettings,
) -> tf.Tensor:
    """Which instance owns each pixel of one image.

    Instances enter by falling score. Each takes the free pixels of its mask, unless too much of the
    mask is taken already.

    Args:
      detections: of one image, by falling score.
      image_hw: [2] int32. original_hw: [2] int32.
      settings: `FusionSettings`.

    Returns:
      [h, w] uint8 (uint16 above 255 detections): 1 + index of the detection, 0 where free.
    """
    dtype = tf.uint8 if detections.scores.shape[0] < 256 else tf.uint16
    boxes = instances.scale_boxes(detections.boxes, image_hw, original_hw)  # [D, 4]
    windows = instances.box_windows(boxes)
    boxes = tf.cast(boxes, tf.float64)
    probs = instances.mask_probabilities(detections.mask_logits)  # [D, P, P]
    strong = tf.cast(detections.scores, tf.float64) >= settings.score_threshold
    # Scores fall, so the strong ones are the first.
    count = tf.minimum(tf.math.count_nonzero(strong, dtype=tf.int32), detections.num_detections)

    def add_instance(i, canvas):
        mask = instances.paste_window(probs[i], boxes[i], windows[i])  # [wh, ww]
        owners = _read(canvas, windows[i])
        free = mask & (owners == 0)
        area, free_area = _count(mask), _count(free)
        # The file format forbids segments without pixels, which the paper's rule allows at a
        # threshold of 1.
        accepted = (free_area > 0) & ((area - free_area) / area <= settings.overlap_threshold)
        owners = tf.where(accepted & free, tf.cast(i + 1, dtype), owners)
        return i + 1, _write(canvas, windows[i], owners)

    _, canvas = tf.while_loop(
        lambda i, _: i < count,
        add_instance,
        (0, tf.zeros(original_hw, dtype)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
        parallel_iterations=2,  # the next mask is pasted while this one is counted
    )
    return canvas


def _read(canvas, window):
    return canvas[window[0] : window[2], window[1] : window[3]]


def _write(canvas, window, values):
    """The canvas with new values in a window; in graph only the window is copied."""
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=canvas, begin=window[:2], end=window[2:], strides=[1, 1], value=values
    )


def _count(mask):
    """Pixels of a [h, w] bool, as float64: float32 row sums stay exact, their total may not."""
    return tf.reduce_sum(tf.cast(tf.reduce_sum(tf.cast(mask, tf.float32), 1), tf.float64))
