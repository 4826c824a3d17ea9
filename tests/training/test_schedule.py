"""The learning rate of every step against Detectron2's rule."""

import numpy as np
import pytest

from pfpn_tf.config import Config
from pfpn_tf.training import schedule
from tests.reference import sgd

STEPS = [0, 1, 2, 499, 500, 998, 999, 1000, 1001, 59998, 59999, 60000, 60001, 79999, 80000, 89999]


def rates(steps, **settings):
    train = Config().replace(**settings).train
    batch = train.global_batch_size
    built = schedule.Schedule(train)
    expected = [
        sgd.schedule(
            step,
            train.learning_rate * train.global_batch_size / (train.base_batch_size or batch),
            train.warmup_steps,
            train.warmup_factor,
            train.lr_decay_steps,
            train.lr_decay_factor,
        )
        for step in steps
    ]
    return [float(built(np.int64(step))) for step in steps], expected


def test_default_schedule_equals_the_rule():
    actual, expected = rates(STEPS)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_values_by_hand():
    actual, _ = rates([0, 500, 1000, 59999, 60000, 80000])
    np.testing.assert_allclose(
        actual, [0.02 * 0.001, 0.02 * 0.5005, 0.02, 0.02, 0.002, 0.0002], rtol=1e-6
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 0},
        {"lr_decay_steps": (), "train_steps": 50},
        {"lr_decay_steps": (), "train_steps": 50, "warmup_steps": 0},
        {"lr_decay_steps": (30,), "train_steps": 30, "warmup_steps": 7},
        {"lr_decay_steps": (20, 30, 40), "warmup_steps": 19, "warmup_factor": 0.3},
        {"lr_decay_steps": (20,), "train_steps": 21, "warmup_steps": 1, "lr_decay_factor": 0.5},
    ],
)
def test_every_step_of_short_schedules(settings):
    actual, expected = rates(range(60), **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_linear_scaling_rule():
    assert rates(STEPS, global_batch_size=4)[0][7] == pytest.approx(0.02)
    actual, expected = rates(STEPS, global_batch_size=4, base_batch_size=16)
    assert actual[7] == pytest.approx(0.005)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
