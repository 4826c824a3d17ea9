"""Several trainings one after the other, unattended: each is trained, evaluated and read back.

An experiment is a run directory beside those of its siblings. What is finished is not done again,
and what was interrupted continues from its checkpoint, so the same command takes up where it was.
Trainings run as `tools/train.py` in processes of their own: one that fails leaves the others alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Dict, List, Mapping, Optional, Sequence

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


def run_all(
    experiments: Mapping[str, config_lib.Config], output_dir: str
) -> Dict[str, Optional[Dict[str, float]]]:
    """Trains and evaluates every experiment that is not done yet.

    A signal that ends this process, by an exception as `cli.command` has it, first reaches the
    training at hand, which saves and ends.

    Args:
      experiments: name to all settings, in the order to run.
      output_dir: gets NAME/ (the run directory), NAME.flags (its settings) and NAME.log.

    Returns:
      Name to metrics in points (see `report.flat_scalars`); None for one that failed.

    Raises:
      UserError: a directory holds a run with other settings, or there is no evaluation data.
    """
    for name, config in experiments.items():
        check(config, os.path.join(output_dir, name))
    results = {}
    for i, (name, config) in enumerate(experiments.items(), 1):
        run_dir, title = os.path.join(output_dir, name), f"{name} ({i} of {len(experiments)})"
        metrics = read_metrics(config, run_dir)
        if metrics is None:
            logging.info("%s: training; its log is %s.log.", title, name)
            started = time.monotonic()
            metrics = _run(config, run_dir)
            minutes = (time.monotonic() - started) / 60
            logging.info("%s: %s after %.1f minutes.", title, _summary(metrics), minutes)
        else:
            logging.info("%s: done before, %s.", title, _summary(metrics))
        results[name] = metrics
    return results


def check(config: config_lib.Config, run_dir: str) -> None:
    """Raises UserError if the directory holds another run, or there is no evaluation data."""
    if not config.data.eval_records:
        raise UserError("--eval_records is required: every training is evaluated at its end.")
    if config.train.early_stop_evals:
        raise UserError(
            f"--early_stop_evals={config.train.early_stop_evals}: trainings are compared after the"
            " same number of steps; use 0."
        )
    if not os.path.exists(os.path.join(run_dir, run_directory.CONFIG)):
        return
    old, _ = run_directory.load_run(run_dir)
    changed = config_lib.fixed_settings() & set(run_directory.differences(old, config))
    if changed:
        raise UserError(
            f"{run_dir} holds a run with other settings ({', '.join(sorted(changed))}); use "
            "another --output_dir, or the settings that it was started with."
        )


def read_metrics(config: config_lib.Config, run_dir: str) -> Optional[Dict[str, float]]:
    """The metrics of the last step in points; None if they are not there yet."""
    step = str(config.train.train_steps)
    path = os.path.join(run_dir, "eval", step, output_folder.METRICS)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as f:
        return report.flat_scalars(json.load(f), prefix="")


def metric_names(results: Sequence[Optional[Dict[str, float]]]) -> List[str]:
    """Those of `MAIN_METRICS` that any result has."""
    return [name for name in MAIN_METRICS if any(name in metrics for metrics in results if metrics)]


def _run(config, run_dir):
    with atomic_write(f"{run_dir}.flags") as f:
        f.write(run_directory.recipe_text(config))
    train = ["train.py", f"--flagfile={run_dir}.flags", f"--run_dir={run_dir}"]
    evaluate = ["eval.py", f"--run_dir={run_dir}", "--save_predictions=false"]
    with open(f"{run_dir}.log", "a", encoding="utf-8") as log:
        for tool, *arguments in (train, evaluate):
            code = _call([sys.executable, os.path.join(_TOOLS, tool), *arguments], log)
            if code:
                logging.error("%s failed with exit code %d; see %s.log.", tool, code, run_dir)
                return None
    return read_metrics(config, run_dir)


def _call(command, log):
    """The exit code of a process, to which Ctrl-C and SIGTERM are passed on."""
    # A session of its own: a Ctrl-C in the terminal reaches it through us alone.
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    stopped = None
    try:
        while process.returncode is None:
            try:
                process.wait()
            except (KeyboardInterrupt, SystemExit) as error:
                stopped = error
                is_interrupt = isinstance(error, KeyboardInterrupt)
                number = signal.SIGINT if is_interrupt else signal.SIGTERM
                process.send_signal(number)
                logging.info("%s: the training at hand saves and stops.", number.name)
    finally:
        process.terminate()  # which does nothing to a process that has ended
    if stopped:
        raise stopped
    return process.returncode


def _summary(metrics):
    if metrics is None:
        return "failed"
    return ", ".join(f"{name} {metrics[name]:.1f}" for name in metric_names([metrics]))
