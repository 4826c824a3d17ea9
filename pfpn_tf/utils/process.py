"""What the operating system knows of this process."""

import os
from typing import Optional


def num_cores() -> int:
    """Processor cores that this process may use; a container can have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
