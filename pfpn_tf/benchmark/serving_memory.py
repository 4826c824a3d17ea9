"""Memory of a served model over many requests of different sizes.

A server must not grow with what it is asked. What can make it: caches by shape, and an allocator
that keeps what is freed in pieces. So the requests differ in size, and the process does nothing
else.
"""

from typing import Any, Dict, List, Tuple

import cv2
import numpy as np

from pfpn_tf.benchmark import measure
from pfpn_tf.utils.errors import UserError

SETTLED = 50
"""Requests after which a process has its working memory."""


def benchmark_serving_memory(
    saved_model: str, num_requests: int = 500, max_side: int = 800, seed: int = 0
) -> Dict[str, Any]:
    """Resident memory of a fresh process after `SETTLED` requests and at the end.

    Args:
      saved_model: directory of an export.
      num_requests: in all; more than `SETTLED`.
      max_side: sides of the images are drawn from 1 to this, in pixels.
      seed: of sizes and images.

    Returns:
      requests, settled_mb, end_mb, largest_mb (the most after any request), peak_mb (the most at
      any time), growth (end over settled, less one).

    Raises:
      UserError: too few requests.
    """
    if num_requests <= SETTLED:
        raise UserError(f"num_requests={num_requests} must be more than {SETTLED}.")
    after, peak = measure.in_fresh_process(serve, saved_model, num_requests, max_side, seed)
    settled, end = after[SETTLED - 1], after[-1]
    return {
        "requests": num_requests,
        "settled_mb": round(settled, 1),
        "end_mb": round(end, 1),
        "largest_mb": round(max(after), 1),
        "peak_mb": round(peak, 1),
        "growth": round(end / settled - 1, 4),
    }


def requests(num_requests: int, max_side: int, seed: int):
    """JPEG and PNG images of random sizes, every eighth damaged."""
    rng = np.random.default_rng(seed)
    for i in range(num_requests):
        height, width = rng.integers(1, max_side + 1, 2)
        patches = rng.integers(0, 256, (5, 7, 3), np.uint8)
        image = cv2.resize(patches, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        content = cv2.imencode(".jpg" if i % 2 else ".png", image)[1].tobytes()
        yield content[: len(content) // 2] if i % 8 == 7 else content


def serve(
    saved_model: str, num_requests: int, max_side: int, seed: int
) -> Tuple[List[float], float]:
    """Answers the requests in this process; gives its memory after each, and the peak, in MiB."""
    import tensorflow as tf

    signature = tf.saved_model.load(saved_model).signatures["serving_default"]
    after = []
    for image in requests(num_requests, max_side, seed):
        signature(image_bytes=tf.constant([image]))
        after.append(measure.memory_mib())
    return after, measure.peak_memory_mib()
