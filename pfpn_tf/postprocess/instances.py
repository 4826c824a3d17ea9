"""Instances in the frame of the original image: scaled boxes and full masks.

Shapes: D detections · P mask size (28) · h, w original size · wh, ww size of a box's window.

A mask is pasted as Detectron2 does it: bilinear interpolation spreads its P x P probabilities over
the box, with zero outside, and each pixel centre is cut at 0.5. A pixel whose square misses the box
cannot reach 0.5, so the code computes only the window of whole pixels around the box. Coordinates
are float64, because in float32 they move a boundary pixel of a large mask now and then. The product
is float32, where only values within 1e-7 of 0.5 can fall to the other side.
"""

from typing import Iterator, NamedTuple, Tuple

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
    original_hw = tf.cast(original_hw, tf.float64)
    scale = tf.cast(original_hw / tf.cast(image_hw, tf.float64), boxes.dtype)
    limit = tf.cast(tf.tile(original_hw, [2]), boxes.dtype)
    return tf.clip_by_value(boxes * tf.tile(scale, [2]), tf.zeros_like(limit), limit)


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


def paste_instances(
    detections: structures.Detections, image_hw: tf.Tensor, original_hw: tf.Tensor
) -> Tuple[structures.Detections, tf.Tensor]:
    """All instances of one image with full masks, in graph. Holds D masks at full size: see
    `instances_at_original_size` for one mask at a time.

    Args:
      detections: of one image, without the batch axis.
      image_hw: [2] int content size in the network input.
      original_hw: [2] int.

    Returns:
      (detections, masks): boxes now in original pixels, instances whose box became empty dropped;
      masks [D, h, w] uint8, 0 in padded rows.
    """
    boxes = scale_boxes(detections.boxes, image_hw, original_hw)  # [D, 4]
    width = tf.shape(boxes)[0]
    index = tf.range(width)
    keep = ~box_ops.is_empty(boxes) & (index < detections.num_detections)
    order = tf.argsort(tf.where(keep, index, index + width))
    keep = tf.gather(keep, order)
    boxes = tf.where(keep[:, None], tf.gather(boxes, order), 0.0)
    mask_logits = tf.gather(detections.mask_logits, order)
    placed = structures.Detections(
        boxes=boxes,
        scores=tf.where(keep, tf.gather(detections.scores, order), 0.0),
        class_ids=tf.where(keep, tf.gather(detections.class_ids, order), -1),
        num_detections=tf.math.count_nonzero(keep, dtype=tf.int32),
        mask_logits=mask_logits,
    )
    probs = mask_probabilities(mask_logits)

    def paste(args):
        prob, box, window = args
        mask = tf.cast(paste_window(prob, box, window), tf.uint8)
        return tf.pad(
            mask, [[window[0], original_hw[0] - window[2]], [window[1], original_hw[1] - window[3]]]
        )

    masks = tf.map_fn(
        paste,
        (probs, tf.cast(boxes, tf.float64), box_windows(boxes)),
        fn_output_signature=tf.TensorSpec([None, None], tf.uint8),
    )
    return placed, tf.reshape(masks, [width, original_hw[0], original_hw[1]])


class OriginalInstances(NamedTuple):
    """Instances of one image in original pixels, numpy.

    Attributes:
      boxes: [N, 4] float32 yxyx.
      scores: [N] float32, falling.
      class_ids: [N] int32.
      masks: `MaskSequence` of N masks [h, w] uint8.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    masks: "MaskSequence"


class MaskSequence:
    """Full masks made one at a time when indexed, so that a hundred need the memory of one.

    Masks are [h, w] uint8 in column-major order, which `pycocotools.mask.encode` takes as it is.
    """

    def __init__(self, mask_logits: np.ndarray, boxes: np.ndarray, hw: Tuple[int, int]):
        self._logits = mask_logits
        self._boxes = boxes.astype(np.float64)
        self._hw = tuple(int(side) for side in hw)

    def __len__(self):
        return len(self._boxes)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i) -> np.ndarray:
        logits, (y0, x0, y1, x1) = self._logits[i], self._boxes[i]
        probs = 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
        size = len(probs)
        top, left = int(np.floor(y0)), int(np.floor(x0))
        bottom, right = int(np.ceil(y1)), int(np.ceil(x1))

        def weights(start, stop, low, high):
            position = (np.arange(start, stop) + 0.5 - low) / (high - low) * size - 0.5
            return np.maximum(1.0 - np.abs(position[:, None] - np.arange(size)), 0.0)

        mask = np.zeros(self._hw, np.uint8, order="F")
        pasted = weights(top, bottom, y0, y1) @ probs @ weights(left, right, x0, x1).T
        mask[top:bottom, left:right] = pasted >= MASK_THRESHOLD
        return mask


def instances_at_original_size(
    detections: structures.Detections, image_hw, original_hw
) -> OriginalInstances:
    """Instances of one image for AP, result files and drawing; runs eagerly, off the graph.

    Args:
      detections: of one image, without the batch axis: tensors or arrays.
      image_hw: [2] content size in the network input.
      original_hw: [2].

    Returns:
      `OriginalInstances`, by falling score; boxes that are empty after clipping are dropped.
    """
    num = int(detections.num_detections)
    with tf.device("CPU:0"):
        boxes = scale_boxes(
            tf.constant(np.asarray(detections.boxes)[:num], tf.float32),
            tf.constant(np.asarray(image_hw)),
            tf.constant(np.asarray(original_hw)),
        ).numpy()
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes = boxes[keep]
    return OriginalInstances(
        boxes=boxes,
        scores=np.asarray(detections.scores)[:num][keep].astype(np.float32),
        class_ids=np.asarray(detections.class_ids)[:num][keep],
        masks=MaskSequence(np.asarray(detections.mask_logits)[:num][keep], boxes, original_hw),
    )
