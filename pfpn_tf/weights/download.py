"""Downloads a file once, into a cache folder. A cut download continues where it stopped."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
from typing import Iterator, Optional

from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.progress import Bar

CACHE_VARIABLE = "PFPN_TF_CACHE"
_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0


class _Cut(Exception):
    """The server or the connection to it failed; the message says how."""


def cache_dir() -> str:
    """The folder of downloaded files: $PFPN_TF_CACHE, or pfpn_tf in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get(CACHE_VARIABLE) or os.path.join(user, "pfpn_tf")


def fetch(url: str, path: str, algorithm: str = "sha256", digest: str = "") -> str:
    """Downloads a file, unless it is there.

    Args:
      url: its address.
      path: where to put it; until it is whole, it is named `path`.part.
      algorithm: of hashlib.
      digest: what the file's hash begins with, in hexadecimal; empty: it is not known.

    Returns:
      `path`.

    Raises:
      UserError: the file cannot be had or written, or is not the right one.
    """
    if os.path.exists(path):
        _check_digest(path, url, algorithm, digest)
        return path
    part = f"{path}.part"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(part, "ab") as f:
            with contextlib.suppress(OSError):  # some network disks have no locks
                fcntl.flock(f, fcntl.LOCK_EX)  # of processes that share a cache one downloads
            if os.path.exists(path):  # Another process was quicker.
                with contextlib.suppress(FileNotFoundError):
                    os.remove(part)
            else:
                _receive(url, f, path)
                _check_digest(part, url, algorithm, digest)
                os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"Cannot write {part} ({error.strerror or error}). Make room there, or name another"
            f" folder in the environment variable {CACHE_VARIABLE}."
        ) from None
    return path


def _receive(url, f, path):
    """Appends what is missing to the open file; tries again as long as each attempt brings some."""
    while True:
        before = f.tell()
        try:
            total = _append(url, f)
            f.flush()
            if total is None or f.tell() == total:
                return
            problem = f"the connection was cut after {f.tell()} of {total} bytes"
        except _Cut as error:
            problem = str(error)
        if f.tell() <= before:
            kept = f" {f.tell()} bytes are kept, and the same command goes on." if f.tell() else ""
            raise UserError(
                f"Cannot download {url}: {problem}.{kept} Or fetch this address in another way and"
                f" save it as {path}."
            )


def _append(url, f) -> Optional[int]:
    """One attempt. Returns the size of the whole file, if the server tells it."""
    start = f.tell()
    with _open(url, start) as response:
        if response.headers.get_content_type() == "text/html":
            raise _Cut("the server answers with a web page")
        place = response.headers.get("Content-Range", "")
        if start and not place.startswith(f"bytes {start}-"):
            start = 0  # it sends the whole file
            f.seek(0)
            f.truncate()
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(f.name))).free
        if total and total - start > free:
            raise OSError(f"{free} bytes are free, {total - start} needed")
        with Bar(os.path.basename(url), total, "B") as bar:
            bar.unit_scale = True
            bar.initial = bar.n = start
            for chunk in _chunks(response):
                f.write(chunk)
                f.flush()
                bar.update(len(chunk))
    return total


def _open(url, start) -> http.client.HTTPResponse:
    headers = {"User-Agent": "pfpn_tf", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return _open(url, 0)  # there are no more bytes than we have
        raise _Cut(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"{getattr(error, 'reason', None) or error or type(error).__name__}") from None


def _chunks(response) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut ({error or type(error).__name__})") from None


def _check_digest(path, url, algorithm, digest):
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, algorithm).hexdigest()
    if not found.startswith(digest):
        raise UserError(
            f"{path} is not the file of {url}: its {algorithm} begins with {found[: len(digest)]}"
            f" in place of {digest}. Delete it and give the same command again."
        )
