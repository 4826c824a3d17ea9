"""The paper's ablations in small: one recipe, one setting changed at a time.

Groups: lambda_s (Table 2a, b), lambda_i (Table 2c, d), aggregation (Table 1d), losses (Table 3c).
"""

import json
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from pfpn_tf import config as config_lib
from pfpn_tf.experiments import queue
from pfpn_tf.experiments.queue import Experiment
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

LAMBDAS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
GROUPS = ("lambda_s", "lambda_i", "aggregation", "losses")
_TITLES = {
    "lambda_s": "Weight of the semantic loss (instance losses: 1)",
    "lambda_i": "Weight of the instance losses (semantic loss: 1)",
    "aggregation": "Levels of the semantic branch",
    "losses": "Losses of a step (alternating: twice the steps)",
}
_DRAWN = ("PQ", "mIoU", "mask_AP")
_PAPER_TABLES = {
    "lambda_s": "Table 2a, b",
    "lambda_i": "Table 2c, d",
    "aggregation": "Table 1d",
    "losses": "Table 3c",
}


class Row(NamedTuple):
    """One row of one table; several rows may be the same experiment.

    Attributes:
      group: one of `GROUPS`.
      label: what the row varies: a number or a word.
      experiment: what gives its metrics.
    """

    group: str
    label: Any
    experiment: Experiment


def rows(config: config_lib.Config, groups: Sequence[str] = GROUPS) -> List[Row]:
    """The rows of the chosen groups. With a weight of 0 the branch is left out altogether.

    Args:
      config: a recipe of a Panoptic FPN; its steps are those of every row but "alternate".
      groups: which of `GROUPS`.

    Raises:
      UserError: a group is unknown, or the recipe is not of a Panoptic FPN.
    """
    unknown = set(groups) - set(GROUPS)
    if unknown or not groups:
        raise UserError(f"--ablations={','.join(groups)}: each must be one of {', '.join(GROUPS)}.")
    if config.model.task != "panoptic":
        raise UserError(
            f"--task={config.model.task}: an ablation compares Panoptic FPNs; use a recipe with "
            "--task=panoptic."
        )
    made = {
        "lambda_s": [Row("lambda_s", s, _weighted(config, 1.0, s)) for s in LAMBDAS],
        "lambda_i": [Row("lambda_i", i, _weighted(config, i, 1.0)) for i in LAMBDAS],
        "aggregation": [
            Row("aggregation", how, _changed(config, semantic_aggregation=how))
            for how in ("sum", "concat")
        ],
        "losses": [
            Row("losses", "alternate", _alternating(config)),
            Row("losses", "combine", _changed(config)),
        ],
    }
    return [row for group in GROUPS if group in groups for row in made[group]]


def experiments_of(table_rows: Sequence[Row]) -> List[Experiment]:
    """The experiments of the rows, each once."""
    return list({row.experiment.name: row.experiment for row in table_rows}.values())


def with_steps(config: config_lib.Config, steps: int) -> config_lib.Config:
    """The recipe with its schedule stretched or shrunk to `steps`; 0 leaves it as it is.

    Raises:
      UserError: the number is negative.
    """
    if steps < 0:
        raise UserError(f"--steps={steps} must be positive, or 0 for the recipe's own steps.")
    if not steps or steps == config.train.train_steps:
        return config
    factor = steps / config.train.train_steps
    warmup = int(config.train.warmup_steps * factor)
    drops = sorted({max(warmup + 1, round(s * factor)) for s in config.train.lr_decay_steps})
    return config.replace(train_steps=steps, warmup_steps=warmup, lr_decay_steps=tuple(drops))


def markdown(table_rows: Sequence[Row], results: Mapping[str, Optional[Dict[str, float]]]) -> str:
    """One Markdown table for each group."""
    parts = []
    for group in GROUPS:
        chosen = [row for row in table_rows if row.group == group]
        if not chosen:
            continue
        found = [results.get(row.experiment.name) for row in chosen]
        names = queue.metric_names(found)
        lines = [
            [str(row.label), *(queue.points(metrics, name) for name in names)]
            for row, metrics in zip(chosen, found)
        ]
        title = f"## {_TITLES[group]}\n\nAs {_PAPER_TABLES[group]} of the paper.\n\n"
        parts.append(title + queue.markdown_table([group, *names], lines))
    return "\n".join(parts)


def write_report(
    table_rows: Sequence[Row],
    results: Mapping[str, Optional[Dict[str, float]]],
    output_dir: str,
    title: str,
) -> str:
    """Writes ablation.json, ablation.md and ablation.png; returns the tables."""
    text = f"# {title}\n\n{markdown(table_rows, results)}"
    content = [
        {
            "group": row.group,
            "label": row.label,
            "run": row.experiment.name,
            "metrics": results.get(row.experiment.name),
        }
        for row in table_rows
    ]
    path = os.path.join(output_dir, "ablation.json")
    queue.write_text(path, json.dumps(content, indent=2) + "\n")
    queue.write_text(os.path.join(output_dir, "ablation.md"), text)
    draw(table_rows, results, os.path.join(output_dir, "ablation.png"), title)
    return text


def draw(table_rows, results, path: str, title: str) -> None:
    """Writes a PNG: a panel for each group, curves over the weights and bars for the rest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [group for group in GROUPS if any(row.group == group for row in table_rows)]
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 4.4), layout="constrained", squeeze=False
    )
    for axis, group in zip(axes[0], groups):
        chosen = [row for row in table_rows if row.group == group]
        found = [results.get(row.experiment.name) or {} for row in chosen]
        for i, name in enumerate(_DRAWN):
            values = [metrics.get(name, float("nan")) for metrics in found]
            if isinstance(chosen[0].label, float):
                axis.plot([row.label for row in chosen], values, f"C{i}o-", label=name)
            else:
                places = [k + 0.27 * (i - 1) for k in range(len(chosen))]
                bars = axis.bar(places, values, width=0.25, color=f"C{i}", label=name)
                axis.bar_label(bars, fmt="%.1f", fontsize=8)
                axis.set_xticks(range(len(chosen)), [row.label for row in chosen])
        axis.set_title(_TITLES[group], fontsize=9)
        axis.set_xlabel(group)
        axis.set_ylabel("points")
        axis.margins(y=0.15)
        axis.grid(axis="y", alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle(title, fontsize=11)
    with atomic_write(path, "wb") as f:
        figure.savefig(f, format="png", dpi=120)
    pyplot.close(figure)


def _weighted(config, instance_weight, semantic_weight):
    weights = {"instance_loss_weight": instance_weight, "semantic_loss_weight": semantic_weight}
    task = "panoptic"
    if not semantic_weight:
        task = "instance"
    elif not instance_weight:
        task = "semantic"
    return _changed(config, task=task, **weights)


def _alternating(config):
    train = config.train
    twice = {
        "train_steps": 2 * train.train_steps,
        "lr_decay_steps": tuple(2 * step for step in train.lr_decay_steps),
    }
    return _changed(config, alternate_losses=True, **twice)


def _changed(config, **settings):
    """An experiment named by what it is, so that equal ones are run once."""
    changed = config.replace(**settings)
    train, model = changed.train, changed.model
    parts = [f"i{train.instance_loss_weight:g}", f"s{train.semantic_loss_weight:g}"]
    parts += [model.semantic_aggregation] if model.task != "instance" else []
    parts += ["alternate"] if train.alternate_losses else []
    return Experiment("_".join(parts), changed)
