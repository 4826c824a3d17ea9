"""Moving averages of a network's weights (--ema_decay)."""

import contextlib
from typing import Dict, Iterator

import tensorflow as tf

from pfpn_tf.runs import restore


class MovingAverages:
    """average = decay average + (1 - decay) weight after each update of the weights."""

    def __init__(self, model: tf.keras.Model, decay: float, strategy: tf.distribute.Strategy):
        """Starts at the weights as they are.

        Args:
          model: built under `strategy`.
          decay: of late updates, see `update`; 0: there are no averages.
          strategy: of the training.
        """
        self._decay = decay
        self._strategy = strategy
        variables = restore.model_variables(model) if decay else {}
        self._weights = {path: v for path, v in variables.items() if v.dtype.is_floating}
        with strategy.scope():
            # By the paths of `restore.model_variables`, as the checkpoint keeps them.
            self.variables: Dict[str, tf.Variable] = {
                path: tf.Variable(weight, trainable=False) for path, weight in self._weights.items()
            }

    def restart(self) -> None:
        """Sets the averages to the weights as they are."""
        _assign(self.variables, self._weights)

    def update(self, num_updates: tf.Tensor) -> None:
        """Moves the averages after update `num_updates`; the decay is smaller in the first ones."""
        count = tf.cast(num_updates, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))

        def move(average, weight):
            return average.assign_add(tf.cast(1.0 - decay, average.dtype) * (weight - average))

        for path, average in self.variables.items():
            self._strategy.extended.update(average, move, args=(self._weights[path],))

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Gives the network its averages for the code inside, and then its own weights back."""
        weights = {path: tf.convert_to_tensor(weight) for path, weight in self._weights.items()}
        try:
            _assign(self._weights, self.variables)
            yield
        finally:
            _assign(self._weights, weights)


def _assign(variables, values):
    for path, variable in variables.items():
        variable.assign(tf.convert_to_tensor(values[path]))
