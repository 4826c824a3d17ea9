"""A recipe, or the paper's ablations of it, with one seed or several: median and spread.

Section 4.1: the mIoU on Cityscapes varies by up to 0.4, so the paper gives the median of 5 trials.
"""

import json
import os
import statistics
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from pfpn_tf import config as config_lib
from pfpn_tf.experiments import queue
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

LAMBDAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SWEEPS = {
    "lambda_s": "Table 2a, b: weight of the semantic loss (instance losses: 1)",
    "lambda_i": "Table 2c, d: weight of the instance losses (semantic loss: 1)",
    "aggregation": "Table 1d: levels of the semantic branch",
    "losses": "Table 3c: losses of a step (alternating: twice the steps)",
}
_DRAWN = ("PQ", "mIoU", "mask_AP")
_Results = Mapping[str, Optional[Dict[str, float]]]


class Row(NamedTuple):
    """One row of a table; rows of several tables may be the same experiments.

    Attributes:
      sweep: one of `SWEEPS`, or "" for the recipe itself.
      label: what the row varies: a number or a word.
      trials: one experiment for each seed, its settings by name.
    """

    sweep: str
    label: Any
    trials: Mapping[str, config_lib.Config]


def rows(config: config_lib.Config, sweeps: Sequence[str], num_trials: int) -> List[Row]:
    """The rows of the chosen sweeps, or that of the recipe itself.

    With a weight of 0 the branch is left out altogether.

    Args:
      config: a recipe, of a Panoptic FPN if there are sweeps.
      sweeps: which of `SWEEPS`.
      num_trials: with the seeds from that of `config` on.

    Raises:
      UserError: a sweep is unknown, or the recipe is of another task.
    """
    if set(sweeps) - set(SWEEPS):
        raise UserError(f"--sweep={','.join(sweeps)}: each must be one of {', '.join(SWEEPS)}.")
    if sweeps and config.model.task != "panoptic":
        raise UserError(
            f"--task={config.model.task}: a sweep compares Panoptic FPNs; use a recipe with "
            "--task=panoptic."
        )
    twice = {
        "train_steps": 2 * config.train.train_steps,
        "lr_decay_steps": tuple(2 * step for step in config.train.lr_decay_steps),
    }
    variants: Dict[str, Dict[Any, Dict[str, Any]]] = {
        "lambda_s": {weight: _weights(1.0, weight) for weight in LAMBDAS},
        "lambda_i": {weight: _weights(weight, 1.0) for weight in LAMBDAS},
        "aggregation": {how: {"semantic_aggregation": how} for how in ("sum", "concat")},
        "losses": {"alternate": {"alternate_losses": True, **twice}, "combine": {}},
        "": {"recipe": {}},
    }
    seeds = range(config.train.seed, config.train.seed + num_trials)
    return [
        Row(sweep, label, dict(_trial(config.replace(**settings), sweep, seed) for seed in seeds))
        for sweep in [name for name in SWEEPS if name in sweeps] or [""]
        for label, settings in variants[sweep].items()
    ]


def experiments_of(table_rows: Sequence[Row]) -> Dict[str, config_lib.Config]:
    """The experiments of the rows, each once."""
    return {name: config for row in table_rows for name, config in row.trials.items()}


def with_steps(config: config_lib.Config, steps: int) -> config_lib.Config:
    """The recipe with its schedule stretched or shrunk to `steps`; 0 leaves it as it is."""
    if not steps or steps == config.train.train_steps:
        return config
    factor = steps / config.train.train_steps
    warmup = int(config.train.warmup_steps * factor)
    drops = sorted({max(warmup + 1, round(s * factor)) for s in config.train.lr_decay_steps})
    return config.replace(train_steps=steps, warmup_steps=warmup, lr_decay_steps=tuple(drops))


def write_report(table_rows: Sequence[Row], results: _Results, output_dir: str, title: str) -> str:
    """Writes trials.json, trials.md and, of sweeps, trials.png; returns the tables."""
    content: List[Dict[str, Any]] = []
    for row in table_rows:
        found = {name: results.get(name) for name in row.trials}
        entry = {"sweep": row.sweep, "label": row.label, "trials": found}
        content.append({**entry, "statistics": _statistics([m for m in found.values() if m])})
    by_sweep = {
        row.sweep: [entry for entry in content if entry["sweep"] == row.sweep] for row in table_rows
    }
    text = f"# {title}\n"
    for sweep, entries in by_sweep.items():
        text += f"\n## {SWEEPS[sweep]}\n" if sweep else ""
        text += "\n" + _table(sweep or "trials", entries)
    for name, written in (("json", json.dumps(content, indent=2) + "\n"), ("md", text)):
        with atomic_write(os.path.join(output_dir, f"trials.{name}")) as f:
            f.write(written)
    if "" not in by_sweep:
        _draw(by_sweep, os.path.join(output_dir, "trials.png"), title)
    return text


def _statistics(found):
    """Metric name to median, min, max and num_trials, of the trials that finished."""
    values = {name: [m[name] for m in found if name in m] for name in queue.metric_names(found)}
    return {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v), "num_trials": len(v)}
        for name, v in values.items()
    }


def _table(title, entries):
    """Markdown: the median of each metric, and of several trials (min to max)."""
    names = queue.metric_names([entry["statistics"] for entry in entries])
    lines = [[title, "finished", *names]]
    lines.append(["---"] + ["---:"] * (len(names) + 1))
    for entry in entries:
        trials = entry["trials"].values()
        finished = f"{sum(metrics is not None for metrics in trials)} of {len(trials)}"
        cells = [_cell(entry["statistics"].get(name)) for name in names]
        lines.append([str(entry["label"]), finished, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(found):
    if not found:
        return "-"
    spread = f" ({found['min']:.2f} to {found['max']:.2f})" if found["num_trials"] > 1 else ""
    return f"{found['median']:.2f}{spread}"


def _draw(by_sweep, path, title):
    """Writes a PNG: a panel for each sweep, curves over the weights and bars for the rest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(by_sweep), 4.4), layout="constrained")
    axes = figure.subplots(1, len(by_sweep), squeeze=False)
    for axis, (sweep, entries) in zip(axes[0], by_sweep.items()):
        labels = [entry["label"] for entry in entries]
        for i, name in enumerate(_DRAWN):
            found = [entry["statistics"].get(name, {}) for entry in entries]
            values = [numbers.get("median", float("nan")) for numbers in found]
            if isinstance(labels[0], float):
                axis.plot(labels, values, f"C{i}o-", label=name)
            else:
                places = [k + 0.27 * (i - 1) for k in range(len(labels))]
                bars = axis.bar(places, values, width=0.25, color=f"C{i}", label=name)
                axis.bar_label(bars, fmt="%.1f", fontsize=8)
                axis.set_xticks(range(len(labels)), labels)
        axis.set_title(SWEEPS[sweep], fontsize=9)
        axis.set_xlabel(sweep)
        axis.set_ylabel("points")
        axis.margins(y=0.15)
        axis.grid(axis="y", alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title, fontsize=11)
    with atomic_write(path, "wb") as f:
        figure.savefig(f, format="png", dpi=120)


def _weights(instance_weight, semantic_weight):
    tasks = {(True, True): "panoptic", (True, False): "instance", (False, True): "semantic"}
    return {
        "instance_loss_weight": instance_weight,
        "semantic_loss_weight": semantic_weight,
        "task": tasks[instance_weight > 0, semantic_weight > 0],
    }


def _trial(config, sweep, seed):
    """An experiment and its name: what it is, so that equal ones are run once."""
    train, model = config.train, config.model
    parts = []
    if sweep:
        parts += [f"i{train.instance_loss_weight:g}", f"s{train.semantic_loss_weight:g}"]
        parts += [model.semantic_aggregation] if model.task != "instance" else []
        parts += ["alternate"] if train.alternate_losses else []
    return "_".join([*parts, f"seed_{seed}"]), config.replace(seed=seed)
