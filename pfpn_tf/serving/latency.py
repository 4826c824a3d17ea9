"""How long a server takes for its answers."""

import itertools
import time
from concurrent import futures
from typing import Callable, Dict, List, NamedTuple, Sequence

import numpy as np

from pfpn_tf.serving import client, results


class Latencies(NamedTuple):
    """What `measure` found.

    Attributes:
      seconds: of each request, in the order of their ends.
      total_seconds: from the first request to the last answer.
      images_per_request: images in each.
    """

    seconds: List[float]
    total_seconds: float
    images_per_request: int

    def summary(self) -> Dict[str, float]:
        """Percentiles in milliseconds, and images per second."""
        percentiles = {
            f"p{p}_ms": round(1000 * float(np.percentile(self.seconds, p)), 2)
            for p in (50, 90, 95, 99)
        }
        images = len(self.seconds) * self.images_per_request
        return {
            "requests": len(self.seconds),
            "mean_ms": round(1000 * float(np.mean(self.seconds)), 2),
            **percentiles,
            "max_ms": round(1000 * max(self.seconds), 2),
            "images_per_second": round(images / self.total_seconds, 2),
        }


def measure(
    connection: client.Connection,
    images: Sequence[bytes],
    num_requests: int,
    concurrency: int = 1,
    images_per_request: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Latencies:
    """Sends requests and takes their times, after one per thread that does not count.

    Args:
      connection: from `connect`.
      images: encoded; used in turn.
      num_requests: in all.
      concurrency: requests on their way at the same time.
      images_per_request: images in each.
      progress: called after each request.

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

    seconds = []
    pool = futures.ThreadPoolExecutor(concurrency)
    try:
        list(pool.map(send, requests[:concurrency]))
        start = time.perf_counter()
        for done in futures.as_completed([pool.submit(send, r) for r in requests[concurrency:]]):
            seconds.append(done.result())
            progress()
        return Latencies(seconds, time.perf_counter() - start, images_per_request)
    finally:
        pool.shutdown(cancel_futures=True)
