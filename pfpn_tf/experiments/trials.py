"""The same training with several seeds: median and spread of each metric.

Section 4.1: the mIoU on Cityscapes varies by up to 0.4, so the paper gives the median of 5 trials.
"""

import json
import os
import statistics
from typing import Any, Dict, List, Mapping, Optional

from pfpn_tf import config as config_lib
from pfpn_tf.experiments import queue
from pfpn_tf.experiments.queue import Experiment
from pfpn_tf.utils.errors import UserError


def trials(config: config_lib.Config, num_trials: int) -> List[Experiment]:
    """`num_trials` experiments with the seeds from that of `config` on.

    Raises:
      UserError: there is not at least one trial.
    """
    if num_trials < 1:
        raise UserError(f"--num_trials={num_trials} must be at least 1; the paper has 5.")
    seeds = range(config.train.seed, config.train.seed + num_trials)
    return [Experiment(f"seed_{seed}", config.replace(seed=seed)) for seed in seeds]


def statistics_of(results: Mapping[str, Optional[Dict[str, float]]]) -> Dict[str, Dict[str, Any]]:
    """Metric name to median, min, max, spread (max - min) and num_trials, of those that
    finished.
    """
    finished = [metrics for metrics in results.values() if metrics]
    found = {}
    for name in queue.metric_names(finished):
        values = [metrics[name] for metrics in finished if name in metrics]
        found[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "spread": max(values) - min(values),
            "num_trials": len(values),
        }
    return found


def table(results: Mapping[str, Optional[Dict[str, float]]]) -> str:
    """Markdown: one row for each trial, then median, min, max and spread."""
    found = statistics_of(results)
    rows = [
        [name, *(queue.points(metrics, metric) for metric in found)]
        for name, metrics in results.items()
    ]
    for key in ("median", "min", "max", "spread"):
        rows.append([f"**{key}**", *(f"{values[key]:.2f}" for values in found.values())])
    return queue.markdown_table(["trial", *found], rows)


def write_report(results: Mapping[str, Optional[Dict[str, float]]], output_dir: str) -> str:
    """Writes trials.json and trials.md; returns the table."""
    text = table(results)
    content = {"trials": dict(results), "statistics": statistics_of(results)}
    path = os.path.join(output_dir, "trials.json")
    queue.write_text(path, json.dumps(content, indent=2) + "\n")
    queue.write_text(os.path.join(output_dir, "trials.md"), text)
    return text
