"""The directory of a training run, or of converted weights.

config.json recipe.flags dataset_info.json versions.json
checkpoints/ckpt-STEP.{index,data-*}    the newest few, with everything needed to continue
checkpoints/best/ckpt-STEP.*            the one with the highest PQ, if evaluated in training
metrics.jsonl tensorboard/ eval/

Converted weights have config.json, dataset_info.json and ckpt-0 alone.
"""

import json
import os
import platform
import subprocess
from typing import List, Tuple

import tensorflow as tf
from absl import logging

import pfpn_tf
from pfpn_tf import config as config_lib
from pfpn_tf import config_checks
from pfpn_tf.data import categories
from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError

CONFIG = "config.json"
DATASET_INFO = "dataset_info.json"
CHECKPOINTS = "checkpoints"
BEST = os.path.join(CHECKPOINTS, "best")
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RECIPE = "recipe.flags"
VERSIONS = "versions.json"


def load_run(
    run_dir: str, flag: str = "run_dir"
) -> Tuple[config_lib.Config, categories.DatasetInfo]:
    """The settings and the dataset description that a run directory keeps.

    Args:
      flag: what an error calls it.

    Raises:
      UserError: `run_dir` is no run directory.
    """
    for name in (CONFIG, DATASET_INFO):
        if not os.path.isfile(os.path.join(run_dir, name)):
            raise UserError(
                f"--{flag}={run_dir} is not a run directory: it has no {name}. "
                "Give the --run_dir of a training or of tools/convert_weights.py."
            )
    path = os.path.join(run_dir, CONFIG)
    try:
        with open(path, "rb") as f:
            config = config_lib.from_json(f.read())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config, categories.DatasetInfo.load(os.path.join(run_dir, DATASET_INFO))


def prepare(run_dir: str, config: config_lib.Config, info: categories.DatasetInfo) -> None:
    """Writes the run directory's description, or checks it against the one that is there.

    Raises:
      UserError: the directory belongs to a run with other settings or other classes, or cannot be
        written.
    """
    _check_same_run(run_dir, config, info)
    for folder in (run_dir, os.path.join(run_dir, CHECKPOINTS)):
        files.make_writable(folder, "run_dir")
    _write(os.path.join(run_dir, CONFIG), config.to_json())
    _write(os.path.join(run_dir, RECIPE), recipe_text(config))
    info.save(os.path.join(run_dir, DATASET_INFO))
    _write(os.path.join(run_dir, VERSIONS), json.dumps(versions(), indent=2) + "\n")


def check(run_dir: str, config: config_lib.Config, info: categories.DatasetInfo) -> None:
    """Checks all that `prepare` does and leaves no file behind.

    Raises:
      UserError: as `prepare`.
    """
    _check_same_run(run_dir, config, info)
    _check_place(run_dir)


def check_new(run_dir: str) -> None:
    """Checks that weights can be written to a folder and replace at most converted ones.

    Raises:
      UserError: a training has written it, or it cannot be written.
    """
    folders = [os.path.join(run_dir, folder) for folder in (CHECKPOINTS, BEST)]
    saved = {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}
    later = [name for name in saved if name.endswith(".index") and name != "ckpt-0.index"]
    if later or os.path.exists(os.path.join(run_dir, VERSIONS)):
        raise UserError(
            f"--run_dir={run_dir} holds the checkpoints of a training, which converted weights"
            " would replace. Give a new folder."
        )
    _check_place(run_dir)


def _check_place(run_dir):
    """Checks that a folder can be made and written, and leaves nothing there."""
    existing = os.path.abspath(run_dir)
    while not os.path.isdir(existing):
        if os.path.exists(existing):
            raise UserError(f"--run_dir={run_dir}: {existing} is a file; choose another folder.")
        existing = os.path.dirname(existing)
    files.make_writable(existing, "run_dir")


def check_shared(run_dir: str, config: config_lib.Config, info: categories.DatasetInfo) -> None:
    """Checks what the chief has written, as another worker sees it.

    Raises:
      UserError: it is not there, or differs from what this worker was given.
    """
    if not _check_same_run(run_dir, config, info):
        raise UserError(
            f"--run_dir={run_dir}: the chief has written it, but this worker does not see it; it"
            " must be a folder that all workers share, e.g. on NFS."
        )


def recipe_text(config: config_lib.Config) -> str:
    """The settings as a flagfile, one flag a line."""
    return "".join(
        f"--{name}={config_checks.text_of(value)}\n" for name, value in config.flat().items()
    )


def versions() -> dict:
    """Versions of what computes the result."""
    return {
        "pfpn_tf": pfpn_tf.__version__,
        "commit": _commit(),
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def differences(old: config_lib.Config, new: config_lib.Config) -> List[str]:
    """Names of the settings in which two configs differ."""
    old_settings, new_settings = old.flat(), new.flat()
    return [name for name in new_settings if old_settings[name] != new_settings[name]]


def check_classes(
    here: categories.DatasetInfo, what: str, there: categories.DatasetInfo, others: str
) -> None:
    """Checks that two datasets have the same classes.

    Args:
      here, there: the datasets.
      what, others: what an error calls them: the flag that gives the first, the place of the other.

    Raises:
      UserError: they differ; says how.
    """
    differences = categories.class_differences(here, there)
    if differences:
        raise UserError(
            f"{what} holds other classes (here) than {others} (there):\n"
            + "".join(f"  {line}\n" for line in differences)
            + "Both must come from one list of categories."
        )


def _check_same_run(run_dir, config, info) -> bool:
    """Whether there is a run; if there is, it must have these settings and classes."""
    if not os.path.exists(os.path.join(run_dir, CONFIG)):
        return False
    old_config, old_info = load_run(run_dir)
    changed = differences(old_config, config)
    old, new = old_config.flat(), config.flat()
    fixed = config_lib.fixed_settings()
    clashes = [f"  --{n}: {old[n]!r} there, {new[n]!r} here" for n in changed if n in fixed]
    clashes += [f"  {line}" for line in categories.class_differences(info, old_info)]
    if clashes:
        raise UserError(
            f"--run_dir={run_dir} belongs to a run with other settings or classes:\n"
            + "\n".join(clashes)
            + "\nUse another --run_dir, or give the settings of the run "
            f"(--flagfile={os.path.join(run_dir, RECIPE)})."
        )
    for name in changed:
        logging.info("Continuing with --%s=%s; it was %s.", name, new[name], old[name])
    return True


def _write(path, text):
    with files.atomic_write(path) as f:
        f.write(text)


def _commit():
    """The commit of the source, with "+" when there are changes on top; None outside git."""
    here = os.path.dirname(os.path.abspath(pfpn_tf.__file__))

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", here, *arguments], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
