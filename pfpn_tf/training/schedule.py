"""Learning rate over the steps: linear warm-up, then a constant rate that drops at given steps."""

import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib


class Schedule(tf.keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step, counted from 0.

    The rate is scaled linearly with the batch if `base_batch_size` is given. Step i of the warm-up
    of n steps has the rate times f (1 - i / n) + i / n, with f the `warmup_factor`. From each of
    `lr_decay_steps` on, that step included, the rate is `lr_decay_factor` of what it was.
    """

    def __init__(self, config: config_lib.Train):
        self._config = config

    def __call__(self, step):
        config = self._config
        step = tf.cast(step, tf.int64)
        drops = tf.math.count_nonzero(step >= np.array(config.lr_decay_steps, np.int64))
        rate = config.learning_rate
        if config.base_batch_size:
            rate = rate * config.global_batch_size / config.base_batch_size
        rates = rate * config.lr_decay_factor ** np.arange(len(config.lr_decay_steps) + 1)
        rate = tf.gather(rates.astype(np.float32), drops)
        if not config.warmup_steps:
            return rate
        warm = tf.minimum(tf.cast(step / config.warmup_steps, tf.float32), 1.0)
        return rate * (config.warmup_factor * (1.0 - warm) + warm)
