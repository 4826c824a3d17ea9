"""A server for tests that answers as TensorFlow Serving does, with a model loaded in this process.

gRPC (PredictionService.Predict, ModelService.GetModelStatus) and REST (status, predict in row
format, base64 for outputs whose names end in _bytes), each on a free port of this machine.
"""

import base64
import contextlib
import http.server
import json
import pathlib
import socket
import ssl
import threading
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

VERSION = 1


class _Model:
    """Runs signatures; what is no signature or no input of it fails as an error of this process."""

    def __init__(self, name, loaded):
        self.name = name
        self._signatures = loaded.signatures
        self.num_requests = 0
        self.times_busy = 0

    def run(self, signature_name, inputs):
        """Outputs as arrays; inputs that are lists, as JSON has them, get the signature's types."""
        if self.times_busy:
            self.times_busy -= 1
            raise tf.errors.UnavailableError(None, None, "The batch scheduling queue is full")
        self.num_requests += 1
        function = self._signatures[signature_name]
        specs = function.structured_input_signature[1]
        types = {k: specs[k].dtype if isinstance(v, list) else None for k, v in inputs.items()}
        outputs = function(**{name: tf.constant(inputs[name], types[name]) for name in inputs})
        return {name: value.numpy() for name, value in outputs.items()}


class _Grpc(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, model):
        self._model = model

    def Predict(self, request, context):
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        assert request.model_spec.name == self._model.name
        try:
            outputs = self._model.run(request.model_spec.signature_name, inputs)
        except tf.errors.UnavailableError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        protos = {name: tf.make_tensor_proto(value) for name, value in outputs.items()}
        return predict_pb2.PredictResponse(outputs=protos)

    def GetModelStatus(self, request, context):
        if request.model_spec.name != self._model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        reply = get_model_status_pb2.GetModelStatusResponse()
        reply.model_version_status.add(version=VERSION, state="AVAILABLE")
        return reply


class _Rest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model = None

    def do_GET(self):
        if self.path != f"/v1/models/{self.model.name}":
            return self._reply(404, {"error": f"Could not find {self.path}"})
        status = {"version": str(VERSION), "state": "AVAILABLE", "status": {"error_code": "OK"}}
        self._reply(200, {"model_version_status": [status]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/v1/models/{self.model.name}:predict"
        try:
            self._reply(200, {"predictions": self._run(**json.loads(body))})
        except tf.errors.UnavailableError as error:
            self._reply(503, {"error": error.message})
        except tf.errors.InvalidArgumentError as error:
            self._reply(400, {"error": str(error)})

    def _run(self, signature_name, instances):
        columns = {name: [_from_json(row[name]) for row in instances] for name in instances[0]}
        outputs = self.model.run(signature_name, columns)
        rows = [
            {name: _to_json(name, value[i]) for name, value in outputs.items()}
            for i in range(len(instances))
        ]
        # A single output stands without its name.
        return [next(iter(row.values())) for row in rows] if len(outputs) == 1 else rows

    def _reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def _from_json(value):
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def _to_json(name, value):
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_to_json(name, item) for item in value]
    if isinstance(value, bytes):
        if name.endswith("_bytes"):
            return {"b64": base64.b64encode(value).decode("ascii")}
        return value.decode("utf-8")  # the server, too, can send nothing else as a JSON string
    return np.asarray(value).tolist()


@contextlib.contextmanager
def serve(name, loaded, host="localhost", certificate=None):
    """Serves a loaded model under a name.

    Args:
      host: localhost or ::1.
      certificate: PEM files (certificate, key); then the server speaks TLS.

    Yields:
      {"grpc" or "grpcs": address, "http" or "https": address, "model": with `num_requests`}.
    """
    model = _Model(name, loaded)
    grpc_server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer = _Grpc(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, grpc_server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, grpc_server)
    handler = type("Handler", (_Rest,), {"model": model})
    is_ipv6 = ":" in host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    server_class = http.server.ThreadingHTTPServer
    http_server = type("Server", (server_class,), {"address_family": family})((host, 0), handler)
    url_host = f"[{host}]" if is_ipv6 else host
    if certificate:
        chain, key = (pathlib.Path(path).read_bytes() for path in certificate)
        credentials = grpc.ssl_server_credentials([(key, chain)])
        grpc_port = grpc_server.add_secure_port(f"{url_host}:0", credentials)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http_server.socket = context.wrap_socket(http_server.socket, server_side=True)
    else:
        grpc_port = grpc_server.add_insecure_port(f"{url_host}:0")
    grpc_server.start()
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    tls = "s" if certificate else ""
    try:
        yield {
            f"grpc{tls}": f"grpc{tls}://{url_host}:{grpc_port}",
            f"http{tls}": f"http{tls}://{url_host}:{http_server.server_port}",
            "model": model,
        }
    finally:
        grpc_server.stop(None).wait()
        http_server.shutdown()
        http_server.server_close()
