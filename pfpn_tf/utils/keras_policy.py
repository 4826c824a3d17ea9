"""The precision in which Keras layers compute."""

import contextlib
from typing import Iterator

import tensorflow as tf


@contextlib.contextmanager
def layers_of(policy: str) -> Iterator[None]:
    """Layers made inside follow the Keras dtype policy, e.g. "mixed_bfloat16"."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
