"""MMDetection's names and layouts of Panoptic FPN and Mask R-CNN FPN, by Detectron2's and back.

Two styles have the same names and shapes. "pytorch": images are RGB, the stride of a stage is in
its 3x3 convolution. "caffe": images are BGR, the stride is in the first 1x1 convolution, as in
Detectron2. All else is laid out as in Detectron2, but for the classes of the semantic head: there
stuff comes first and "things" last, in Detectron2 and here "things" come first.
"""

import re
import struct
import zipfile
from typing import Optional

import numpy as np

from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights.safe_pickle import Checkpoint, Tensors

# Detectron2's and MMDetection's name of each layer. <2> is a number that counts from 2 on, <0+2>
# one that counts 0, 2, 4.
_LAYERS = (
    ("backbone.bottom_up.stem.conv1", "backbone.conv1"),
    ("backbone.bottom_up.stem.conv1.norm", "backbone.bn1"),
    ("backbone.bottom_up.res<2>.<0>.conv<1>", "backbone.layer<1>.<0>.conv<1>"),
    ("backbone.bottom_up.res<2>.<0>.conv<1>.norm", "backbone.layer<1>.<0>.bn<1>"),
    ("backbone.bottom_up.res<2>.<0>.shortcut", "backbone.layer<1>.<0>.downsample.0"),
    ("backbone.bottom_up.res<2>.<0>.shortcut.norm", "backbone.layer<1>.<0>.downsample.1"),
    ("backbone.fpn_lateral<2>", "neck.lateral_convs.<0>.conv"),
    ("backbone.fpn_lateral<2>.norm", "neck.lateral_convs.<0>.gn"),
    ("backbone.fpn_output<2>", "neck.fpn_convs.<0>.conv"),
    ("backbone.fpn_output<2>.norm", "neck.fpn_convs.<0>.gn"),
    ("proposal_generator.rpn_head.conv", "rpn_head.rpn_conv"),
    ("proposal_generator.rpn_head.objectness_logits", "rpn_head.rpn_cls"),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn_head.rpn_reg"),
    ("roi_heads.box_head.fc<1>", "roi_head.bbox_head.shared_fcs.<0>"),
    ("roi_heads.box_predictor.cls_score", "roi_head.bbox_head.fc_cls"),
    ("roi_heads.box_predictor.bbox_pred", "roi_head.bbox_head.fc_reg"),
    ("roi_heads.mask_head.mask_fcn<1>", "roi_head.mask_head.convs.<0>.conv"),
    ("roi_heads.mask_head.mask_fcn<1>.norm", "roi_head.mask_head.convs.<0>.gn"),
    ("roi_heads.mask_head.deconv", "roi_head.mask_head.upsample"),
    ("roi_heads.mask_head.predictor", "roi_head.mask_head.conv_logits"),
    ("sem_seg_head.p<2>.<0+2>", "semantic_head.conv_upsample_layers.<0>.conv.<0>.conv"),
    ("sem_seg_head.p<2>.<0+2>.norm", "semantic_head.conv_upsample_layers.<0>.conv.<0>.gn"),
    ("sem_seg_head.predictor", "semantic_head.conv_logits"),
)
_NUMBER = re.compile(r"<(\d)(?:\+(\d))?>")
_STEM = "backbone.bottom_up.stem.conv1.weight"


def is_mmdetection(tensors: Tensors) -> bool:
    """Whether these are the tensors of one of MMDetection's detectors."""
    return "backbone.conv1.weight" in tensors


def style_of(checkpoint: Checkpoint) -> Optional[str]:
    """The style of a checkpoint as its training configuration says, or None.

    Panoptic FPN is published in the style "pytorch" alone, so it has that one if nothing is said.

    Raises:
      UserError: the configuration mixes the two.
    """
    text = checkpoint.config_text
    styles = set(re.findall(r"\bstyle\s*=\s*['\"](pytorch|caffe)['\"]", text))
    colours = set(re.findall(r"\b(?:bgr_)?to_rgb\s*=\s*(True|False)", text))
    styles |= {"pytorch" if colour == "True" else "caffe" for colour in colours}
    if len(styles) > 1:
        raise UserError(
            "The configuration in the file mixes the styles: this network reads RGB with"
            " style='pytorch' or BGR with style='caffe', and not the one with the other."
        )
    panoptic = "semantic_head.conv_logits.bias" in checkpoint.tensors
    return next(iter(styles), "pytorch" if panoptic else None)


def to_detectron2_names(tensors: Tensors, style: str) -> Tensors:
    """MMDetection's tensors by Detectron2's names, in Detectron2's layouts."""
    tensors = {_translate(name, 1, 0): value for name, value in tensors.items()}
    return {name: _converted(name, value, style, 1) for name, value in tensors.items()}


def from_detectron2_names(tensors: Tensors, style: str) -> Tensors:
    """The exact inverse of `to_detectron2_names`. Batch norms get the number of batches that they
    have seen, 0, which MMDetection expects and does not use.
    """
    renamed = {}
    for name, value in tensors.items():
        renamed[_translate(name, 0, 1)] = _converted(name, value, style, -1)
        if name.endswith(".running_var"):
            tracked = name.replace("running_var", "num_batches_tracked")
            renamed[_translate(tracked, 0, 1)] = np.array(0, np.int64)
    return renamed


def _translate(name, source, target):
    """The name in the column `target` of `_LAYERS`, given that in the column `source`."""
    for row in _LAYERS:
        pattern = _NUMBER.sub(r"(\\d+)", row[source]).replace(".", r"\.")
        match = re.fullmatch(rf"{pattern}\.(\w+)", name)
        if match:
            *numbers, end = match.groups()
            counts = [
                (int(number) - int(first)) // int(step or 1)
                for number, (first, step) in zip(numbers, _NUMBER.findall(row[source]))
            ]
            return f"{_numbered(row[target], counts)}.{end}"
    return name


def _numbered(template, counts):
    counts = iter(counts)
    return _NUMBER.sub(lambda m: str(int(m[1]) + next(counts) * int(m[2] or 1)), template)


def _converted(name, value, style, direction):
    """The value of a Detectron2 name in the other layout; direction 1 is towards Detectron2."""
    if name == _STEM and style == "pytorch" and value.ndim == 4:
        return value[:, ::-1]
    if name.startswith("sem_seg_head.predictor."):
        return np.roll(value, direction, axis=0)
    return value


# --------------------------------------------------------------------------------------------------
# PyTorch's zip format: a pickle in which each tensor is a call on a storage, whose bytes are a
# member of the archive.


def write(path: str, tensors: Tensors, style: str) -> None:
    """Writes a `.pth` that MMDetection and PyTorch read, with weights_only too."""
    meta = _dict([(_text("config"), _text(f"style = '{style}'\n"))])
    state = _ordered_dict(
        [(_text(name), _tensor(value, i)) for i, (name, value) in enumerate(tensors.items())]
    )
    content = _dict([(_text("meta"), meta), (_text("state_dict"), state)])
    with files.atomic_write(path, "wb") as f, zipfile.ZipFile(f, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/byteorder", b"little")
        for i, value in enumerate(tensors.values()):
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
            archive.writestr(f"archive/data/{i}", data)
        archive.writestr("archive/version", b"3\n")


def _tensor(value, key):
    kind = {"float32": "FloatStorage", "int64": "LongStorage"}[value.dtype.name]
    size, place = _whole(value.size), _text("cpu")
    storage = (
        _tuple([_text("storage"), _global("torch", kind), _text(str(key)), place, size]) + b"Q"
    )
    strides = [step // value.itemsize for step in np.empty(value.shape, value.dtype).strides]
    shape, strides = _tuple(map(_whole, value.shape)), _tuple(map(_whole, strides))
    arguments = [storage, _whole(0), shape, strides, b"\x89", _ordered_dict([])]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + b"R"


def _global(module, name):
    return f"c{module}\n{name}\n".encode("ascii")


def _ordered_dict(items):
    return _global("collections", "OrderedDict") + b")R" + _set_items(items)


def _dict(items):
    return b"}" + _set_items(items)


def _set_items(items):
    content = b"".join(key + value for key, value in items)
    return b"(" + content + b"u" if content else b""


def _tuple(items):
    return b"(" + b"".join(items) + b"t"


def _text(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _whole(number):
    return b"J" + struct.pack("<i", number)
