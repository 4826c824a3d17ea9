"""tools/train.py as a process on one thread.

One thread adds numbers in the same order every time, so runs can be compared bit for bit.
"""

import itertools
import os
import runpy
import signal
import subprocess
import sys

from tests import processes

TWO_REPLICAS = "TEST_TWO_REPLICAS"
STOP_AT = "TEST_STOP_AT"


def start(config, run_dir, log, **environment) -> subprocess.Popen:
    """Starts a training; its output is appended to the file `log`.

    In the environment, TWO_REPLICAS is for two replicas in the process, and STOP_AT="step 3" or
    "save 2" for a process that stops, but does not end, before its third step or in the middle of
    its second save; see `kill_when_stopped`.
    """
    names = processes.environment(**environment)
    settings = config.replace(train_cpu_threads=1).flat().items()
    flags = [f"--{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings]
    command = [sys.executable, "-m", "tests.training.train_process", *flags, f"--run_dir={run_dir}"]
    with open(log, "a", encoding="utf-8") as f:
        return subprocess.Popen(command, cwd=processes.ROOT, env=names, stdout=f, stderr=f)


def kill_when_stopped(process):
    """Waits until a process with STOP_AT has stopped, and kills it there with SIGKILL."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "the process ended before it stopped; see its log"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def start_workers(config, run_dir, log_dir, count=2, **environment_of_the_first):
    """Starts `count` workers that reach each other through the loopback device; they log to
    LOG_DIR/worker-N.log."""
    config = config.replace(distribution="multi_worker")
    started = []
    for i, cluster in enumerate(processes.cluster_of_workers(count)):
        environment = environment_of_the_first if i == 0 else {}
        log = log_dir / f"worker-{i}.log"
        started.append(start(config, run_dir, log, TF_CONFIG=cluster, **environment))
    return started


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
    import tensorflow as tf

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
    import pfpn_tf.utils.cli  # noqa: F401  (quiet, before TensorFlow)

    _main()
