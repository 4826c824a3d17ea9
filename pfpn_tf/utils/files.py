"""Local files that are never half-written, and the refusal of paths that are not local."""

import contextlib
import glob
import os
import re
import tempfile
import uuid
from typing import List

from pfpn_tf.utils.errors import UserError

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def refuse_remote(path, name: str = "") -> None:
    """Raises UserError for gs://BUCKET/X and its like, which would become a local folder "gs:".

    Args:
      path: to read or write.
      name: of the flag that holds it, if one does.
    """
    if _REMOTE.match(os.fspath(path)):
        raise UserError(
            f"{f'--{name}=' if name else ''}{path}: only local paths are read and written; mount "
            "the remote folder or copy its files."
        )


def make_writable(folder, flag: str) -> None:
    """Makes a folder and tries to write there, before any long work.

    Args:
      folder: the folder.
      flag: by which a user chooses it, for the error.

    Raises:
      UserError: that is not possible; says why.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(bytes(4096))
    except OSError as error:
        raise UserError(
            f"--{flag}: cannot write in {folder} ({error.strerror}); choose another folder, make"
            " room, or change its permissions."
        ) from None


def matching(pattern: str) -> List[str]:
    """The paths that match a glob, sorted. A folder that exists is taken by its name, which may
    have brackets in it.
    """
    folder, name = os.path.split(pattern)
    if os.path.isdir(folder):
        pattern = os.path.join(glob.escape(folder), name)
    return sorted(glob.glob(pattern, recursive=True))


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Opens a temporary file beside `path` and renames it to `path` when the block succeeds.

    If the block raises, `path` is left as it was and the temporary file is removed. Of a symbolic
    link, the file that it points to is written. A device or a pipe is written directly.

    Args:
      path: final path; missing parent directories are created.
      mode: "w" for text (UTF-8) or "wb" for bytes.

    Raises:
      OSError: it cannot be written; names `path`.
      UserError: `path` is not local.
    """
    refuse_remote(path)
    path = os.fspath(path)
    encoding = None if "b" in mode else "utf-8"
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with _named(path), open(path, mode, encoding=encoding) as f:
            yield f
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    # A short name, so that a long name of the final file is no problem.
    temporary = os.path.join(os.path.dirname(target), f".{uuid.uuid4().hex}.tmp")
    try:
        with _named(path, temporary):
            with open(temporary, mode.replace("w", "x"), encoding=encoding) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _named(path, temporary=None):
    """Lets errors of the system tell the name of the final file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename in (None, temporary):
            error.filename, error.filename2 = path, None
        raise
