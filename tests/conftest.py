"""Shared test set-up: two logical CPUs, fixed seeds, access to the reference data, shared work."""

import functools
import gc
import os
import pathlib
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# XLA compiles a training step in a third of the time; what it compiles runs once or twice.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import pfpn_tf  # noqa: E402, F401  (sets TF_USE_LEGACY_KERAS before TensorFlow is imported)

# isort: split
import tensorflow as tf  # noqa: E402

from pfpn_tf.model import layers  # noqa: E402
from tests import tiny  # noqa: E402

# The tools that tests start import this checkout, wherever the package is installed from.
os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])

DATA_VARIABLE = "PFPN_TF_TEST_DATA"
# Beginnings of test names.
SHARED_NETWORK = ("tests/serving/", "tests/integration/")
ONE_WORKER = ("tests/serving/", "tests/integration/test_detectron2")
LONG = (
    *ONE_WORKER,
    "tests/integration/",
    "tests/training/test_workers",
    "tests/training/test_resume",
    "tests/training/test_trainer",
    "tests/training/test_xla",
    "tests/test_recipes",
    "tests/evaluation/test_evaluate_",
    "tests/experiments/test_model_cost",
    "tests/benchmark/",
)

# pytest-xdist's workers share the cores.
tf.config.threading.set_intra_op_parallelism_threads(
    1 if "PYTEST_XDIST_WORKER" in os.environ else 2
)
tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)


@pytest.fixture(autouse=True)
def _seeds(request):
    """TensorFlow's own seed makes it forget its kernels: each test would optimise the graphs of a
    network that tests share once more, which takes 3 s for a signature of an export.
    """
    if request.node.nodeid.startswith(SHARED_NETWORK):
        random.seed(0)
        np.random.seed(0)
    else:
        tf.keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _free_graphs():
    """Traced functions refer to each other in circles, and a worker runs thousands of tests."""
    yield
    gc.collect()


def pytest_collection_finish():
    """Tracing makes so many objects that Python would look for garbage a good part of the time.

    What is imported is never garbage, and `_free_graphs` collects the rest.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


def pytest_collection_modifyitems(items):
    """What takes long begins first, so that no process is left with it at the end."""
    places = {beginning: place for place, beginning in enumerate(LONG)}
    items.sort(
        key=lambda item: next(
            (place for beginning, place in places.items() if item.nodeid.startswith(beginning)),
            len(places),
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files go to the workers whole; those that share a costly session fixture, to one worker."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return next(
                (scope for scope in ONE_WORKER if nodeid.startswith(scope)), nodeid.split("::")[0]
            )

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def test_data():
    """A function from a relative path to a file or folder of the reference data.

    Without the environment variable PFPN_TF_TEST_DATA the test is skipped; with it, a missing path
    is an error.
    """

    def find(relative_path) -> pathlib.Path:
        root = os.environ.get(DATA_VARIABLE)
        if not root:
            pytest.skip(f"needs the reference data: set {DATA_VARIABLE} to its folder")
        path = pathlib.Path(root) / relative_path
        assert path.exists(), f"{DATA_VARIABLE} is set, but {path} does not exist"
        return path

    return find


@pytest.fixture
def zero_weights(monkeypatch):
    """Networks of full size start with zeros, which take no time to draw."""
    zeros = tf.keras.initializers.Zeros
    for name in ("msra_initializer", "xavier_initializer"):
        monkeypatch.setattr(layers, name, zeros)
    monkeypatch.setattr(layers, "normal_initializer", lambda stddev: zeros())


@pytest.fixture(params=["eager", "graph"])
def maybe_graph(request):
    """Runs the test twice: with functions as they are and wrapped in tf.function.

    Keyword arguments go to tf.function. AutoGraph is off, as it is where the project traces its
    network: nothing needs it, and it takes a good part of the time.
    """
    if request.param == "graph":
        return functools.partial(tf.function, autograph=False)
    return lambda function, **_: function


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory):
    """A folder with TFRecords of 8 training and 2 validation scenes, and dataset_info.json."""
    return tiny.make_records(tmp_path_factory.mktemp("tiny_records"))


@pytest.fixture
def tiny_config(tiny_records):
    """The full Panoptic FPN, but thin, on 64-pixel images."""
    return tiny.config(tiny_records)
