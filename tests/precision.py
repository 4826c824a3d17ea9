"""Keras in double precision for a while."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def float64():
    """Layers and initialisers made inside compute in float64, whatever was set before."""
    tf.keras.backend.set_floatx("float64")
    tf.keras.mixed_precision.set_global_policy("float64")
    try:
        yield
    finally:
        tf.keras.backend.set_floatx("float32")
        tf.keras.mixed_precision.set_global_policy("float32")
