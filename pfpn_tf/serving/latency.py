"""How long a server takes for its answers."""

import itertools
import time
from concurrent import futures
from typing import Dict, Sequence

import numpy as np

from pfpn_tf.serving import client, results
from pfpn_tf.utils import progress


def measure(
    connection: client.Connection,
    images: Sequence[bytes],
    num_requests: int,
    concurrency: int = 1,
    images_per_request: int = 1,
) -> Dict[str, float]:
    """Sends requests and takes their times, after one per thread that does not count.

    Args:
      connection: from `connect`.
      images: encoded; used in turn.
      num_requests: in all.
      concurrency: requests on their way at the same time.
      images_per_request: images in each.

    Returns:
      See `summary`.

    Raises:
      Refused, ServerError: from the first request that fails; the others are given up.
    """
    endless = itertools.cycle(images)
    requests = [
        [next(endless) for _ in range(images_per_request)]
        for _ in range(num_requests + concurrency)
    ]

    def send(request):
        start = time.perf_counter()
        for reply in connection.predict(request):
            if reply["error"]:
                raise results.Refused(reply["error"])
        return time.perf_counter() - start

    with futures.ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(send, requests[:concurrency]))
        start = time.perf_counter()
        done = pool.map(send, requests[concurrency:])
        seconds = list(progress.Bar("Measuring", num_requests, "request", done))
        return summary(seconds, time.perf_counter() - start, images_per_request)


def summary(
    seconds: Sequence[float], total_seconds: float, images_per_request: int
) -> Dict[str, float]:
    """Latencies in milliseconds, and images per second.

    Args:
      seconds: of each request.
      total_seconds: from the first request to the last answer.
      images_per_request: images in each.
    """
    milliseconds = 1000 * np.array(seconds)
    percentiles = {f"p{p}_ms": np.percentile(milliseconds, p) for p in (50, 90, 95, 99)}
    figures = {
        "mean_ms": milliseconds.mean(),
        **percentiles,
        "max_ms": milliseconds.max(),
        "images_per_second": len(seconds) * images_per_request / total_seconds,
    }
    return {"requests": len(seconds), **{k: round(float(v), 2) for k, v in figures.items()}}
