"""A run: checks, run directory, weights, data, then the outer loop with logs and checkpoints."""

import contextlib
import functools
import math
import os
import signal
import threading
import time
from typing import Optional

import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline
from pfpn_tf.distribution import strategies
from pfpn_tf.distribution.workers import Gatherer, workers_of
from pfpn_tf.evaluation import output_folder, report, tensorboard
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.runs import checkpoints, run_directory
from pfpn_tf.training import checks, logs, memory, pictures
from pfpn_tf.training.trainer import StopRequested, build_trainer, distributed_dataset
from pfpn_tf.training.validation_losses import ValidationLosses
from pfpn_tf.weights import initialise

MAIN_METRICS = ("eval/PQ", "eval/mIoU", "eval/mask_AP")
"""The first of these that there is decides which checkpoint is the best."""
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
      Exit code: 0 when all steps are done or --early_stop_evals ends the run, 143 after SIGTERM,
      130 after SIGINT.

    Raises:
      UserError: a setting, a path or the run directory is not usable.
      NonFiniteLoss: see there.
      WorkerLost: another worker is gone.
      OSError: a file cannot be written.
    """
    strategy = strategy or strategies.build_strategy(config.train.distribution)
    gather = Gatherer(strategy)
    with strategies.losing_workers(gather), strategies.compiling(config.train.xla):
        return _train(config, run_dir, strategy, gather)


def _train(config, run_dir, strategy, gather):
    workers = gather.workers
    checks.check(config, strategy.num_replicas_in_sync)
    info = pipeline.load_info(config)
    newest = None
    if workers.is_chief:
        newest = checkpoints.newest_step(run_dir)
        is_done = (newest or 0) > config.train.train_steps
        (run_directory.check if is_done else run_directory.prepare)(run_dir, config, info)
    # One worker looks, for all to take the same: what is damaged to one may not be to another.
    newest = gather(newest)[0]
    if (newest or 0) > config.train.train_steps:
        logging.info(
            "The run in %s is done with %d steps, more than --train_steps=%d; nothing is changed.",
            run_dir, newest, config.train.train_steps,
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
    prefix = saved.restore(newest)
    if prefix:
        logging.info("Continuing from %s.", prefix)
    elif config.train.init_weights:
        taken = initialise.initialise(trainer.model, config, info)
        for line in taken.report:
            logging.info("%s", line)
        trainer.optimizer.slow_down(taken.restored, config.train.restored_lr_factor)
        trainer.averages.restart()
    for line in logs.parameter_counts(trainer.model):
        logging.info("%s", line)
    trainer.set_dataset(distributed_dataset(config, info, strategy, int(trainer.global_step)))
    with _signals(trainer):
        return _Run(config, info, run_dir, trainer, saved).run()


class _Run:
    """The outer loop: between two inner loops, what is due of logs, checkpoints and pictures."""

    def __init__(self, config, info, run_dir, trainer, saved):
        self._config = config
        self._info = info
        self._run_dir = run_dir
        self._trainer = trainer
        trainer.profile_dir = os.path.join(run_dir, run_directory.TENSORBOARD)
        self._saved = saved
        self._gather = Gatherer(trainer.strategy)
        self._log = logs.RunLog(run_dir, int(trainer.global_step), trainer.workers.is_chief)
        # Step -> score of each evaluation, None if it had nothing to score. They come from the log,
        # so that a run remembers when it is continued.
        logged = {
            line["step"]: _score(line)
            for line in self._log.lines
            if any(name.startswith("eval/") for name in line)
        }
        self._scores = self._gather(logged)[0]

    def run(self) -> int:
        train_steps = self._config.train.train_steps
        try:
            self._catch_up()
            if self._step >= train_steps:
                logging.info("All %d steps are done.", train_steps)
                return FINISHED
            while self._step < train_steps:
                reason = self._reason_to_stop()
                if reason:
                    # With a checkpoint here, the same command finds the same reason again.
                    saved = self._saved.save(self._step)
                    logging.info(
                        "Stopped early at step %d; saved %s. %s", self._step, saved, reason
                    )
                    return FINISHED
                scalars = self._trainer.train(tf.constant(self._steps_of_next_loop()))
                self._after_loop(scalars)
        except StopRequested:
            step, number = self._step, self._trainer.stop_signal
            name = signal.Signals(number).name if number else "Another worker was told to stop"
            logging.info(
                "%s: stopping after step %d; saved %s.", name, step, self._saved.save(step)
            )
            logging.info("The same command continues.")
            return INTERRUPTED if number == signal.SIGINT else TERMINATED
        finally:
            self._trainer.stop_profiler()
            _log_peak_memory()
        logging.info("Done: %d steps. Weights and logs are in %s.", train_steps, self._run_dir)
        return FINISHED

    @property
    def _step(self):
        return int(self._trainer.global_step)

    def _is_due(self, interval):
        """Whether what is done every `interval` steps, and after the last, is due; 0: never."""
        is_last = self._step == self._config.train.train_steps
        return interval > 0 and (is_last or self._step % interval == 0)

    def _catch_up(self):
        """Evaluates first if the run was killed while it did."""
        step = self._step
        is_due = self._is_due(self._config.train.eval_interval_steps)
        if step and is_due and step not in self._scores:
            self._evaluate(step)

    def _best(self):
        """The best score so far, its step, and how many evaluations have not risen above it."""
        best, best_step, since = -math.inf, 0, 0
        for step, score in sorted(self._scores.items()):
            if score is not None:
                since += 1
                if score > best:
                    best, best_step, since = score, step, 0
        return best, best_step, since

    def _reason_to_stop(self):
        """What to say if the last --early_stop_evals evaluations have not risen above the best
        before them; otherwise nothing. Those with nothing to score do not count.
        """
        patience = self._config.train.early_stop_evals
        best, best_step, since = self._best()
        if not patience or since < patience:
            return ""
        return (
            f"{since} evaluations have not risen above {best:.2f} of step {best_step}, which is"
            f" kept in {os.path.join(self._run_dir, run_directory.BEST)} (--checkpoint=best of"
            f" evaluation and export). The same command with --early_stop_evals above {since}, or"
            " 0, continues."
        )

    def _steps_of_next_loop(self):
        """Up to the next step at which something is due: all of it falls on its multiples."""
        train = self._config.train
        intervals = [
            train.steps_per_loop,
            train.summary_interval_steps,
            train.checkpoint_interval_steps,
            train.image_interval_steps,
            train.eval_interval_steps,
        ]
        steps = min(interval - self._step % interval for interval in intervals if interval)
        return min(steps, train.train_steps - self._step)

    def _after_loop(self, scalars):
        train, step = self._config.train, self._step
        if self._is_due(train.steps_per_loop):
            seconds = self._trainer.rate.seconds_per_step()
            logging.info("%s", logs.progress_line(scalars, step, train.train_steps, seconds))
        if self._is_due(train.summary_interval_steps):
            self._log.write(scalars, step)
            self._trainer.means.restart()
            self._trainer.rate.restart()
        started = time.monotonic()
        if self._is_due(train.checkpoint_interval_steps):
            logging.info("Saved %s.", self._saved.save(step))
        if self._is_due(train.image_interval_steps):
            self._draw(step)
        if self._is_due(train.eval_interval_steps):
            self._evaluate(step)
        self._trainer.rate.exclude(time.monotonic() - started)

    @functools.cached_property
    def _evaluator(self):
        """Traces the network once, for pictures and evaluations."""
        data = self._config.data
        config = self._config.replace(eval_records=data.eval_records or data.train_records)
        if config.train.precision != "float32":
            logging.info(
                "Evaluating in %s, as the network trains; tools/eval.py computes in float32, so"
                " its numbers differ a little.",
                config.train.precision,
            )
        return Evaluator(config, self._info, self._trainer.model, self._trainer.strategy)

    @functools.cached_property
    def _validation_losses(self):
        config, trainer = self._config, self._trainer
        if not config.train.eval_losses:
            return None
        return ValidationLosses(config, self._info, trainer.model, trainer.strategy)

    def _draw(self, step):
        drawn = pictures.draw(self._evaluator, self._config, self._info)
        with self._log.tensorboard():
            for name, picture in drawn.items():
                tf.summary.image(name, picture[np.newaxis], step=step)

    def _evaluate(self, step):
        """Evaluates, and keeps the weights if they are the best so far."""
        evaluator, averages = self._evaluator, self._trainer.averages
        metrics = _metrics(
            evaluator, averages, self._run_dir, step, self._log, self._validation_losses
        )
        scalars = report.all_scalars(metrics, evaluator.categories)
        tables = report.table(metrics), report.class_table(metrics, evaluator.categories)
        logging.info("Evaluation at step %d:\n%s\n\n%s", step, *tables)
        score, (best, *_) = _score(scalars), self._best()
        self._scores[step] = score
        if score is None:
            logging.warning(
                "The evaluation at step %d had nothing to score: --eval_records hold no annotations"
                " for --task=%s. No checkpoint is kept as the best.", step, self._config.model.task
            )  # fmt: skip
        elif score > best:
            self._saved.save_best(step)
            logging.info("Best evaluation so far; kept in %s.", run_directory.BEST)
        # Last: it says that all of this has been done.
        self._log.write({**scalars, "eval/num_images": metrics["num_images"]}, step)


def _metrics(evaluator, averages, run_dir, step, log, losses=None):
    """Evaluates the weights, and their averages as `ema` if there are any; with the losses as
    `losses` if they are asked for and there is something to score.
    """

    def evaluated(output_dir):
        metrics = evaluator.evaluate(output_dir, save_predictions=False)
        if losses and report.flat_scalars(metrics):
            metrics["losses"] = losses()
        return metrics

    output_dir = os.path.join(run_dir, "eval", str(step))
    metrics = evaluated(output_dir)
    with log.tensorboard():
        tensorboard.write_report(evaluator, metrics, step)
    if averages.variables:
        with averages.in_place_of_weights():
            metrics["ema"] = evaluated(os.path.join(output_dir, output_folder.AVERAGES))
    return metrics


def _score(scalars):
    """The main metric of an evaluation; None if it had nothing to score."""
    return next((float(scalars[name]) for name in MAIN_METRICS if name in scalars), None)


@contextlib.contextmanager
def _signals(trainer):
    """SIGTERM and SIGINT set the trainer's `stop_signal`; a second one acts at once.

    Python lets only the main thread handle signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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


def _log_start(config, run_dir, strategy):
    devices = ", ".join(
        device.rpartition("device:")[2] for device in strategy.extended.worker_devices
    )
    found = run_directory.versions()
    logging.info("pfpn_tf {pfpn_tf}, TensorFlow {tensorflow}, Python {python}".format(**found))
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
