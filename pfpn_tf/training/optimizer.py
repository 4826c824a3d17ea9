"""SGD with momentum and weight decay, as Caffe2 and PyTorch define it."""

from typing import List, Union

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import norms
from pfpn_tf.training import schedule


class SGD(tf.keras.optimizers.Optimizer):
    """v = momentum v + (g + decay w); w = w - rate v.

    Keras' own SGD has the rate inside v, so that a drop of the rate acts on old gradients only as
    they fade, and it takes the decay past the momentum. The recipes of the paper and of Detectron2
    are meant for this one.

    Like any Keras optimizer this one sums the gradients over the replicas in `apply_gradients`. A
    caller that has summed them already, say to clip them, passes `skip_gradients_aggregation=True`.

    Args:
      learning_rate: a number or a schedule.
      momentum: share of v that remains.
      l2: weight decay, on all variables but those given to `exclude_from_weight_decay`.
      slow: whether `slow_down` will be called; it needs a variable that checkpoints hold.
    """

    def __init__(
        self,
        learning_rate: Union[float, tf.keras.optimizers.schedules.LearningRateSchedule],
        momentum: float = 0.9,
        l2: float = 0.0,
        slow: bool = False,
    ):
        # None: Keras would take a decay of 0 off every weight in each step.
        super().__init__(name="SGD", weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.momentum = momentum
        self.l2 = l2
        self.slow = slow

    def build(self, var_list: List[tf.Variable]) -> None:
        """Creates v for each variable, in their order."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self.velocities = [
            self.add_variable_from_reference(variable, "velocity") for variable in var_list
        ]
        if self.slow:
            self.factors = self.add_variable([len(var_list)], initializer="ones", name="factors")
        self._built = True

    def slow_down(self, variables: List[tf.Variable], factor: float) -> None:
        """Gives these variables, as far as they are trained, `factor` times the learning rate."""
        if not self.slow:
            return
        indices = [self._index_dict.get(self._var_key(v)) for v in variables]
        factors = self.factors.numpy()
        factors[[i for i in indices if i is not None]] = factor
        self.factors.assign(factors)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """One fused update of a variable and its v."""
        gradient = tf.convert_to_tensor(gradient)  # a sparse gradient becomes dense
        if self.l2 and self._use_weight_decay(variable):
            gradient += tf.cast(self.l2, gradient.dtype) * variable
        index = self._index_dict[self._var_key(variable)]
        velocity = self.velocities[index]
        rate = tf.cast(self.learning_rate, gradient.dtype)
        if self.slow:
            rate = rate * tf.cast(self.factors[index], gradient.dtype)
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=velocity.handle,
            lr=rate,
            grad=gradient,
            momentum=tf.constant(self.momentum, gradient.dtype),
        )


def build_optimizer(config: config_lib.Train, model: tf.keras.Model) -> SGD:
    """The optimizer of a built model; scales and shifts of its norms have no weight decay."""
    slow = config.restored_lr_factor != 1
    optimizer = SGD(schedule.Schedule(config), config.momentum, config.weight_decay, slow)
    layers = [module for module in model.submodules if isinstance(module, norms.NORMS)]
    optimizer.exclude_from_weight_decay([v for norm in layers for v in norm.trainable_variables])
    return optimizer
