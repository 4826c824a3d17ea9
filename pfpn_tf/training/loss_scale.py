"""The dynamic loss scale of float16, whose gradients overflow above 65504 and vanish below 6e-8."""

import tensorflow as tf

INITIAL = 2.0**15
LOWEST, HIGHEST = 1.0, 2.0**24
GROWTH_STEPS = 2000


class LossScale(tf.Module):
    """Halved when a gradient overflows, doubled after `GROWTH_STEPS` steps without an overflow.

    Other precisions keep the scale 1, which is also the lowest.
    """

    def __init__(self, precision: str):
        super().__init__()
        self.is_dynamic = precision == "mixed_float16"
        initial = INITIAL if self.is_dynamic else LOWEST
        self.value = tf.Variable(initial, dtype=tf.float32, trainable=False)
        self._steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def can_fall(self) -> tf.Tensor:
        """[] bool: whether a lower scale may cure an overflow."""
        return self.value > LOWEST

    def adapt(self, is_finite: tf.Tensor) -> None:
        """Takes note of a step whose gradient was finite, or was not."""
        if not self.is_dynamic:
            return
        steps = tf.where(is_finite, self._steps + 1, 0)
        grow = steps >= GROWTH_STEPS
        factor = tf.where(is_finite, tf.where(grow, 2.0, 1.0), 0.5)
        self.value.assign(tf.clip_by_value(self.value * factor, LOWEST, HIGHEST))
        self._steps.assign(tf.where(grow, tf.zeros_like(steps), steps))
