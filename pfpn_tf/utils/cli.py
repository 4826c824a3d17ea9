"""How every command-line tool starts and ends.

Import this before TensorFlow, for the two variables that it sets unless the user has set them.

TF_CPP_MIN_LOG_LEVEL silences TensorFlow's start-up chatter, which says nothing to a user.
TensorFlow 2.15 calls part of it errors; real errors reach us as Python exceptions as well.

TF_ENABLE_ONEDNN_OPTS=1 takes oneDNN's kernels also on processors without AVX512_VNNI, AVX512_BF16,
AVX_VNNI and AMX, where TensorFlow does not by itself: they are the faster ones there, too. Results
are the same within float32's rounding.
"""

import contextlib
import difflib
import errno
import functools
import logging as stdlib_logging
import os
import re
import signal
import sys
import warnings
from typing import Any, Callable, NoReturn

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", category=_category)

from absl import app, flags, logging  # noqa: E402  (the variable must be set first)

from pfpn_tf.utils import recipes  # noqa: E402
from pfpn_tf.utils.errors import UserError  # noqa: E402
from pfpn_tf.utils.files import refuse_remote  # noqa: E402

_KINDS = {
    "an integer": "a whole number",
    "a positive integer": "a whole number from 1 on",
    "a non-negative integer": "a whole number from 0 on",
    "a number": "a number",
    "": "true or false",
}
"""What absl calls a kind of flag, and what we do."""

_OF_WEIGHTS = ("weights", "init_weights")
"""Flags that take a path or a name of published weights."""
_PUBLISHED = ("detectron2://", "mmdet://")
"""What these names begin with."""

# Errors of the system that the user can mend. Others, such as those of a network disk, may pass.
_MENDABLE = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
}

FAILURE = 1
USER_ERROR = 2
INTERRUPTED = 130


class _Formatter(logging.PythonFormatter):
    """Shows a warning as an error of the user is shown, without time and line of code."""

    def format(self, record):
        if record.levelno == stdlib_logging.WARNING:
            return f"Warning: {record.getMessage()}"
        return super().format(record)


def command(main: Callable[[], Any]) -> Callable[[], NoReturn]:
    """Makes `main` a command line: it parses the flags, runs `main()` and exits.

    Exit codes: what `main` returns (None is 0); 2 for what the user can mend (`UserError`, a
    missing file, a full disk), told in one line; 1 for every other error, with its traceback unless
    it is an OSError in the project's own words; 130 for Ctrl-C and 143 for SIGTERM, after what is
    half-written has been removed. --verbosity=1 shows all tracebacks.
    --help shows the docstring and the flags of main's module, --helpfull also the settings.
    """

    @functools.wraps(main)
    def run():
        logging.use_absl_handler()
        logging.set_verbosity(logging.INFO)
        flags.FLAGS.showprefixforinfo = False
        logging.get_absl_handler().setFormatter(_Formatter())
        signal.signal(signal.SIGTERM, _terminate)
        parse = functools.partial(_parse_flags, sys.modules[main.__module__])
        app.run(lambda argv: _guarded(main), flags_parser=parse)

    return run


def _terminate(number, frame):
    """Ends the tool by an exception, as Ctrl-C does, so that no file stays half-written."""
    del frame
    signal.signal(number, signal.SIG_IGN)  # `timeout` sends it twice.
    sys.exit(128 + number)


def _parse_flags(module, argv):
    asked = {option.lstrip("-") for option in argv[1:] if option.startswith("-")}
    if asked & {"help", "helpshort", "h", "?", "helpfull"}:
        own = argv[0] if module.__name__ == "__main__" else module.__name__
        settings = flags.FLAGS.module_help("pfpn_tf.flags")
        shown = [module.__doc__, flags.FLAGS.module_help(own)]
        if "helpfull" in asked:
            shown += [settings, flags.FLAGS.module_help("absl.logging")]
        elif settings:
            shown += [
                "\n--helpfull also shows the settings, which --flagfile=PATH takes from a file."
            ]
        with contextlib.suppress(BrokenPipeError):  # --help | head
            print(*shown, sep="\n", flush=True)
        os._exit(0)  # Python's own exit would flush a closed pipe once more.
    try:
        arguments = list(recipes.expand(argv[1:]))
        rest = flags.FLAGS([argv[0], *(argument for argument, _ in arguments)])
    except (flags.Error, UserError) as error:
        message = str(error) if isinstance(error, UserError) else _explain(error, arguments)
        _fail(f"{message}\nSee {os.path.basename(argv[0])} --help.")
    if rest[1:]:
        _fail(_unexpected(rest[1], arguments))
    return rest


def _unexpected(argument, arguments):
    place = dict(reversed(arguments)).get(argument)
    if place:
        return (
            f"{place}: Unexpected line {argument!r}. A flagfile has a --flag=value on each line,"
            " like recipe.flags in a run directory; it is no YAML or JSON."
        )
    return f"Unexpected argument {argument!r}; every option is a --flag=value."


def _explain(error, arguments):
    """Adds the nearest flag to an unknown one, and where in a flagfile the wrong one stands."""
    message = str(error)
    name = getattr(error, "flagname", "") or message.partition("flag --")[2].partition("=")[0]
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(name.removeprefix("no"), flags.FLAGS, n=1)
        message = f"Unknown flag --{name}.{f' Did you mean --{near[0]}?' if near else ''}"
    elif isinstance(error, flags.IllegalFlagValueError) and name in flags.FLAGS:
        flag, value = flags.FLAGS[name], message.partition("=")[2].partition(": ")[0]
        choices = [choice or "empty" for choice in getattr(flag.parser, "enum_values", ())]
        kind = _KINDS.get(flag.parser.syntactic_help, flag.parser.syntactic_help)
        kind = f"one of {', '.join(choices)}" if choices else kind
        message = f"--{name}={value} must be {kind}. The default is {flag.default!r}."
    own = re.compile(rf"--?{re.escape(name)}(=|\s|$)")
    place = next((place for argument, place in reversed(arguments) if own.match(argument)), None)
    return f"{place}: {message}" if place else message


def _guarded(main):
    try:
        _refuse_remote_paths(flags.FLAGS)
        sys.exit(main())
    except (UserError, OSError) as error:
        if logging.get_verbosity() >= logging.DEBUG or not _explains_itself(error):
            raise
        _fail(_message(error), FAILURE if _may_pass(error) else USER_ERROR)
    except Exception as error:
        if logging.get_verbosity() >= logging.DEBUG or not _is_data_loss(error):
            raise
        reason = re.sub("^{{.*?}} ", "", str(error)).partition(" [Op")[0].splitlines()[0]
        _fail(
            f"A TFRecord or another file that was read is damaged ({reason}). Convert the split"
            " again, or copy its files again."
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _is_data_loss(error):
    """Whether TensorFlow, if it is there, found that a checksum does not fit."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.DataLossError)


def _refuse_remote_paths(flag_values):
    """Every flag is a setting, a name or a path, but for the address of a server."""
    for name in set(flag_values) - {"url"}:
        value = flag_values[name].value
        for path in value if isinstance(value, (list, tuple)) else [value]:
            published = name in _OF_WEIGHTS and str(path).startswith(_PUBLISHED)
            if isinstance(path, str) and not published:
                refuse_remote(path, name)


def _may_pass(error):
    """Whether the same command may work another time, with nothing changed."""
    return isinstance(error, OSError) and error.errno not in _MENDABLE


def _explains_itself(error):
    """Whether the message alone says what is wrong: ours, or a file's name with its error."""
    return isinstance(error, UserError) or error.errno is None or error.errno in _MENDABLE


def _message(error):
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def _fail(message, code=USER_ERROR):
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(code)
