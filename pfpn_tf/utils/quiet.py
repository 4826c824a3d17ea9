"""TensorFlow without what it tells of saved models and checkpoints."""

import contextlib
from typing import Iterator

import tensorflow as tf
from absl import logging


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Silences TensorFlow where it tells of names, temporary files and gradients of a SavedModel,
    or of each value that it has not read from a checkpoint.
    """
    absl_level, tf_level = logging.get_verbosity(), tf.get_logger().level
    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    try:
        yield
    finally:
        logging.set_verbosity(absl_level)
        tf.get_logger().setLevel(tf_level)
