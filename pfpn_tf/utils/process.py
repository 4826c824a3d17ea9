"""What the operating system knows of this process."""

import concurrent.futures
import contextlib
import os
from typing import Iterator, Optional

import numpy as np

from pfpn_tf.utils.errors import UserError


def num_cores() -> int:
    """Processor cores that this process may use; a container can have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def pool(num_workers: int, *arguments, **settings) -> Iterator[concurrent.futures.Executor]:
    """A `ProcessPoolExecutor` for the code inside; what it has not begun by then is cancelled.

    Args:
      num_workers: processes.
      *arguments, **settings: those of `ProcessPoolExecutor` after the first.

    Raises:
      UserError: a process was killed.
    """
    executor = concurrent.futures.ProcessPoolExecutor(num_workers, *arguments, **settings)
    try:
        yield executor
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "A worker process was killed, perhaps for lack of memory; try fewer (--num_workers)."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def keep_freed_memory() -> None:
    """Lets the C library keep up to 60 MiB that arrays have freed, for the arrays that come next.

    By itself glibc keeps twice the largest block that it has seen freed so far, and gives back what
    is more. Threads that decode PNGs then spend half of their time in taking memory anew.
    """
    np.empty(30 << 20, np.uint8)


def memory_kib(key: str) -> Optional[int]:
    """A figure of /proc/self/status: "VmRSS", resident memory now, or "VmHWM", its peak, in KiB.

    Returns:
      None where there is no such file or figure.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next((int(line.split()[1]) for line in f if line.startswith(f"{key}:")), None)
    except OSError:
        return None
