"""Reads the tensors of pickled checkpoints. Nothing in them is executed; only data is read."""

import collections
import io
import os
import pickle
import re
import struct
import zipfile
from typing import Dict

import numpy as np

from pfpn_tf.utils.errors import UserError

Tensors = Dict[str, np.ndarray]
"""Values by name."""


def read_tensors(path: str) -> Tensors:
    """The tensors of a `.pkl` or PyTorch file by name. Nothing in the file is executed.

    Args:
      path: a pickle of {"model": {name: array}} or {name: array}, or what torch.save wrote of such
        a dict.

    Raises:
      UserError: the file is no checkpoint, or holds something that is not data; names it.
    """
    if not os.path.isfile(path):
        raise UserError(f"--weights={path}: no such file.")
    try:
        content = _read(path)
    except _Refused as error:
        raise UserError(
            f"{path} holds {error}, which is neither an array, a number, a string nor a container"
            " of these. Such files can run any code when they are opened, so it is not read."
        ) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})."
        ) from None
    except (ValueError, AttributeError, struct.error, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})."
        ) from None
    for key in ("model", "state_dict", "model_state", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    tensors = {str(k): _resolve(v) for k, v in content.items()}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, np.ndarray)}
    if not tensors:
        raise UserError(f"{path} holds no tensors.")
    return tensors


def _read(path):
    if zipfile.is_zipfile(path):
        return _read_torch_zip(path)
    with open(path, "rb") as f:
        first = _Unpickler(f).load()
        if first != _TORCH_LEGACY_MAGIC:
            return first
        return _read_torch_legacy(f)


class _Refused(Exception):
    """The pickle asks for a class or function that is not data."""


class _DType:
    """A numpy dtype as pickled: kind and size, then byte order by `__setstate__`."""

    def __init__(self, code, align=False, copy=False):
        self.code, self.order = code, "="

    def __setstate__(self, state):
        self.order = state[1]

    def numpy(self):
        code = self.code.decode() if isinstance(self.code, bytes) else self.code
        if not re.fullmatch(r"[biuf]\d+", code):
            raise _Refused(f"an array of numpy dtype {code!r}")
        return np.dtype(code).newbyteorder(self.order if self.order in "<>" else "=")


class _Array:
    """A numpy array as pickled: made empty, filled by `__setstate__`."""

    def __init__(self, kind=None, shape=None, code=None):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, data = state
        if not isinstance(data, (bytes, str)):
            raise _Refused("an array of Python objects")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.value = _as_array(data, dtype, shape, "F" if fortran else "C")


def _as_array(data, dtype, shape, order="C"):
    return np.frombuffer(data, dtype.numpy()).reshape(shape, order=order)


def _scalar(dtype, data):
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.numpy())[0]


def _encode(text, encoding):
    """How Python 3 stores bytes in pickles of protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _Storage:
    """The memory of a PyTorch tensor; `values` is set once its bytes are read."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.values = None

    def fill(self, data):
        if self.dtype == "bfloat16":
            high = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            self.values = high.view(np.float32)
        else:
            self.values = np.frombuffer(data, self.dtype)


class _TorchTensor:
    """A view of a storage."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __setstate__(self, state):
        """Parameters of PyTorch may carry attributes; they are no weights."""

    @property
    def value(self):
        values, shape = self.storage.values[self.offset :], tuple(self.shape)
        last = sum((n - 1) * s for n, s in zip(shape, self.strides))
        if 0 in shape:
            return np.zeros(shape, values.dtype)
        if min(self.strides, default=0) < 0 or self.offset < 0 or last >= len(values):
            raise UserError("a tensor reaches outside its storage")
        strides = [s * values.itemsize for s in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(values, shape, strides))


_TORCH_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): _DType,
    ("torch._utils", "_rebuild_tensor"): _TorchTensor,
    ("torch._utils", "_rebuild_tensor_v2"): _TorchTensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in _TORCH_DTYPES.items()},
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _as_array
for _builtins in ("builtins", "__builtin__"):
    _ADMITTED[_builtins, "set"] = set
    _ADMITTED[_builtins, "bytes"] = (
        lambda: b""
    )  # protocols below 3 write no bytes like this, others by encode


class _Unpickler(pickle.Unpickler):
    """Builds data only: the few functions that pickles of arrays and tensors call are our own."""

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.storages = {}

    def find_class(self, module, name):
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid):
        kind, dtype, key = pid[:3]
        if kind != "storage" or dtype not in _TORCH_DTYPES.values():
            raise _Refused(f"the record {pid!r}")
        return self.storages.setdefault(key, _Storage(dtype))


def _read_torch_zip(path):
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("a zip file without one data.pkl")
        root = pickles[0][: -len("data.pkl")]
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise UserError("big-endian tensors")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(archive.read(f"{root}data/{key}"))
    return content


def _read_torch_legacy(f):
    """What torch.save wrote before version 1.6, from behind the magic number."""
    for _ in ("protocol version", "machine"):
        _Unpickler(f).load()
    unpickler = _Unpickler(f)
    content = unpickler.load()
    for key in _Unpickler(f).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", f.read(8))
        size = 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize
        storage.fill(f.read(count * size))
    return content


def _resolve(value):
    return value.value if isinstance(value, (_Array, _TorchTensor)) else value
