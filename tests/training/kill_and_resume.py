"""Kills a training again and again, and compares what comes of it with one that was left alone.

    python -m tests.training.kill_and_resume --kills=20

draws a dataset, trains the whole tiny network on it and kills it with SIGKILL at random moments:
while it starts, before a step, and while it writes a checkpoint. It exits with 1 if
losses, learning rate, weights, optimizer slots or moving averages differ from those of the run left
alone.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import pfpn_tf.utils.cli  # noqa: F401  (quiet, before TensorFlow)

# isort: split
from tests import tiny
from tests.training import train_process

_OWN_TO_A_RUN = ("images_per_second", "input_wait", "peak_gib")


def train_with_kills(config, run_dir, log, moments):
    """Trains to the end, killed once at each of `moments`.

    Args:
      config: settings.
      run_dir: path.
      log: path of the processes' output.
      moments: list of "start 3.5" (seconds after the start), and of what `train_process.STOP_AT`
        takes.

    Returns:
      What each kill left in the folder of checkpoints: list of sets of file names.
    """
    left = []
    for moment in moments:
        kind, number = moment.split()
        if kind == "start":
            process = train_process.start(config, run_dir, log)
            time.sleep(float(number))
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            train_process.kill_when_stopped(
                train_process.start(config, run_dir, log, **{train_process.STOP_AT: moment})
            )
        left.append(_names(run_dir / "checkpoints"))
    if (run_dir / "metrics.jsonl").exists():
        with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write('{"step": 7, "lo')  # as a kill leaves it that comes while a line is written
    process = train_process.start(config, run_dir, log)
    assert process.wait() == 0, pathlib.Path(log).read_text()
    return left


def _names(folder):
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def curve(run_dir):
    """Step -> what metrics.jsonl says of it, but for times and memory; every step once."""
    lines = [json.loads(line) for line in open(run_dir / "metrics.jsonl", encoding="utf-8")]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), steps
    return {
        line["step"]: {k: v for k, v in line.items() if not k.startswith(_OWN_TO_A_RUN)}
        for line in lines
    }


def tensors(run_dir, step, folder="checkpoints"):
    """Everything in a checkpoint, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(run_dir / folder / f"ckpt-{step}"))
    names = [n for n in reader.get_variable_to_shape_map() if not n.startswith("_")]
    found = {name: reader.get_tensor(name) for name in names}
    (means,) = (name for name, value in found.items() if isinstance(value, bytes))
    state = json.loads(found.pop(means))
    found.update({f"{means}/{n}": value for n, value in state.pop("sums").items()}, **state)
    return found


def largest_difference(run_dir, other_dir, step):
    """The largest relative difference of two runs' curves, and of their checkpoints at a step."""
    import numpy as np

    def relative(a, b):
        return np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-30)) if np.size(a) else 0.0

    first, second = curve(run_dir), curve(other_dir)
    assert first.keys() == second.keys() and len(first) > 0, (list(first), list(second))
    values = [relative(first[s][name], second[s][name]) for s in first for name in first[s]]
    ours, theirs = tensors(run_dir, step), tensors(other_dir, step)
    assert ours.keys() == theirs.keys()
    states = [np.max(np.abs(ours[n] - theirs[n])) if np.size(ours[n]) else 0.0 for n in ours]
    return max(values), max(states)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--task", default="panoptic")
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    rng = random.Random(seed)
    choices = (
        lambda: f"start {rng.uniform(0, 6):.3f}",
        lambda: f"step {rng.randint(2, 6)}",
        lambda: f"save {rng.randint(1, 2)}",
    )
    moments = [choices[i % 3]() for i in range(arguments.kills)]
    rng.shuffle(moments)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    config = tiny.config(tiny.make_records(folder)).replace(
        task=arguments.task,
        train_steps=8 * max(arguments.kills, 1),
        ema_decay=0.9,
        summary_interval_steps=2,
        checkpoint_interval_steps=3,
    )
    print(
        f"Seed {seed}; {arguments.kills} kills: {', '.join(moments)}. Files are in {folder}.",
        flush=True,
    )
    alone = train_process.start(config, folder / "alone", folder / "alone.log")
    left = train_with_kills(config, folder / "killed", folder / "killed.log", moments)
    assert alone.wait() == 0
    for moment, names in zip(moments, left):
        if moment.startswith("save"):
            assert any(name.endswith("_temp") for name in names), "no half-written checkpoint"
    values, states = largest_difference(
        folder / "alone", folder / "killed", config.train.train_steps
    )
    print(
        f"Largest differences: curve {values:.2g} (relative), checkpoint {states:.2g} (absolute)."
    )
    return int(values > 1e-6 or states > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
