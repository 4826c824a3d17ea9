"""Which records make up batch t, and at which sizes: a pure function of seed and t.

It works on record positions and image sizes alone, before any record is read. Hence a run
continues at any step at no cost, and neither the content of a batch nor its padded size depends on
how many workers and replicas share it.

An epoch is a whole number of batches. Records are grouped so that a batch pads little; a group's
last batch is filled up from the group's beginning. With repeat factors (`repeat_factors.py`) an
epoch has a record as often as its factor says, rounded up or down at random in each epoch.

Shapes: n records · B global batch.
"""

from typing import Dict, List, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.data import preprocess
from pfpn_tf.utils.errors import UserError

SIDES_PER_CLASS = 2  # neighbours in --train_min_sides that share a padded shape
MIN_BATCHES_PER_GROUP = 4  # smaller groups would repeat records too often to fill their last batch

ORDER, SIZES, EXAMPLES, REPEATS, VALIDATION = range(5)  # independent random streams of one seed

# Functions that tf.data calls need no AutoGraph, which takes time and leaves files in the temporary
# folder when a process ends at once.
not_converted = tf.autograph.experimental.do_not_convert


class Buckets(NamedTuple):
    """How records are grouped, and the fixed shapes if there are any.

    Attributes:
      members: positions of each group's records.
      group: [n] int32 group of each record.
      side_classes: the entries of --train_min_sides that may meet in one batch.
      shapes: [groups, classes, 2] int32 padded sizes; None: each batch has its own.
    """

    members: List[np.ndarray]
    group: np.ndarray
    side_classes: List[List[int]]
    shapes: Optional[np.ndarray]


def make_buckets(hw: np.ndarray, config: Config) -> Buckets:
    """Groups records by landscape and portrait, or with static_shapes by aspect ratio.

    Args:
      hw: [n, 2] int image sizes.
      config: the settings.

    Raises:
      UserError: static shapes are asked for where sizes are drawn freely.
    """
    data = config.data
    sides = sorted(data.train_min_sides)
    one_group = np.zeros(len(hw), np.int32)
    if data.crop_size or data.random_scale:
        shapes = None
        if data.static_shapes:
            if not data.crop_size:
                raise UserError(
                    "--static_shapes with --random_scale needs --crop_size, e.g. 512,1024."
                )
            shapes = _padded(np.array(data.crop_size, np.int32), data)[np.newaxis, np.newaxis]
        return Buckets([np.arange(len(hw))], one_group, [sides], shapes)

    fewest = MIN_BATCHES_PER_GROUP * config.train.global_batch_size
    if not data.static_shapes:
        group = (hw[:, 0] > hw[:, 1]).astype(np.int32)
        if np.bincount(group, minlength=2).min() < fewest:
            group = one_group
        return Buckets(_members(group), group, [sides], None)

    group = _aspect_groups(hw, sides[-1], data, fewest)
    members = _members(group)
    classes = [sides[i : i + SIDES_PER_CLASS] for i in range(0, len(sides), SIDES_PER_CLASS)]
    shapes = [
        [
            np.max([_resized(np.unique(hw[m], axis=0), side, data).max(0) for side in c], 0)
            for c in classes
        ]
        for m in members
    ]
    return Buckets(members, group, classes, _padded(np.array(shapes), data))


def largest_padded_hw(config: Config, hw: np.ndarray) -> np.ndarray:
    """[2] int: the largest padded size, by area, that a training batch can have.

    Args:
      config: the settings.
      hw: [n, 2] int image sizes.
    """
    data, buckets = config.data, make_buckets(hw, config)
    if buckets.shapes is not None:
        candidates = buckets.shapes.reshape(-1, 2)
    else:
        if data.random_scale:
            sizes = preprocess.scaled_hw(hw, np.float32(data.random_scale[1])).numpy()
        else:
            sizes = _resized(hw, max(data.train_min_sides), data)
        if data.crop_size:
            sizes = np.minimum(sizes, data.crop_size)
        # The highest and the widest image of a group may meet in one batch.
        groups = (
            buckets.members
            if config.train.global_batch_size > 1
            else np.arange(len(hw))[:, np.newaxis]
        )
        candidates = _padded(np.array([sizes[members].max(0) for members in groups]), data)
    return candidates[candidates.prod(-1).argmax()]


def training_examples(
    config: Config,
    hw: np.ndarray,
    start_step: int = 0,
    num_workers: int = 1,
    worker: int = 0,
    factors: Optional[np.ndarray] = None,
) -> tf.data.Dataset:
    """The endless sequence of training examples from `start_step` on.

    Args:
      config: the settings.
      hw: [n, 2] int32 image sizes.
      start_step: the batch to begin with.
      num_workers, worker: take only the worker-th of num_workers equal parts of each global batch.
      factors: [n] float, 1 or more, how often an epoch shows each record; None: once.

    Returns:
      A dataset of dicts: position [] int32 of the record, seed [2] int32, resize_hw, content_hw
      (after the crop) and padded_hw [2] int32.
    """
    buckets = make_buckets(hw, config)
    size = config.train.global_batch_size
    share = size // num_workers
    batches_per_epoch = sum(-(-len(m) // size) for m in buckets.members)
    first_epoch, skip = divmod(start_step, batches_per_epoch)
    if factors is not None:  # epochs are of different length: count from the first one
        first_epoch, skip = 0, start_step

    @not_converted
    def batches_of_epoch(epoch):
        members = buckets.members
        if factors is not None:
            repeats = _repeats(factors, _key(config, REPEATS, epoch))
            members = [tf.repeat(m, tf.gather(repeats, m)) for m in members]
        batches = _shuffled_batches(members, size, _key(config, ORDER, epoch))
        return tf.data.Dataset.from_tensor_slices(batches)

    @not_converted
    def examples_of_batch(step, positions):
        sizes = _batch_sizes(
            config, buckets, tf.gather(hw, positions), positions, _key(config, SIZES, step)
        )
        counter = tf.cast(step, tf.int32) * size + tf.range(size)
        seeds = _keys(config, EXAMPLES, counter)
        examples = {"position": positions, "seed": seeds, **sizes}
        mine = tf.nest.map_structure(lambda x: x[worker * share : (worker + 1) * share], examples)
        return tf.data.Dataset.from_tensor_slices(mine)

    dataset = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(batches_of_epoch)
    return dataset.skip(skip).enumerate(start_step).flat_map(examples_of_batch)


def evaluation_examples(
    config: Config, hw: np.ndarray, num_workers: int = 1, worker: int = 0
) -> tf.data.Dataset:
    """One pass in file order, in batches of eval_batch_size; each worker takes every n-th batch.

    Returns:
      A dataset of dicts as `training_examples` gives, with nothing cropped. A record's seed is the
      same in every pass.
    """
    data, batch_size = config.data, config.eval.eval_batch_size
    total = min(len(hw), config.eval.max_images or len(hw))
    resized = preprocess.resized_hw(hw[:total], data.eval_min_side, data.eval_max_side, data.resize)

    @not_converted
    def examples_of_batch(start):
        positions = tf.range(start, tf.minimum(start + batch_size, total))
        resize_hw = tf.gather(resized, positions)
        padded = preprocess.padded_hw(tf.reduce_max(resize_hw, 0), data.size_divisor)
        return tf.data.Dataset.from_tensor_slices(
            {
                "position": tf.cast(positions, tf.int32),
                "seed": _keys(config, VALIDATION, positions),
                "resize_hw": resize_hw,
                "content_hw": resize_hw,
                "padded_hw": tf.broadcast_to(padded, tf.shape(resize_hw)),
            }
        )

    starts = tf.data.Dataset.range(0, total, batch_size)
    return starts.shard(num_workers, worker).flat_map(examples_of_batch)


def _key(config, stream, index):
    """[2] int32 seed of item `index` of a stream."""
    base = tf.random.fold_in(tf.constant([config.train.seed, 0]), stream)
    return tf.random.fold_in(base, tf.cast(index, tf.int32))


def _keys(config, stream, indices):
    """[n, 2] int32 seeds of items of a stream."""
    return tf.map_fn(
        lambda i: _key(config, stream, i), indices, fn_output_signature=tf.TensorSpec([2], tf.int32)
    )


def _repeats(factors, key):
    """[n] int32: factors rounded up with the probability of their fraction, otherwise down."""
    whole = np.floor(factors)
    up = tf.random.stateless_uniform(factors.shape, key) < np.float32(factors - whole)
    return tf.cast(whole, tf.int32) + tf.cast(up, tf.int32)


def _shuffled_batches(members, size, key):
    """[batches, B] int32 positions of one epoch."""
    keys = tf.random.split(key, len(members) + 1)
    batches = []
    for i, positions in enumerate(members):
        number = tf.size(positions)
        count = -(-number // size) * size
        shuffled = tf.random.experimental.stateless_shuffle(
            tf.cast(positions, tf.int32), seed=keys[i]
        )
        filled = tf.tile(shuffled, [-(-count // number)])[:count]
        batches.append(tf.reshape(filled, [-1, size]))
    return tf.random.experimental.stateless_shuffle(tf.concat(batches, 0), seed=keys[-1])


def _batch_sizes(config, buckets, hw, positions, key) -> Dict[str, tf.Tensor]:
    """Draws the scale of each image of a batch; gives resize_hw, content_hw, padded_hw, [B, 2]
    each.
    """
    data = config.data
    class_key, image_key = tf.unstack(tf.random.split(key, 2))
    draws = tf.random.stateless_uniform(tf.shape(positions), image_key)
    side_class = 0
    if data.random_scale:
        low, high = data.random_scale
        resize_hw = preprocess.scaled_hw(hw, low + draws * (high - low))
    else:
        classes = buckets.side_classes
        lengths = np.array([len(c) for c in classes])
        sides = np.array([c + [0] * (lengths.max() - len(c)) for c in classes])
        # a class as often as it has sides, so that every side is as likely
        pick = tf.random.stateless_uniform([], class_key, maxval=int(lengths.sum()), dtype=tf.int32)
        side_class = tf.gather(np.repeat(np.arange(len(classes)), lengths), pick)
        length = tf.gather(lengths, side_class)
        within = tf.minimum(tf.cast(draws * tf.cast(length, tf.float32), length.dtype), length - 1)
        side = tf.gather(tf.gather(sides, side_class), within)
        resize_hw = preprocess.resized_hw(hw, side, data.train_max_side, data.resize)
    content_hw = tf.minimum(resize_hw, data.crop_size) if data.crop_size else resize_hw
    if buckets.shapes is None:
        padded = preprocess.padded_hw(tf.reduce_max(content_hw, 0), data.size_divisor)
    else:
        padded = tf.gather(
            tf.gather(buckets.shapes, tf.gather(buckets.group, positions[0])), side_class
        )
    return {
        "resize_hw": resize_hw,
        "content_hw": content_hw,
        "padded_hw": tf.broadcast_to(padded, tf.shape(resize_hw)),
    }


def _members(group):
    return [np.flatnonzero(group == g) for g in range(group.max() + 1)]


def _resized(hw, side, data):
    return preprocess.resized_hw(hw, side, data.train_max_side, data.resize).numpy()


def _padded(hw, data):
    return (hw + data.size_divisor - 1) // data.size_divisor * data.size_divisor


def _aspect_groups(hw, side, data, fewest):
    """[n] int32: the split by aspect ratio into at most three groups that pads least.

    Tries every pair of cuts between the distinct aspect ratios of the resized images.

    Args:
      hw: [n, 2] int image sizes.
      side: the --train_min_sides entry at which to compare.
      data: the settings.
      fewest: smallest number of records in a group.
    """
    resized = _resized(hw, side, data)
    aspect = np.log(resized[:, 1] / resized[:, 0]).round(2)
    distinct, index, counts = np.unique(aspect, return_inverse=True, return_counts=True)
    m = len(distinct)
    largest = np.zeros((m, 2), np.int64)  # the smallest size that holds all images of an aspect
    np.maximum.at(largest, index, resized)

    # [i, j]: padded area of all images of the aspects i..j-1, as one group
    areas = np.full((m + 1, m + 1), np.inf)
    np.fill_diagonal(areas, 0)  # an empty group, so that there may be fewer
    for i in range(m):
        for j in range(i + 1, m + 1):
            count = counts[i:j].sum()
            if count >= fewest:
                areas[i, j] = count * _padded(largest[i:j].max(0), data).prod()
    total = areas[0][:, np.newaxis] + areas + areas[:, m]  # [first cut, second cut]
    cuts = set(np.unravel_index(total.argmin(), total.shape)) - {0, m}
    return np.searchsorted(sorted(cuts), index, side="right").astype(np.int32)
