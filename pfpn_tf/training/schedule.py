"""Learning rate over the steps: linear warm-up, then a constant rate that drops at given steps."""

import tensorflow as tf
from official.modeling import optimization

from pfpn_tf import config as config_lib


def effective_learning_rate(config: config_lib.Train) -> float:
    """The rate after warm-up: scaled linearly with the batch if `base_batch_size` is given."""
    if not config.base_batch_size:
        return config.learning_rate
    return config.learning_rate * config.global_batch_size / config.base_batch_size


def build_schedule(config: config_lib.Train) -> tf.keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate of each step, counted from 0.

    Step i of the warm-up of n steps has the rate times f (1 - i / n) + i / n, with f the
    `warmup_factor`. From each of `lr_decay_steps` on, that step included, the rate is
    `lr_decay_factor` of what it was.
    """
    rate = effective_learning_rate(config)
    # Keras keeps the old rate at the boundary itself. The end of the run is a boundary that changes
    # nothing, since there has to be one.
    boundaries = [step - 1 for step in config.lr_decay_steps]
    if not boundaries or config.train_steps > boundaries[-1]:
        boundaries.append(config.train_steps)
    num_drops = len(config.lr_decay_steps)
    values = [rate * config.lr_decay_factor**drops for drops in range(num_drops + 1)]
    values += values[-1:] * (len(boundaries) + 1 - len(values))
    parts = {
        "learning_rate": {
            "type": "stepwise",
            "stepwise": {"boundaries": boundaries, "values": values},
        },
        "optimizer": {"type": "sgd"},
    }
    if config.warmup_steps:
        parts["warmup"] = {
            "type": "linear",
            "linear": {
                "warmup_steps": config.warmup_steps,
                "warmup_learning_rate": config.warmup_factor * rate,
            },
        }
    factory = optimization.OptimizerFactory(optimization.OptimizationConfig(parts))
    return factory.build_learning_rate()
