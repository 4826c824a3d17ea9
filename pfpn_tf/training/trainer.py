"""The training step and the inner loop around it, for Orbit's `Controller`."""

import functools
import time
from typing import Dict, NamedTuple, Optional

import numpy as np
import orbit
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories, pipeline
from pfpn_tf.distribution.workers import workers_of
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import restore
from pfpn_tf.structures import GroundTruth
from pfpn_tf.training import logs, memory
from pfpn_tf.training import optimizer as optimizer_lib
from pfpn_tf.training import schedule

LOSSES = {
    "panoptic": ("rpn_objectness", "rpn_box", "class", "box", "mask", "semantic", "total"),
    "instance": ("rpn_objectness", "rpn_box", "class", "box", "mask", "total"),
    "semantic": ("semantic", "total"),
}

# Dynamic loss scale of float16: halved when a gradient overflows, doubled after this many steps
# without; 2**15 is the usual start.
INITIAL_LOSS_SCALE = 2.0**15
LOSS_SCALE_GROWTH_STEPS = 2000


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient is infinite or not a number; the message says where."""


class StopRequested(Exception):
    """SIGTERM or SIGINT has arrived, here or at another worker."""


class _StepResult(NamedTuple):
    """What one step tells the loop. The tensors are read one step late, when they are there."""

    step: int
    healthy: tf.Tensor
    scalars: tf.Tensor
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
        self.profile_dir = ""
        self._profiling = False
        self.scalar_names = [f"loss/{name}" for name in LOSSES[config.model.task]]
        self.scalar_names += ["gradient_norm", "positive_anchors", "foreground_rois"]
        # Means since the scalars were last written. In the checkpoint, so that a run stopped
        # between two lines of metrics.jsonl writes the same next line.
        self._sums = tf.Variable(tf.zeros([len(self.scalar_names)], tf.float64), trainable=False)
        self.num_summed = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._healthy = tf.Variable(True, trainable=False)
        scale = INITIAL_LOSS_SCALE if config.train.precision == "mixed_float16" else 1.0
        self._loss_scale = tf.Variable(scale, dtype=tf.float32, trainable=False)
        self._steps_at_scale = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._schedule = schedule.build_schedule(config.train)
        self._variables = model.trainable_variables
        with strategy.scope():
            optimizer.build(self._variables)
            self._averaged = restore.model_variables(model) if config.train.ema_decay else {}
            self.averages = {
                path: tf.Variable(v, trainable=False)
                for path, v in self._averaged.items()
                if v.dtype.is_floating
            }
        self._step_function = None
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
    def state(self) -> Dict[str, tf.__internal__.tracking.Trackable]:
        """Everything a checkpoint must hold."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "global_step": self.global_step,
            "sums": self._sums,
            "num_summed": self.num_summed,
            "loss_scale": self._loss_scale,
            "steps_at_scale": self._steps_at_scale,
            **({"averages": self.averages} if self.averages else {}),
        }

    def set_dataset(self, dataset) -> None:
        """Gives the distributed dataset, which must start at `global_step`."""
        self.train_dataset = dataset
        # One trace for all image sizes: the signature is that of the dataset, not of a batch. XLA
        # needs one for each, and --static_shapes keeps them few.
        # Without AutoGraph: nothing here needs it, and rewriting all of Keras doubles the time to
        # compile.
        signature = [dataset.element_spec, tf.TensorSpec([], tf.bool)]
        self._step_function = tf.function(
            self._distributed_step,
            input_signature=None if self.config.train.xla else signature,
            autograph=False,
        )

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
            result = _StepResult(step, *self.train_step(iterator))
            self._first_step_done(result, num_steps)
            # Looking at a step only after the next one is on its way keeps a GPU busy. The next one
            # changes nothing if this one was bad: `_healthy` says no on the device.
            if pending is not None:
                self._check(pending)
            pending = result
        if pending is not None:
            self._check(pending)
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

    def _first_step_done(self, result, num_steps):
        if not self._compiled:
            self._check(result)  # waits for it
            self._compiled = True
            logging.info("First step done after %.1f s.", self.rate.seconds_per_step())
            if num_steps > 1:  # else the rate would be of no step at all
                self.rate.restart()

    def _check(self, result):
        self._stop_agreed |= bool(result.stop)
        if bool(result.healthy):
            return
        values = dict(zip(self.scalar_names, result.scalars.numpy()))
        wrong = "gradient" if np.isfinite(values["loss/total"]) else "loss"
        ids = pipeline.source_ids(result.source_ids.numpy())
        raise NonFiniteLoss(
            f"The {wrong} is not finite at step {result.step}: "
            + ", ".join(
                f"{n.partition('/')[2] or n} {v:.6g}"
                for n, v in values.items()
                if n[:3] in ("los", "gra")
            )
            + f". Images of the batch: {', '.join(ids)}. The weights before this step are unharmed."
            " Usual reasons: --learning_rate is too high, --warmup_steps too low, or"
            " --gradient_clip_norm is 0 without trained weights."
        )

    def train_loop_end(self):
        """Means of all scalars since `reset_means`."""
        count = max(int(self.num_summed), 1)
        scalars = dict(zip(self.scalar_names, (self._sums.numpy() / count).tolist()))
        seconds = self.rate.seconds_per_step()
        last_update = max(int(self.optimizer.iterations.numpy()) - 1, 0)
        scalars["learning_rate"] = float(self._schedule(last_update))
        scalars["images_per_second"] = self.config.train.global_batch_size / seconds
        scalars["input_wait"] = self.rate.wait_share()
        if self.config.train.precision == "mixed_float16":
            scalars["loss_scale"] = float(self._loss_scale)
        for place, num_bytes in memory.peak().items():
            scalars[f"peak_gib/{place.replace(' ', '_')}"] = num_bytes / 2**30
        return scalars

    def reset_averages(self) -> None:
        """Starts the moving averages at the weights as they are."""
        for path, average in self.averages.items():
            average.assign(tf.convert_to_tensor(self._averaged[path]))

    def reset_means(self) -> None:
        """Starts new means."""
        self._sums.assign(tf.zeros_like(self._sums))
        self.num_summed.assign(0)
        self.rate.restart()

    # -- the step -----------------------------------------------------------------------------

    def train_step(self, iterator):
        """One optimizer step on the next batch.

        Returns:
          healthy: [] bool, whether the loss and the gradient are finite (and were before).
          scalars: [len(scalar_names)] float64 of this step.
          source_ids: [B, 64] uint8 of this worker's images.
          stop: [] bool, whether any worker has a `stop_signal`.
        """
        start = time.monotonic()
        batch = next(iterator)
        waited_seconds = time.monotonic() - start
        result = self._step_function(batch, tf.constant(self.stop_signal is not None))
        self.rate.step_done(waited_seconds)
        return result

    def _distributed_step(self, batch, stop):
        gradients, scalars, stops = self.strategy.run(self._replica_gradients, args=(batch, stop))
        # The values of all replicas are equal by now: they were summed.
        scalars, stops = (self.strategy.experimental_local_results(x)[0] for x in (scalars, stops))
        loss = scalars[self.scalar_names.index("loss/total")]
        norm = scalars[self.scalar_names.index("gradient_norm")]
        loss_finite, norm_finite = tf.math.is_finite(loss), tf.math.is_finite(norm)
        if self.config.train.precision == "mixed_float16":
            # An overflow in the gradient alone is what the dynamic loss scale is for.
            healthy = self._healthy.read_value() & loss_finite
        else:
            healthy = self._healthy.read_value() & loss_finite & norm_finite
        self._healthy.assign(healthy)

        def update():
            self.strategy.run(self._replica_update, args=(gradients, norm))
            self._update_average()
            return tf.constant(0)

        tf.cond(healthy & norm_finite, update, lambda: tf.constant(0))
        if self.config.train.precision == "mixed_float16":
            self._adapt_loss_scale(norm_finite)
        counted = tf.cast(healthy, tf.int64)
        self.global_step.assign_add(counted)
        self.num_summed.assign_add(counted)
        self._sums.assign_add(tf.where(healthy, scalars, tf.zeros_like(scalars)))
        source_ids = tf.concat(
            self.strategy.experimental_local_results(batch["source_id_bytes"]), axis=0
        )
        return healthy, scalars, source_ids, stops > 0

    def _replica_gradients(self, batch, stop):
        """Forward and backward pass of one replica, then the sum over replicas."""
        num_parts = self.config.train.gradient_accumulation_steps
        gradients, scalars = None, None
        for i in range(num_parts):
            part = batch
            if num_parts > 1:
                part = {name: tf.split(value, num_parts)[i] for name, value in batch.items()}
            # A part waits for the gradients of the one before: otherwise TensorFlow would run them
            # side by side and save no memory.
            with tf.control_dependencies(gradients or []):
                part = tf.nest.map_structure(tf.identity, part)
            # As values, since XLA takes variables of its own device alone.
            counters = map(tf.convert_to_tensor, (self.global_step, self._loss_scale))
            part_gradients, part_scalars = self._gradients(part, *counters)
            if gradients is None:
                gradients, scalars = part_gradients, part_scalars
            else:
                gradients = [a + b for a, b in zip(gradients, part_gradients)]
                scalars += part_scalars
        # A loss is this replica's sum over the count of the *global* batch, so the replicas' losses
        # and gradients are shares that add up: SUM, and no division by the number of replicas. The
        # parts of a replica, in contrast, are batches of their own, to be averaged.
        factor = 1.0 / (num_parts * self._loss_scale)
        gradients = [g * tf.cast(factor, g.dtype) for g in gradients]
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        stop = tf.cast(stop, tf.float64)  # travels with the scalars: no exchange of its own
        scalars = tf.concat([scalars / num_parts, [stop]], axis=0)
        scalars = context.all_reduce(tf.distribute.ReduceOp.SUM, scalars)
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float64)
        is_norm = [name == "gradient_norm" for name in self.scalar_names]
        return gradients, tf.where(is_norm, norm, scalars[:-1]), scalars[-1]

    def _part_gradients(self, batch, step, loss_scale):
        """Scaled gradients of the total loss, and this replica's share of `scalar_names`."""
        with tf.GradientTape() as tape:
            outputs, losses = self._losses(batch, step)
            scaled = losses["total"] * tf.cast(loss_scale, losses["total"].dtype)
        gradients = tape.gradient(
            scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        shares = [losses[name] for name in LOSSES[self.config.model.task]]
        shares += [tf.zeros([]), *self._counts_per_image(outputs)]
        scalars = tf.stack([tf.cast(value, tf.float64) for value in shares])
        return [tf.convert_to_tensor(g) for g in gradients], scalars

    def forward(self, batch):
        """The network's outputs for a batch, and its losses."""
        return self._losses(batch, self.global_step)

    def _losses(self, batch, step):
        outputs = self._network(batch)
        return outputs, panoptic_fpn_losses(outputs, _ground_truth(batch), self.config, step)

    def _run_network(self, batch):
        return self.model(
            batch["images"],
            batch["image_hw"],
            ground_truth=_ground_truth(batch),
            seed=batch["seed"],
            training=True,
        )

    def _counts_per_image(self, outputs):
        """Positive anchors and foreground RoIs, over the global batch size."""
        if outputs.rpn_targets is None:
            return tf.zeros([]), tf.zeros([])
        batch_size = (
            self.config.train.global_batch_size // self.config.train.gradient_accumulation_steps
        )
        positive = tf.math.count_nonzero(outputs.rpn_targets.labels == 1) / batch_size
        foreground = tf.math.count_nonzero(outputs.roi_targets.mask_class_ids >= 0) / batch_size
        return positive, foreground

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

    def _update_average(self):
        """average = decay average + (1 - decay) weight, with a smaller decay in the first steps."""
        updates = tf.cast(self.optimizer.iterations, tf.float32)
        decay = tf.minimum(self.config.train.ema_decay, (1.0 + updates) / (10.0 + updates))
        for path, average in self.averages.items():

            def update(variable, weight):
                share = tf.cast(1.0 - decay, variable.dtype)
                return variable.assign_add(share * (weight - variable))

            self.strategy.extended.update(average, update, args=(self._averaged[path],))

    def _adapt_loss_scale(self, norm_finite):
        steps = tf.where(norm_finite, self._steps_at_scale + 1, 0)
        grow = steps >= LOSS_SCALE_GROWTH_STEPS
        factor = tf.where(norm_finite, tf.where(grow, 2.0, 1.0), 0.5)
        self._loss_scale.assign(tf.clip_by_value(self._loss_scale * factor, 1.0, 2.0**24))
        self._steps_at_scale.assign(tf.where(grow, tf.zeros_like(steps), steps))


def _ground_truth(batch):
    names = ("gt_boxes", "gt_class_ids", "gt_masks", "gt_semantic")
    return GroundTruth(*(batch[name] for name in names))


def build_trainer(
    config: config_lib.Config, info: categories.DatasetInfo, strategy: tf.distribute.Strategy
) -> Trainer:
    """A `Trainer` with a freshly initialised model."""
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    tf.keras.utils.set_random_seed(config.train.seed)
    with strategy.scope():
        model = panoptic_fpn.build_model(
            config.model,
            info.num_thing_classes,
            info.num_semantic_classes(config.model.semantic_targets),
            config.train.xla,
        )
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
