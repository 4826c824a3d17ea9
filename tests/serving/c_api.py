"""Runs a SavedModel through TensorFlow's C API, as a server does, without TensorFlow's Python.

As a script: `c_api.py SAVED_MODEL REQUESTS` runs what `write_requests` wrote, in order, and adds
what came back, for `read_replies`.
"""

import ctypes
import importlib.util
import os
import pathlib
import pickle
import sys

import numpy as np

_STRING = 7
_DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 9: "i8", 10: "?"}  # DataType to numpy
_STRING_SIZE = 24  # of a TF_TString


class Output(ctypes.Structure):
    """TF_Output: a result of an operation."""

    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
    """The begin of TF_Buffer."""

    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def load_library():
    """The C API of the installed package tensorflow, which is not imported."""
    (directory,) = importlib.util.find_spec("tensorflow").submodule_search_locations
    ctypes.CDLL(os.path.join(directory, "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(os.path.join(directory, "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
    for name in (
        "TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_LoadSessionFromSavedModel "
        "TF_GraphOperationByName TF_AllocateTensor TF_TensorData TF_StringGetDataPointer "
        "TF_GetAllOpList"
    ).split():
        getattr(library, name).restype = ctypes.c_void_p
    for name in ("TF_TensorByteSize", "TF_StringGetSize"):
        getattr(library, name).restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    library.TF_Message.restype = ctypes.c_char_p
    return library


class SavedModel:
    """A loaded model: `run(inputs, outputs)`. Tensors are freed when the process ends."""

    def __init__(self, library, directory):
        self._library = library
        self._status = ctypes.c_void_p(library.TF_NewStatus())
        self._graph = ctypes.c_void_p(library.TF_NewGraph())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            library.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(library.TF_NewSessionOptions()),
                None,
                os.fsencode(directory),
                tags,
                1,
                self._graph,
                None,
                self._status,
            )
        )
        self._check()

    def run(self, inputs, outputs):
        """Runs the graph.

        Args:
          inputs: tensor's name to array, or to a list of bytes.
          outputs: names of tensors.

        Returns:
          For each output an array, or a flat list of bytes.

        Raises:
          RuntimeError: (code, text) of the call; 3 is an invalid argument.
        """
        library = self._library
        given = [(self._output(name), self._tensor(value)) for name, value in inputs.items()]
        wanted = [self._output(name) for name in outputs]
        results = (ctypes.c_void_p * len(wanted))()
        library.TF_SessionRun(
            self._session,
            None,
            (Output * len(given))(*(output for output, _ in given)),
            (ctypes.c_void_p * len(given))(*(tensor for _, tensor in given)),
            len(given),
            (Output * len(wanted))(*wanted),
            results,
            len(wanted),
            None,
            0,
            None,
            self._status,
        )
        self._check()
        return [self._value(tensor) for tensor in results]

    def _check(self):
        code = self._library.TF_GetCode(self._status)
        if code:
            raise RuntimeError(code, self._library.TF_Message(self._status).decode())

    def _output(self, tensor_name):
        name, _, index = tensor_name.rpartition(":")
        operation = self._library.TF_GraphOperationByName(self._graph, name.encode())
        assert operation, f"no operation {name} in the graph"
        return Output(operation, int(index))

    def _tensor(self, value):
        library = self._library
        if isinstance(value, np.ndarray):
            code = next(c for c, d in _DTYPES.items() if np.dtype(d) == value.dtype)
            dims, size = value.shape, value.nbytes
        else:
            code, dims, size = _STRING, (len(value),), _STRING_SIZE * len(value)
        dims = (ctypes.c_int64 * len(dims))(*dims)
        tensor = library.TF_AllocateTensor(code, dims, len(dims), ctypes.c_size_t(size))
        data = library.TF_TensorData(ctypes.c_void_p(tensor))
        if isinstance(value, np.ndarray):
            ctypes.memmove(data, np.ascontiguousarray(value).ctypes.data, size)
        else:
            for i, item in enumerate(value):
                string = ctypes.c_void_p(data + i * _STRING_SIZE)
                library.TF_StringInit(string)
                library.TF_StringCopy(string, item, ctypes.c_size_t(len(item)))
        return tensor

    def _value(self, tensor):
        library, tensor = self._library, ctypes.c_void_p(tensor)
        shape = [library.TF_Dim(tensor, i) for i in range(library.TF_NumDims(tensor))]
        data, code = library.TF_TensorData(tensor), library.TF_TensorType(tensor)
        if code == _STRING:
            count = int(np.prod(shape))
            places = [ctypes.c_void_p(data + i * _STRING_SIZE) for i in range(count)]
            pointer, size = library.TF_StringGetDataPointer, library.TF_StringGetSize
            return [ctypes.string_at(pointer(place), size(place)) for place in places]
        content = ctypes.string_at(data, library.TF_TensorByteSize(tensor))
        return np.frombuffer(content, _DTYPES[code]).reshape(shape)


def write_requests(path, requests):
    """Stores requests.

    Args:
      path: of a new file.
      requests: name to (`SignatureDef` that is asked, input's name to value).
    """
    content = {}
    for request, (signature, inputs) in requests.items():
        assert set(inputs) == set(signature.inputs), (set(inputs), set(signature.inputs))
        values = {signature.inputs[name].name: value for name, value in inputs.items()}
        content[request] = values, {k: tensor.name for k, tensor in signature.outputs.items()}
    pathlib.Path(path).write_bytes(pickle.dumps(content))


def read_replies(path):
    """What the script has added to the file of requests.

    Returns:
      For each request output's name to value, or the error's (code, text); and the serialized
      OpList of every operation that the library knows.
    """
    return pickle.loads(pathlib.Path(f"{path}.replies").read_bytes())


def main(saved_model, path):
    library = load_library()
    model = SavedModel(library, saved_model)
    operations = Buffer.from_address(library.TF_GetAllOpList())
    replies = {}
    for name, (inputs, outputs) in pickle.loads(pathlib.Path(path).read_bytes()).items():
        try:
            replies[name] = dict(zip(outputs, model.run(inputs, outputs.values())))
        except RuntimeError as error:
            replies[name] = error.args
    content = replies, ctypes.string_at(operations.data, operations.length)
    pathlib.Path(f"{path}.replies").write_bytes(pickle.dumps(content))
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
