"""Keras in another precision for a while."""

import contextlib

import tensorflow as tf


@contextlib.contextmanager
def policy(name="float64"):
    """Layers and initialisers made inside compute by this policy, whatever was set before."""
    tf.keras.backend.set_floatx("float64" if name == "float64" else "float32")
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.backend.set_floatx("float32")
        tf.keras.mixed_precision.set_global_policy("float32")
