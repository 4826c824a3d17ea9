"""How often an epoch shows each training image, so that rare classes are seen more often.

As LVIS defines it (Gupta, Dollár and Girshick, CVPR 2019): a class in the share f of all images
has the factor max(1, sqrt(t / f)), where t is --repeat_factor_threshold, and an image has the
largest factor of its classes.

Shapes: n records · C classes.
"""

from typing import List, Tuple

import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf.config import Config
from pfpn_tf.data import tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError

# Category ids, and which of them are of crowds.
_OBJECTS = ("image/object/class/label", "image/object/is_crowd")
_SEGMENTS = ("image/panoptic/segment/category_id", "image/panoptic/segment/iscrowd")
_MOST_TOLD = 20


def of_records(config: Config, info: DatasetInfo, index: tfrecord.RecordIndex) -> np.ndarray:
    """[n] float32 factors of the training records, all of which it reads.

    Raises:
      UserError: no record names a class that the task trains on.
    """
    threshold = config.data.repeat_factor_threshold
    logging.info(
        "Reading the classes of %d images for --repeat_factor_threshold=%g.", len(index), threshold
    )
    names, present = classes_of_records(config, info, index)
    if not present.any():
        raise UserError(
            f"--repeat_factor_threshold={threshold}: the records of"
            f" --train_records={config.data.train_records} list no class that"
            f" --task={config.model.task} trains on, so that none is known to be rare; use 0."
        )
    factors, of_class = repeat_factors(present, threshold)
    _log(names, present, factors, of_class)
    return factors


def repeat_factors(present: np.ndarray, threshold: float) -> Tuple[np.ndarray, np.ndarray]:
    """[n] float32 factors of images and [C] of classes; `present` is [n, C] bool."""
    share = np.maximum(present.mean(0), 1.0 / len(present))
    of_class = np.maximum(1.0, np.sqrt(threshold / share))
    return np.where(present, of_class, 1.0).max(1).astype(np.float32), of_class


def classes_of_records(
    config: Config, info: DatasetInfo, index: tfrecord.RecordIndex
) -> Tuple[List[str], np.ndarray]:
    """The names of the classes and which of them each record holds, [n, C] bool.

    A class is present where the task trains on it: crowds count for --task=semantic alone, and
    things that share a semantic class are one class there.
    """
    task, targets = config.model.task, config.model.semantic_targets
    lists = {"panoptic": (_OBJECTS, _SEGMENTS), "instance": (_OBJECTS,), "semantic": (_SEGMENTS,)}
    features = {
        key: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)
        for pair in lists[task]
        for key in pair
    }
    category_ids = tf.constant([c.id for c in info.categories], tf.int64)

    def classes_of(serialized):
        record = tf.io.parse_single_example(serialized, features)
        kept = [
            tf.boolean_mask(record[ids], (record[crowds] == 0) | (task == "semantic"))
            for ids, crowds in lists[task]
        ]
        found = tf.searchsorted(category_ids, tf.concat(kept, 0))
        return tf.reduce_any(tf.one_hot(found, len(info.categories), True, False), 0)

    records = tf.data.TFRecordDataset(index.files).map(classes_of, process.num_cores())
    present = np.concatenate(list(records.batch(1024).as_numpy_iterator()))
    if task == "semantic" and targets == "other":
        is_thing = np.array([c.is_thing for c in info.categories])
        things = present[:, is_thing].any(1, keepdims=True)
        return info.semantic_names(targets), np.concatenate([things, present[:, ~is_thing]], 1)
    return [c.name for c in info.categories], present


def _log(names, present, factors, of_class):
    rare = [i for i in np.argsort(-of_class) if of_class[i] > 1 and present[:, i].any()]
    if not rare:
        logging.warning("No class is rarer than --repeat_factor_threshold; nothing is repeated.")
        return
    shown = factors.sum()
    logging.info(
        "An epoch shows %d records %.2f times on average. Share of the images with a rare class:",
        len(factors), shown / len(factors),
    )  # fmt: skip
    for i in rare[:_MOST_TOLD]:
        logging.info(
            "  %s: %.2f %% of the records, %.2f %% of those shown (factor %.2f)",
            names[i], 100 * present[:, i].mean(), 100 * factors[present[:, i]].sum() / shown,
            of_class[i],
        )  # fmt: skip
    if len(rare) > _MOST_TOLD:
        logging.info("  and %d classes more", len(rare) - _MOST_TOLD)
