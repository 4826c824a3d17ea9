"""Reads the tensors of pickled checkpoints. Nothing in them is executed; only data is read.

A pickle is a program that names classes and functions and calls them. Here every such call is
written down and none is made: arrays and tensors are built afterwards, by functions of this file,
and only those among the weights. What else the file holds (optimizer, logs of a training) stays
unread.
"""

import collections
import functools
import io
import math
import os
import pickle
import re
import struct
import zipfile
from typing import Any, Callable, Dict, NamedTuple

import numpy as np

from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import other_formats, prefixes

Tensors = Dict[str, np.ndarray]
"""Values by name."""


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
      tensors: values by name, without a prefix that all names share, such as `model.`, `module.`
        or `_orig_mod.`.
      config_text: the training configuration that MMDetection's files carry; otherwise empty.
    """

    tensors: Tensors
    config_text: str


def read(path: str) -> Checkpoint:
    """Reads a `.pkl` or PyTorch file. Nothing in the file is executed.

    Args:
      path: a pickle of {name: array}, alone or under one of the keys in `_WEIGHTS_KEYS`, or what
        torch.save wrote of such a dict.

    Raises:
      UserError: the file is no checkpoint, or its weights hold something that is not data.
    """
    if not os.path.isfile(path):
        prefix = os.path.exists(f"{path}.index")
        hint = " It is a TensorFlow checkpoint: give the run directory that it lies in."
        raise UserError(f"--weights={path}: no such file.{hint if prefix else ''}")
    try:
        with open(path, "rb") as f:
            other_formats.refuse(f)
            return _checkpoint(_load(f))
    except _Refused as error:
        raise UserError(
            f"{path} holds {error}, which is neither an array, a number, a string nor a container"
            " of these. Such files can run any code when they are opened, so it is not read."
        ) from None
    except UserError as error:
        raise UserError(f"{path} {error}") from None
    except _DAMAGE as error:
        text = other_formats.start_of_text(path)
        raise UserError(
            f"{path} is a text and no weights; it begins with {text!r}."
            if text
            else f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})."
            f" {other_formats.EXPECTED} If it should be one, copy or download it again: it may be"
            " cut off."
        ) from None


_WEIGHTS_KEYS = (
    *("model", "state_dict", "model_state", "model_state_dict", "blobs", "weights", "net"),
    *("checkpoint", "network", "module", "params"),
)
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    OSError,
    NotImplementedError,  # a zip file's compression
)


def _checkpoint(content):
    meta = content.get("meta") if isinstance(content, dict) else None
    texts = [meta.get(key) for key in ("config", "cfg")] if isinstance(meta, dict) else []
    inner = content
    while inner is not None:
        content = inner
        found = [content.get(key) for key in _WEIGHTS_KEYS] if isinstance(content, dict) else []
        inner = next((value for value in found if _dicts_of_tensors(value)), None)
    inside = _dicts_of_tensors(content)
    if len(inside) > 1:
        listed = ", ".join(f"{path} ({len(value)})" for path, value in inside.items())
        raise UserError(
            f"holds several dicts of tensors: {listed}. Save the one that is meant, as"
            ' {"model": it}, in a file of its own.'
        )
    content = next(iter(inside.values()), content)
    if not isinstance(content, dict):
        kind = content.name if isinstance(content, _Call) else type(content).__name__
        raise UserError(
            f"holds a {kind}, not a dict of tensors. Of a whole model save its state_dict()."
        )
    tensors = {_text(k): _resolve(v) for k, v in content.items()}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, np.ndarray)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5]))
        raise UserError(f"holds no tensors{f', but {keys}' if keys else ''}.")
    text = next((text for text in texts if isinstance(text, str)), "")
    return Checkpoint(prefixes.of_the_network(tensors), text)


def _text(key):
    """A name, which Python 2 wrote as bytes."""
    encoded = isinstance(key, _Call) and key.name == "_codecs.encode"
    return _bytes(key).decode("latin1") if encoded or isinstance(key, bytes) else str(key)


def _dicts_of_tensors(content, levels=2, path=""):
    """The outermost dicts with tensors in them, by their keys; at most two levels down."""
    if not isinstance(content, dict):
        return {}
    names = {value.name for value in content.values() if isinstance(value, _Call)}
    if names & (_DATA.keys() - {_NUMBER}):
        return {path: content}
    inside = {}
    for key, value in content.items() if levels else ():
        inside.update(_dicts_of_tensors(value, levels - 1, f"{path}.{key}".lstrip(".")))
    return inside


# --------------------------------------------------------------------------------------------------
# Containers


def _load(f):
    """What the file holds, with calls as `_Call` and memory of tensors as `_Storage`."""
    if zipfile.is_zipfile(f):
        return _load_torch_zip(f)
    f.seek(0)
    first = _Unpickler(f).load()
    return _load_torch_legacy(f) if first == _TORCH_LEGACY_MAGIC else first


def _load_torch_zip(f):
    archive = zipfile.ZipFile(f)
    members = archive.namelist()
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(
            "is a zip file without one data.pkl, so PyTorch has not saved it. If weights were"
            f" packed, unpack it and give the file inside. It holds {', '.join(members[:3])}."
        )
    root = pickles[0][: -len("data.pkl")]
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise UserError("holds big-endian tensors, which are not supported.")
    unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
    content = unpickler.load()
    for key, storage in unpickler.storages.items():
        storage.read = functools.partial(archive.read, f"{root}data/{key}")
    return content


def _load_torch_legacy(f):
    """What torch.save wrote before version 1.6, from behind the magic number."""
    for _ in ("protocol version", "machine"):
        _Unpickler(f).load()
    unpickler = _Unpickler(f)
    content = unpickler.load()
    for key in _Unpickler(f).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q", f.read(8))
        start, size = f.tell(), count * storage.item_size()
        if not 0 <= size <= os.fstat(f.fileno()).st_size - start:
            raise EOFError("a tensor ends behind the file")
        storage.read = functools.partial(_read_at, f, start, size)
        f.seek(size, os.SEEK_CUR)
    return content


def _read_at(f, start, size):
    f.seek(start)
    return f.read(size)


class _Unpickler(pickle._Unpickler):
    """Calls nothing that a pickle names, an ordered dict aside.

    In Python, since a damaged number makes the memo table of the one in C take gigabytes.
    """

    def __init__(self, file):
        super().__init__(file, encoding="latin1")
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        return type(
            "_Call", (_Call,), {"name": f"{module}.{name}".replace("numpy._core.", "numpy.core.")}
        )

    def persistent_load(self, pid):
        _, dtype, key = pid[:3]
        return self.storages.setdefault(key, _Storage(dtype.name))


class _Call:
    """A call that a pickle asks for. It is written down and not made.

    Attributes:
      name: module and name of the class or function.
      arguments: what to call it with.
      state: what `__setstate__` would get.
    """

    name = ""
    state: Any = None

    def __new__(cls, *arguments, **_):
        call = super().__new__(cls)
        call.arguments = arguments
        return call

    def __setstate__(self, state):
        self.state = state

    def _nothing(self, *_, **__):
        return self

    __call__ = __setitem__ = append = extend = add = _nothing


# --------------------------------------------------------------------------------------------------
# Data


_UNSUPPORTED = "which is not supported. Convert the weights to float32 and save them again."


class _Refused(Exception):
    """The weights ask for a class or function that is not data."""


def _resolve(value):
    """The value with its arrays and tensors built."""
    if isinstance(value, _Call):
        build = _DATA.get(value.name)
        if not build and re.match(r"torch\._(utils|tensor)\._rebuild_\w+$", value.name):
            raise UserError(f"holds a tensor of {value.name}, {_UNSUPPORTED}")
        if not build:
            raise _Refused(value.name)
        return build(value)
    if isinstance(value, type) and issubclass(value, _Call):
        raise _Refused(value.name)
    if isinstance(value, dict):
        _resolve([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            _resolve(item)
    return value


class _Storage:
    """The memory of PyTorch tensors; `read` gives its bytes."""

    def __init__(self, kind):
        self.kind = kind
        self.read: Callable[[], bytes] = bytes

    def dtype(self):
        if self.kind not in _TORCH_DTYPES and self.kind.startswith("torch."):
            raise UserError(f"holds a tensor of {self.kind}, {_UNSUPPORTED}")
        if self.kind not in _TORCH_DTYPES:
            raise _Refused(self.kind)
        return _TORCH_DTYPES[self.kind]

    def item_size(self):
        return 2 if self.dtype() == "bfloat16" else np.dtype(self.dtype()).itemsize

    @functools.cached_property
    def values(self):
        if self.dtype() == "bfloat16":
            high = np.frombuffer(self.read(), "<u2").astype(np.uint32) << 16
            return high.view(np.float32)
        return np.frombuffer(self.read(), self.dtype())


_TORCH_DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
}
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _torch_tensor(call):
    """A view of a storage."""
    storage, offset, shape, strides = call.arguments[:4]
    values, shape = storage.values[offset:], tuple(shape)
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    last = sum((n - 1) * s for n, s in zip(shape, strides))
    if min(strides, default=0) < 0 or offset < 0 or max(last, math.prod(shape) - 1) >= len(values):
        raise UserError("is damaged: a tensor reaches outside its storage.")
    strides = [s * values.itemsize for s in strides]
    return np.array(np.lib.stride_tricks.as_strided(values, shape, strides))


def _numpy_array(call):
    _, shape, dtype, fortran, data = call.state
    return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(shape, order="F" if fortran else "C")


def _numpy_from_buffer(call):
    data, dtype, shape, order = call.arguments
    return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(shape, order=order)


def _dtype(call):
    code, order = call.arguments[0], call.state[1]
    code = code.decode() if isinstance(code, bytes) else code
    if code.startswith("O"):
        raise _Refused(f"an array of numpy dtype {code!r}")
    if not re.fullmatch(r"[biuf]\d+", code):
        raise UserError(f"holds an array of numpy dtype {code!r}, {_UNSUPPORTED}")
    return np.dtype(code).newbyteorder(order if order in "<>" else "=")


def _bytes(data):
    if isinstance(data, _Call):  # protocol 2 has no opcode for bytes
        if data.name == "__builtin__.bytes":
            return b""
        if data.name == "_codecs.encode":
            data = data.arguments[0]
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)):
        raise _Refused("an array of Python objects")
    return data


_NUMBER = "numpy.core.multiarray.scalar"
_DATA = {
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy.core.numeric._frombuffer": _numpy_from_buffer,
    _NUMBER: lambda call: None,  # a number is no weight
    "torch._utils._rebuild_tensor": _torch_tensor,
    "torch._utils._rebuild_tensor_v2": _torch_tensor,
    "torch._utils._rebuild_parameter": lambda call: _resolve(call.arguments[0]),
}
