"""The training step and the inner loop around it."""

import functools
import time
from typing import Any, Callable, Dict, NamedTuple, Optional

import numpy as np
import orbit
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories, pipeline
from pfpn_tf.distribution.workers import workers_of
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from pfpn_tf.training import logs, memory
from pfpn_tf.training import optimizer as optimizer_lib
from pfpn_tf.training import schedule
from pfpn_tf.training.averages import MovingAverages
from pfpn_tf.training.loss_scale import LossScale
from pfpn_tf.utils import keras_policy
from pfpn_tf.utils.scopes import in_scope


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is infinite or not a number; the message says where."""


class StopRequested(Exception):
    """SIGTERM or SIGINT has arrived, here or at another worker."""


class StepResult(NamedTuple):
    """What one step tells the loop.

    Attributes:
      healthy: [] bool, whether loss and gradient are finite, in this step and in all before it. If
        not, the step has changed nothing.
      updated: [] bool, whether the weights were updated. A healthy step of float16 skips the update
        when the gradient overflows, and lowers the loss scale.
      scalars: name -> [] float64.
      source_ids: [B, 64] uint8 of this worker's images.
      stop: [] bool, whether any worker has a `stop_signal`.
    """

    healthy: tf.Tensor
    updated: tf.Tensor
    scalars: Dict[str, tf.Tensor]
    source_ids: tf.Tensor
    stop: tf.Tensor


class Trainer(orbit.StandardTrainer):
    """The training step and the inner loop.

    `state` names what a checkpoint must hold to continue exactly.
    """

    def __init__(
        self,
        config: config_lib.Config,
        model: tf.keras.Model,
        optimizer: tf.keras.optimizers.Optimizer,
        strategy: tf.distribute.Strategy,
    ):
        super().__init__(
            train_dataset=None,
            options=orbit.StandardTrainerOptions(use_tf_function=False, use_tf_while_loop=False),
        )
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.strategy = strategy
        self.global_step = orbit.utils.create_global_step()
        self.workers = workers_of(strategy)
        self.stop_signal: Optional[int] = None
        self._stop_agreed = False
        self.rate = logs.Rate()
        self.means = logs.Means()
        self.profile_dir = ""
        self._profiling = False
        self._healthy = tf.Variable(True, trainable=False)
        self._loss_scale = LossScale(config.train.precision)
        self._schedule = schedule.Schedule(config.train)
        self._variables = model.trainable_variables
        with strategy.scope():
            optimizer.build(self._variables)
        self.averages = MovingAverages(model, config.train.ema_decay, strategy)
        self._step_function: Callable[..., StepResult]  # from `set_dataset` on
        self._compiled = False
        self._network, self._gradients = self._run_network, self._part_gradients
        if config.train.xla:
            # All of a replica's passes at once. But the losses of several replicas are divided by
            # counts over all of them, an exchange in the middle, which must stay outside.
            compile_it = functools.partial(tf.function, autograph=False, jit_compile=True)
            if strategy.num_replicas_in_sync == 1:
                self._gradients = compile_it(self._part_gradients)
            else:
                self._network = compile_it(self._run_network)

    @property
    def state(self) -> Dict[str, Any]:
        """Everything a checkpoint must hold, by name."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "global_step": self.global_step,
            "means": self.means,
            "loss_scale": self._loss_scale,
            **({"averages": self.averages.variables} if self.averages.variables else {}),
        }

    def set_dataset(self, dataset) -> None:
        """Gives the distributed dataset, which must start at `global_step`."""
        self.train_dataset = dataset
        # One trace for all image sizes: the signature is that of the dataset, not of a batch. XLA
        # needs one for each, and --static_shapes keeps them few. Nothing here needs AutoGraph,
        # which doubles the time to compile by rewriting all of Keras.
        signature = [dataset.element_spec, tf.TensorSpec([], tf.bool)]
        self._step_function = tf.function(
            self._step,
            input_signature=None if self.config.train.xla else signature,
            autograph=False,
        )

    # -- the step -----------------------------------------------------------------------------

    def train_step(self, iterator) -> StepResult:
        """One optimizer step on the next batch."""
        start = time.monotonic()
        batch = next(iterator)
        waited_seconds = time.monotonic() - start
        result = self._step_function(batch, tf.constant(self.stop_signal is not None))
        self.rate.step_done(waited_seconds)
        return result

    def _step(self, batch, stop):
        gradients, scalars = self.strategy.run(self._replica_gradients, args=(batch, stop))
        # All replicas hold the same sums by now: take those of the first.
        scalars = {name: self._local(value)[0] for name, value in scalars.items()}
        stop = scalars.pop("stop") > 0
        norm = scalars["gradient_norm"]
        norm_finite = tf.math.is_finite(norm)
        healthy = self._healthy.read_value() & tf.math.is_finite(scalars["loss/total"])
        healthy &= norm_finite | self._loss_scale.can_fall()
        self._healthy.assign(healthy)

        def update():
            self.strategy.run(self._replica_update, args=(gradients, norm))
            self.averages.update(self.optimizer.iterations)
            return True

        updated = tf.cond(healthy & norm_finite, update, lambda: False)
        self._loss_scale.adapt(norm_finite)
        self.global_step.assign_add(tf.cast(healthy, tf.int64))
        source_ids = tf.concat(self._local(batch["source_id_bytes"]), axis=0)
        return StepResult(healthy, updated, scalars, source_ids, stop)

    def _replica_gradients(self, batch, stop):
        """Forward and backward pass of one replica, then the sum over replicas."""
        num_parts = self.config.train.gradient_accumulation_steps
        loss_scale = tf.convert_to_tensor(self._loss_scale.value)
        gradients, scalars = self._accumulated_gradients(batch, num_parts, loss_scale)
        # A loss is this replica's sum over the count of the *global* batch, so the replicas' losses
        # and gradients are shares that add up: SUM, and no division by the number of replicas. The
        # parts of a replica, in contrast, are batches of their own, to be averaged.
        factor = 1.0 / (num_parts * loss_scale)
        gradients = [g * tf.cast(factor, g.dtype) for g in gradients]
        gradients = _sum_over_replicas(gradients)
        scalars = {name: value / num_parts for name, value in scalars.items()}
        scalars["stop"] = tf.cast(stop, tf.float64)
        summed = _sum_over_replicas(tf.stack(list(scalars.values())))  # one exchange for all
        scalars = dict(zip(scalars, tf.unstack(summed)))
        scalars["gradient_norm"] = tf.cast(tf.linalg.global_norm(gradients), tf.float64)
        return gradients, scalars

    def _accumulated_gradients(self, batch, num_parts, loss_scale):
        """Sums of what `_part_gradients` gives for each of `num_parts` equal parts of a batch."""
        # XLA cannot read variables placed on another device, so pass their values.
        step = tf.convert_to_tensor(self.global_step)
        if num_parts == 1:
            return self._gradients(batch, step, loss_scale)
        splits = {name: tf.split(value, num_parts) for name, value in batch.items()}
        total = None
        for i in range(num_parts):
            # A part waits for the gradients of the one before: otherwise TensorFlow would run them
            # side by side and save no memory.
            with tf.control_dependencies(tf.nest.flatten(total) if total else []):
                part = {name: tf.identity(parts[i]) for name, parts in splits.items()}
            result = self._gradients(part, step, loss_scale)
            total = tf.nest.map_structure(tf.add, total, result) if total else result
        return total

    def _part_gradients(self, batch, step, loss_scale):
        """Scaled gradients of the total loss, and this replica's share of the scalars."""
        with tf.GradientTape() as tape:
            outputs, losses = self.forward(batch, step)
            scaled = losses["total"] * tf.cast(loss_scale, losses["total"].dtype)
        gradients = tape.gradient(
            scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        scalars.update(self._counts_per_image(outputs))
        scalars = {name: tf.cast(value, tf.float64) for name, value in scalars.items()}
        return [tf.convert_to_tensor(g) for g in gradients], scalars

    def forward(self, batch, step):
        """The network's outputs for a batch, and the losses in this step."""
        outputs = self._network(batch)
        return outputs, panoptic_fpn_losses(outputs, ground_truth(batch), self.config, step)

    def _run_network(self, batch):
        return self.model(
            batch["images"],
            batch["image_hw"],
            ground_truth=ground_truth(batch),
            seed=batch["seed"],
            training=True,
        )

    def _counts_per_image(self, outputs):
        """Positive anchors and foreground RoIs, over the global batch size."""
        if outputs.rpn_targets is None:
            return {}
        train = self.config.train
        batch_size = train.global_batch_size // train.gradient_accumulation_steps
        positive = tf.math.count_nonzero(outputs.rpn_targets.labels == 1)
        foreground = tf.math.count_nonzero(outputs.roi_targets.mask_class_ids >= 0)
        return {
            "positive_anchors": positive / batch_size,
            "foreground_rois": foreground / batch_size,
        }

    @in_scope("optimizer")
    def _replica_update(self, gradients, norm):
        """Clips and applies. All replicas hold the same summed gradients, so they clip alike."""
        if self.config.train.gradient_clip_norm > 0:
            norm = tf.cast(norm, gradients[0].dtype)
            gradients, _ = tf.clip_by_global_norm(
                gradients, self.config.train.gradient_clip_norm, use_norm=norm
            )
        self.optimizer.apply_gradients(
            zip(gradients, self._variables), skip_gradients_aggregation=True
        )

    def _local(self, per_replica):
        return self.strategy.experimental_local_results(per_replica)

    # -- inner loop ---------------------------------------------------------------------------

    def create_train_loop_fn(self):
        """The inner loop is plain Python: a step takes far longer than a call, and the loop can
        stop between any two steps."""
        return self._run_steps

    def _run_steps(self, iterator, num_steps):
        if not self._compiled:
            logging.info("The first step compiles; this may take minutes.")
            self.rate.restart()
        pending = None
        for step in range(int(self.global_step), int(self.global_step) + int(num_steps)):
            if self._must_stop():
                break
            self._profile(step)
            result = self.train_step(iterator)
            self._first_step_done(step, result, num_steps)
            # Reading a step's result only after the next one is on its way keeps a GPU busy. The
            # next one changes nothing if this one was bad: `_healthy` says no on the device.
            if pending is not None:
                self._take(*pending)
            pending = step, result
        if pending is not None:
            self._take(*pending)
        if self._must_stop():
            raise StopRequested()

    def _must_stop(self):
        """Several workers stop after the same step, when the signal of one has reached all of
        them.
        """
        return self._stop_agreed or (self.stop_signal is not None and self.workers.count == 1)

    def _profile(self, step):
        """Starts the profiler before the first step to record, and stops it after the last."""
        if self.config.train.profile_steps and self.workers.is_chief:
            first, last = self.config.train.profile_steps
            if step == first:
                tf.profiler.experimental.start(self.profile_dir)
                self._profiling = True
            if step == last + 1:
                self.stop_profiler()

    def stop_profiler(self) -> None:
        """Writes what the profiler has recorded, if it is running."""
        if self._profiling:
            tf.profiler.experimental.stop()
            self._profiling = False
            logging.info("Recorded a profile in %s.", self.profile_dir)

    def _first_step_done(self, step, result, num_steps):
        if not self._compiled:
            self._check(step, result)  # waits for it
            self._compiled = True
            logging.info("First step done after %.1f s.", self.rate.seconds_per_step())
            if num_steps > 1:  # else the rate would be of no step at all
                self.rate.restart()

    def _take(self, step, result):
        """Adds the scalars of a step to the means and obeys a worker's signal."""
        self._check(step, result)
        self._stop_agreed |= bool(result.stop)
        if result.updated:
            self.means.add({name: float(value) for name, value in result.scalars.items()})

    def _check(self, step, result):
        if result.healthy:
            return
        values = {name: float(value) for name, value in result.scalars.items()}
        wrong = "gradient" if np.isfinite(values["loss/total"]) else "loss"
        told = ", ".join(
            f"{name.removeprefix('loss/')} {value:.6g}"
            for name, value in values.items()
            if name.startswith("loss/") or name == "gradient_norm"
        )
        ids = pipeline.source_ids(result.source_ids.numpy())
        raise NonFiniteLoss(
            f"The {wrong} is not finite at step {step}: {told}. Images of the batch:"
            f" {', '.join(ids)}. The weights before this step are unharmed."
            " Usual reasons: --learning_rate is too high, --warmup_steps too low, or"
            " --gradient_clip_norm is 0 without trained weights."
        )

    def train_loop_end(self):
        """Means of all scalars since the means were restarted, and how fast it goes."""
        seconds = self.rate.seconds_per_step()
        last_update = max(int(self.optimizer.iterations.numpy()) - 1, 0)
        scalars = {
            **self.means.values(),
            "learning_rate": float(self._schedule(last_update)),
            "images_per_second": self.config.train.global_batch_size / seconds,
            "input_wait": self.rate.wait_share(),
        }
        if self._loss_scale.is_dynamic:
            scalars["loss_scale"] = float(self._loss_scale.value)
        for place, num_bytes in memory.peak().items():
            scalars[f"peak_gib/{place.replace(' ', '_')}"] = num_bytes / 2**30
        return scalars


def _sum_over_replicas(values):
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def ground_truth(batch) -> GroundTruth:
    """The labels in a training batch."""
    names = ("gt_boxes", "gt_class_ids", "gt_masks", "gt_semantic")
    return GroundTruth(*(batch[name] for name in names))


def build_trainer(
    config: config_lib.Config, info: categories.DatasetInfo, strategy: tf.distribute.Strategy
) -> Trainer:
    """A `Trainer` with a freshly initialised model."""
    tf.keras.utils.set_random_seed(config.train.seed)
    with strategy.scope(), keras_policy.layers_of(config.train.precision):
        model = panoptic_fpn.build_for_dataset(config.model, info, config.train.xla)
        optimizer = optimizer_lib.build_optimizer(config.train, model)
    return Trainer(config, model, optimizer, strategy)


def distributed_dataset(
    config: config_lib.Config,
    info: categories.DatasetInfo,
    strategy: tf.distribute.Strategy,
    start_step: int,
):
    """Training batches; each replica gets its contiguous part of the same global batch."""

    def share_of_worker(input_context):
        return pipeline.build_dataset(config, info, True, input_context, start_step)

    return strategy.distribute_datasets_from_function(share_of_worker)
