"""Reads and writes Detectron2 checkpoints, and ImageNet backbones of several origins.

Three steps: `read_tensors` opens a file without running anything in it, `to_detectron2_names` gives
its tensors Detectron2's names, `load` puts them into a model. `to_detectron2` and `write` are the
way back.

Layouts: Detectron2's convolutions are [out, in, kh, kw], transposed ones [in, out, kh, kw], fully
connected layers [out, in]; images are BGR and boxes and deltas x before y, where this project has
RGB and y before x.
"""

import collections
import io
import os
import pickle
import re
import struct
import zipfile
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import tensorflow as tf

from pfpn_tf.model import box_head, layers
from pfpn_tf.utils import files

Tensors = Dict[str, np.ndarray]

# What checkpoints hold besides the network's tensors.
_NO_PARAMETER = re.compile(
    r"(^|\.)pixel_(mean|std)$|anchor_generator\.cell_anchors|num_batches_tracked$|_momentum$|"
    r"^(fc|fc1000|pred|linear)[._]|^lr$|^weight_order$"
)


# --------------------------------------------------------------------------------------------------
# Names and layouts


class Layout(NamedTuple):
    """A change of layout and its inverse, both on numpy arrays."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_detectron2: Callable[[np.ndarray], np.ndarray]


def _swap_xy(value):
    """Exchanges x and y in the first axis, which holds groups of (dx, dy, dw, dh) or the like."""
    grouped = value.reshape((-1, 4) + value.shape[1:])
    return grouped[:, [1, 0, 3, 2]].reshape(value.shape)


def _fc1(channels):
    """Rows of fc1 are (channel, row, column) there and (row, column, channel) here."""
    size = box_head.POOLED_SIZE
    return Layout(
        lambda w: w.reshape(-1, channels, size, size).transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
        lambda w: w.reshape(size, size, channels, -1).transpose(3, 2, 0, 1).reshape(w.shape[1], -1),
    )


_SAME = Layout(lambda w: w, lambda w: w)
_CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
_STEM = Layout(lambda w: _CONV.to_ours(w[:, ::-1]), lambda w: _CONV.to_detectron2(w)[:, ::-1])
_DECONV = Layout(lambda w: w.transpose(0, 2, 3, 1), lambda w: w.transpose(0, 3, 1, 2))
_LINEAR = Layout(np.transpose, np.transpose)
_MASK_PREDICTOR = Layout(lambda w: w[:, :, 0, 0], lambda w: w[:, :, None, None])
_DELTAS = Layout(_swap_xy, _swap_xy)
_DELTAS_CONV = Layout(
    lambda w: _CONV.to_ours(_swap_xy(w)), lambda w: _swap_xy(_CONV.to_detectron2(w))
)
_DELTAS_LINEAR = Layout(lambda w: _swap_xy(w).T, lambda w: _swap_xy(w.T))


class Parameter(NamedTuple):
    """A variable of ours and the tensor of Detectron2 that it corresponds to."""

    name: str
    variable: tf.Variable
    layout: Layout

    def detectron2_shape(self) -> Tuple[int, ...]:
        return self.layout.to_detectron2(np.empty(self.variable.shape, np.bool_)).shape

    def detectron2_value(self) -> np.ndarray:
        return np.ascontiguousarray(self.layout.to_detectron2(self.variable.numpy()))


def parameters(model: tf.keras.Model) -> List[Parameter]:
    """Every variable of a built `PanopticFPN`, by its Detectron2 name."""
    found = list(_backbone(model.backbone)) + list(_fpn(model.fpn))
    if model.has_instances:
        found += _instance_heads(model)
    if model.has_semantics:
        found += _semantic_head(model.semantic_head)
    return found


def _conv(name, conv, layout=_CONV) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", conv.kernel, layout)
    if conv.norm is None:
        yield Parameter(f"{name}.bias", conv.bias, _SAME)
        return
    yield Parameter(f"{name}.norm.weight", conv.norm.gamma, _SAME)
    yield Parameter(f"{name}.norm.bias", conv.norm.beta, _SAME)
    if not isinstance(conv.norm, layers.GroupNorm):
        yield Parameter(f"{name}.norm.running_mean", conv.norm.moving_mean, _SAME)
        yield Parameter(f"{name}.norm.running_var", conv.norm.moving_variance, _SAME)


def _backbone(backbone):
    prefix = "backbone.bottom_up"
    yield from _conv(f"{prefix}.stem.conv1", backbone.stem, _STEM)
    for stage, blocks in enumerate(backbone.stages, start=2):
        for i, block in enumerate(blocks):
            name = f"{prefix}.res{stage}.{i}"
            for conv in ("conv1", "conv2", "conv3"):
                yield from _conv(f"{name}.{conv}", getattr(block, conv))
            if block.shortcut:
                yield from _conv(f"{name}.shortcut", block.shortcut)


def _fpn(fpn):
    for level in range(2, 6):
        yield from _conv(f"backbone.fpn_lateral{level}", fpn.lateral[f"c{level}"])
        yield from _conv(f"backbone.fpn_output{level}", fpn.output_convs[f"p{level}"])


def _instance_heads(model):
    rpn, box, mask = model.rpn_head, model.box_head, model.mask_head
    yield from _conv("proposal_generator.rpn_head.conv", rpn.conv)
    yield from _conv("proposal_generator.rpn_head.objectness_logits", rpn.objectness)
    name = "proposal_generator.rpn_head.anchor_deltas"
    yield Parameter(f"{name}.weight", rpn.deltas.kernel, _DELTAS_CONV)
    yield Parameter(f"{name}.bias", rpn.deltas.bias, _DELTAS)

    for name, dense, weight, bias in (
        ("box_head.fc1", box.fc1, _fc1(model.config.fpn_channels), _SAME),
        ("box_head.fc2", box.fc2, _LINEAR, _SAME),
        ("box_predictor.cls_score", box.classes, _LINEAR, _SAME),
        ("box_predictor.bbox_pred", box.deltas, _DELTAS_LINEAR, _DELTAS),
    ):
        yield Parameter(f"roi_heads.{name}.weight", dense.kernel, weight)
        yield Parameter(f"roi_heads.{name}.bias", dense.bias, bias)

    for i, conv in enumerate(mask.convs, start=1):
        yield from _conv(f"roi_heads.mask_head.mask_fcn{i}", conv)
    yield Parameter("roi_heads.mask_head.deconv.weight", mask.deconv_kernel, _DECONV)
    yield Parameter("roi_heads.mask_head.deconv.bias", mask.deconv_bias, _SAME)
    yield Parameter("roi_heads.mask_head.predictor.weight", mask.predictor_kernel, _MASK_PREDICTOR)
    yield Parameter("roi_heads.mask_head.predictor.bias", mask.predictor_bias, _SAME)


def _semantic_head(head):
    for level, convs in head.stages.items():
        for i, conv in enumerate(convs):
            yield from _conv(f"sem_seg_head.{level}.{2 * i}", conv)  # odd ones are the upsamplings
    yield from _conv("sem_seg_head.predictor", head.predictor)


# --------------------------------------------------------------------------------------------------
# Into a model and back


def load(model: tf.keras.Model, tensors: Tensors, backbone_only: bool = False) -> None:
    """Gives a built model the values of a Detectron2 checkpoint.

    A tensor whose name is the end of a Detectron2 name, such as res2.0.conv1.weight, is taken for
    it; the longest such name wins.

    Args:
      model: a built `PanopticFPN`.
      tensors: Detectron2 names to values.
      backbone_only: take the backbone's tensors and leave the rest of the model as it is.

    Raises:
      ValueError: all tensors that are missing, surplus or of another shape. The model is then
        unchanged.
    """
    wanted = parameters(model)
    if backbone_only:
        wanted = [p for p in wanted if p.name.startswith("backbone.bottom_up.")]
    names = {p.name: _matching_name(p.name, tensors) for p in wanted}
    problems = [f"missing: {name}" for name, match in names.items() if match is None]
    uses = collections.Counter(match for match in names.values() if match)
    problems += [
        f"surplus: {name} {list(tensors[name].shape)}" for name in tensors if not uses[name]
    ]
    problems += [f"ambiguous: {name} is the end of {n} names" for name, n in uses.items() if n > 1]
    for p in wanted:
        match = names[p.name]
        if match and tensors[match].shape != p.detectron2_shape():
            problems.append(
                f"shape: {match} is {list(tensors[match].shape)}, expected"
                f" {list(p.detectron2_shape())}"
            )
    if problems:
        raise ValueError(
            f"The weights do not fit the network ({model.config.task}, {model.config.backbone},"
            f" {model.num_thing_classes} thing classes, {model.num_semantic_classes} semantic"
            f" classes); {len(problems)} of {len(wanted)} tensors:\n  " + "\n  ".join(problems)
        )
    for p in wanted:
        value = p.layout.to_ours(tensors[names[p.name]])
        p.variable.assign(value.astype(p.variable.dtype.as_numpy_dtype))


def _matching_name(wanted, tensors):
    parts = wanted.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))  # the longest first
    return next((end for end in ends if end in tensors), None)


def to_detectron2(model: tf.keras.Model) -> Tensors:
    """The values of a built model by Detectron2 name, in its layouts: the exact inverse of
    `load`.
    """
    return {p.name: p.detectron2_value() for p in parameters(model)}


def write(path: str, tensors: Tensors) -> None:
    """Writes a `.pkl` that Detectron2's checkpointer reads."""
    with files.atomic_write(path, "wb") as f:
        pickle.dump({"model": tensors, "__author__": "pfpn_tf"}, f, protocol=2)


def to_detectron2_names(tensors: Tensors) -> Tuple[Tensors, bool]:
    """Recognises where the tensors come from and renames them.

    Args:
      tensors: as `read_tensors` returns them: from Detectron2, or an ImageNet backbone with
        Caffe2's or torchvision's names.

    Returns:
      Detectron2 names to values, without what is no parameter of the network; and whether they are
      those of a backbone alone.
    """
    tensors = {
        name[len("module.") :] if name.startswith("module.") else name: value
        for name, value in tensors.items()
    }
    tensors = {name: value for name, value in tensors.items() if not _NO_PARAMETER.search(name)}
    if "conv1_w" in tensors:
        return _from_caffe2(tensors), True
    if "layer1.0.conv1.weight" in tensors:
        return _from_torchvision(tensors), True
    backbone_only = not any(re.search(r"fpn_|_head|proposal_generator", name) for name in tensors)
    return tensors, backbone_only


def _from_caffe2(tensors):
    if any(name.startswith(("fpn_", "rpn_", "conv_rpn", "cls_score")) for name in tensors):
        raise ValueError(
            "This is a detector in Caffe2's naming (Detectron1). Only its backbones can be read;"
            " load the file in Detectron2 and save it again."
        )
    convs = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
    ends = {
        "w": "weight",
        "bn_s": "norm.weight",
        "bn_b": "norm.bias",
        "bn_rm": "norm.running_mean",
        "bn_riv": "norm.running_var",
    }
    renamed = {}
    for name, value in tensors.items():
        block = re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)_(w|bn_s|bn_b|bn_rm|bn_riv)", name)
        stem = re.fullmatch(r"(?:res_)?conv1_(w|bn_s|bn_b|bn_rm|bn_riv)", name)
        if block and block[3] in convs:
            name = f"res{block[1]}.{block[2]}.{convs[block[3]]}.{ends[block[4]]}"
        elif stem:
            name = f"stem.conv1.{ends[stem[1]]}"
        renamed[name] = value
    # Files whose batch norms are folded into scale and shift carry no statistics.
    for name in [n for n in renamed if n.endswith("norm.weight")]:
        start = name[: -len("weight")]
        renamed.setdefault(start + "running_mean", np.zeros_like(renamed[name]))
        renamed.setdefault(start + "running_var", np.ones_like(renamed[name]))
    return _with_prefix(renamed)


def _from_torchvision(tensors):
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^(conv1|bn1)\b", r"stem.\1", name)
        name = re.sub(r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}.", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
        # torchvision's networks see RGB.
        renamed[name] = value[:, ::-1] if name == "stem.conv1.weight" else value
    return _with_prefix(renamed)


def _with_prefix(tensors):
    return {f"backbone.bottom_up.{name}": value for name, value in tensors.items()}


def from_keras_application(application: tf.keras.Model) -> Tensors:
    """The backbone of a `tf.keras.applications` ResNet50, 101 or 152 (the first version) by
    Detectron2 name.

    Its stride is in the 1x1 convolution. Its convolutions have a bias, which goes into the mean of
    the batch norm behind them, as does the difference of the epsilons into the variance.
    """
    names = {"0": "shortcut", "1": "conv1", "2": "conv2", "3": "conv3"}
    tensors = {}
    for layer in application.layers:
        match = re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)|conv1_(conv|bn)", layer.name)
        if not match:
            continue
        if match[1]:
            name = f"res{match[1]}.{int(match[2]) - 1}.{names[match[3]]}"
        else:
            name = "stem.conv1"
        if layer.name.endswith("_conv"):
            kernel, bias = layer.get_weights()
            tensors[f"{name}.weight"] = _CONV.to_detectron2(kernel)  # BGR, as Detectron2
            mean = tensors.get(f"{name}.norm.running_mean", 0.0)
            tensors[f"{name}.norm.running_mean"] = mean - bias
        else:
            gamma, beta, mean, variance = layer.get_weights()
            tensors[f"{name}.norm.weight"] = gamma
            tensors[f"{name}.norm.bias"] = beta
            bias_shift = tensors.get(f"{name}.norm.running_mean", 0.0)
            tensors[f"{name}.norm.running_mean"] = mean + bias_shift
            tensors[f"{name}.norm.running_var"] = variance + np.float32(
                layer.epsilon - layers.NORM_EPSILON
            )
    return _with_prefix(tensors)


# --------------------------------------------------------------------------------------------------
# Files: only data is ever read from them


def read_tensors(path: str) -> Tensors:
    """The tensors of a `.pkl` or PyTorch file by name. Nothing in the file is executed.

    Args:
      path: a pickle of {"model": {name: array}} or {name: array}, or what torch.save wrote of such
        a dict.

    Raises:
      ValueError: the file is no checkpoint, or holds something that is not data; names it.
    """
    if not os.path.isfile(path):
        raise ValueError(f"--weights={path}: no such file.")
    try:
        content = _read(path)
    except _Refused as error:
        raise ValueError(
            f"{path} holds {error}, which is neither an array, a number, a string nor a container"
            " of these. Such files can run any code when they are opened, so it is not read."
        ) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})."
        ) from None
    except (ValueError, AttributeError, struct.error, OverflowError, MemoryError) as error:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})."
        ) from None
    for key in ("model", "state_dict", "model_state", "blobs"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")
    tensors = {str(k): _resolve(v) for k, v in content.items()}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, np.ndarray)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors.")
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
            raise ValueError("a tensor reaches outside its storage")
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
            raise ValueError("a zip file without one data.pkl")
        root = pickles[0][: -len("data.pkl")]
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("big-endian tensors")
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
