"""A client of an exported model behind TensorFlow Serving, by gRPC or REST.

gRPC needs tensorflow-serving-api (the extra `serving`); REST needs nothing, not even TensorFlow.
"""

import abc
import base64
import contextlib
import functools
import http.client
import json
import random
import ssl
import time
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple
from urllib import parse

import numpy as np

from pfpn_tf.data import predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.serving.model import Model
from pfpn_tf.serving.results import Refused, refusal
from pfpn_tf.utils.errors import UserError

AVAILABLE = "AVAILABLE"
GRPC_PORT, REST_PORT = 8500, 8501
THRESHOLDS = ("score_threshold", "overlap_threshold", "stuff_area_threshold_px")
PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before a request is repeated that a server could not take; each is drawn from half of it
on, so that many clients do not come back all at once."""


class ServerError(OSError):
    """The server does not answer, or not with what was asked for; the text says what to do."""


class Unavailable(ServerError):
    """The server is not there, or has no room for the request at the moment."""


def connect(url: str, model_name: str, timeout_s: float = 60.0, ca_file: str = "") -> "Connection":
    """A connection: `RestConnection` or `GrpcConnection`, by the scheme of the address.

    Args:
      url: http://host:8501, https://host/some/path, grpc://host:8500 or, with TLS, grpcs://host.
        An IPv6 host stands in brackets.
      model_name: under which the server serves the model.
      timeout_s: for each request.
      ca_file: PEM file with the certificates that a server's must be signed by; empty: the usual
        authorities.

    Raises:
      UserError: no such address or file.
    """
    try:
        parts = parse.urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("http", "https", "grpc", "grpcs"):
        raise UserError(
            f"--url={url} must be grpc://HOST:{GRPC_PORT} or http://HOST:{REST_PORT}, with TLS "
            "grpcs:// or https://; an IPv6 address stands in brackets."
        )
    try:
        authorities = open(ca_file, "rb").read() if ca_file else None
    except OSError as error:
        raise UserError(f"--ca_file={ca_file} cannot be read ({error.strerror}).") from None
    kind = GrpcConnection if parts.scheme.startswith("grpc") else RestConnection
    return kind(parts, model_name, timeout_s, authorities)


class Connection(abc.ABC):
    """What both protocols have in common. Threads may share a connection."""

    def status(self) -> str:
        """AVAILABLE when a version of the model answers, else the state of the newest.

        Raises:
          ServerError: no answer.
        """
        versions = sorted(self._versions())
        states = [state for _, state in versions]
        return AVAILABLE if AVAILABLE in states else states[-1] if states else "UNKNOWN"

    @abc.abstractmethod
    def metadata(self) -> Dict[str, Any]:
        """What the model says about itself; see `module.metadata_json`."""

    def model(self, thresholds: Mapping[str, Any] = {}) -> Model:
        """The network, to be called with images as one that `pfpn_tf.load` gives.

        Args:
          thresholds: see `predict`.

        Raises:
          ServerError: no answer.
        """
        metadata = self.metadata()
        every = _all_thresholds(thresholds, metadata) if thresholds else {}
        return Model(lambda image: self.predict([image], every)[0], metadata)

    def predict(
        self, images: Sequence[bytes], thresholds: Mapping[str, Any] = {}
    ) -> List[Dict[str, Any]]:
        """A reply for each encoded image; see the head of `results`.

        Args:
          images: files.
          thresholds: of the fusion, in place of the export's: any of `score_threshold`,
            `overlap_threshold` and `stuff_area_threshold_px`, one for all images or one for each.

        Raises:
          Refused: the request as a whole.
          Unavailable: the server did not take it, with pauses of `PAUSES_S` between the attempts.
          ServerError: no answer.
        """
        if not thresholds:
            return self._patiently("serving_rest", images, {})
        if len(thresholds) < len(THRESHOLDS):
            thresholds = _all_thresholds(thresholds, self.metadata())
        inputs = {name: np.broadcast_to(t, [len(images)]) for name, t in thresholds.items()}
        inputs = {
            k: v.astype(np.int32 if k.endswith("px") else np.float32) for k, v in inputs.items()
        }
        return self._patiently("serving_thresholds", images, inputs)

    def predict_instances(self, images: Sequence[bytes]) -> List[Dict[str, Any]]:
        """Instances in each encoded image, by the signature `serving_instances`; see `module`.

        Raises:
          As `predict`.
        """
        return self._patiently("serving_instances", images, {})

    def _patiently(self, signature, images, inputs):
        for pause_s in PAUSES_S:
            try:
                return self._ask(signature, images, inputs)
            except Unavailable:
                time.sleep(pause_s * random.uniform(0.5, 1.0))
        return self._ask(signature, images, inputs)

    @abc.abstractmethod
    def _versions(self) -> Iterable[Tuple[int, str]]:
        """(number, state) of each version that the server knows."""

    @abc.abstractmethod
    def _ask(self, signature: str, images, inputs) -> List[Dict[str, Any]]:
        """A reply for each image; `inputs` are further ones of the signature, each [B]."""


def _all_thresholds(thresholds, metadata):
    """The given ones, and the export's."""
    return {name: metadata[f"fusion_{name}"] for name in THRESHOLDS} | dict(thresholds)


class RestConnection(Connection):
    """Talks to the REST interface. Each request has its own socket."""

    def __init__(self, parts: parse.SplitResult, model_name: str, timeout_s: float, authorities):
        self._url = parts.geturl()
        self._path = f"{parts.path.rstrip('/')}/v1/models/{parse.quote(model_name)}"
        self._timeout_s = timeout_s
        connect_to = functools.partial(http.client.HTTPConnection, port=parts.port or REST_PORT)
        if parts.scheme == "https":
            text = authorities.decode("ascii") if authorities else None
            tls = ssl.create_default_context(cadata=text)
            connect_to = functools.partial(
                http.client.HTTPSConnection, port=parts.port, context=tls
            )
        self._connection = functools.partial(connect_to, parts.hostname, timeout=timeout_s)

    def _versions(self):
        content = self._request("GET", self._path)
        with self._reading():
            versions = content["model_version_status"]
            return [(int(version["version"]), str(version["state"])) for version in versions]

    def metadata(self) -> Dict[str, Any]:
        (text,) = self._predict("metadata", [{"request": ""}])
        with self._reading():
            metadata = json.loads(text)
            DatasetInfo.from_coco_categories(metadata["categories"])
            _all_thresholds({}, metadata)
            return metadata

    def _ask(self, signature, images, inputs):
        columns = {name: values.tolist() for name, values in inputs.items()}
        columns["image_bytes"] = [{"b64": base64.b64encode(image).decode()} for image in images]
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
        replies = []
        found = self._predict(signature, rows)
        with self._reading():
            for row in found:
                error = row.pop("error", "")
                reply = {n.removesuffix("_bytes"): _from_json(value) for n, value in row.items()}
                _check_reply(signature, reply, error)
                replies.append({**reply, "error": error})
        return replies

    def _predict(self, signature_name, instances):
        body = json.dumps({"signature_name": signature_name, "instances": instances})
        content = self._request("POST", f"{self._path}:predict", body)
        with self._reading():
            found = content["predictions"]
            if len(found) != len(instances):
                raise ValueError(f"{len(found)} predictions for {len(instances)} instances")
            return found

    @contextlib.contextmanager
    def _reading(self):
        """Tells what JSON lacks, or has of another type, as an error of the server."""
        try:
            yield
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._foreign(f"{type(error).__name__}: {error}") from None

    def _foreign(self, reason):
        return ServerError(
            f"{self._url} gives what is not an answer of this model's server ({reason});"
            " is it TensorFlow Serving with a model of export_saved_model.py?"
        )

    def _request(self, method, path, body=None):
        try:
            status, content = self._send(method, path, body)
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s; raise --timeout_s"
            raise ServerError(f"{self._url}: {reason}") from None
        except ssl.SSLError as error:
            raise ServerError(f"{self._url}: {error}; see --ca_file") from None
        except (OSError, http.client.HTTPException) as error:
            reason = f"{getattr(error, 'strerror', None) or error}; is the server running there?"
            raise Unavailable(f"{self._url}: {reason}") from None
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            raise ServerError(
                f"{self._url} answers HTTP status {status} and no JSON: is it the REST "
                f"port of TensorFlow Serving ({REST_PORT})?"
            ) from None
        if not isinstance(content, dict):
            raise self._foreign(f"HTTP status {status} and no JSON object")
        if status == http.client.OK:
            return content
        text = content.get("error")
        if status == http.client.SERVICE_UNAVAILABLE:
            raise Unavailable(f"{self._url}{path}: {text or status}")
        if not text or not isinstance(text, str):
            raise self._foreign(f"HTTP status {status} and no text of an error")
        if status == http.client.BAD_REQUEST:
            raise Refused(refusal(text))
        raise ServerError(f"{self._url}{path}: {text}")

    def _send(self, method, path, body):
        with contextlib.closing(self._connection()) as connection:
            connection.request(
                method, path, body, {"Content-Type": "application/json"} if body else {}
            )
            response = connection.getresponse()
            return response.status, response.read()


def _check_reply(signature, reply, error):
    """Raises what a reader of this reply would, or ValueError."""
    if signature == "serving_instances":
        columns = ("boxes", "scores", "category_ids", "windows", "masks_png")
        if min(len(reply[name]) for name in columns) < reply["num_instances"]:
            raise ValueError("less rows than instances")
    else:
        predictions.segments_info(reply)
        if not isinstance(reply["panoptic_png"], bytes):
            raise ValueError("panoptic_png_bytes is not in base64")
    if not isinstance(error, str):
        raise ValueError("error is no text")


def _from_json(value):
    """Bytes, a list of them, or an array."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_from_json(item) for item in value]
    return np.asarray(value)


class GrpcConnection(Connection):
    """Talks to the gRPC interface."""

    def __init__(self, parts: parse.SplitResult, model_name: str, timeout_s: float, authorities):
        try:
            import grpc
            from tensorflow_serving.apis import (
                get_model_status_pb2,
                model_service_pb2_grpc,
                predict_pb2,
                prediction_service_pb2_grpc,
            )
        except ImportError as error:
            raise UserError(
                f"--url={parts.geturl()}: gRPC needs tensorflow-serving-api ({error}); "
                f'pip install -e ".[serving]", or use http://{parts.hostname}:{REST_PORT}.'
            ) from None
        import tensorflow as tf

        self._tf, self._grpc = tf, grpc
        self._url = parts.geturl()
        self._model_name = model_name
        self._timeout_s = timeout_s
        self._predict_request = predict_pb2.PredictRequest
        self._status_request = get_model_status_pb2.GetModelStatusRequest
        unlimited = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        if parts.scheme == "grpcs":
            credentials = grpc.ssl_channel_credentials(authorities)
            channel = grpc.secure_channel(f"{host}:{parts.port or 443}", credentials, unlimited)
        else:
            channel = grpc.insecure_channel(f"{host}:{parts.port or GRPC_PORT}", unlimited)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)

    def _versions(self):
        request = self._status_request()
        request.model_spec.name = self._model_name
        versions = self._call(self._models.GetModelStatus, request).model_version_status
        return [(version.version, type(version).State.Name(version.state)) for version in versions]

    def metadata(self) -> Dict[str, Any]:
        return json.loads(self._predict("metadata", {"request": [""]})["metadata_json"][0])

    def _ask(self, signature, images, inputs):
        outputs = self._predict(signature, {"image_bytes": list(images), **inputs})
        errors = outputs.pop("error", [b""] * len(images))
        return [
            {
                **{name.removesuffix("_bytes"): value[i] for name, value in outputs.items()},
                "error": errors[i].decode(),
            }
            for i in range(len(images))
        ]

    def _predict(self, signature_name, inputs):
        request = self._predict_request()
        request.model_spec.name = self._model_name
        request.model_spec.signature_name = signature_name
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(self._tf.make_tensor_proto(value))
        reply = self._call(self._prediction.Predict, request)
        return {name: self._tf.make_ndarray(value) for name, value in reply.outputs.items()}

    def _call(self, method, request):
        codes = self._grpc.StatusCode
        try:
            return method(request, timeout=self._timeout_s)
        except self._grpc.RpcError as error:
            if error.code() == codes.INVALID_ARGUMENT:
                raise Refused(refusal(error.details())) from None
            if error.code() == codes.UNAVAILABLE:
                text = f"{self._url}: {error.details()}; is the server running there?"
                raise Unavailable(text) from None
            if error.code() == codes.DEADLINE_EXCEEDED:
                text = f"no answer within {self._timeout_s:g} s; raise --timeout_s"
            else:
                text = f"{error.code().name}: {error.details()}"
            raise ServerError(f"{self._url}: {text}") from None
