"""What a run says about itself: progress lines, TensorBoard, metrics.jsonl."""

import contextlib
import json
import os
import time
from typing import Any, Dict, Iterator, List, Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf.runs import run_directory
from pfpn_tf.utils import files


class RunLog:
    """Writes the scalars of a run to TensorBoard and, one JSON object a line, to metrics.jsonl.

    Attributes:
      lines: what metrics.jsonl held at the start, an entry a line.
    """

    def __init__(self, run_dir: str, start_step: int, writes: bool = True):
        """Opens the logs.

        Args:
          run_dir: the run directory.
          start_step: the step at which the run starts or continues. Lines of later steps, written
            by a run that was killed after its last checkpoint, are dropped: they will come again.
          writes: whether this process writes; of several workers only the chief does.
        """
        self._path, self._writer = os.devnull, tf.summary.create_noop_writer()
        if writes:
            self._path = os.path.join(run_dir, run_directory.METRICS)
            events = os.path.join(run_dir, run_directory.TENSORBOARD)
            self._writer = tf.summary.create_file_writer(events)
        self.lines: List[Dict[str, Any]] = _lines_until(self._path, start_step)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes scalars of one step.

        Raises:
          OSError: they cannot be written.
        """
        with self.tensorboard():
            for name, value in scalars.items():
                tf.summary.scalar(name, value, step=step)
        # JSON has no NaN and no infinity.
        values = {n: float(v) if np.isfinite(v) else str(float(v)) for n, v in scalars.items()}
        line = json.dumps({"step": step, **values})
        try:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as error:
            raise OSError(
                f"Cannot write {self._path} at step {step} ({error.strerror or error}). Make room"
                " and start the same command again; it continues from the last checkpoint."
            ) from error

    @contextlib.contextmanager
    def tensorboard(self) -> Iterator[None]:
        """What `tf.summary` is given inside goes to the TensorBoard of the run."""
        with self._writer.as_default():
            yield
        self._writer.flush()


class Means(tf.train.experimental.PythonState):
    """Means of scalars over the steps since `restart`.

    Part of the checkpoint, so that a run stopped between two lines of metrics.jsonl writes the same
    next line.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self._sums: Dict[str, float] = {}
        self._count = 0

    def add(self, scalars: Mapping[str, float]) -> None:
        """Counts one step."""
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in scalars.items()}
        self._count += 1

    def values(self) -> Dict[str, float]:
        """Name -> mean; empty if no step was counted."""
        return {name: total / self._count for name, total in self._sums.items()}

    def serialize(self) -> str:
        return json.dumps({"sums": self._sums, "count": self._count})

    def deserialize(self, string_value) -> None:
        state = json.loads(string_value)
        self._sums, self._count = state["sums"], state["count"]


class Rate:
    """Images per second and the share of time spent waiting for input, since the last `restart`."""

    def __init__(self):
        self._waited = 0.0
        self._steps = 0
        self._start = time.monotonic()

    def restart(self):
        self.__init__()

    def step_done(self, waited_seconds: float):
        self._waited += waited_seconds
        self._steps += 1

    def exclude(self, seconds: float):
        """Takes out time that was spent on something else."""
        self._start += seconds

    def seconds_per_step(self) -> float:
        return (time.monotonic() - self._start) / max(self._steps, 1)

    def wait_share(self) -> float:
        return self._waited / max(time.monotonic() - self._start, 1e-9)


def progress_line(
    scalars: Mapping[str, float], step: int, train_steps: int, seconds_per_step: float
) -> str:
    """One line: step, every loss, learning rate, speed, time left."""
    losses = [
        f"{name.partition('/')[2]} {value:.4g}"
        for name, value in scalars.items()
        if name.startswith("loss/")
    ]
    left = int((train_steps - step) * seconds_per_step)
    shown = " ".join(losses) or "no update: every gradient overflowed"
    return (
        f"step {step}/{train_steps} | {shown} | lr {scalars['learning_rate']:.4g} | "
        f"{scalars['images_per_second']:.3g} images/s, input wait {scalars['input_wait']:.0%} | "
        f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
    )


def parameter_counts(model: tf.keras.Model) -> List[str]:
    """One line per component: its parameters, and how many of them train."""

    def line(name, layer):
        total = sum(int(np.prod(v.shape)) for v in layer.weights)
        trained = sum(int(np.prod(v.shape)) for v in layer.trainable_weights)
        return f"{name:<16}{total:>12,} parameters, {trained:>12,} trained"

    return [line(layer.name, layer) for layer in model.layers] + [line("total", model)]


def _lines_until(path, step):
    """What metrics.jsonl holds up to a step, an entry a line; later lines are dropped from it."""
    if not os.path.exists(path):
        return []
    kept, found = [], []
    with open(path, encoding="utf-8") as f:
        lines = f.readlines()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut short by a kill
            entry = json.loads(line)
            if entry["step"] <= step:
                kept.append(line)
                found.append(entry)
    if kept != lines:
        logging.info("Dropping the lines of %s after step %d.", path, step)
        with files.atomic_write(path) as f:
            f.writelines(kept)
    return found
