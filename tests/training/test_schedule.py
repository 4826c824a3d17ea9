"""The learning rate of every step against Detectron2's rule."""

import numpy as np
import pytest

from pfpn_tf.config import Config
from pfpn_tf.training import schedule
from tests.reference import sgd

STEPS = [*range(60), *range(499, 502), *range(998, 1002), *range(59998, 60002), 79999, 80000, 89999]


@pytest.mark.parametrize(
    "settings, scale",
    [
        ({}, 1),
        ({"global_batch_size": 4}, 1),
        ({"global_batch_size": 4, "base_batch_size": 16}, 0.25),
        ({"warmup_steps": 0}, 1),
        ({"lr_decay_steps": (), "train_steps": 50}, 1),
        ({"lr_decay_steps": (), "train_steps": 50, "warmup_steps": 0}, 1),
        ({"lr_decay_steps": (30,), "train_steps": 30, "warmup_steps": 7}, 1),
        ({"lr_decay_steps": (20, 30, 40), "warmup_steps": 19, "warmup_factor": 0.3}, 1),
        (
            {"lr_decay_steps": (20,), "train_steps": 21, "warmup_steps": 1, "lr_decay_factor": 0.5},
            1,
        ),
    ],
)
def test_every_step_equals_the_rule(settings, scale):
    train = Config().replace(**settings).train
    warmup = train.warmup_steps, train.warmup_factor
    drops = train.lr_decay_steps, train.lr_decay_factor
    expected = [sgd.schedule(step, 0.02 * scale, *warmup, *drops) for step in STEPS]
    built = schedule.Schedule(train)
    actual = [float(built(np.int64(step))) for step in STEPS]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
