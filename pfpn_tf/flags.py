"""The settings' flags, one for each `Config` field, and checks of what a tool was given.

A tool defines its own flags (paths, what to do) itself, with absl.
"""

import os
from typing import Iterable

from absl import flags

from pfpn_tf import config as config_lib
from pfpn_tf import config_checks
from pfpn_tf.utils import files, recipes
from pfpn_tf.utils.errors import UserError

FLAGS = flags.FLAGS


def define_config_flags(flag_values: flags.FlagValues = FLAGS) -> None:
    """Defines one flag per setting. The default shown is the setting's own."""
    for name, field in config_lib.all_fields().items():
        default, text = field.default, field.metadata["help"]
        define = flags.DEFINE_string
        if isinstance(default, bool):
            define = flags.DEFINE_bool
        elif isinstance(default, int):
            define = flags.DEFINE_integer
        elif isinstance(default, float):
            define = flags.DEFINE_float
        elif isinstance(default, tuple):
            define, default = flags.DEFINE_list, [str(v) for v in default]
            text += " Comma-separated."
        elif field.metadata["choices"]:
            text += f" One of: {', '.join(field.metadata['choices'])}."
        define(name, default, text, flag_values=flag_values)


def given_settings(flag_values: flags.FlagValues = FLAGS) -> dict:
    """The settings given on the command line or in a flagfile, parsed; the others are left out.

    Raises:
      UserError: an item of a list flag is not a number where one is expected.
    """
    settings = {
        name: _parse(name, flag_values[name].value, field)
        for name, field in config_lib.all_fields().items()
        if name in flag_values and flag_values[name].present
    }
    if settings.get("dataset_info"):
        settings["dataset_info"] = recipes.existing(settings["dataset_info"])
    return settings


def settings_of(arguments: Iterable[str]) -> dict:
    """The settings that arguments of a command give."""
    values = flags.FlagValues()
    define_config_flags(values)
    values(["", *(argument for argument, _ in recipes.expand(arguments))])
    return given_settings(values)


def config_from_flags(base: config_lib.Config = config_lib.Config()) -> config_lib.Config:
    """The validated `Config`: `base` (say, that of a run directory) with the given flags on top."""
    return base.replace(**given_settings())


def check_given(names: Iterable[str]) -> None:
    """Raises UserError naming the tool flags among `names` that are empty."""
    missing = [name for name in names if not FLAGS[name].value]
    if missing:
        raise UserError("\n".join(map(_is_required, missing)))


def make_output_dir(name: str) -> None:
    """Makes the folder that flag `name` holds and tries to write there, before any long work.

    Raises:
      UserError: that is not possible; says why.
    """
    files.make_writable(FLAGS[name].value, name)


def make_parent(name: str) -> None:
    """`make_output_dir` for the folder of the file that flag `name` holds."""
    files.make_writable(os.path.dirname(os.path.abspath(FLAGS[name].value)), name)


def check_files(names: Iterable[str]) -> None:
    """Raises UserError naming the flags among `names` whose path is empty or does not exist."""
    problems = []
    for name in names:
        value = FLAGS[name].value
        if not value:
            problems.append(_is_required(name))
        elif not os.path.exists(value):
            problems.append(f"--{name}={value}: no such file or directory; check the path.")
    if problems:
        raise UserError("\n".join(problems))


def _is_required(name):
    return f"--{name} is required: {FLAGS[name].help}"


def _parse(name, value, field):
    if not isinstance(field.default, tuple):
        return value
    kind = config_checks.item_kind(field)
    try:
        return tuple(kind(v) for v in value)
    except ValueError:
        raise UserError(
            f"--{name}={','.join(value)} must be a comma-separated list of "
            f"{'whole numbers' if kind is int else 'numbers'}."
        ) from None
