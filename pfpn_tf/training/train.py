"""A run: checks, run directory, weights, data, then the outer loop with logs and checkpoints."""

import contextlib
import io
import json
import os
import signal
import time
from typing import Optional

import orbit
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline
from pfpn_tf.distribution import strategies
from pfpn_tf.distribution.workers import Gatherer, workers_of
from pfpn_tf.evaluation import report
from pfpn_tf.runs import checkpoints, run_directory
from pfpn_tf.training import checks, logs, memory, pictures
from pfpn_tf.training.evaluation import TrainingEvaluation
from pfpn_tf.training.trainer import StopRequested, build_trainer, distributed_dataset
from pfpn_tf.weights import initialise

FINISHED = 0
INTERRUPTED = 130
TERMINATED = 143


def train(
    config: config_lib.Config, run_dir: str, strategy: Optional[tf.distribute.Strategy] = None
) -> int:
    """Trains, or continues, the run in `run_dir` until `train_steps`.

    SIGTERM and SIGINT end it after the step at hand, with a checkpoint.

    Args:
      config: all settings.
      run_dir: the run directory; created if it does not exist.
      strategy: distribution strategy; None: what --distribution says.

    Returns:
      Exit code: 0 when all steps are done, 143 after SIGTERM, 130 after SIGINT.

    Raises:
      UserError: a setting, a path or the run directory is not usable.
      NonFiniteLoss: see there.
      OSError: a file cannot be written.
    """
    strategy = strategy or strategies.build_strategy(config.train.distribution)
    workers = workers_of(strategy)
    with strategies.losing_workers(workers), strategies.compiling(config.train.xla):
        return _train(config, run_dir, strategy, workers)


def _train(config, run_dir, strategy, workers):
    checks.check(config, strategy.num_replicas_in_sync)
    info = pipeline.load_info(config)
    gather = Gatherer(strategy)
    steps = None
    if workers.is_chief:
        newest = checkpoints.newest_intact(os.path.join(run_dir, run_directory.CHECKPOINTS))
        steps = checkpoints.step_of(newest) if newest else 0
        is_done = steps > config.train.train_steps
        (run_directory.check if is_done else run_directory.prepare)(run_dir, config, info)
    steps = gather(steps)[0]
    if steps > config.train.train_steps:
        logging.info(
            "The run in %s is done with %d steps, more than --train_steps=%d; nothing is changed.",
            run_dir, steps, config.train.train_steps,
        )  # fmt: skip
        return FINISHED
    if not workers.is_chief:
        run_directory.check_shared(run_dir, config, info)
    _log_start(config, run_dir, strategy)
    if not workers.is_chief:
        logging.info("The first worker logs the training.")
        logging.set_verbosity(logging.WARNING)

    trainer = build_trainer(config, info, strategy)
    saved = checkpoints.RunCheckpoints(
        run_dir, config.train.keep_checkpoints, writes=workers.is_chief, **trainer.state
    )
    # One worker looks, for all to take the same: what is damaged to one may not be to another.
    prefix = saved.restore(gather(saved.newest_step() if workers.is_chief else None)[0])
    if prefix:
        logging.info("Continuing from %s.", prefix)
    elif config.train.init_weights:
        taken = initialise.initialise(trainer.model, config, info)
        for line in taken.report:
            logging.info("%s", line)
        trainer.optimizer.slow_down(taken.restored, config.train.restored_lr_factor)
        trainer.reset_averages()
    for line in logs.parameter_counts(trainer.model):
        logging.info("%s", line)
    trainer.set_dataset(distributed_dataset(config, info, strategy, int(trainer.global_step)))
    with _signals(trainer):
        code = _Run(config, info, run_dir, trainer, saved).run()
    gather("done")  # nobody leaves while another one still needs it
    return code


class _Run:
    """The outer loop: Orbit's controller, with logs, checkpoints and pictures between its loops."""

    def __init__(self, config, info, run_dir, trainer, saved):
        self._config = config
        self._info = info
        self._run_dir = run_dir
        self._trainer = trainer
        trainer.profile_dir = os.path.join(run_dir, run_directory.TENSORBOARD)
        self._saved = saved
        self._gather = Gatherer(trainer.strategy)
        is_chief = trainer.workers.is_chief
        self._log = logs.RunLog(run_dir, int(trainer.global_step)) if is_chief else _NoLog()
        self._pictures = None
        self._evaluation = None
        self._controller = orbit.Controller(
            global_step=trainer.global_step,
            trainer=trainer,
            strategy=trainer.strategy,
            steps_per_loop=self._steps_of_next_loop,
            summary_manager=self._log,
            train_actions=[self._after_loop],
        )

    def run(self) -> int:
        train_steps = self._config.train.train_steps
        try:
            self._catch_up()
            if int(self._trainer.global_step) >= train_steps:
                logging.info("All %d steps are done.", train_steps)
                return FINISHED
            with _quiet_orbit():
                self._controller.train(train_steps, checkpoint_at_completion=False)
        except StopRequested:
            step, number = int(self._trainer.global_step), self._trainer.stop_signal
            name = signal.Signals(number).name if number else "Another worker was told to stop"
            logging.info(
                "%s: stopping after step %d; saved %s.", name, step, self._saved.save(step)
            )
            logging.info("The same command continues.")
            return INTERRUPTED if number == signal.SIGINT else TERMINATED
        finally:
            self._trainer.stop_profiler()
            self._log.flush()
            _log_peak_memory()
        logging.info("Done: %d steps. Weights and logs are in %s.", train_steps, self._run_dir)
        return FINISHED

    def _catch_up(self):
        """Evaluates first if the run was killed while it did."""
        step, interval = int(self._trainer.global_step), self._config.train.eval_interval_steps
        last = step == self._config.train.train_steps
        if step and interval and (last or step % interval == 0):
            missing = self._trainer.workers.is_chief and not _is_evaluated(self._run_dir, step)
            if self._gather(missing)[0]:
                self._evaluate(step)

    def _steps_of_next_loop(self, step):
        """Up to the next step at which something is due: all of it falls on its multiples."""
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
            logging.info("%s", logs.progress_line(scalars, step, train_config.train_steps, seconds))
        if due(train_config.summary_interval_steps):
            self._write(scalars, step)
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
        if self._evaluation is None:
            self._evaluation = TrainingEvaluation(
                self._config,
                self._info,
                self._run_dir,
                self._trainer.model,
                self._trainer.strategy,
                self._trainer.averages,
            )
        metrics = self._evaluation.evaluate(step, self._log)
        scalars = report.flat_scalars(metrics)
        logging.info("Evaluation at step %d:\n%s", step, report.table(metrics))
        name = next(n for n in ("eval/PQ", "eval/mIoU", "eval/mask_AP") if n in scalars)
        if self._saved.save_best(step, scalars[name]):
            logging.info("Best %s so far; kept in %s.", name, run_directory.BEST)
        self._write(scalars, step)  # last: it says that all of this has been done

    def _write(self, scalars, step):
        try:
            self._log.write(scalars, step)
        except OSError as error:
            raise OSError(
                f"Cannot write {os.path.join(self._run_dir, run_directory.METRICS)} at step {step}"
                f" ({error.strerror or error}). Make room and start the same command again; it"
                " continues from the last checkpoint."
            ) from error


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
    devices = ", ".join(
        device.rpartition("device:")[2] for device in strategy.extended.worker_devices
    )
    found = run_directory.versions()
    logging.info(
        "pfpn_tf %s, TensorFlow %s, Python %s",
        found["pfpn_tf"],
        found["tensorflow"],
        found["python"],
    )
    logging.info("Run directory: %s (settings in config.json)", run_dir)
    count = workers_of(strategy).count
    logging.info(
        "%d replica(s)%s on %s; %d images a step, %s.",
        strategy.num_replicas_in_sync, f" at {count} workers, here" if count > 1 else "", devices,
        config.train.global_batch_size, config.train.precision,
    )  # fmt: skip


def _log_peak_memory():
    places = [
        f"{num_bytes / 2**30:.2f} GiB of {place}" for place, num_bytes in memory.peak().items()
    ]
    logging.info("Peak memory: %s.", ", ".join(places))


def _is_evaluated(run_dir, step):
    """Whether metrics.jsonl has an evaluation of a step."""
    path = os.path.join(run_dir, run_directory.METRICS)
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    return any(
        line["step"] == step and any(name.startswith("eval/") for name in line) for line in lines
    )


class _NoLog(orbit.utils.SummaryManagerInterface):
    """Stands where a `RunLog` would, for the workers that write nothing."""

    def flush(self):
        pass

    def summary_writer(self, relative_path=""):
        return tf.summary.create_noop_writer()

    def write_summaries(self, summary_dict):
        pass

    def write(self, scalars, step):
        pass

    def write_pictures(self, named_pictures, step):
        pass
