"""Warm-up requests, which TensorFlow Serving runs before it calls a model available.

The first request of each signature and batch size makes the runtime plan and allocate, which takes
seconds. The server replays the records of `assets.extra/tf_serving_warmup_requests` instead of a
client waiting for that.

The records are `PredictionLog` messages of tensorflow-serving-api. They are written here field by
field, so that exporting does not need that package.
"""

import os
from typing import Iterable, Mapping, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")

# Field numbers of the messages.
_LOG_PREDICT_LOG = 6  # PredictionLog
_PREDICT_LOG_REQUEST = 1  # PredictLog
_REQUEST_MODEL_SPEC, _REQUEST_INPUTS = 1, 2  # PredictRequest
_MODEL_NAME, _MODEL_SIGNATURE_NAME = 1, 3  # ModelSpec
_MAP_KEY, _MAP_VALUE = 1, 2


class Request(NamedTuple):
    """A request to replay.

    Attributes:
      signature_name: of the model.
      inputs: input name to tensor or what becomes one.
    """

    signature_name: str
    inputs: Mapping[str, tf.Tensor]


def requests_for(batch_sizes: Iterable[int], hw=(480, 640)) -> Iterable[Request]:
    """Requests of JPEG images: each batch size by gRPC's signature, one image by REST's.

    Args:
      batch_sizes: that the server will use.
      hw: size of the images; the network input then has the shape of most photos.
    """
    image = drawn_jpeg(*hw)
    for batch_size in batch_sizes:
        yield Request("serving_default", {"image_bytes": [image] * batch_size})
    yield Request("serving_rest", {"image_bytes": [image]})


def drawn_jpeg(height: int, width: int) -> bytes:
    """A JPEG of coloured patches with soft edges, as busy as a photo."""
    patches = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes()


def write(path: str, model_name: str, requests: Iterable[Request]) -> None:
    """Writes a TFRecord file of PredictionLog messages.

    Args:
      path: of the file; its folder is made.
      model_name: that the requests carry.
      requests: at most 1000, which is what the server takes.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tf.io.TFRecordWriter(path) as writer:
        for request in requests:
            writer.write(_prediction_log(model_name, request))


def _prediction_log(model_name, request):
    """A serialised PredictionLog."""
    model_spec = _field(_MODEL_NAME, model_name.encode())
    model_spec += _field(_MODEL_SIGNATURE_NAME, request.signature_name.encode())
    message = _field(_REQUEST_MODEL_SPEC, model_spec)
    for name, value in request.inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        entry = _field(_MAP_KEY, name.encode()) + _field(_MAP_VALUE, tensor)
        message += _field(_REQUEST_INPUTS, entry)
    return _field(_LOG_PREDICT_LOG, _field(_PREDICT_LOG_REQUEST, message))


def _field(number, content):
    """A length-delimited field of a protocol buffer message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
