"""What the operating system knows of this process."""

import concurrent.futures
import contextlib
import os
from typing import Iterator, Optional

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
            "A worker process was killed, perhaps for lack of memory; try fewer (--num_workers,"
            " --num_processes)."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


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
