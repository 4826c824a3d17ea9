"""Reading the tensors of files from anywhere, without running anything in them."""

import collections
import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import types
import zipfile
from typing import NamedTuple

import numpy as np
import pytest

from pfpn_tf.weights import safe_pickle
from tests.weights.test_detectron2 import assert_tensors


@pytest.fixture
def tensors_of(tmp_path):
    """A function from the bytes of a file to the tensors in it."""

    def read(content):
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        return safe_pickle.read(str(path)).tensors

    return read


class Evil:
    """Unpickled carelessly, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_refused_by_name_and_not_run(tensors_of, tmp_path, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps({"model": {"a": np.zeros(2), "b": Evil(trace)}}, protocol)
    with pytest.raises(ValueError, match=r"holds posix\.system"):
        tensors_of(content)
    assert not trace.exists()


@pytest.mark.parametrize(
    "value, named",
    [
        (np.array([{}, None]), "numpy dtype 'O8'|Python objects"),
        (np.zeros(2, "datetime64[s]"), "numpy dtype 'M8'"),
        (print, "builtins.print"),
        (collections.deque([1]), "collections.deque"),
        (types.SimpleNamespace(), "SimpleNamespace"),
    ],
)
def test_what_is_no_data_is_refused(tensors_of, value, named):
    with pytest.raises(ValueError, match=named):
        tensors_of(pickle.dumps({"a": value}, 4))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_numbers_strings_containers(tensors_of, protocol):
    content = {
        "model": {
            "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "big": np.arange(3, dtype=">f4"),
            "half": np.arange(3, dtype=np.float16),
            "empty": np.zeros((0, 3), np.float32),
            "number": np.float64(3.0),
        },
        "iteration": 7,
        "set": {1, 2},
        "scheduler": collections.OrderedDict(a=(1, 2.5, None, True, "x", b"y")),
    }
    tensors = tensors_of(pickle.dumps(content, protocol))
    assert list(tensors) == ["f4", "fortran", "big", "half", "empty"]
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, content["model"][name])


def test_a_damaged_number_takes_no_memory(tensors_of):
    """The place of an object in the pickle's table of objects."""
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds no tensors"):
        tensors_of(b"\x80\x02}r" + struct.pack("<I", 2**24) + b".")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def named(name):
    """A stand-in for a class or function of PyTorch, which need not be there."""
    module, _, name = name.rpartition(".")
    return type(name, (), {"__module__": module})


class Storage(NamedTuple):
    """The memory of tensors, with the name of its class."""

    kind: str
    data: np.ndarray


class Tensor:
    """A view of a storage."""

    def __init__(self, storage, offset, shape, strides):
        self.args = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return named("torch._utils._rebuild_tensor_v2"), self.args


class TorchPickler(pickle._Pickler):
    """Writes what PyTorch writes; in Python, as the one in C imports what it names."""

    def __init__(self, file, legacy=False):
        super().__init__(file, 2)
        self.legacy, self.storages = legacy, {}

    def save_global(self, obj, name=None):
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        key = str(self.storages.setdefault(id(value), (len(self.storages), value))[0])
        extra = (None,) if self.legacy else ()
        return ("storage", named(value.kind), key, "cpu", value.data.size, *extra)


@pytest.fixture
def torch_content():
    """A {"model": ...} of tensors: whole, a transposed view into a larger storage, bfloat16, int64;
    and their values.
    """
    floats = np.arange(12, dtype="<f4")
    brain = (np.array([1.5, -2.0], "<f4").view("<u4") >> 16).astype("<u2")
    shared = Storage("torch.FloatStorage", floats)
    model = collections.OrderedDict(
        whole=Tensor(shared, 0, (3, 4), (4, 1)),
        view=Tensor(shared, 1, (2, 3), (1, 4)),
        brain=Tensor(Storage("torch.BFloat16Storage", brain), 0, (2,), (1,)),
        long=Tensor(Storage("torch.LongStorage", np.array([5], "<i8")), 0, (), ()),
    )
    whole, brain = floats.reshape(3, 4), np.array([1.5, -2.0])
    expected = {"whole": whole, "view": whole.T[1:3], "brain": brain, "long": np.array(5)}
    return {"model": model, "iteration": 3}, expected


def torch_zip(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("model/data.pkl", "w") as f:
            pickler = TorchPickler(f)
            pickler.dump(content)
        for key, storage in pickler.storages.values():
            archive.writestr(f"model/data/{key}", storage.data.tobytes())
    return file.getvalue()


def test_pytorch_zip_file(tensors_of, torch_content):
    content, expected = torch_content
    assert_tensors(tensors_of(torch_zip(content)), expected)


def test_pytorch_file_of_before_1_6(tensors_of, torch_content):
    content, expected = torch_content
    file = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, file, 2)
    pickler = TorchPickler(file, legacy=True)
    pickler.dump(content)
    pickle.dump([str(key) for key, _ in pickler.storages.values()], file, 2)
    for _, storage in pickler.storages.values():
        file.write(struct.pack("<q", storage.data.size) + storage.data.tobytes())
    assert_tensors(tensors_of(file.getvalue()), expected)


def test_pytorch_view_outside_its_storage(tensors_of, torch_content):
    content, _ = torch_content
    storage, *_ = content["model"]["whole"].args
    content["model"]["view"] = Tensor(storage, 8, (3, 4), (4, 1))
    with pytest.raises(ValueError, match="outside its storage"):
        tensors_of(torch_zip(content))


@pytest.mark.parametrize("kind", ["torch.QInt8Storage", "torch.storage.UntypedStorage"])
def test_other_kinds_of_numbers_are_told_as_such(tensors_of, torch_content, kind):
    content, _ = torch_content
    content["model"]["odd"] = Tensor(Storage(kind, np.zeros(2, np.int8)), 0, (2,), (1,))
    with pytest.raises(ValueError, match=f"holds a tensor of {kind}, which is not supported"):
        tensors_of(torch_zip(content))


# --------------------------------------------------------------------------------------------------
# Files of other programs


@pytest.mark.parametrize(
    "name",
    ["zoo_v2_zip", "zoo_v2_legacy", "half_v2_zip", "train_v2", "train_v3", "train_v3_ema"],
)
def test_containers_of_mmdetection(test_data, name):
    folder = test_data("golden/mmdetection/containers")
    expected = json.loads((folder / "expected.json").read_text())[f"{name}.pth"]["tensors"]
    checkpoint = safe_pickle.read(str(folder / f"{name}.pth"))
    tensors = checkpoint.tensors
    assert_tensors(tensors, {k: np.array(v, tensors[k].dtype) for k, v in expected.items()})
    assert checkpoint.config_text.startswith("model = dict(")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_what_lies_outside_the_weights_is_not_touched(tensors_of, tmp_path, protocol):
    trace = tmp_path / "trace"
    logs = {"hub": Evil(trace), "calls": [getattr, collections.deque([1]), {Evil(trace): 2}]}
    content = {"message_hub": logs, "model": {"a": np.ones(2)}, "odd": np.array([{}, None])}
    assert_tensors(tensors_of(pickle.dumps(content, protocol)), {"a": np.ones(2)})
    assert not trace.exists()


PREFIXES = "model.", "module.", "_orig_mod.", "module.model._orig_mod.", "net.", "student."


@pytest.mark.parametrize(
    "given, found",
    [
        *(([f"{prefix}a", f"{prefix}b"], ["a", "b"]) for prefix in PREFIXES),
        # What parts of the network begin with stays, and what stands beside it is left out.
        (["backbone.a", "backbone.b"], ["backbone.a", "backbone.b"]),
        (["net.model.res2.a", "net.model.roi_heads.b", "criterion.w"], ["res2.a", "roi_heads.b"]),
        (["net.model.conv1.a", "net.model.layer1.0.a", "criterion.w"], ["conv1.a", "layer1.0.a"]),
    ],
)
@pytest.mark.parametrize("buffers", [[], ["pixel_mean"]])
def test_names_are_those_of_the_network(tensors_of, given, found, buffers):
    tensors = dict.fromkeys([*given, *buffers], np.ones(2))
    assert set(tensors_of(pickle.dumps({"state_dict": tensors}))) == {*found, *buffers}


def test_two_networks_in_one_file_are_told(tensors_of):
    names = [f"{who}.{part}.a" for who in ("student", "teacher") for part in ("backbone", "neck")]
    with pytest.raises(ValueError, match="several networks: .* with student. and teacher.: save"):
        tensors_of(pickle.dumps({"state_dict": dict.fromkeys(names, np.ones(2))}))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model_state_dict": t, "epoch": 3},
        lambda t: {"state_dict": {"model": t}},
        lambda t: {"checkpoint": {"weights": t}},
        lambda t: {"ema_state": t, "iteration": 3, "optimizer": {"state": {0: {"step": t}}}},
        lambda t: {"model": {"module": t}, "model_ema": t, "scores": {"AP": np.float64(3)}},
        lambda t: {"ema": t, "scores": {"AP": np.float64(3)}},
        lambda t: {"model": {"depth": 50}, "run": {"generator": t}},
    ],
)
def test_weights_are_found_under_their_keys(tensors_of, wrap):
    tensors = {"a": np.ones(2), "b": np.zeros(3)}
    assert_tensors(tensors_of(pickle.dumps(wrap(tensors))), tensors)


@pytest.mark.parametrize("protocol", [2, 4])
def test_names_may_be_bytes(tensors_of, protocol):
    assert set(tensors_of(pickle.dumps({b"ab": np.ones(2), b"c": np.ones(2)}, protocol))) == {
        "ab",
        "c",
    }


def test_several_dicts_of_tensors_are_listed(tensors_of):
    content = {"g": {"a": np.ones(2)}, "d": {"net_d": {"a": np.ones(2), "b": np.ones(2)}}}
    with pytest.raises(ValueError, match=r"several dicts of tensors: g \(1\), d\.net_d \(2\)"):
        tensors_of(pickle.dumps(content))


def test_a_part_of_a_checkpoint_is_no_weights(tmp_path):
    (tmp_path / "ckpt-3.index").write_bytes(bytes(100))
    for name in ("ckpt-3.index", "ckpt-3"):
        with pytest.raises(ValueError, match="give the run directory"):
            safe_pickle.read(str(tmp_path / name))


@pytest.mark.parametrize(
    "content, message",
    [
        (struct.pack("<Q", 60) + b'{"a":{"dtype":"F32"}}', "is a safetensors file; load it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file, such as Keras writes"),
        (b"\x08\x07\x12\x07pytorch\x1a\x03", "is an ONNX file"),
        (gzip.compress(pickle.dumps({})), "is a packed file; unpack it"),
        (b"PK\x03\x04" + bytes(90), "is damaged: its end is missing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (b'{"message": "Not found"}', "is a web page or a server's message"),
        (b"404: Not Found", "is a text and no weights; it begins with '404: Not Found'"),
        ("Zugriff verweigert\r\n".encode("utf-16"), "is a text .* 'Zugriff verweigert'"),
        (b"", "is damaged or no checkpoint"),
        (pickle.dumps({"a": np.zeros(1000)})[:500], "is damaged or no checkpoint"),
        (pickle.dumps([1, 2]), "holds a list, not a dict of tensors"),
        (pickle.dumps({"a": 1}), "holds no tensors, but a"),
    ],
)
def test_files_that_are_no_weights_are_named(tensors_of, content, message):
    with pytest.raises(ValueError, match=f"model.pth {message}"):
        tensors_of(content)
