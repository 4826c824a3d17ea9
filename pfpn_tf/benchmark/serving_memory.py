"""Memory of a served model over many requests of different sizes.

A server must not grow with what it is asked. What can make it: caches by shape, and an allocator
that keeps what is freed in pieces. So the requests differ in size, and the process does nothing
else.
"""

import json
import os
import subprocess
import sys
from typing import Any, Dict

import cv2
import numpy as np

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
      RuntimeError: the process failed; its last lines are the message.
    """
    if num_requests <= SETTLED:
        raise UserError(f"num_requests={num_requests} must be more than {SETTLED}.")
    command = [sys.executable, os.path.abspath(__file__), saved_model]
    command += [str(number) for number in (num_requests, max_side, seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-5:]))
    resident = json.loads(done.stdout.splitlines()[-1])
    settled, end = resident["mb"][SETTLED - 1], resident["mb"][-1]
    return {
        "requests": num_requests,
        "settled_mb": round(settled, 1),
        "end_mb": round(end, 1),
        "largest_mb": round(max(resident["mb"]), 1),
        "peak_mb": round(resident["peak_mb"], 1),
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


def _serve(saved_model, num_requests, max_side, seed):
    """Answers the requests; prints the memory after each."""
    import tensorflow as tf

    serve = tf.saved_model.load(saved_model).signatures["serving_default"]
    resident = []
    for image in requests(num_requests, max_side, seed):
        serve(image_bytes=tf.constant([image]))
        resident.append(_status("VmRSS"))
    print(json.dumps({"mb": resident, "peak_mb": _status("VmHWM")}))


def _status(name):
    """A figure of this process in MB, as Linux tells it."""
    with open("/proc/self/status", encoding="ascii") as f:
        for line in f:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _serve(sys.argv[1], *(int(value) for value in sys.argv[2:]))
