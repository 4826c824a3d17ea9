"""Training-time augmentation: flip, crop, colour. Stateless: the same seed, the same result.

Shapes: H, W stored size · h, w content size after resize and crop · M instances.
"""

from typing import NamedTuple

import tensorflow as tf

from pfpn_tf import compat
from pfpn_tf.data import preprocess

# Colour: the ranges of SSD's photometric distortion, which the paper's color augmentation follows.
MAX_HUE_RADIANS = 0.314  # 18 degrees
SATURATION = (0.5, 1.5)
CONTRAST = (0.5, 1.5)
VALUE = (0.875, 1.125)


class Geometry(NamedTuple):
    """What happens to every pixel of an image: resize, then crop, then flip.

    Attributes:
      source_hw: [2] int32 stored size.
      resize_hw: [2] int32 size after resizing.
      offset: [2] int32 top-left corner of the crop in the resized image.
      content_hw: [2] int32 size of the crop.
      flip: [] bool, from left to right.
    """

    source_hw: tf.Tensor
    resize_hw: tf.Tensor
    offset: tf.Tensor
    content_hw: tf.Tensor
    flip: tf.Tensor


def draw_geometry(source_hw, resize_hw, content_hw, random_flip: bool, seed) -> Geometry:
    """Draws where to crop and whether to flip.

    Args:
      source_hw, resize_hw, content_hw: see `Geometry`; content_hw is at most resize_hw.
      random_flip: whether to flip half of the images.
      seed: [2] int32.
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    room = tf.cast(resize_hw - content_hw + 1, tf.float32)
    offset = tf.cast(tf.random.stateless_uniform([2], crop_seed) * room, tf.int32)
    flip = tf.random.stateless_uniform([], flip_seed) < (0.5 if random_flip else 0.0)
    return Geometry(source_hw, resize_hw, offset, content_hw, flip)


def bootstrap_crop(
    geometry: Geometry, labels: tf.Tensor, void: int, share: float, seed: tf.Tensor
) -> Geometry:
    """Moves some crops to where a class is that a random crop would often miss.

    A class is drawn among those of the image, all equally likely, then one of its pixels; the crop
    is drawn among those that hold this pixel. Rare classes so come up as often as common ones.

    Differs from the paper: section 4.1 names crop bootstrapping and refers to [5], without details;
    this is our reading of it.

    Args:
      geometry: with a crop drawn anywhere.
      labels: [H, W] uint8 classes of the stored image.
      void: the label that counts as no class.
      share: probability of moving a crop.
      seed: [2] int32.

    Returns:
      `geometry`, perhaps with another offset; as it was if every pixel is void.
    """
    draws = tf.random.stateless_uniform([5], seed)  # whether, class, pixel, row, column
    flat = tf.cast(tf.reshape(labels, [-1]), tf.int32)
    counts = tf.math.bincount(flat, minlength=256, maxlength=256)
    counts = tf.where(tf.range(256) == void, 0, counts)
    present = tf.where(counts > 0)[:, 0]

    def move():
        chosen = _pick(present, draws[1])
        pixel = _pick(tf.where(flat == tf.cast(chosen, tf.int32))[:, 0], draws[2])
        width = tf.cast(tf.shape(labels)[1], pixel.dtype)
        position = tf.stack([pixel // width, pixel % width])  # in the stored image
        scale = tf.cast(geometry.resize_hw, tf.float32) / tf.cast(geometry.source_hw, tf.float32)
        position = tf.cast((tf.cast(position, tf.float32) + 0.5) * scale, tf.int32)
        first = tf.maximum(position - geometry.content_hw + 1, 0)
        last = tf.minimum(position, geometry.resize_hw - geometry.content_hw)
        room = tf.cast(last - first + 1, tf.float32)
        return first + tf.cast(draws[3:] * room, tf.int32)

    moves = (draws[0] < share) & (tf.size(present) > 0)
    return geometry._replace(offset=tf.cond(moves, move, lambda: geometry.offset))


def _pick(values, draw):
    """The entry of values [n] at share `draw` in [0, 1) of its length."""
    count = tf.size(values)
    index = tf.cast(draw * tf.cast(count, tf.float32), tf.int32)
    return values[tf.minimum(index, count - 1)]


def transform_image(image: tf.Tensor, geometry: Geometry, resize: str = "pillow") -> tf.Tensor:
    """[H, W, 3] uint8 -> [h, w, 3] uint8; `resize` as in `preprocess.resize_image`."""
    image = preprocess.resize_image(image, geometry.resize_hw, resize)
    top, left = tf.unstack(geometry.offset)
    height, width = tf.unstack(geometry.content_hw)
    image = image[top : top + height, left : left + width]
    return tf.cond(geometry.flip, lambda: tf.reverse(image, [1]), lambda: image)


def transform_labels(
    labels: tf.Tensor, geometry: Geometry, padded_hw: tf.Tensor, void: int
) -> tf.Tensor:
    """Nearest neighbour, crop, flip and padding in one look-up per axis.

    Args:
      labels: [..., H, W] uint8.
      geometry: as for the image.
      padded_hw: [2] int32.
      void: what to pad with.

    Returns:
      [..., *padded_hw] uint8.
    """
    rank = labels.shape.rank
    labels = tf.pad(labels, [[0, 0]] * (rank - 2) + [[0, 1], [0, 1]], constant_values=void)
    rows = _source_indices(geometry, 0)
    columns = _source_indices(geometry, 1)
    columns = tf.cond(geometry.flip, lambda: tf.reverse(columns, [0]), lambda: columns)
    # The padding looks at the row and the column of void that the source got above.
    rows = tf.pad(rows, [[0, padded_hw[0] - tf.size(rows)]], constant_values=geometry.source_hw[0])
    columns = tf.pad(
        columns, [[0, padded_hw[1] - tf.size(columns)]], constant_values=geometry.source_hw[1]
    )
    shape = tf.shape(labels)
    # Columns are gathered as rows of the transpose, which copies runs instead of single bytes.
    labels = tf.gather(tf.transpose(tf.reshape(labels, [-1, shape[-1]])), columns)  # [w, ...*H]
    with_columns = tf.concat([shape[:-1], [padded_hw[1]]], 0)  # [..., H, w]
    labels = tf.reshape(tf.transpose(labels), with_columns)
    return tf.ensure_shape(tf.gather(labels, rows, axis=-2), [None] * rank)


def transform_boxes(boxes: tf.Tensor, geometry: Geometry) -> tf.Tensor:
    """Scales, shifts and flips; coordinates outside the content are kept.

    Args:
      boxes: [M, 4] float yxyx pixels of the stored image.

    Returns:
      [M, 4] float yxyx pixels of the content.
    """
    scale = tf.cast(geometry.resize_hw, tf.float32) / tf.cast(geometry.source_hw, tf.float32)
    offset = tf.cast(geometry.offset, tf.float32)
    boxes = boxes * tf.tile(scale, [2]) - tf.tile(offset, [2])
    width = tf.cast(geometry.content_hw[1], tf.float32)
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    flipped = tf.stack([y1, width - x2, y2, width - x1], axis=-1)
    return tf.where(geometry.flip, flipped, boxes)


def crop_boxes(boxes: tf.Tensor, masks: tf.Tensor, content_hw: tf.Tensor) -> tf.Tensor:
    """Boxes that the crop's edge cuts become tight around what is left of their mask.

    Args:
      boxes: [M, 4] float yxyx pixels of the content, as `transform_boxes` gives them.
      masks: [M, H, W] uint8 at the content's scale.
      content_hw: [2] int32.
    """
    limit = tf.tile(tf.cast(content_hw, tf.float32), [2])
    cut = tf.reduce_any((boxes < 0) | (boxes > limit), axis=-1, keepdims=True)
    return tf.where(cut, tight_boxes(masks), boxes)


def tight_boxes(masks: tf.Tensor) -> tf.Tensor:
    """The boxes that enclose masks [M, H, W]: [M, 4] float32 yxyx pixels; zeros for an empty
    mask.
    """
    bounds = []
    for axis in (2, 1):  # rows, columns
        used = tf.cast(tf.reduce_max(masks, axis=axis), tf.int32)  # [M, H] or [M, W]
        length = tf.shape(used)[1]
        first = tf.argmax(used, axis=1, output_type=tf.int32)
        last = length - tf.argmax(tf.reverse(used, [1]), axis=1, output_type=tf.int32)
        present = tf.reduce_max(tf.pad(used, [[0, 0], [0, 1]]), axis=1)
        bounds.append((first * present, last * present))
    (y1, y2), (x1, x2) = bounds
    return tf.cast(tf.stack([y1, x1, y2, x2], axis=-1), tf.float32)


def jitter_color(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Random hue, saturation, value and contrast.

    Args:
      image: [h, w, 3] uint8 RGB.
      seed: [2] int32.

    Returns:
      [h, w, 3] float32 in 0..255.
    """
    ranges = tf.constant([(-MAX_HUE_RADIANS, MAX_HUE_RADIANS), SATURATION, VALUE, CONTRAST])
    draws = tf.random.stateless_uniform([4], seed)
    hue, saturation, value, contrast = tf.unstack(
        ranges[:, 0] + draws * (ranges[:, 1] - ranges[:, 0])
    )
    image = compat.adjust_hsv(tf.cast(image, tf.float32) / 255.0, hue, saturation, value)
    image = tf.image.adjust_contrast(image, contrast)
    return tf.clip_by_value(image * 255.0, 0.0, 255.0)


def _source_indices(geometry, axis):
    indices = preprocess.nearest_indices(geometry.source_hw[axis], geometry.resize_hw[axis])
    start = geometry.offset[axis]
    return indices[start : start + geometry.content_hw[axis]]
