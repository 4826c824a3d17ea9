"""Memory of a served model over many requests of different sizes.

A server must not grow with what it is asked. What can make it: caches by shape, and an allocator
that keeps what is freed in pieces. So the requests differ in size, and the process does nothing
else.
"""

import itertools
from typing import Any, Dict

import cv2
import numpy as np

from pfpn_tf.benchmark import measure
from pfpn_tf.utils.errors import UserError


def benchmark_serving_memory(saved_model: str, num_requests: int) -> Dict[str, Any]:
    """Memory of a fresh process that answers requests; see `serve`.

    Raises:
      UserError: no model, or no request.
    """
    if not saved_model:
        raise UserError("--saved_model is required: the export that answers the requests.")
    if num_requests < 1:
        raise UserError(f"--num_images={num_requests} must be at least 1; 500 is usual.")
    return measure.in_fresh_process(serve, saved_model, num_requests)


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
    saved_model: str, num_requests: int, max_side: int = 800, seed: int = 0
) -> Dict[str, Any]:
    """Answers requests in this process.

    Args:
      saved_model: directory of an export.
      num_requests: in all.
      max_side: sides of the images are drawn from 1 to this, in pixels.
      seed: of sizes and images.

    Returns:
      requests; what `measure.watched` tells; peak_memory_mib.
    """
    import tensorflow as tf

    signature = tf.saved_model.load(saved_model).signatures["serving_default"]

    images = requests(num_requests, max_side, seed)

    def answer(count):
        for image in itertools.islice(images, count):
            signature(image_bytes=tf.constant([image]))

    answer(1)  # which plans and allocates
    watched = measure.watched(lambda: answer(num_requests), every_seconds=0.02)
    return {
        "requests": num_requests,
        **watched,
        "peak_memory_mib": measure.peak_memory_mib(),
    }
