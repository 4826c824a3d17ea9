"""Kills a training again and again, and compares what comes of it with one that was left alone.

    python -m tests.training.kill_and_resume --kills=20

draws a dataset, trains the whole tiny network on it and kills it with SIGKILL at random moments:
while it starts, between two lines of its log, and while it writes a checkpoint. It exits with 1 if
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
from tests.training import tiny, train_process

MOMENTS = ("start", "step", "save")
_OWN_TO_A_RUN = ("images_per_second", "input_wait", "peak_gib")


def train_with_kills(config, run_dir, log, moments, rng):
    """Trains to the end, killed once at each of `moments`.

    Args:
      config: settings.
      run_dir: path.
      log: path of the processes' output.
      moments: list of "start", "step" and "save".
      rng: `random.Random`.

    Returns:
      What each kill left in the folder of checkpoints: list of sets of file names.
    """
    left = []
    for moment in moments:
        process = train_process.start(config, run_dir, log)
        if not _wait_for(moment, process, run_dir, rng):
            raise AssertionError(
                f"the run ended with {process.returncode} before its kill; see {log}"
            )
        process.send_signal(signal.SIGKILL)
        process.wait()
        left.append(_names(run_dir / "checkpoints"))
    process = train_process.start(config, run_dir, log)
    assert process.wait() == 0, pathlib.Path(log).read_text()
    return left


def _wait_for(moment, process, run_dir, rng):
    """Waits for the moment; whether the process is still there."""
    if moment == "start":
        time.sleep(rng.uniform(0, 6))
    elif moment == "step":
        lines = num_lines(run_dir) + rng.randint(1, 3)
        while process.poll() is None and num_lines(run_dir) < lines:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
    else:
        known = _names(run_dir / "checkpoints")
        number = rng.randint(1, 2)  # of the save
        while process.poll() is None and number:
            new = {
                name for name in _names(run_dir / "checkpoints") - known if name.endswith("_temp")
            }
            known |= new
            number -= bool(new)
    return process.poll() is None


def num_lines(run_dir):
    """Lines of metrics.jsonl so far."""
    try:
        return (run_dir / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


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


def tensors(run_dir, step):
    """Everything in a checkpoint, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints" / f"ckpt-{step}"))
    return {
        n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if not n.startswith("_")
    }


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
    moments = [MOMENTS[i % 3] for i in range(arguments.kills)]
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
    left = train_with_kills(config, folder / "killed", folder / "killed.log", moments, rng)
    assert alone.wait() == 0
    halves = sum(
        m == "save" and any("_temp" in n for n in names) for m, names in zip(moments, left)
    )
    values, states = largest_difference(
        folder / "alone", folder / "killed", config.train.train_steps
    )
    print(f"{halves} of {moments.count('save')} kills while saving left a half-written checkpoint.")
    print(
        f"Largest differences: curve {values:.2g} (relative), checkpoint {states:.2g} (absolute)."
    )
    return int(values > 1e-6 or states > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
