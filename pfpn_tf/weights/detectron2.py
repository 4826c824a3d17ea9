"""Detectron2's names and layouts: from tensors into a model, and back.

Three steps: `safe_pickle.read` reads a file, `convert.to_detectron2_names` gives its tensors
Detectron2's names, `load` puts them into a model. `to_detectron2` and `write` are the way back.

Layouts: Detectron2's convolutions are [out, in, kh, kw], transposed ones [in, out, kh, kw], fully
connected layers [out, in]; images are BGR and boxes and deltas x before y, where this project has
RGB and y before x.
"""

import collections
import pickle
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import tensorflow as tf

from pfpn_tf.model import box_head, norms
from pfpn_tf.utils import files
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights.safe_pickle import Tensors

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
    """The variables of a built `PanopticFPN`, by Detectron2 name: all, except of the decoders and
    heads that Detectron2 does not have.
    """
    found = list(_backbone(model.backbone))
    if model.config.decoder == "fpn":
        found += _fpn(model.fpn)
    if model.has_instances:
        found += _instance_heads(model)
    if model.has_semantics and model.config.semantic_head == "fpn":
        found += _semantic_head(model.semantic_head)
    return found


def _conv(name, conv, layout=_CONV) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", conv.kernel, layout)
    if conv.norm is None:
        yield Parameter(f"{name}.bias", conv.bias, _SAME)
        return
    yield Parameter(f"{name}.norm.weight", conv.norm.gamma, _SAME)
    yield Parameter(f"{name}.norm.bias", conv.norm.beta, _SAME)
    if not isinstance(conv.norm, norms.GroupNorm):
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

_SHOWN_PROBLEMS = 20


def load(model: tf.keras.Model, tensors: Tensors, backbone_only: bool = False) -> None:
    """Gives a built model the values of a Detectron2 checkpoint, matched as by `matches`.

    Args:
      model: a built `PanopticFPN`.
      tensors: Detectron2 names to values.
      backbone_only: take the backbone's tensors and leave the rest of the model as it is.

    Raises:
      UserError: all tensors that are missing, surplus or of another shape. The model is then
        unchanged.
    """
    found = matches(model, tensors)
    if backbone_only:
        found = [(p, name) for p, name in found if p.name.startswith("backbone.bottom_up.")]
    problems = [f"missing: {p.name}" for p, name in found if name is None]
    used = dict.fromkeys(name for _, name in found)
    problems += [
        f"surplus: {name} {list(tensors[name].shape)}" for name in tensors if name not in used
    ]
    problems += [
        f"shape: {name} is {list(tensors[name].shape)}, expected {list(p.detectron2_shape())}"
        for p, name in found
        if name and tensors[name].shape != p.detectron2_shape()
    ]
    if problems:
        raise UserError(
            f"The weights do not fit the network ({model.config.task}, {model.config.backbone},"
            f" {model.num_thing_classes} thing classes, {model.num_semantic_classes} semantic"
            f" classes); {len(problems)} of {len(found)} tensors:\n  "
            + "\n  ".join(problems[:_SHOWN_PROBLEMS])
            + ("\n  and so on" if len(problems) > _SHOWN_PROBLEMS else "")
            + (
                ""
                if used.keys() - {None}
                else f"\nIts names are such as {next(iter(tensors), '')}."
            )
        )
    for p, name in found:
        if name:
            value = p.layout.to_ours(tensors[name])
            p.variable.assign(value.astype(p.variable.dtype.as_numpy_dtype))


def matches(model: tf.keras.Model, tensors: Tensors) -> List[Tuple[Parameter, Optional[str]]]:
    """Each parameter of a model with the name of the tensor that is meant for it, if there is one.

    A tensor whose name is the end of a Detectron2 name, such as res2.0.conv1.weight, is taken for
    it; the longest such name wins. A tensor that would be meant for several is meant for none.

    Raises:
      UserError: a tensor that is meant for a parameter has whole numbers.
    """
    found = [(p, _matching_name(p.name, tensors)) for p in parameters(model)]
    uses = collections.Counter(name for _, name in found)
    whole = [name for name in uses if name and tensors[name].dtype.kind != "f"]
    if whole:
        raise UserError(
            f"{len(whole)} of {len(found)} tensors are whole numbers, first {whole[0]}"
            f" ({tensors[whole[0]].dtype}), as of a quantized network. Give those of the network"
            " in float."
        )
    return [(p, name if uses[name] == 1 else None) for p, name in found]


def _matching_name(wanted, tensors):
    parts = wanted.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))  # the longest first
    return next((end for end in ends if end in tensors), None)


def to_detectron2(model: tf.keras.Model) -> Tensors:
    """The values of a built model by Detectron2 name, in its layouts: the exact inverse of
    `load`.

    Raises:
      UserError: it is a network that Detectron2 does not have.
    """
    if model.config.decoder != "fpn" or model.config.semantic_head != "fpn":
        raise UserError(
            f"--decoder={model.config.decoder} with --semantic_head={model.config.semantic_head}"
            " has no counterpart in other projects; only fpn with fpn can be converted."
        )
    return {p.name: p.detectron2_value() for p in parameters(model)}


def write(path: str, tensors: Tensors) -> None:
    """Writes a `.pkl` that Detectron2's checkpointer reads."""
    with files.atomic_write(path, "wb") as f:
        pickle.dump({"model": tensors, "__author__": "pfpn_tf"}, f, protocol=2)
