"""export/client.py and its library against a server on this machine, by gRPC and REST."""

import base64
import http.server
import json
import socket
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow_serving", reason="needs the extra serving")

from pfpn_tf.serving import client, latency, results  # noqa: E402
from tests import processes  # noqa: E402
from tests.serving import loopback_server  # noqa: E402
from tests.serving.photos import photo  # noqa: E402

PROTOCOLS = ("grpc", "http")
TIMEOUT_S = 900  # the first answers take long on a busy machine


@pytest.fixture(scope="module")
def server(loaded):
    with loopback_server.serve("panoptic", loaded) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, (height, width) in enumerate([(60, 90), (50, 40), (60, 90)]):
        image = Image.fromarray(photo(height, width, seed=i))
        image.save(folder / f"{i}{'.png' if i == 1 else '.jpg'}")
    return folder


def contents(folder):
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def connect(url, model_name="panoptic"):
    return client.connect(url, model_name, TIMEOUT_S)


def call(*arguments, expect=0):
    return processes.call("export/client.py", f"--timeout_s={TIMEOUT_S}", *arguments, expect=expect)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replies_are_those_of_the_model(protocol, server, photos, loaded):
    connection = connect(server[protocol])
    assert connection.status() == "AVAILABLE"
    expected = json.loads(loaded.signatures["metadata"](request=[""])["metadata_json"][0].numpy())
    assert connection.metadata() == expected
    images = contents(photos)
    replies = connection.predict(images)
    own = loaded.signatures["serving_default"](image_bytes=images)
    for i, reply in enumerate(replies):
        assert set(reply) == set(own)
        assert reply["panoptic_png"] == own["panoptic_png"][i].numpy()
        assert int(reply["num_segments"]) > 0
        assert reply["error"] == ""
        for name in set(own) - {"panoptic_png", "error"}:
            np.testing.assert_allclose(reply[name], own[name][i], rtol=1e-6, err_msg=name)


def test_the_tool_writes_what_the_server_answers(server, photos, tmp_path, loaded):
    """By gRPC; REST gives the same replies, and the tool does not see which it is."""
    (tmp_path / "in").mkdir()
    for path in photos.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    output = tmp_path / "out"
    (tmp_path / "in" / "broken.jpg").rename(tmp_path / "broken.jpg")
    done = call(
        f"--url={server['grpc']}",
        f"--images={tmp_path}/in,{tmp_path}/broken.jpg",
        f"--output_dir={output}",
        "--concurrency=2",
        "--serving_reply",
        expect=1,
    )
    assert "Wrote 3 of 4" in done.stdout
    assert "broken.jpg: no size in the header of the image, which has 12 bytes" in done.stderr
    written = json.loads((output / "predictions.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["0.jpg", "1.png", "2.jpg"]
    for path, annotation in zip(sorted(photos.iterdir()), written["annotations"]):
        own = loaded.signatures["serving_default"](image_bytes=[path.read_bytes()])
        png = (output / "predictions" / annotation["file_name"]).read_bytes()
        assert png == own["panoptic_png"][0].numpy()
        assert len(annotation["segments_info"]) == int(own["num_segments"][0])
        (reply,) = json.loads((output / "replies" / f"{path.stem}.json").read_text())["predictions"]
        assert base64.b64decode(reply.pop("panoptic_png_bytes")["b64"]) == png
        assert reply.pop("error") == ""
        assert set(reply) == set(own) - {"panoptic_png", "error"}
        for name, value in reply.items():
            np.testing.assert_allclose(value, own[name][0], rtol=1e-6, err_msg=name)
    assert len(list((output / "pictures").iterdir())) == 3


def test_measurement_sends_what_it_says(server, photos):
    before = server["model"].num_requests
    done = call(
        f"--url={server['http']}",
        f"--images={photos}",
        "--num_requests=4",
        "--concurrency=2",
        "--images_per_request=2",
    )
    assert server["model"].num_requests - before == 4 + 2
    figures = json.loads(done.stdout)
    assert figures["requests"] == 4 and figures["concurrency"] == 2
    assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]
    assert figures["images_per_second"] > 0


def test_a_measurement_cannot_go_on_where_an_image_is_refused(server):
    with pytest.raises(results.Refused, match="no size in the header"):
        latency.measure(connect(server["http"]), [b"\xff\xd8\xff\xe0 cut off"], num_requests=6)


def test_percentiles():
    found = latency.summary([i / 1000 for i in range(1, 101)], 10.0, 3)
    assert found["mean_ms"] == found["p50_ms"] == 50.5
    assert (found["p90_ms"], found["max_ms"]) == (90.1, 100)
    assert found["images_per_second"] == 30


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_bad_image_leaves_the_others_of_its_request_alone(protocol, server, photos):
    connection = connect(server[protocol])
    good = contents(photos)[0]
    first, bad, last = connection.predict([good, b"no image", good])
    assert bad["error"].startswith("not a JPEG") and bad["num_segments"] == 0
    assert first["error"] == "" and first["panoptic_png"] == last["panoptic_png"] != b""
    with pytest.raises(results.Refused, match="a request must have 1 to 64 images"):
        connection.predict([b""] * 65)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_thresholds_and_instances(protocol, server, photos, loaded):
    connection, image = connect(server[protocol]), contents(photos)[0]
    default = connection.predict([image])[0]
    plain, strict = connection.predict([image] * 2, {"stuff_area_threshold_px": [16, 10**6]})
    assert plain["panoptic_png"] == default["panoptic_png"]
    assert not np.all(plain["is_thing"][: int(plain["num_segments"])])
    result = connection.model({"stuff_area_threshold_px": 10**6})(image)
    np.testing.assert_array_equal(result.ids, results.decode_ids(strict["panoptic_png"]))
    assert np.all(strict["is_thing"][: int(strict["num_segments"])])
    found, refused = connection.predict_instances([image, b"no image"])
    own = loaded.signatures["serving_instances"](image_bytes=[image])
    assert list(found["masks_png"]) == own["masks_png_bytes"][0].numpy().tolist()
    np.testing.assert_allclose(found["boxes"], own["boxes"][0], rtol=1e-6)
    assert refused["error"].startswith("not a JPEG") and refused["num_instances"] == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_busy_server_is_asked_again_after_growing_pauses(protocol, server, photos, monkeypatch):
    connection, image = connect(server[protocol]), contents(photos)[0]
    pauses = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    server["model"].times_busy = 3
    assert connection.predict([image])[0]["error"] == ""
    assert len(pauses) == 3 and 0.05 < pauses[0] < pauses[1] / 0.99 < pauses[2] / 0.98 < 1
    server["model"].times_busy = 6
    with pytest.raises(client.Unavailable, match="queue is full"):
        connection.predict([image])
    assert len(pauses) == 3 + len(client.PAUSES_S) and server["model"].times_busy == 0


def test_an_older_version_answers_while_a_newer_one_loads():
    class Connection(client.Connection):
        metadata = _ask = _versions = None

        def __init__(self, *versions):
            self._versions = lambda: versions

    assert Connection((9, "AVAILABLE"), (10, "LOADING")).status() == "AVAILABLE"
    assert Connection((10, "LOADING"), (9, "END")).status() == "LOADING"
    assert Connection().status() == "UNKNOWN"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """PEM files (certificate, key) of localhost, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    command = "openssl req -x509 -nodes -newkey rsa:2048 -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -out {paths[0]} -keyout {paths[1]}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return paths


@pytest.mark.parametrize("protocol", ["grpcs", "https"])
def test_tls_with_an_authority_of_its_own(protocol, loaded, certificate):
    with loopback_server.serve("panoptic", loaded, certificate=certificate) as addresses:
        url = addresses[protocol]
        trusting = client.connect(url, "panoptic", TIMEOUT_S, ca_file=certificate[0])
        assert trusting.status() == "AVAILABLE"
        with pytest.raises(client.ServerError, match="(?i)certificate|handshake"):
            client.connect(url, "panoptic", 20).status()
    with pytest.raises(ValueError, match="--ca_file=/missing cannot be read"):
        client.connect(url, "panoptic", ca_file="/missing")


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ipv6_addresses(protocol, loaded):
    with loopback_server.serve("panoptic", loaded, host="::1") as addresses:
        assert "//[::1]:" in addresses[protocol]
        assert connect(addresses[protocol]).status() == "AVAILABLE"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server_and_wrong_names(protocol, server):
    for url, name, words in (
        (f"{protocol}://localhost:{free_port()}", "panoptic", "is the server running there?"),
        (server[protocol], "other", "Could not find"),
    ):
        with pytest.raises(client.ServerError) as error:
            connect(url, name).status()
        assert isinstance(error.value, client.Unavailable) == (name == "panoptic")
        assert words in str(error.value) and "\n" not in str(error.value)
    assert issubclass(client.ServerError, OSError)  # Of which a tool prints the text alone.


def test_a_server_that_is_silent_or_another_one(tmp_path):
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        for protocol in PROTOCOLS:
            url = f"{protocol}://localhost:{silent.getsockname()[1]}"
            with pytest.raises(client.ServerError, match="no answer within 0.3 s|running there"):
                client.connect(url, "panoptic", 0.3).status()
    pages = http.server.ThreadingHTTPServer(("localhost", 0), http.server.SimpleHTTPRequestHandler)
    pages.RequestHandlerClass.log_message = lambda *args: None
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        with pytest.raises(client.ServerError, match="is it the REST port"):
            client.connect(f"http://localhost:{pages.server_port}", "panoptic").status()
    finally:
        pages.shutdown()
        pages.server_close()


ROW = {"panoptic_png_bytes": {"b64": ""}, "num_segments": 1, "boxes": [[0, 0, 1, 1]]}


@pytest.mark.parametrize(
    "status, content",
    [
        *((200, content) for content in ([], None, 7, {}, {"predictions": None})),
        *((200, {"predictions": found}) for found in ([], {}, [1], ["x"], ["{}"], [{}], [ROW])),
        *((200, {"predictions": [{**ROW, "num_segments": number}]}) for number in (None, "x", [])),
        (200, {"predictions": [{**ROW, "num_segments": 0, "error": 7}]}),
        (200, {"predictions": [{**ROW, "num_segments": 0, "panoptic_png_bytes": {}}]}),
        (200, {"predictions": [json.dumps({"categories": [{"id": "x"}]})]}),
        *((200, {"model_version_status": found}) for found in (None, [{}], [{"version": "x"}])),
        *((400, content) for content in ([], {}, {"error": ""}, {"error": {"code": 3}})),
        (404, {"message": "no route"}),
    ],
)
def test_json_of_another_server(status, content):
    connection = client.connect("http://h:1/path", "panoptic")
    connection._send = lambda *request: (status, json.dumps(content).encode())
    photo = [b"\xff\xd8\xff"]
    for ask in (
        connection.status,
        connection.metadata,
        connection.model,
        lambda: connection.predict(photo),
        lambda: connection.predict(photo, {"score_threshold": 0.5}),
        lambda: connection.predict_instances(photo),
    ):
        with pytest.raises(client.ServerError, match="http://h:1/path gives what is not an answer"):
            ask()


@pytest.mark.parametrize(
    "url", ["localhost:8500", "ftp://localhost:1", "http://", "http://h:x", "grpc://[::1:8500"]
)
def test_addresses_are_checked(url):
    with pytest.raises(ValueError, match="must be grpc://HOST:8500 or http://HOST:8501"):
        client.connect(url, "panoptic")
