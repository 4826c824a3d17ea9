"""Every kind of network on both kinds of processor: with oneDNN's kernels and without them.

Each kind is trained, evaluated and exported by a process of its own under either value of
TF_ENABLE_ONEDNN_OPTS, with the graph optimiser on. Each export also answers through TensorFlow's C
API, as in a server, on the other kind of processor than the one that exported it.
"""

import os

import numpy as np
import pytest
import tensorflow as tf

from tests import processes, tiny
from tests.integration import processors
from tests.serving import c_api
from tests.serving.test_graph import read

OPTIONS = ("0", "1")
# Relative and absolute, by the beginning of a name.
TOLERANCES = {
    # Group norm over the few pixels of a deep level divides rounding by small deviations.
    "training/gradient_norm": (2e-3, 1e-6),
    "training/": (2e-5, 1e-6),
    "metrics/": (0, 0.1),
    "panoptic/areas": (0, 10),
    "panoptic/": (1e-4, 1e-4),  # the absolute one grows with the largest number
}


def start(option, folder, *command):
    variables = {"TF_ENABLE_ONEDNN_OPTS": option, "TF_NUM_INTRAOP_THREADS": "1"}  # two at a time
    return processes.start(*command, log=folder / "log", **variables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `processors` writes under option 0 and 1, in the folders 0 and 1."""
    path = tmp_path_factory.mktemp("processors")
    records = tiny.make_records(path)
    # At the same time: compiling, which takes most of it, keeps one core busy.
    command = "-m", processors.__name__, records
    for process in [start(option, path, *command, path / option) for option in OPTIONS]:
        assert process.wait() == 0, (path / "log").read_text()
    return path


@pytest.fixture(scope="module", params=processors.KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def found(folder, kind):
    """What was computed without oneDNN and with it."""
    results = [np.load(folder / option / f"{kind}.npz") for option in OPTIONS]
    assert set(results[0]) == set(results[1])
    return results


def assert_close(actual, expected):
    """Numbers within the noise of float32, and the same map but for a few pixels."""
    assert actual and set(actual) == set(expected)
    for name in expected:
        if name == "panoptic/panoptic_ids":
            assert (actual[name] != expected[name]).mean() <= 0.002
            continue
        beginning = next(beginning for beginning in TOLERANCES if name.startswith(beginning))
        rtol, atol = TOLERANCES[beginning]
        if beginning == "panoptic/":
            atol *= max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(actual[name], expected[name], rtol, atol, err_msg=name)


def test_training_evaluation_and_export(found):
    """Two steps: the second one shows what the first one's update made of the weights."""
    without, with_onednn = found
    loss = without["training/loss/total"]
    assert len(loss) == processors.STEPS and loss[0] != loss[1]
    assert (without["training/gradient_norm"] > 0).all()
    assert np.min(without["panoptic/num_segments"]) >= 1
    assert_close(with_onednn, without)


@pytest.mark.parametrize("exported, served", [("0", "1"), ("1", "0")])
def test_export_in_a_server_on_the_other_kind(exported, served, folder, kind, found, tmp_path):
    request, saved_model = tmp_path / "request.json", folder / exported / kind / "1"
    signature = read(saved_model).signature_def["panoptic"]
    c_api.write_request(request, signature, {"images": processors.image()})
    library = os.path.dirname(tf.__file__)
    server = start(served, tmp_path, c_api.__file__, library, saved_model, tmp_path, tmp_path)
    assert server.wait() == 0, (tmp_path / "log").read_text()
    reply = c_api.read_reply(request)
    assert "error" not in reply, reply
    expected = found[OPTIONS.index(exported)]
    answers = {name: value for name, value in expected.items() if name.startswith("panoptic/")}
    assert_close({f"panoptic/{name}": value for name, value in reply.items()}, answers)
