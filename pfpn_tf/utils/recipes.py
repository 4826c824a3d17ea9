"""Flagfiles: what they say, and where they are. The recipes, `configs/`, come with the package."""

import difflib
import os
import re
from typing import Iterable, Iterator, List, Optional, Tuple

from pfpn_tf.utils.errors import UserError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = _PACKAGE if os.path.isdir(os.path.join(_PACKAGE, "configs")) else os.path.dirname(_PACKAGE)
"""The folder with `configs/`: an installed package, or the checkout around it."""


def flagfile(name: str) -> str:
    """The flag that takes configs/NAME.flags of this package."""
    return f"--flagfile={os.path.join(ROOT, 'configs', name)}.flags"


def existing(path: str) -> str:
    """`path`, or the file of this name below `ROOT` where the working directory has none."""
    packaged = os.path.join(ROOT, path)
    return packaged if not os.path.exists(path) and os.path.isfile(packaged) else path


def expand(
    arguments: Iterable[str], within: Tuple[str, ...] = ()
) -> Iterator[Tuple[str, Optional[str]]]:
    """Puts the lines of flagfiles in the place of --flagfile=PATH, as absl does, nested ones too.

    Args:
      arguments: of a command.
      within: flagfiles that these are lines of.

    Yields:
      An argument, and PATH:LINE of the flagfile that it stands in, if it does.

    Raises:
      UserError: there is no such flagfile, or it is no text, or includes itself.
    """
    rest = iter(arguments)
    for number, argument in enumerate(rest, 1):
        given = re.fullmatch(r"--?flagfile(?:[=\s](.*))?", argument)
        if given is None:
            if not within:
                yield argument, None
            elif argument and not argument.startswith(("#", "//")):
                yield argument, f"{within[-1]}:{number}"
        elif given[1] is None:
            yield from _lines(next(rest, ""), within)
        else:
            yield from _lines(given[1].strip(), within)


def _lines(name, within):
    path = existing(os.path.expanduser(name))
    if within and within[-1].startswith(os.path.join(ROOT, "")):  # A recipe takes its own kind.
        packaged = os.path.join(ROOT, name)
        path = packaged if os.path.isfile(packaged) else path
    if path in within:
        raise UserError(f"--flagfile={path} includes itself, by way of {within[-1]}.")
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [line.strip() for line in f]
    except FileNotFoundError:
        near = difflib.get_close_matches(name, _names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give the path of a file."
        raise UserError(
            f"--flagfile={name}: no such file, nor a recipe of this package; {hint}"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"--flagfile={name} is no text file with a flag on each line.") from None
    except OSError as error:
        raise UserError(f"--flagfile={name} cannot be read ({error.strerror}).") from None
    return expand(lines, (*within, path))


def _names() -> List[str]:
    """Paths below `ROOT` of all flagfiles that come with the package."""
    found = []
    for folder, _, files in os.walk(os.path.join(ROOT, "configs")):
        found += [os.path.join(os.path.relpath(folder, ROOT), name) for name in files]
    return sorted(name for name in found if name.endswith(".flags"))
