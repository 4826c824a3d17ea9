"""The export through TensorFlow's C API, the loader of the server, in a process without Python's
TensorFlow: every signature on photos, and requests with damaged files."""

import cv2
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2

from tests import processes
from tests.serving import c_api
from tests.serving.test_graph import listed_ops, read

INVALID_ARGUMENT = 3
PHOTOS = ("photo_landscape.jpg", "photo_portrait.jpg")
FROM_PIXELS = ("panoptic", "semantic", "network")


@pytest.fixture(scope="module")
def requests(test_data):
    """Name to (signature, inputs)."""
    folder = test_data("data/bad_and_odd_images")

    def content(*names):
        return {"image_bytes": [(folder / name).read_bytes() for name in names]}

    images = [cv2.imread(str(folder / name))[:400, :400, ::-1] for name in PHOTOS]
    pixels = {"images": np.ascontiguousarray(np.stack(images))}
    result = {signature: (signature, pixels) for signature in FROM_PIXELS}
    result["serving_default"] = ("serving_default", content(*PHOTOS))
    result["damaged"] = ("serving_default", content(PHOTOS[0], "corrupt.png"))
    result["empty"] = ("serving_default", {"image_bytes": []})
    result["after_empty"] = ("serving_default", content(PHOTOS[1]))
    for signature in ("serving_rest", "serving_instances"):
        result[signature] = (signature, content("animated.gif"))
    thresholds = {
        "score_threshold": np.float32([0.1, 0.3]),
        "overlap_threshold": np.float32([0.5, 0.2]),
        "stuff_area_threshold_px": np.int32([16, 4096]),
    }
    result["serving_thresholds"] = ("serving_thresholds", {**content(*PHOTOS), **thresholds})
    result["metadata"] = ("metadata", {"request": [b"", b"again"]})
    return result


@pytest.fixture(scope="module")
def server(requests, saved_model, tmp_path_factory):
    """Name to reply, and the names of the library's operations."""
    path = tmp_path_factory.mktemp("c_api") / "requests"
    signatures = read(saved_model).signature_def
    c_api.write_requests(path, {k: (signatures[s], value) for k, (s, value) in requests.items()})
    processes.call(c_api.__file__, saved_model, path)
    replies, operations = c_api.read_replies(path)
    return replies, {op.name for op in op_def_pb2.OpList.FromString(operations).op}


@pytest.fixture(scope="module")
def answers(server):
    return server[0]


@pytest.mark.parametrize(
    "name",
    [
        *FROM_PIXELS,
        *("serving_default", "serving_rest", "serving_thresholds", "serving_instances"),
        *("damaged", "metadata"),
    ],
)
def test_answers_equal_those_of_python(name, answers, requests, loaded):
    """Which `test_module` compares with those of the network in process."""
    signature, inputs = requests[name]
    inputs = {k: tf.constant(value) for k, value in inputs.items()}
    expected = loaded.signatures[signature](**inputs)
    assert set(answers[name]) == set(expected)
    for key, value in expected.items():
        actual = answers[name][key]
        if value.dtype == tf.string:
            assert actual == value.numpy().ravel().tolist(), key
        else:
            assert actual.shape == value.shape, key
            np.testing.assert_allclose(actual, value, rtol=1e-4, atol=2e-4, err_msg=key)
    if "num_segments" in expected and name != "damaged":
        assert np.min(expected["num_segments"]) >= 2


def test_a_damaged_file_fails_alone_and_an_empty_request_as_a_whole(answers):
    good, damaged = answers["damaged"]["error"]
    assert good == b"" and damaged.startswith(b"the pixel data are damaged")
    assert answers["damaged"]["panoptic_png"] == [
        answers["serving_default"]["panoptic_png"][0],
        b"",
    ]
    code, _ = answers["empty"]
    assert code == INVALID_ARGUMENT
    (after,) = answers["after_empty"]["panoptic_png"]
    assert after == answers["serving_default"]["panoptic_png"][1]


def test_the_library_of_the_server_knows_every_operation(server):
    _, operations = server
    assert len(operations) > 1000
    assert listed_ops() <= operations


def test_signatures_of_the_file_are_all_tried(saved_model, requests):
    signatures = set(read(saved_model).signature_def) - {"__saved_model_init_op"}
    assert signatures == {signature for signature, _ in requests.values()}
