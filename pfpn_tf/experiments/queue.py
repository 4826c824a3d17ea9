"""Several trainings one after the other, unattended: each is trained, evaluated and read back.

An experiment is a run directory beside those of its siblings. What is finished is not done again,
and what was interrupted continues from its checkpoint, so the same command takes up where it was.
Trainings run as `tools/train.py` in processes of their own: one that fails leaves the others alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import Dict, List, NamedTuple, Optional, Sequence

from absl import logging

import pfpn_tf
from pfpn_tf import config as config_lib
from pfpn_tf.evaluation import output_folder, report
from pfpn_tf.runs import run_directory
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

_MASK_METRICS = ("mask_AP", "mask_AP50", "mask_AP75")
MAIN_METRICS = ("PQ", "PQ_th", "PQ_st", "mIoU", "fwIoU", "box_AP", *_MASK_METRICS)
"""In the order of a table; an experiment has those of its task."""
_PACKAGE = os.path.dirname(os.path.abspath(pfpn_tf.__file__))
# In a checkout the tools stand beside the package, in an installation inside it.
_TOOLS = os.path.join(_PACKAGE, os.pardir, "tools")
if os.path.isdir(os.path.join(_PACKAGE, "tools")):
    _TOOLS = os.path.join(_PACKAGE, "tools")


class Experiment(NamedTuple):
    """A name, which is that of its directory, and all settings."""

    name: str
    config: config_lib.Config


class Stopped(Exception):
    """A signal has arrived; the training at hand has saved and ended. `code` is its exit code."""

    def __init__(self, code: int):
        super().__init__(f"stopped with exit code {code}")
        self.code = code


def run_all(
    experiments: Sequence[Experiment], output_dir: str
) -> Dict[str, Optional[Dict[str, float]]]:
    """Trains and evaluates every experiment that is not done yet.

    Args:
      experiments: what to run, in this order.
      output_dir: gets NAME/ (the run directory), NAME.flags (its settings) and NAME.log.

    Returns:
      Name to metrics in points (see `report.flat_scalars`); None for one that failed.

    Raises:
      UserError: a directory holds a run with other settings, or there is no evaluation data.
      Stopped: SIGINT or SIGTERM.
    """
    for experiment in experiments:
        check(experiment, output_dir)
    results = {}
    with _Children() as children:
        for i, experiment in enumerate(experiments, 1):
            title = f"{experiment.name} ({i} of {len(experiments)})"
            metrics = read_metrics(experiment, output_dir)
            if metrics is None:
                logging.info("%s: training; its log is %s.log.", title, experiment.name)
                started = time.monotonic()
                metrics = _run(experiment, output_dir, children)
                minutes = (time.monotonic() - started) / 60
                logging.info("%s: %s after %.1f minutes.", title, _summary(metrics), minutes)
            else:
                logging.info("%s: done before, %s.", title, _summary(metrics))
            results[experiment.name] = metrics
    return results


def check(experiment: Experiment, output_dir: str) -> None:
    """Raises UserError if the experiment's directory holds another run, or it has no eval data."""
    config = experiment.config
    if not config.data.eval_records:
        raise UserError("--eval_records is required: every training is evaluated at its end.")
    if config.train.early_stop_evals:
        raise UserError(
            f"--early_stop_evals={config.train.early_stop_evals}: trainings are compared after the"
            " same number of steps; use 0."
        )
    run_dir = os.path.join(output_dir, experiment.name)
    if not os.path.exists(os.path.join(run_dir, run_directory.CONFIG)):
        return
    old, _ = run_directory.load_run(run_dir)
    changed = config_lib.fixed_settings() & set(run_directory.differences(old, config))
    if changed:
        raise UserError(
            f"{run_dir} holds a run with other settings ({', '.join(sorted(changed))}); use "
            "another --output_dir, or the settings that it was started with."
        )


def read_metrics(experiment: Experiment, output_dir: str) -> Optional[Dict[str, float]]:
    """The metrics of the last step in points; None if they are not there yet."""
    step = str(experiment.config.train.train_steps)
    path = os.path.join(output_dir, experiment.name, "eval", step, output_folder.METRICS)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        return report.flat_scalars(json.load(f), prefix="")


def metric_names(results: Sequence[Optional[Dict[str, float]]]) -> List[str]:
    """Those of `MAIN_METRICS` that any result has."""
    return [name for name in MAIN_METRICS if any(name in metrics for metrics in results if metrics)]


def _run(experiment, output_dir, children):
    base = os.path.join(output_dir, experiment.name)
    with atomic_write(f"{base}.flags") as f:
        f.write(run_directory.recipe_text(experiment.config))
    train = ["train.py", f"--flagfile={base}.flags", f"--run_dir={base}"]
    evaluate = ["eval.py", f"--run_dir={base}", "--save_predictions=false"]
    with open(f"{base}.log", "a", encoding="utf-8") as log:
        for tool, *arguments in (train, evaluate):
            code = children.call([sys.executable, os.path.join(_TOOLS, tool), *arguments], log)
            if code:
                logging.error("%s failed with exit code %d; see %s.log.", tool, code, base)
                return None
    return read_metrics(experiment, output_dir)


class _Children:
    """Runs processes and passes SIGINT and SIGTERM on to the one at hand, once."""

    def __enter__(self):
        self._process, self._stopped = None, False
        self._handlers = {
            number: signal.signal(number, self._pass_on)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def call(self, command, log):
        # A session of its own: a Ctrl-C in the terminal reaches it through us alone.
        self._process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = self._process.wait()
        self._process = None
        if self._stopped:
            raise Stopped(code if code > 0 else 128 + self._stopped)
        return code

    def _pass_on(self, number, frame):
        del frame
        self._stopped = number
        if self._process is None:
            raise Stopped(128 + number)
        logging.info("%s: the training at hand saves and stops.", signal.Signals(number).name)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def _summary(metrics):
    if metrics is None:
        return "failed"
    return ", ".join(f"{name} {metrics[name]:.1f}" for name in metric_names([metrics]))
