"""What TensorFlow Serving reads beside the model itself, in the version directory.

BATCHING: sizes of the batches that the server makes of waiting requests.

WARMUP: requests that the server replays before it calls the model available. The first request of
each signature and batch size makes the runtime plan and allocate, which takes seconds; no client
waits for that.
"""

import os
from typing import Any, Iterable, List, Mapping, Tuple

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.utils.files import atomic_write

BATCHING = "batching_params.pbtxt"
WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")

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


def write(
    version_dir: str, model_name: str, signatures: Iterable[str], settings: config_lib.Export
) -> None:
    """Writes warm-up requests and batching parameters into the directory of an export.

    Args:
      version_dir: with saved_model.pb.
      model_name: under which the server will serve it.
      signatures: names of those that the model has.
      settings: sizes of batches, and how long one may wait to be filled.
    """
    from tensorflow_serving.apis import prediction_log_pb2

    batch_sizes, timeout = settings.allowed_batch_sizes, settings.batch_timeout_micros
    with atomic_write(os.path.join(version_dir, BATCHING)) as f:
        sizes = "\n".join(f"allowed_batch_sizes: {size}" for size in batch_sizes)
        f.write(_BATCHING_TEXT.format(sizes=sizes, largest=batch_sizes[-1], timeout=timeout))
    path = os.path.join(version_dir, WARMUP)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for signature_name, inputs in _warmup_requests(signatures, batch_sizes):
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature_name
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


def _warmup_requests(signatures, batch_sizes) -> List[Tuple[str, Mapping[str, Any]]]:
    """(signature, inputs): each batch size of the default, one image of the others that take
    files. With images of 480 x 640 the network's input has the shape of most photos.
    """
    # Coloured patches with soft edges are as busy as a photo.
    patches = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    picture = cv2.resize(patches, (640, 480), interpolation=cv2.INTER_CUBIC)
    image = cv2.imencode(".jpg", picture)[1].tobytes()
    thresholds = {
        "score_threshold": np.array([0.5], np.float32),
        "overlap_threshold": np.array([0.5], np.float32),
        "stuff_area_threshold_px": np.array([4096], np.int32),
    }
    requests: List[Tuple[str, Mapping[str, Any]]] = [
        *(("serving_default", {"image_bytes": [image] * size}) for size in batch_sizes),
        ("serving_rest", {"image_bytes": [image]}),
        ("serving_thresholds", {"image_bytes": [image], **thresholds}),
        ("serving_instances", {"image_bytes": [image]}),
    ]
    return [(name, inputs) for name, inputs in requests if name in signatures]
