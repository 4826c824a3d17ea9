"""How every command-line tool starts and ends.

Import this before TensorFlow: it silences TensorFlow's start-up chatter, which says nothing to a
user, unless they ask for it with TF_CPP_MIN_LOG_LEVEL. TensorFlow 2.15 calls part of it errors;
real errors reach us as Python exceptions as well.
"""

import os
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for _category in (DeprecationWarning, FutureWarning):
    warnings.filterwarnings("ignore", category=_category)

from absl import app, flags, logging  # noqa: E402  (the variable must be set first)

USER_ERROR = 2
INTERRUPTED = 130


def run(main) -> None:
    """Parses the flags, runs `main()` and exits.

    Exit codes: what `main` returns (None is 0); 2 for a user error (ValueError, OSError), whose
    message is printed without a traceback; 130 for Ctrl-C. Run with --verbosity=1 for the traceback.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    flags.FLAGS.showprefixforinfo = False
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse_flags)


def _parse_flags(argv):
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error).removeprefix("ERROR:: ")  # absl's own, of a missing flagfile
        _fail(f"{message}\nSee {os.path.basename(argv[0])} --help.")


def _guarded(main, argv):
    if len(argv) > 1:
        _fail(f"Unexpected argument {argv[1]!r}; every option is a --flag=value.")
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        if logging.get_verbosity() >= logging.DEBUG:
            raise
        _fail(_message(error))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _message(error):
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def _fail(message):
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)
