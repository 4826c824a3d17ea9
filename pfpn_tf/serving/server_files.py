"""What TensorFlow Serving reads beside the model itself, in the version directory."""

import os
from typing import Sequence

from pfpn_tf.serving import warmup
from pfpn_tf.utils.files import atomic_write

BATCHING = "batching_params.pbtxt"

_BATCHING_TEXT = """\
# Read by TensorFlow Serving with --enable_batching --enable_per_model_batching_parameters.
# Requests that wait are joined, and filled up to one of these sizes by repeating an image.
{sizes}
max_batch_size {{ value: {largest} }}
batch_timeout_micros {{ value: {timeout} }}
# What waits beyond this many batches is refused at once (UNAVAILABLE), so that queues stay short.
max_enqueued_batches {{ value: 64 }}
# Requests larger than max_batch_size are cut into batches.
enable_large_batch_splitting {{ value: true }}
max_execution_batch_size {{ value: {largest} }}
# Batches worked on at a time, for all models of the server: counts only in the file that
# --batching_parameters_file names. Each takes its own memory.
num_batch_threads {{ value: 1 }}
"""


def batching_params(batch_sizes: Sequence[int], timeout_micros: int) -> str:
    """A BatchingParameters message as text.

    Args:
      batch_sizes: allowed ones, rising.
      timeout_micros: how long a batch may wait to be filled.
    """
    return _BATCHING_TEXT.format(
        sizes="\n".join(f"allowed_batch_sizes: {size}" for size in batch_sizes),
        largest=batch_sizes[-1],
        timeout=timeout_micros,
    )


def write(version_dir: str, model_name: str, batch_sizes: Sequence[int], timeout_micros: int):
    """Writes warm-up requests and batching parameters into the directory of an export.

    Args:
      version_dir: with saved_model.pb.
      model_name: under which the server will serve it.
      batch_sizes: allowed ones, rising.
      timeout_micros: see `batching_params`.
    """
    with atomic_write(os.path.join(version_dir, BATCHING)) as f:
        f.write(batching_params(batch_sizes, timeout_micros))
    warmup.write(
        os.path.join(version_dir, warmup.PATH), model_name, warmup.requests_for(batch_sizes)
    )
