"""Time and memory of a call, and of a whole process.

Times are medians of repeats after warm-up: the first calls trace, compile and fill caches. Memory
is the peak of a fresh process (`in_fresh_process`), since allocators keep what they once had: a
difference taken inside one process reads 0.
"""

import concurrent.futures
import multiprocessing
import os
import platform
import statistics
import threading
import time
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np

from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError


def timed(function: Callable[[], Any], repeats: int = 7, warmup: int = 2) -> Dict[str, Any]:
    """Calls `function` and times the calls; it must return only when its work is done.

    Args:
      function: what to time.
      repeats: timed calls.
      warmup: calls before them.

    Returns:
      median_ms, min_ms, max_ms, repeats, warmup.

    Raises:
      UserError: no repeats.
    """
    if repeats < 1:
        raise UserError(f"--repeats={repeats} must be at least 1; 7 is usual.")
    for _ in range(warmup):
        function()
    return summary([seconds(function) for _ in range(repeats)], warmup)


def seconds(function: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(times: Sequence[float], warmup: int) -> Dict[str, Any]:
    """What `timed` returns, from times in seconds."""
    return {
        "median_ms": round(1e3 * statistics.median(times), 3),
        "min_ms": round(1e3 * min(times), 3),
        "max_ms": round(1e3 * max(times), 3),
        "repeats": len(times),
        "warmup": warmup,
    }


def watched(function: Callable[[], Any], every_seconds: float = 0.2) -> Dict[str, Any]:
    """Calls `function` once and samples this process's memory meanwhile.

    Returns:
      seconds; cpu_seconds, of all threads; memory_mib, resident without the pages of files, which
      the system takes back as it likes: medians of up to ten equal parts of the time;
      growth_percent, from the middle of the time to the end.
    """
    samples, done = [_memory("RssAnon")], threading.Event()

    def sample():
        while not done.wait(every_seconds):
            samples.append(_memory("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        function()
    finally:
        done.set()
        thread.join()
    samples.append(_memory("RssAnon"))
    parts = [statistics.median(part) for part in np.array_split(samples, min(10, len(samples)))]
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu_start, 3),
        "memory_mib": [round(part, 1) for part in parts],
        "growth_percent": round(100 * (parts[-1] / parts[len(parts) // 2] - 1), 2),
    }


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return _memory("VmHWM")  # ru_maxrss of a child starts at what its parent had


def peak_gpu_memory_mib() -> Optional[float]:
    """Most that TensorFlow has held on any one GPU so far, in MiB; None without a GPU."""
    from pfpn_tf.training import memory

    peaks = [peak for place, peak in memory.peak().items() if place.startswith("GPU")]
    return round(max(peaks) / 2**20, 1) if peaks else None


def memory_mib() -> float:
    """Resident memory of this process now, in MiB."""
    return _memory("VmRSS")


def _memory(key):
    return round(process.memory_kib(key) / 1024, 1)


def in_fresh_process(function: Callable[..., Any], *args, **kwargs) -> Any:
    """`function(*args, **kwargs)` in a new Python, whose time and memory are its own.

    Args:
      function: of a module; it, its arguments and its result are pickled.

    Raises:
      what `function` raises; `BrokenProcessPool` if its process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def machine() -> Dict[str, Any]:
    """What the figures were measured on."""
    import tensorflow as tf

    return {
        "processor": _processor(),
        "cores": process.num_cores(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")
        ],
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as TensorFlow chooses"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()
