"""tools/train.py as a process on one thread, and what its runs leave behind.

One thread adds numbers in the same order every time, so runs can be compared bit for bit.
"""

import itertools
import json
import os
import runpy
import signal

import pfpn_tf.utils.cli  # noqa: F401  (quiet, before TensorFlow)

# isort: split
import numpy as np
import tensorflow as tf

from tests import processes

TWO_REPLICAS = "TEST_TWO_REPLICAS"
STOP_AT = "TEST_STOP_AT"
_OWN_TO_A_RUN = ("images_per_second", "input_wait", "peak_gib")


def start(config, run_dir, log, **environment):
    """Starts a training; its output is appended to the file `log`.

    In the environment, TWO_REPLICAS is for two replicas in the process, and STOP_AT="step 3" or
    "save 2" for a process that stops, but does not end, before its third step or in the middle of
    its second save; see `kill_when_stopped`.
    """
    settings = config.replace(train_cpu_threads=1).flat().items()
    flags = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings]
    module = ("-m", "tests.training.runs")
    return processes.start(*module, *flags, f"--run_dir={run_dir}", log=log, **environment)


def kill_when_stopped(process):
    """Waits until a process with STOP_AT has stopped, and kills it there with SIGKILL."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the process ended before it stopped; see its log"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def metrics(run_dir):
    """The lines of metrics.jsonl."""
    with open(os.path.join(run_dir, "metrics.jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def curve(run_dir):
    """Step -> what metrics.jsonl says of it, but for times and memory; every step once."""
    lines = metrics(run_dir)
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), steps
    return {
        line["step"]: {k: v for k, v in line.items() if not k.startswith(_OWN_TO_A_RUN)}
        for line in lines
    }


def tensors(run_dir, step, folder="checkpoints"):
    """Everything in a checkpoint, by name."""
    reader = tf.train.load_checkpoint(str(run_dir / folder / f"ckpt-{step}"))
    names = [n for n in reader.get_variable_to_shape_map() if not n.startswith("_")]
    found = {name: reader.get_tensor(name) for name in names}
    (means,) = (name for name, value in found.items() if isinstance(value, bytes))
    state = json.loads(found.pop(means))
    found.update({f"{means}/{n}": value for n, value in state.pop("sums").items()}, **state)
    return found


def largest_difference(run_dir, other_dir, step):
    """The largest relative difference of two runs' curves, and of their checkpoints at a step."""

    def relative(a, b):
        return np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-30)) if np.size(a) else 0.0

    first, second = curve(run_dir), curve(other_dir)
    assert first.keys() == second.keys() and len(first) > 0, (list(first), list(second))
    values = [relative(first[s][name], second[s][name]) for s in first for name in first[s]]
    ours, theirs = tensors(run_dir, step), tensors(other_dir, step)
    assert ours.keys() == theirs.keys()
    states = [np.max(np.abs(ours[n] - theirs[n])) if np.size(ours[n]) else 0.0 for n in ours]
    return max(values), max(states)


def _stop_at(moment, number):
    """Makes the process stop itself before its call `number` of what `moment` names."""
    from tensorflow.python.ops import gen_io_ops

    from pfpn_tf.training import trainer

    # Data are written into files apart, which this operation then puts in place.
    saving = (gen_io_ops, "merge_v2_checkpoints")
    owner, name = {"step": (trainer.Trainer, "train_step"), "save": saving}[moment]
    function, calls = getattr(owner, name), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return function(*args, **kwargs)

    setattr(owner, name, stopping)


def _main():
    from pfpn_tf.distribution import strategies
    from tests.training.test_replicas import two_cpus

    if STOP_AT in os.environ:
        moment, number = os.environ[STOP_AT].split()
        _stop_at(moment, int(number))
    if TWO_REPLICAS in os.environ:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        strategies.build_strategy = lambda name: two_cpus()
    runpy.run_path(str(processes.ROOT / "tools" / "train.py"), run_name="__main__")


if __name__ == "__main__":
    _main()
