"""Datasets that TensorFlow does not tune, for tests.

It tunes a dataset in a thread that sleeps between its rounds, in the end for a minute. When an
iterator is dropped, the thread is woken first and told to end after that. On a busy machine it
looks too early and sleeps on, and whoever has dropped the iterator waits for it.
"""

import functools

import tensorflow as tf

from pfpn_tf.data import pipeline


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def install():
    """Lets `pipeline.build_dataset` give such datasets from now on."""
    build = pipeline.build_dataset

    @functools.wraps(build)
    def build_dataset(*args, **kwargs):
        return without_tuning(build(*args, **kwargs))

    pipeline.build_dataset = build_dataset
