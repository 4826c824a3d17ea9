"""What the settings may be: each within the limits of its field, and several together by rules.

Every message names the flags, their values and what would work.
"""

import dataclasses
import difflib
import inspect
import math
import operator
import typing
from typing import Any, List, Mapping

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_MAX_WHOLE = 2**63


def _rise(numbers):
    return all(a < b for a, b in zip(numbers, numbers[1:]))


# What must hold for the settings that are the function's arguments. If it does not, the message
# goes on after "--NAME=VALUE with --OTHER=VALUE".
RULES = (
    (
        lambda size_divisor: size_divisor % 32 == 0,
        "must be a multiple of 32, the stride of c5; use 32 or 64.",
    ),
    (
        lambda train_min_sides, train_max_side: max(train_min_sides) <= train_max_side,
        "has a shorter side above the longest; raise --train_max_side.",
    ),
    (
        lambda eval_min_side, eval_max_side: eval_min_side <= eval_max_side,
        "has a shorter side above the longest; raise --eval_max_side.",
    ),
    (
        lambda random_scale: list(random_scale) == sorted(random_scale),
        "must be low,high; e.g. 0.5,2.0.",
    ),
    (
        lambda crop_bootstrap, crop_size: crop_size or not crop_bootstrap,
        "has no crops to choose; add --crop_size, e.g. --crop_size=512,1024.",
    ),
    (
        lambda decoder, task: decoder == "fpn" or task == "semantic",
        "has no pyramid for the instance branch; use --task=semantic or --decoder=fpn.",
    ),
    (
        lambda output_stride, decoder: output_stride == 32 or decoder == "none",
        "changes the strides that the decoder expects; use --decoder=none or --output_stride=32.",
    ),
    (
        lambda decoder, semantic_head: (decoder == "none") == (semantic_head == "deeplabv3"),
        "does not fit; use fpn or symmetric with fpn, or none with deeplabv3.",
    ),
    (
        lambda fpn_groups, task, decoder: fpn_groups == 1 or (task, decoder) == ("panoptic", "fpn"),
        "has no two branches to give half of the pyramid each; use --task=panoptic --decoder=fpn.",
    ),
    (
        lambda fpn_channels, fpn_groups: fpn_channels % fpn_groups == 0,
        "cannot be divided; use --fpn_channels=256.",
    ),
    (
        lambda fpn_channels, head_norm: fpn_channels % 32 == 0 or head_norm != "group_norm",
        "cannot be divided by the norm's 32 groups; use --fpn_channels=256.",
    ),
    (
        lambda semantic_channels: semantic_channels % 32 == 0,
        "must be divisible by the 32 groups of the branch's group norm; use 64, 128 or 256.",
    ),
    (
        lambda rpn_negative_iou, rpn_positive_iou: rpn_negative_iou <= rpn_positive_iou,
        "makes anchors positive and negative at once; use 0.3 and 0.7.",
    ),
    (
        lambda alternate_losses, task: not alternate_losses or task == "panoptic",
        "has nothing to alternate; use --task=panoptic.",
    ),
    (
        lambda backbone_recompute, backbone_norm: not backbone_recompute
        or backbone_norm != "sync_bn",
        "would update the running statistics twice a step; use --backbone_norm=group_norm, or "
        "--nobackbone_recompute.",
    ),
    (
        lambda xla, static_shapes: static_shapes or not xla,
        "compiles anew for each of hundreds of image sizes; add --static_shapes.",
    ),
    (
        lambda xla, roi_sampling_ratio, task: not xla or roi_sampling_ratio or task == "semantic",
        "cannot compile RoIs that each take as many samples as they have feature cells; use "
        "--roi_sampling_ratio=2, or --noxla.",
    ),
    (
        lambda lr_decay_steps: _rise(lr_decay_steps),
        "must rise; e.g. 60000,80000.",
    ),
    (
        lambda lr_decay_steps, warmup_steps: warmup_steps < min(lr_decay_steps, default=math.inf),
        "drops the learning rate before it is reached; lower --warmup_steps.",
    ),
    (
        lambda restored_lr_factor, init_weights: restored_lr_factor == 1 or init_weights,
        "slows what --init_weights gives; give that too, or leave the factor at 1.",
    ),
    (
        lambda eval_losses, eval_interval_steps: eval_interval_steps or not eval_losses,
        "has no evaluations to go with; add --eval_interval_steps, e.g. 5000.",
    ),
    (
        lambda early_stop_evals, eval_interval_steps: eval_interval_steps or not early_stop_evals,
        "has no evaluations to count; add --eval_interval_steps, e.g. 5000.",
    ),
    (
        lambda profile_steps: list(profile_steps) == sorted(profile_steps),
        "must be first,last; e.g. 10,14.",
    ),
    (
        lambda semantic_scales: len(set(semantic_scales)) == len(semantic_scales),
        "must be different numbers; e.g. 0.75,1,1.25.",
    ),
    (
        lambda allowed_batch_sizes: _rise(allowed_batch_sizes),
        "must rise; e.g. 1,2,4.",
    ),
    (
        lambda max_request_images, allowed_batch_sizes: max_request_images
        >= allowed_batch_sizes[-1],
        "refuses the server's own batches; raise --max_request_images.",
    ),
)


def problems(fields: Mapping[str, dataclasses.Field], settings: Mapping[str, Any]) -> List[str]:
    """All that is wrong, a line each; the rules are tried when every value is right by itself."""
    found = [([name], _problem(fields[name], value)) for name, value in settings.items()]
    if not any(problem for _, problem in found):
        for holds, message in RULES:
            names = list(inspect.signature(holds).parameters)
            found.append((names, "" if holds(*map(settings.get, names)) else message))
    return [
        " with ".join(f"--{name}={text_of(settings[name])}" for name in names) + f" {problem}"
        for names, problem in found
        if problem
    ]


def text_of(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(text_of, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def item_kind(field: dataclasses.Field) -> type:
    """int, float, bool or str: the type of a setting, or of the items of one that is a tuple."""
    return (typing.get_args(field.type) or (field.type,))[0]


def _problem(field, value):
    """What follows "--NAME=VALUE" if the value breaks a limit of its field, else nothing."""
    limits, kind = field.metadata, item_kind(field)
    default = f"The default is {text_of(field.default) or 'empty'}."
    several = isinstance(field.default, tuple)
    if several and not isinstance(value, tuple):
        return f"must be a list. {default}"
    items = value if several else (value,)
    each = "must each be" if several else "must be"
    if not all(_is_a(kind, item) for item in items):
        return f"{each} {_KINDS[kind]}. {default}"
    if kind is int and not all(abs(item) < _MAX_WHOLE for item in items):
        return f"{each} below 2**63. {default}"
    choices = limits["choices"]
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), map(str, choices), n=1)
        hint = f"Did you mean {near[0]}?" if near else default
        return f"must be one of {', '.join(map(str, choices))}. {hint}"
    for name, holds in (
        ("at_least", operator.ge),
        ("above", operator.gt),
        ("at_most", operator.le),
    ):
        if limits[name] is not None and not all(holds(item, limits[name]) for item in items):
            return f"{each} {name.replace('_', ' ')} {limits[name]}. {default}"
    if limits["lengths"] and len(value) not in limits["lengths"]:
        return f"does not hold as many numbers as it needs: {limits['help']}"
    return ""


def _is_a(kind, value):
    if kind is float and type(value) is not bool:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return type(value) is kind
