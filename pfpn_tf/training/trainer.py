"""Training: the step, the loop around it, and everything that must hold before it starts.

`Trainer` holds the step and runs the inner loop for Orbit's `Controller`; `train` puts a run
together: checks, run directory, model, weights, data, outer loop.
"""

import contextlib
import io
import os
import resource
import signal
import time
from typing import Dict, NamedTuple, Optional

from absl import logging
import numpy as np
import orbit
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories, pipeline
from pfpn_tf.evaluation import evaluator, report
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from pfpn_tf.training import checkpoints, optimizer as optimizer_lib, pictures, run_directory
from pfpn_tf.training import schedule, summaries, weight_conversion

FINISHED = 0
INTERRUPTED = 130
TERMINATED = 143

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
    """SIGTERM or SIGINT has arrived."""


class _StepResult(NamedTuple):
    """What one step tells the loop. The tensors are read one step late, when they are there."""

    step: int
    healthy: tf.Tensor
    scalars: tf.Tensor
    source_ids: tf.Tensor


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
        self.stop_signal: Optional[int] = None
        self.rate = summaries.Rate()
        self.profile_dir = ""
        self.scalar_names = [f"loss/{name}" for name in LOSSES[config.model.task]]
        self.scalar_names += ["gradient_norm", "positive_anchors", "foreground_rois"]
        # Means since the scalars were last written. In the checkpoint, so that a run stopped between
        # two lines of metrics.jsonl writes the same next line.
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
            self._averaged = checkpoints.model_variables(model) if config.train.ema_decay else {}
            self.averages = {
                path: tf.Variable(v, trainable=False) for path, v in self._averaged.items() if v.dtype.is_floating
            }
        self._step_function = None
        self._compiled = False

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
        # One trace for all image sizes: the signature is that of the dataset, not of a batch.
        # Without AutoGraph: nothing here needs it, and rewriting all of Keras doubles the time to compile.
        self._step_function = tf.function(
            self._distributed_step, input_signature=[dataset.element_spec], autograph=False
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
            if self.stop_signal is not None:
                break
            self._profile(step)
            result = _StepResult(step, *self.train_step(iterator))
            self._first_step_done(result)
            # Looking at a step only after the next one is on its way keeps a GPU busy. The next one
            # changes nothing if this one was bad: `_healthy` says no on the device.
            if pending is not None:
                self._check(pending)
            pending = result
        if pending is not None:
            self._check(pending)
        if self.stop_signal is not None:
            raise StopRequested()

    def _profile(self, step):
        """Starts the profiler before the first step to record, and stops it after the last."""
        if self.config.train.profile_steps:
            first, last = self.config.train.profile_steps
            if step == first:
                tf.profiler.experimental.start(self.profile_dir)
            if step == last + 1:
                tf.profiler.experimental.stop()
                logging.info("Recorded steps %d to %d in %s.", first, last, self.profile_dir)

    def _first_step_done(self, result):
        if not self._compiled:
            self._check(result)  # waits for it
            self._compiled = True
            logging.info("First step done after %.1f s.", self.rate.seconds_per_step())
            self.rate.restart()

    def _check(self, result):
        if bool(result.healthy):
            return
        values = dict(zip(self.scalar_names, result.scalars.numpy()))
        wrong = "gradient" if np.isfinite(values["loss/total"]) else "loss"
        ids = pipeline.source_ids(result.source_ids.numpy())
        raise NonFiniteLoss(
            f"The {wrong} is not finite at step {result.step}: "
            + ", ".join(f"{n.partition('/')[2] or n} {v:.6g}" for n, v in values.items() if n[:3] in ("los", "gra"))
            + f". Images of the batch: {', '.join(ids)}. The weights before this step are unharmed. Usual reasons: "
            "--learning_rate is too high, --warmup_steps too low, or --gradient_clip_norm is 0 without trained weights."
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
          source_ids: [B, 64] uint8.
        """
        start = time.monotonic()
        batch = next(iterator)
        waited_seconds = time.monotonic() - start
        result = self._step_function(batch)
        self.rate.step_done(waited_seconds)
        return result

    def _distributed_step(self, batch):
        gradients, scalars = self.strategy.run(self._replica_gradients, args=(batch,))
        # The values of all replicas are equal by now: they were summed.
        scalars = self.strategy.experimental_local_results(scalars)[0]
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
        source_ids = tf.concat(self.strategy.experimental_local_results(batch["source_id_bytes"]), axis=0)
        return healthy, scalars, source_ids

    def _replica_gradients(self, batch):
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
            part_gradients, part_scalars = self._part_gradients(part)
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
        scalars = context.all_reduce(tf.distribute.ReduceOp.SUM, scalars / num_parts)
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float64)
        is_norm = [name == "gradient_norm" for name in self.scalar_names]
        return gradients, tf.where(is_norm, norm, scalars)

    def _part_gradients(self, batch):
        """Scaled gradients of the total loss, and this replica's share of `scalar_names`."""
        ground_truth = GroundTruth(
            batch["gt_boxes"], batch["gt_class_ids"], batch["gt_masks"], batch["gt_semantic"]
        )
        with tf.GradientTape() as tape:
            outputs = self.model(
                batch["images"],
                batch["image_hw"],
                ground_truth=ground_truth,
                seed=batch["seed"],
                training=True,
            )
            losses = panoptic_fpn_losses(outputs, ground_truth, self.config)
            scaled = losses["total"] * tf.cast(self._loss_scale, losses["total"].dtype)
        gradients = tape.gradient(scaled, self._variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        shares = [losses[name] for name in LOSSES[self.config.model.task]]
        shares += [tf.zeros([]), *self._counts_per_image(outputs)]
        scalars = tf.stack([tf.cast(value, tf.float64) for value in shares])
        return [tf.convert_to_tensor(g) for g in gradients], scalars

    def _counts_per_image(self, outputs):
        """Positive anchors and foreground RoIs, over the global batch size."""
        if outputs.rpn_targets is None:
            return tf.zeros([]), tf.zeros([])
        batch_size = self.config.train.global_batch_size // self.config.train.gradient_accumulation_steps
        positive = tf.math.count_nonzero(outputs.rpn_targets.labels == 1) / batch_size
        foreground = tf.math.count_nonzero(outputs.roi_targets.mask_class_ids >= 0) / batch_size
        return positive, foreground

    def _replica_update(self, gradients, norm):
        """Clips and applies. All replicas hold the same summed gradients, so they clip alike."""
        if self.config.train.gradient_clip_norm > 0:
            norm = tf.cast(norm, gradients[0].dtype)
            gradients, _ = tf.clip_by_global_norm(gradients, self.config.train.gradient_clip_norm, use_norm=norm)
        self.optimizer.apply_gradients(zip(gradients, self._variables), skip_gradients_aggregation=True)

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


# -- before the first step ----------------------------------------------------------------------


def set_up_runtime(config: config_lib.Config) -> None:
    """Threads and GPU memory. Must come before TensorFlow does anything else."""
    tf.get_logger().setLevel("ERROR")  # no word on every collective operation
    threads = config.train.train_cpu_threads
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    if config.train.xla:
        tf.config.optimizer.set_jit("autoclustering")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def build_strategy(distribution: str) -> tf.distribute.Strategy:
    """The distribution strategy for a value of --distribution."""
    gpus = tf.config.list_logical_devices("GPU")
    if distribution == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if distribution in ("cpu", "one_device"):
        use_gpu = distribution == "one_device" and gpus
        return tf.distribute.OneDeviceStrategy("GPU:0" if use_gpu else "CPU:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    # TensorFlow's collectives, the default on CPUs, serve one strategy a process.
    return tf.distribute.MirroredStrategy(["CPU:0"], tf.distribute.ReductionToOneDevice())


def check(config: config_lib.Config, num_replicas: int) -> None:
    """Checks everything that does not need the model: paths, and settings against each other.

    Raises:
      ValueError: every problem, one a line.
    """
    data, model, train_config = config.data, config.model, config.train
    problems = []
    if not data.train_records:
        problems.append("--train_records is required, e.g. --train_records='data/coco/train-*.tfrecord'.")
    if not data.eval_records and train_config.eval_interval_steps:
        problems.append("--eval_interval_steps needs --eval_records.")
    for name in ("train_records", "eval_records"):
        for pattern in filter(None, getattr(data, name).split(",")):
            if not tf.io.gfile.glob(pattern):
                problems.append(f"--{name}={getattr(data, name)}: no file matches {pattern}.")
    batch_size = train_config.global_batch_size
    parts = num_replicas * train_config.gradient_accumulation_steps
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        use = f"{below} or {above}" if below else f"{above}"
        by = f"the {num_replicas} replica{'s' * (num_replicas > 1)}"
        if train_config.gradient_accumulation_steps > 1:
            by += f" times --gradient_accumulation_steps={train_config.gradient_accumulation_steps}"
        problems.append(f"--global_batch_size={batch_size} must be divisible by {by}; use {use}.")
    if weight_conversion.is_foreign(train_config.init_weights):
        path = train_config.init_weights
        if path != weight_conversion.IMAGENET and not os.path.exists(path):
            problems.append(f"--init_weights={path}: no such file.")
    elif train_config.init_weights:
        try:
            checkpoints.find_init_checkpoint(train_config.init_weights)
        except ValueError as error:
            problems.append(str(error))
    elif model.freeze_stages > 0:
        problems.append(
            f"--freeze_stages={model.freeze_stages} would freeze random weights, as --init_weights is empty; "
            "use --freeze_stages=0, or give trained weights with --init_weights."
        )
    if problems:
        raise ValueError("\n".join(problems))
    if not train_config.init_weights and model.backbone_norm == "frozen_bn":
        logging.warning(
            "--backbone_norm=frozen_bn without --init_weights does not normalise at all; "
            "use --backbone_norm=group_norm to train from scratch."
        )


# -- the run ------------------------------------------------------------------------------------


def train(config: config_lib.Config, run_dir: str, strategy: Optional[tf.distribute.Strategy] = None) -> int:
    """Trains, or continues, the run in `run_dir` until `train_steps`.

    SIGTERM and SIGINT end it after the step at hand, with a checkpoint.

    Args:
      config: all settings.
      run_dir: the run directory; created if it does not exist.
      strategy: distribution strategy; None: what --distribution says.

    Returns:
      Exit code: 0 when all steps are done, 143 after SIGTERM, 130 after SIGINT.

    Raises:
      ValueError: a setting, a path or the run directory is not usable.
      NonFiniteLoss: see there.
      OSError: a file cannot be written.
    """
    strategy = strategy or build_strategy(config.train.distribution)
    check(config, strategy.num_replicas_in_sync)
    info = pipeline.load_info(config)
    run_directory.prepare(run_dir, config, info)
    _log_start(config, run_dir, strategy)

    trainer = build_trainer(config, info, strategy)
    saved = checkpoints.RunCheckpoints(run_dir, config.train.keep_checkpoints, **trainer.state)
    prefix = saved.restore()
    if prefix:
        logging.info("Continuing from %s.", prefix)
    elif config.train.init_weights:
        foreign = weight_conversion.is_foreign(config.train.init_weights)
        source = weight_conversion if foreign else checkpoints
        source.initialise(trainer.model, config.train.init_weights)
        trainer.reset_averages()
    for line in summaries.parameter_counts(trainer.model):
        logging.info("%s", line)
    start_step = int(trainer.global_step)
    if start_step >= config.train.train_steps:
        logging.info("All %d steps are done.", config.train.train_steps)
        return FINISHED
    trainer.set_dataset(distributed_dataset(config, info, strategy, start_step))
    with _signals(trainer):
        return _Run(config, info, run_dir, trainer, saved, start_step).run()


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
    dataset = pipeline.build_dataset(config, info, training=True, start_step=start_step)
    return strategy.experimental_distribute_dataset(dataset)


class _Run:
    """The outer loop: Orbit's controller, with logs, checkpoints and pictures between its loops."""

    def __init__(self, config, info, run_dir, trainer, saved, start_step):
        self._config = config
        self._info = info
        self._run_dir = run_dir
        self._trainer = trainer
        trainer.profile_dir = os.path.join(run_dir, summaries.TENSORBOARD)
        self._saved = saved
        self._log = summaries.RunLog(run_dir, start_step)
        self._pictures = None
        self._evaluator = None
        self._controller = orbit.Controller(
            global_step=trainer.global_step,
            trainer=trainer,
            strategy=trainer.strategy,
            steps_per_loop=self._steps_of_next_loop,
            summary_manager=self._log,
            train_actions=[self._after_loop],
        )

    def run(self) -> int:
        try:
            with _quiet_orbit():
                self._controller.train(self._config.train.train_steps, checkpoint_at_completion=False)
        except StopRequested:
            step = int(self._trainer.global_step)
            name = signal.Signals(self._trainer.stop_signal).name
            logging.info("%s: stopping after step %d; saved %s.", name, step, self._saved.save(step))
            logging.info("The same command continues.")
            return TERMINATED if self._trainer.stop_signal == signal.SIGTERM else INTERRUPTED
        finally:
            self._log.flush()
            _log_peak_memory()
        logging.info("Done: %d steps. Weights and logs are in %s.", self._config.train.train_steps, self._run_dir)
        return FINISHED

    def _steps_of_next_loop(self, step):
        """Up to the next step at which something is due, so that all of it falls on its multiples."""
        train_config = self._config.train
        intervals = [
            train_config.steps_per_loop,
            train_config.summary_interval_steps,
            train_config.checkpoint_interval_steps,
            train_config.image_interval_steps,
            train_config.eval_interval_steps,
        ]
        return int(min(interval - step % interval for interval in intervals if interval))

    def _after_loop(self, scalars):
        train_config = self._config.train
        step = int(self._trainer.global_step)
        last = step == train_config.train_steps

        def due(interval):
            return interval and (last or step % interval == 0)

        if due(train_config.steps_per_loop):
            seconds = self._trainer.rate.seconds_per_step()
            logging.info("%s", summaries.progress_line(scalars, step, train_config.train_steps, seconds))
        if due(train_config.summary_interval_steps):
            self._log.write(scalars, step)
            self._trainer.reset_means()
        started = time.monotonic()
        if due(train_config.checkpoint_interval_steps):
            logging.info("Saved %s.", self._saved.save(step))
        if due(train_config.image_interval_steps):
            self._draw(step)
        if due(train_config.eval_interval_steps):
            self._evaluate(step)
        self._trainer.rate.exclude(time.monotonic() - started)

    def _draw(self, step):
        if self._pictures is None:
            self._pictures = pictures.Pictures(self._config, self._info, self._trainer.model)
        self._log.write_pictures(self._pictures.draw(), step)

    def _evaluate(self, step):
        """Evaluates, and keeps the weights if they are the best so far."""
        if self._evaluator is None:
            self._evaluator = evaluator.Evaluator(
                self._config, self._info, self._trainer.model, self._trainer.strategy
            )
        output_dir = os.path.join(self._run_dir, "eval", str(step))
        metrics = self._evaluator.evaluate(output_dir, save_predictions=False)
        scalars = report.flat_scalars(metrics)
        self._log.write(scalars, step)
        logging.info("Evaluation at step %d:\n%s", step, report.table(metrics))
        name = next(n for n in ("eval/PQ", "eval/mIoU", "eval/mask_AP") if n in scalars)
        if self._saved.save_best(step, scalars[name]):
            logging.info("Best %s so far; kept in %s.", name, checkpoints.BEST)


@contextlib.contextmanager
def _signals(trainer):
    """SIGTERM and SIGINT set the trainer's `stop_signal`; a second one acts at once."""
    previous = {}

    def handle(number, frame):
        del frame
        trainer.stop_signal = number
        logging.info("%s: finishing the step at hand, then saving.", signal.Signals(number).name)
        for n, handler in previous.items():
            signal.signal(n, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_orbit():
    """Orbit writes each of its messages to the log and to stdout; our lines say the same once."""

    def not_orbit(record):
        return f"{os.sep}orbit{os.sep}" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(not_orbit)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.removeFilter(not_orbit)


def _log_start(config, run_dir, strategy):
    devices = ", ".join(device.rpartition("device:")[2] for device in strategy.extended.worker_devices)
    found = run_directory.versions()
    logging.info("pfpn_tf %s, TensorFlow %s, Python %s", found["pfpn_tf"], found["tensorflow"], found["python"])
    logging.info("Run directory: %s (settings in config.json)", run_dir)
    logging.info(
        "%d replica(s) on %s; %d images a step, %s.",
        strategy.num_replicas_in_sync, devices, config.train.global_batch_size, config.train.precision,
    )  # fmt: skip


def _log_peak_memory():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parts = [f"{peak:.2f} GiB of main memory"]
    for device in tf.config.list_logical_devices("GPU"):
        used = tf.config.experimental.get_memory_info(device.name)["peak"] / 2**30
        parts.append(f"{used:.2f} GiB on {device.name.rpartition('device:')[2]}")
    logging.info("Peak memory: %s.", ", ".join(parts))
