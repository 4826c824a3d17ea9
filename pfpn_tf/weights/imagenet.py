"""ImageNet backbones of Caffe2 and Keras applications, by Detectron2's names."""

import re

import numpy as np
import tensorflow as tf

from pfpn_tf.ops.group_norm import EPSILON
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights.safe_pickle import Tensors

_PREFIX = "backbone.bottom_up."


def from_caffe2(tensors: Tensors) -> Tensors:
    """A backbone with Caffe2's names by Detectron2's names.

    Raises:
      UserError: it is a whole detector.
    """
    if any(name.startswith(("fpn_", "rpn_", "conv_rpn", "cls_score")) for name in tensors):
        raise UserError(
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
            name = f"{_PREFIX}res{block[1]}.{block[2]}.{convs[block[3]]}.{ends[block[4]]}"
        elif stem:
            name = f"{_PREFIX}stem.conv1.{ends[stem[1]]}"
        renamed[name] = value
    # Files whose batch norms are folded into scale and shift carry no statistics.
    for name in [n for n in renamed if n.endswith("norm.weight")]:
        start = name[: -len("weight")]
        renamed.setdefault(start + "running_mean", np.zeros_like(renamed[name]))
        renamed.setdefault(start + "running_var", np.ones_like(renamed[name]))
    return renamed


def from_keras_application(application: tf.keras.Model) -> Tensors:
    """The backbone of a `tf.keras.applications` ResNet50, 101 or 152 (the first version) by
    Detectron2 name.

    Its stride is in the 1x1 convolution. Its convolutions have a bias, which goes into the mean of
    the batch norm behind them, as does the difference of the epsilons into the variance.
    """
    names = {"0": "shortcut", "1": "conv1", "2": "conv2", "3": "conv3"}
    tensors = {}
    for conv in application.layers:
        match = re.fullmatch(r"(?:conv(\d)_block(\d+)_(\d)|conv1)_conv", conv.name)
        if not match:
            continue
        name = f"{_PREFIX}stem.conv1"
        if match[1]:
            name = f"{_PREFIX}res{match[1]}.{int(match[2]) - 1}.{names[match[3]]}"
        norm = application.get_layer(conv.name.removesuffix("conv") + "bn")
        kernel, bias = conv.get_weights()
        gamma, beta, mean, variance = norm.get_weights()
        tensors[f"{name}.weight"] = kernel.transpose(3, 2, 0, 1)  # BGR, as Detectron2
        tensors[f"{name}.norm.weight"] = gamma
        tensors[f"{name}.norm.bias"] = beta
        tensors[f"{name}.norm.running_mean"] = mean - bias
        tensors[f"{name}.norm.running_var"] = variance + np.float32(norm.epsilon - EPSILON)
    return tensors
