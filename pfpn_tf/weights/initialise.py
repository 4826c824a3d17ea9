"""Trained weights as the start of a training: what fits is taken, the rest starts at random.

The last layers of box, mask and semantic head have rows for classes. A row is taken for the class
of the same name, case and blanks aside; the rows of all other classes start at random.
"""

import pathlib
import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import categories
from pfpn_tf.runs import restore, run_directory
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import convert, detectron2, zoo

THINGS, SEMANTIC = "thing", "semantic"
_ANY_THING = "any thing"  # compared by `is`, since a class may have this name
_OF_BACKBONES = re.compile(r"backbone/|(backbone\.bottom_up\.)?(stem|res\d)\.")

Names = Mapping[str, Optional[List[str]]]
"""THINGS and SEMANTIC -> names of the classes in order; None where they are not known."""


class _Predictor(NamedTuple):
    """Where the classes are in a variable: `per_class` entries for each along `axis`."""

    kind: str
    axis: int
    per_class: int = 1
    has_background: bool = False  # one more class, the last


_PREDICTORS = {
    "box_head/classes/kernel": _Predictor(THINGS, -1, has_background=True),
    "box_head/classes/bias": _Predictor(THINGS, -1, has_background=True),
    "box_head/deltas/kernel": _Predictor(THINGS, -1, per_class=4),
    "box_head/deltas/bias": _Predictor(THINGS, -1, per_class=4),
    "mask_head/predictor_kernel": _Predictor(THINGS, 0),
    "mask_head/predictor_bias": _Predictor(THINGS, 0),
    "semantic_head/predictor/kernel": _Predictor(SEMANTIC, -1),
    "semantic_head/predictor/bias": _Predictor(SEMANTIC, -1),
}


class Source(NamedTuple):
    """Trained weights.

    Attributes:
      place: the file or checkpoint, for messages.
      values: path of a variable below the model -> its value.
      names: of the classes that its predictors know.
      unused: what else it holds, by name.
      remarks: lines for the report.
    """

    place: str
    values: Dict[str, np.ndarray]
    names: Names
    unused: List[str]
    remarks: List[str]


class Initialised(NamedTuple):
    """What a network took.

    Attributes:
      restored: variables that took their whole value from the source.
      report: lines that tell it, and what started at random.
    """

    restored: List[tf.Variable]
    report: List[str]


def initialise(
    model: tf.keras.Model, config: config_lib.Config, info: categories.DatasetInfo
) -> Initialised:
    """Gives a built model the weights that --init_weights names.

    Args:
      model: the built network.
      config: settings of the training.
      info: classes of the training.

    Raises:
      UserError: the weights cannot be read, lack a part of the backbone, or expect other pixels
        than the settings give.
    """
    weights = config.train.init_weights
    read = _of_others if convert.is_foreign(weights) else _of_a_run
    taken = take(model, read(model, config), _names(info, config.model.semantic_targets))
    if config.train.restored_lr_factor != 1:
        factor = f"{config.train.restored_lr_factor:g} times the learning rate"
        taken.report.append(f"What is taken whole has {factor}.")
    return taken


def take(model: tf.keras.Model, source: Source, names: Names) -> Initialised:
    """Assigns what fits.

    Raises:
      UserError: nothing fits, or a part of the backbone does not. The model is then unchanged.
    """
    values, restored, at_random = {}, [], []
    variables = restore.model_variables(model)
    for path, variable in variables.items():
        shape, value = tuple(variable.shape), source.values.get(path)
        predictor = _PREDICTORS.get(path)
        if value is not None and predictor:
            here, there = names[predictor.kind], source.names[predictor.kind]
            if here and there:
                value = _rows(variable.numpy(), value, predictor, here, there)
        if value is None or value.shape != shape:
            there_is = "missing" if value is None else f"{value.shape} there, {shape} here"
            at_random.append((path, there_is))
            continue
        values[path] = value
        if not predictor or _all_known(names, source.names, predictor.kind):
            restored.append(variable)
    unused = source.unused + sorted(set(source.values) - set(variables))
    _check_backbone(variables, source, at_random, unused)
    for path, value in values.items():
        variables[path].assign(value.astype(variables[path].dtype.as_numpy_dtype))
    by_class = len(values) - len(restored)
    report = [
        f"{len(restored)} of {len(variables)} variables are taken whole"
        f"{f' and {by_class} by class' if by_class else ''} from {source.place}."
    ]
    for kind in dict.fromkeys(p.kind for path, p in _PREDICTORS.items() if path in values):
        report += _class_lines(kind, names[kind], source.names[kind])
    report += _at_random_lines(at_random, variables)
    if unused:
        report.append("Not used: " + ", ".join(unused))
    return Initialised(restored, report + source.remarks)


# --------------------------------------------------------------------------------------------------
# Sources


def _of_a_run(model, config):
    del model
    weights = config.train.init_weights
    prefix = restore.find_init_checkpoint(weights)
    names: Names = {THINGS: None, SEMANTIC: None}
    for folder in list(pathlib.Path(prefix).absolute().parents)[:3]:  # .../checkpoints/best/ckpt-1
        if (folder / run_directory.CONFIG).exists():
            old_config, old_info = run_directory.load_run(str(folder))
            names = _names(old_info, old_config.model.semantic_targets)
            check_settings(config, old_config, weights)
            break
    return Source(prefix, restore.stored_values(prefix), names, [], [])


def _of_others(model, config):
    weights = config.train.init_weights
    if zoo.is_name(weights):
        check_settings(config, zoo.config(weights), weights)
    tensors, _ = convert.read(weights, model.config)
    told = convert.untold(weights, config, backbone_only=True)
    try:
        matches = detectron2.matches(model, tensors)
    except UserError as error:
        raise UserError(f"--init_weights={weights}: {error}") from None
    paths = {v.ref(): path for path, v in restore.model_variables(model).items()}
    values = {paths[p.variable.ref()]: _ours(p, tensors[name]) for p, name in matches if name}
    classes = _names(zoo.coco_info(), "other")
    things = values.get("mask_head/predictor_bias", ())
    stuff = values.get("semantic_head/predictor/bias", ())
    names: Names = {
        THINGS: classes[THINGS] if len(things) == len(classes[THINGS]) else None,
        SEMANTIC: classes[SEMANTIC] if len(stuff) == len(classes[SEMANTIC]) else None,
    }
    place = f"{weights}, whose classes are taken for COCO's" if any(names.values()) else weights
    used = {name for _, name in matches}
    return Source(place, values, names, [name for name in tensors if name not in used], told)


def _ours(parameter, tensor):
    try:
        return parameter.layout.to_ours(tensor)
    except (ValueError, IndexError):
        return tensor[None]  # its rank or size is wrong: one more axis, so that it does not fit


def check_settings(config: config_lib.Config, expected: config_lib.Config, weights: str) -> None:
    """Checks the settings that must be as they were when the weights were trained.

    Raises:
      UserError: they differ.
    """
    ours, theirs = config.flat(), expected.flat()
    wrong = [name for name in convert.OF_THE_PIXELS if ours[name] != theirs[name]]
    if wrong:
        flags = run_directory.recipe_text(expected).splitlines()
        needed = [flag for flag in flags if flag[2:].partition("=")[0] in wrong]
        raise UserError(
            f"--init_weights={weights} was trained with other settings of the pixels or strides."
            f" Add {' '.join(needed)}."
        )


# --------------------------------------------------------------------------------------------------
# Classes


def _names(info, semantic_targets) -> Dict[str, List[str]]:
    semantic = info.semantic_names(semantic_targets)
    if semantic_targets == "other":
        semantic = [_ANY_THING, *semantic[1:]]
    return {THINGS: info.thing_names, SEMANTIC: semantic}


def _key(name):
    return _ANY_THING if name is _ANY_THING else "".join(name.casefold().split())


def _same_names(here, there) -> List[Tuple[int, int]]:
    """(place here, place there) of the classes that have the same name."""
    place = {_key(name): i for i, name in reversed(list(enumerate(there)))}  # the first wins
    return [(i, place[_key(name)]) for i, name in enumerate(here) if _key(name) in place]


def _all_known(here, there, kind):
    return not there[kind] or len(_same_names(here[kind], there[kind])) == len(here[kind])


def _rows(own, value, predictor, here, there):
    """`own` with the rows of `value` for classes of the same name; `value` if it does not fit."""
    axis, count = predictor.axis, predictor.per_class
    own, value = np.moveaxis(own.copy(), axis, 0), np.moveaxis(value, axis, 0)
    num_rows = count * len(there) + predictor.has_background
    if value.shape == (num_rows, *own.shape[1:]):
        for i, j in _same_names(here, there):
            own[count * i : count * (i + 1)] = value[count * j : count * (j + 1)]
        if predictor.has_background:
            own[-1] = value[-1]
        value = own
    return np.moveaxis(value, 0, axis)


# --------------------------------------------------------------------------------------------------
# Report


def _class_lines(kind, here, there) -> List[str]:
    if not there:
        return [f"The {kind} classes of the weights are not known: their rows are taken in order."]
    known = {i for i, _ in _same_names(here, there)}
    taken = [name for i, name in enumerate(here) if i in known]
    fresh = [name for i, name in enumerate(here) if i not in known]
    lines = [f"Rows of {len(taken)} {kind} classes are taken: {', '.join(taken)}"] if taken else []
    if fresh:
        lines.append(f"Rows of {len(fresh)} {kind} classes start at random: {', '.join(fresh)}")
    return lines


def _at_random_lines(at_random, variables) -> List[str]:
    """One line for the components that are missing as a whole, one for each other variable."""
    missing = {path for path, why in at_random if why == "missing"}
    whole = sorted(
        component
        for component in {path.partition("/")[0] for path in missing}
        if missing >= {path for path in variables if path.startswith(f"{component}/")}
    )
    lines = [f"Missing, so they start at random: {', '.join(whole)}"] if whole else []
    return lines + [
        f"Starts at random: {path} ({why})"
        for path, why in at_random
        if path.partition("/")[0] not in whole
    ]


def _check_backbone(variables, source, at_random, unused):
    """The backbone must fit as a whole: a part at random may be frozen, and ruins the rest."""
    lacking = [f"{path} ({why})" for path, why in at_random if path.startswith("backbone/")]
    lacking += [f"{name} (has no use here)" for name in unused if _OF_BACKBONES.match(name)]
    if lacking or len(at_random) == len(variables):
        listed = ", ".join(lacking[:3]) or "none of its variables fits"
        raise UserError(
            f"--init_weights={source.place} does not fit the backbone: {listed}"
            f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}."
            " Are --backbone and --backbone_norm those of the weights?"
        )
