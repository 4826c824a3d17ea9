"""Instances in the frame of the original image: scaled boxes and full masks.

Shapes: D detections · P mask size (28) · h, w original size · wh, ww size of a box's window.

A mask is pasted as Detectron2 does it: bilinear interpolation spreads its P x P probabilities over
the box, with zero outside, and each pixel centre is cut at 0.5. A pixel whose square misses the box
cannot reach 0.5, so the code computes only the window of whole pixels around the box. Coordinates
are float64, because in float32 they move a boundary pixel of a large mask now and then. The product
is float32, where only values within 1e-7 of 0.5 can fall to the other side.
"""

from typing import Iterator, Tuple

import numpy as np
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.ops import boxes as box_ops

MASK_THRESHOLD = 0.5


def scale_boxes(boxes: tf.Tensor, image_hw: tf.Tensor, original_hw: tf.Tensor) -> tf.Tensor:
    """Moves boxes from the network input to the original image and clips them to it.

    Args:
      boxes: [D, 4] float yxyx pixels of the network input.
      image_hw: [2] int content size in the network input.
      original_hw: [2] int.

    Returns:
      [D, 4] yxyx pixels of the original image, in the dtype of `boxes`; some may be empty.
    """
    scale = tf.cast(tf.cast(original_hw, tf.float64) / tf.cast(image_hw, tf.float64), boxes.dtype)
    return box_ops.clip(boxes * tf.tile(scale, [2]), original_hw)


def box_windows(boxes: tf.Tensor) -> tf.Tensor:
    """The whole pixels that boxes touch: [..., 4] float yxyx -> [..., 4] int32, ends exclusive."""
    start, end = tf.floor(boxes[..., :2]), tf.math.ceil(boxes[..., 2:])
    return tf.cast(tf.concat([start, end], -1), tf.int32)


def mask_probabilities(mask_logits: tf.Tensor) -> tf.Tensor:
    """The sigmoid, rounded from float64: that of float32 is off by a few bits and moves pixels."""
    return tf.cast(tf.sigmoid(tf.cast(mask_logits, tf.float64)), tf.float32)


def paste_window(probs: tf.Tensor, box: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """The mask of one instance inside the window of its box.

    Args:
      probs: [P, P] float32 mask probabilities.
      box: [4] float64 yxyx pixels; an empty box gives no pixel.
      window: [4] int32 from `box_windows`.

    Returns:
      [wh, ww] bool.
    """
    size = probs.shape[0]
    rows = _hat_weights(tf.range(window[0], window[2]), box[0], box[2], size)  # [wh, P]
    columns = _hat_weights(tf.range(window[1], window[3]), box[1], box[3], size)  # [ww, P]
    # The wider product comes last, so that the first one stays small: [wh, P] @ [P, P] @ [P, ww].
    return tf.matmul(tf.matmul(rows, probs), columns, transpose_b=True) >= MASK_THRESHOLD


def _hat_weights(pixels, start, end, size):
    """Bilinear weights of `size` mask cells at pixel centres, zero outside: [n] -> [n, size]."""
    centre = tf.cast(pixels, tf.float64) + 0.5
    position = (centre - start) / (end - start) * size - 0.5  # [n], in mask cells
    distance = tf.abs(position[:, None] - tf.range(size, dtype=tf.float64))  # [n, size]
    return tf.cast(tf.maximum(1.0 - distance, 0.0), tf.float32)


def place_instances(
    detections: structures.Detections, image_hw: tf.Tensor, original_hw: tf.Tensor
) -> structures.Detections:
    """Moves the instances of one image to original pixels and drops those whose box became empty.

    Args:
      detections: of one image, without the batch axis.
      image_hw: [2] int content size in the network input.
      original_hw: [2] int.
    """
    boxes = scale_boxes(detections.boxes, image_hw, original_hw)  # [D, 4]
    index = tf.range(tf.shape(boxes)[0])
    keep = ~box_ops.is_empty(boxes) & (index < detections.num_detections)
    order = tf.argsort(tf.where(keep, 0, 1), stable=True)
    keep = tf.gather(keep, order)
    return structures.Detections(
        boxes=tf.where(keep[:, None], tf.gather(boxes, order), 0.0),
        scores=tf.where(keep, tf.gather(detections.scores, order), 0.0),
        class_ids=tf.where(keep, tf.gather(detections.class_ids, order), -1),
        num_detections=tf.math.count_nonzero(keep, dtype=tf.int32),
        mask_logits=tf.gather(detections.mask_logits, order),
    )


def original_instances(placed: structures.Detections) -> structures.Detections:
    """The instances of one image as arrays without padded rows, for AP, result files and drawing.

    Args:
      placed: from `place_instances`, tensors or arrays.
    """
    num, columns = int(placed.num_detections), ("boxes", "scores", "class_ids", "mask_logits")
    rows = {name: np.asarray(getattr(placed, name))[:num] for name in columns}
    return placed._replace(**rows)


def full_masks(found: structures.Detections, hw: Tuple[int, int]) -> Iterator[np.ndarray]:
    """Makes the masks of `original_instances` one at a time, so that a hundred need the memory of
    one.

    Each is [h, w] uint8 in column-major order, which `pycocotools.mask.encode` takes as it is.
    """
    return (_paste(*instance, hw) for instance in zip(np.asarray(found.mask_logits), found.boxes))


def _paste(mask_logits, box, hw):
    """`paste_window` in numpy and float64 throughout, on the whole image."""
    y0, x0, y1, x1 = box.astype(np.float64)
    probs = 1.0 / (1.0 + np.exp(-np.clip(mask_logits.astype(np.float64), -700, 700)))
    size = len(probs)
    top, left = int(np.floor(y0)), int(np.floor(x0))
    bottom, right = int(np.ceil(y1)), int(np.ceil(x1))

    def weights(start, stop, low, high):
        position = (np.arange(start, stop) + 0.5 - low) / (high - low) * size - 0.5
        return np.maximum(1.0 - np.abs(position[:, None] - np.arange(size)), 0.0)

    mask = np.zeros(hw, np.uint8, order="F")
    pasted = weights(top, bottom, y0, y1) @ probs @ weights(left, right, x0, x1).T
    mask[top:bottom, left:right] = pasted >= MASK_THRESHOLD
    return mask
