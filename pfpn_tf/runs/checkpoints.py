"""The checkpoints of a training run: save, find the intact ones, continue.

TensorFlow writes a checkpoint under a temporary name and renames it. What a killed process or a
full disk still leaves half-written is found by reading it back: TensorFlow stores a checksum with
every tensor.
"""

import contextlib
import os
import re
import shutil
import tempfile
from typing import List, Optional

import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.runs import run_directory
from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError

READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)
"""What TensorFlow raises of a damaged checkpoint."""
_NAME = "ckpt"


def save_weights(
    model: tf.keras.Model, config: config_lib.Config, info: categories.DatasetInfo, run_dir: str
) -> str:
    """Writes a run directory with the model's weights alone (no optimizer): `ckpt-0`.

    Evaluation, export and `--init_weights` take it like that of a training.

    Returns:
      The checkpoint's prefix.
    """
    with files.atomic_write(os.path.join(run_dir, run_directory.CONFIG)) as f:
        f.write(config.to_json())
    info.save(os.path.join(run_dir, run_directory.DATASET_INFO))
    return RunCheckpoints(run_dir, keep=1, model=model).save(0)


def prefix_of(directory: str, step: int) -> str:
    """The prefix of the checkpoint of a step."""
    return os.path.join(directory, f"{_NAME}-{step}")


def saved_prefixes(directory: str) -> List[str]:
    """Prefixes of the checkpoints in a directory, newest (highest step) first, damaged ones too."""
    if not os.path.isdir(directory):
        return []
    matches = (re.fullmatch(rf"{_NAME}-(\d+)\.index", name) for name in os.listdir(directory))
    steps = sorted((int(match[1]) for match in matches if match), reverse=True)
    return [prefix_of(directory, step) for step in steps]


def damage(prefix: str) -> Optional[str]:
    """Why a checkpoint cannot be used, found by reading every tensor of it; None if it can."""
    try:
        reader = tf.train.load_checkpoint(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except READ_ERRORS as error:
        return str(error).splitlines()[0][:200] or type(error).__name__
    return None


def newest_intact(directory: str) -> Optional[str]:
    """Prefix of the newest readable checkpoint in a directory; newer damaged ones are reported."""
    for prefix in saved_prefixes(directory):
        problem = damage(prefix)
        if problem is None:
            return prefix
        logging.warning("Checkpoint %s is damaged (%s); trying the one before it.", prefix, problem)
    return None


def step_of(prefix: str) -> int:
    """The step in a checkpoint's name."""
    return int(prefix.rpartition("-")[2])


def newest_step(run_dir: str) -> Optional[int]:
    """The step of a run's newest intact checkpoint, None if there are no checkpoints.

    Raises:
      UserError: there are, but none is intact.
    """
    directory = os.path.join(run_dir, run_directory.CHECKPOINTS)
    prefix = newest_intact(directory)
    if prefix is None and saved_prefixes(directory):
        raise UserError(
            f"Every checkpoint in {directory} is damaged. Remove that folder to start over, or put"
            " back a copy of one."
        )
    return None if prefix is None else step_of(prefix)


class RunCheckpoints:
    """The checkpoints of one training run.

    `restore` and `save` cover all that was given as `trackables`, so that a restarted run
    continues exactly. The folder tells which checkpoints exist: TensorFlow's file `checkpoint` may
    be out of date after a kill, and is written for other tools.
    """

    def __init__(self, run_dir: str, keep: int, writes: bool = True, **trackables):
        """Touches nothing yet.

        Args:
          run_dir: the run directory.
          keep: number of checkpoints kept.
          writes: whether this process writes; of several workers only the chief does.
          **trackables: what is saved, by name.
        """
        self.directory = os.path.join(run_dir, run_directory.CHECKPOINTS)
        self._best_directory = os.path.join(run_dir, run_directory.BEST)
        self._checkpoint = tf.train.Checkpoint(**trackables)
        self._keep = keep
        self._writes = writes
        self._good: Optional[str] = None

    def restore(self, step: Optional[int]) -> Optional[str]:
        """Restores the checkpoint of a step, as from `newest_step`; returns its prefix.

        Newer, damaged ones get the prefix `damaged-` to their names, and what a kill has left
        half-written is removed.

        Args:
          step: which one; None: none, and nothing is restored.

        Raises:
          UserError: it is not of a training with this network.
        """
        if self._writes:
            _remove_leftovers(self.directory)
            _remove_leftovers(self._best_directory)
        if step is None:
            return None
        prefix = prefix_of(self.directory, step)
        try:
            status = self._checkpoint.read(prefix)
            status.expect_partial()  # no warnings on top of the error
            status.assert_consumed()
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"{prefix} is not a checkpoint of a training of this network, so it cannot be"
                f" continued ({str(error).splitlines()[0][:200]}). Use it with --init_weights and"
                " another --run_dir."
            ) from None
        if self._writes:
            for newer in saved_prefixes(self.directory):
                for path in _files_of(newer) if step_of(newer) > step else ():
                    os.replace(path, f"{self.directory}/damaged-{os.path.basename(path)}")
        self._good = prefix
        return prefix

    def save(self, step: int) -> str:
        """Writes `ckpt-STEP` unless this run has just done so, then drops the oldest ones.

        Raises:
          OSError: it cannot be written; the checkpoints before it are untouched.
        """
        prefix = prefix_of(self.directory, step)
        if prefix != self._good:
            self._write(prefix, self._keep)
            self._good = prefix
        return prefix

    def save_best(self, step: int) -> None:
        """Writes `best/ckpt-STEP` in place of the previous best.

        Raises:
          OSError: it cannot be written.
        """
        self._write(prefix_of(self._best_directory, step), keep=1)

    def _write(self, prefix, keep):
        if not self._writes:
            if _is_read_by_all(self._checkpoint.model):
                with tempfile.TemporaryDirectory() as elsewhere:
                    self._checkpoint.write(os.path.join(elsewhere, _NAME))
            return
        directory = os.path.dirname(prefix)
        try:
            os.makedirs(directory, exist_ok=True)
            self._checkpoint.write(prefix)
        except (tf.errors.OpError, OSError) as error:
            with contextlib.suppress(OSError):
                _remove_leftovers(directory)
            before = (
                f"The last good one is {self._good}" if self._good else "There is none before it"
            )
            raise OSError(
                f"Cannot write the checkpoint {prefix}: {str(error).splitlines()[0][:300]}."
                f" {before}; make room and start the same command again."
            ) from error
        prefixes = saved_prefixes(directory)
        # Not by step alone: a newer one could be left of a run that was set back.
        kept = [prefix] + [p for p in prefixes if p != prefix][: keep - 1]
        _write_marker(directory, kept)
        for old in set(prefixes) - set(kept):
            # The index first: without it the rest is no checkpoint.
            for path in sorted(_files_of(old), key=lambda p: not p.endswith(".index")):
                os.unlink(path)


def _is_read_by_all(model):
    """Whether saving a network needs all workers, since statistics are averaged over them."""
    on_read = tf.VariableSynchronization.ON_READ
    return any(variable.synchronization == on_read for variable in model.variables)


def _remove_leftovers(directory):
    """Removes what killed or failed saves left: temporary files, and data without an index."""
    if not os.path.isdir(directory):
        return
    whole = {path for prefix in saved_prefixes(directory) for path in _files_of(prefix)}
    written = re.compile(rf"{_NAME}-\d+(_temp|(\.index|\.data-\d+-of-\d+)(\.tempstate\d+)?)")
    for path in (os.path.join(directory, name) for name in os.listdir(directory)):
        if written.fullmatch(os.path.basename(path)) and path not in whole:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _files_of(prefix):
    directory, name = os.path.split(prefix)
    return [
        os.path.join(directory, f)
        for f in os.listdir(directory)
        if f == f"{name}.index" or f.startswith(f"{name}.data-")
    ]


def _write_marker(directory, prefixes):
    names = [os.path.basename(p) for p in prefixes]
    with files.atomic_write(os.path.join(directory, "checkpoint")) as f:
        f.write(f'model_checkpoint_path: "{names[0]}"\n')
        f.writelines(f'all_model_checkpoint_paths: "{name}"\n' for name in reversed(names))
