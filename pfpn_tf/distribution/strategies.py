"""Where the replicas are: on the devices of this process, or of several that TF_CONFIG names.

One process a machine is a worker. Workers are equal but for one thing: the first, the chief, is the
only one that writes. TensorFlow's MultiWorkerMirroredStrategy connects them, adds up their
gradients (NCCL between GPUs, a ring of gRPC calls between CPUs) and notices when one is gone.
"""

import contextlib
import json
import os
import signal
import threading
from typing import List, Tuple

import tensorflow as tf
from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.distribution.workers import Gatherer
from pfpn_tf.utils.errors import UserError

_EXAMPLE = (
    """TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]}, """
    """"task": {"type": "worker", "index": 0}}'"""
)
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)

_XLA_SAYS = ("xla", "during context [")


class WorkerLost(RuntimeError):
    """Another worker is gone, so this one cannot go on."""


def set_up_runtime(config: config_lib.Config) -> None:
    """Sets up threads, GPU memory and logs. Call it before TensorFlow does anything else."""
    tf.get_logger().setLevel("ERROR")  # no word on every collective operation
    logging.get_absl_logger().addFilter(_is_for_users)  # nor on how long a save took
    threads = config.train.train_cpu_threads
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def _is_for_users(record):
    """Whether a log record is not one of TensorFlow's own of level INFO."""
    return record.levelname != "INFO" or not record.pathname.startswith(tf.sysconfig.get_lib())


def build_strategy(distribution: str) -> tf.distribute.Strategy:
    """The distribution strategy for a value of --distribution.

    With multi_worker it waits until every worker has been started, and must come before anything
    else that makes TensorFlow look at its devices.

    Raises:
      UserError: TF_CONFIG does not describe this worker and the others, or does not fit.
    """
    text = os.environ.get("TF_CONFIG", "")
    if distribution == "multi_worker":
        return _multi_worker_strategy(text)
    if text and len(parse_tf_config(text)[0]) > 1:
        raise UserError(
            f"--distribution={distribution} trains in one process alone, but TF_CONFIG names"
            f" {len(parse_tf_config(text)[0])} workers; use --distribution=multi_worker, or unset"
            " TF_CONFIG."
        )
    return local_strategy(distribution)


def local_strategy(distribution: str) -> tf.distribute.Strategy:
    """The strategy of one worker, alone; with multi_worker that of mirrored."""
    gpus = tf.config.list_logical_devices("GPU")
    if distribution in ("cpu", "one_device"):
        use_gpu = distribution == "one_device" and gpus
        return tf.distribute.OneDeviceStrategy("GPU:0" if use_gpu else "CPU:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    # TensorFlow's collectives, the default on CPUs, serve one strategy a process.
    return tf.distribute.MirroredStrategy(["CPU:0"], tf.distribute.ReductionToOneDevice())


def _multi_worker_strategy(text):
    addresses, index = parse_tf_config(text)
    logging.info(
        "Worker %d of %d, at %s. Waiting for all of %s.",
        index, len(addresses), addresses[index], ", ".join(addresses),
    )  # fmt: skip
    # TensorFlow waits outside Python, where no handler of Python's runs.
    handles = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL) if handles else None
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise UserError(
            f"This worker cannot start at {addresses[index]} ({_line(error)}): the address in"
            " TF_CONFIG must be this machine's, with a port that is free."
        ) from None
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before)


def parse_tf_config(text: str) -> Tuple[List[str], int]:
    """The workers' addresses and the index of this one in them, from the text of TF_CONFIG.

    The list starts with the "chief", if the cluster has one apart, and goes on with the "worker"s.

    Raises:
      UserError: says what is wrong and shows a text that would work.
    """

    def wrong(what):
        return UserError(
            f"--distribution=multi_worker: {what} It must name every worker and say which one this"
            f" is, e.g.\n  {_EXAMPLE}\nOn one machine use --distribution=mirrored."
        )

    if not text:
        raise wrong("the environment variable TF_CONFIG is not set.")
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise wrong(f"TF_CONFIG is not JSON ({error}): {text[:200]!r}.") from None
    cluster = parsed.get("cluster") if isinstance(parsed, dict) else None
    task = parsed.get("task") if isinstance(parsed, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise wrong('TF_CONFIG needs the objects "cluster" and "task".')
    others = sorted(set(cluster) - {"chief", "worker"})
    if others:
        raise wrong(f'TF_CONFIG\'s cluster has "{others[0]}"; only "chief" and "worker" take part.')
    for job, listed in cluster.items():
        if not isinstance(listed, list):
            raise wrong(
                f'TF_CONFIG\'s cluster has "{job}": {json.dumps(listed)}, which must be a list of'
                " HOST:PORT."
            )
    jobs = [(job, i) for job in ("chief", "worker") for i in range(len(cluster.get(job, [])))]
    addresses = [cluster[job][i] for job, i in jobs]
    if not addresses:
        raise wrong('TF_CONFIG\'s cluster names no "worker".')
    for address in addresses:
        host, _, port = str(address).rpartition(":")
        if not host or not port.isdigit():
            raise wrong(f"TF_CONFIG names {address!r}, which is not HOST:PORT.")
        if addresses.count(address) > 1:
            raise wrong(f"TF_CONFIG names {address} twice.")
    this = (task.get("type"), task.get("index"))
    if this not in jobs:
        known = ", ".join(f'{{"type": "{job}", "index": {i}}}' for job, i in jobs)
        raise wrong(f"TF_CONFIG's task is {json.dumps(task)}, but the cluster has {known}.")
    return addresses, jobs.index(this)


def is_follower(distribution: str) -> bool:
    """Whether this process is a worker, but not the chief."""
    return distribution == "multi_worker" and parse_tf_config(os.environ["TF_CONFIG"])[1] > 0


@contextlib.contextmanager
def losing_workers(gather: Gatherer):
    """Around the work of a worker: turns the errors that TensorFlow raises when another worker is
    gone into `WorkerLost`, and leaves when all have done their work.
    """
    workers = gather.workers
    try:
        yield
        gather.wait()
    except _LOST as error:
        internal = isinstance(error, tf.errors.InternalError) and "ollective" not in str(error)
        if workers.count == 1 or internal:
            raise
        raise WorkerLost(
            f"Worker {workers.index} of {workers.count} stops, as another one is gone"
            f" ({_line(error, 'aborted by')}). That one's log says why. Start all workers again"
            " with the same command: they continue from the last checkpoint."
        ) from error
    # All have done their work, but another worker may still be reading this one's part of the call
    # above: so all wait once more. Who leaves first breaks this call, which harms nobody.
    with contextlib.suppress(*_LOST):
        gather.wait()


@contextlib.contextmanager
def compiling(xla: bool):
    """With --xla, turns XLA's error of a part that it cannot compile into a `UserError`."""
    try:
        yield
    except tf.errors.OpError as error:
        if not xla or not any(words in str(error).lower() for words in _XLA_SAYS):
            raise
        raise UserError(
            "--xla: XLA cannot compile a part of the training step on this device"
            f" ({_line(error, 'compile time')}). Train with --noxla; the same command continues"
            " otherwise."
        ) from error


def _line(error, words=""):
    """The first line with these words in it, or else the first one."""
    lines = str(error).splitlines() or [""]
    return next((line for line in lines if words in line), lines[0])[:300]
