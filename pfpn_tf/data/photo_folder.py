"""Finds photos in a folder by the names that annotation tools write into a JSON.

The name is a path below the folder. Where there is no such file, what tools change on their way is
undone: folders of the tool's own machine (Label Studio's ../../media/upload/4/), backslashes, web
addresses and Label Studio's /data/local-files/?d=, folders that an export left out, another case or
(macOS) another encoding of the letters, and the eight characters that Label Studio puts before the
name of an uploaded file.
"""

import collections
import functools
import os
import re
import unicodedata
import urllib.parse
from typing import Dict, Iterable, List, Tuple

from pfpn_tf.data.coco_json import DataError
from pfpn_tf.utils.errors import UserError

ELSEWHERE = "photos are not where their file_name says and are found by its last parts"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


def checked_folder(path, content: str) -> str:
    """The path of a folder, which should hold `content`.

    Raises:
      UserError: there is no such folder.
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such folder; it should hold the {content}.")
    return path


def image_files(folder: str) -> List[str]:
    """The paths below `folder` of all files that are named as images are, in order."""
    return [name for name in sorted(_walk(folder)) if name.lower().endswith(_SUFFIXES)]


class PhotoFolder:
    """The photos of a dataset."""

    def __init__(self, path, names: Iterable[str]):
        """Opens nothing yet.

        Args:
          path: the folder.
          names: `file_name` of all images. The end of a name finds a photo only where no other name
            has the same end.
        """
        self.path = checked_folder(path, "photos (--image_dir)")
        self._names_by_end = collections.Counter(
            end for name in set(names) for end in {*ends(name), plain_name(name)}
        )

    def find(self, name: str, other_names: Tuple[str, ...] = ()) -> Tuple[str, bool]:
        """The path of a photo, and whether it ends with `name`.

        Args:
          name: `file_name` of an image.
          other_names: names of files in any folder that are this photo, too.

        Raises:
          DataError: there is no such photo, or several.
        """
        path = os.path.join(self.path, name)
        if os.path.exists(path):
            return path, True
        tails = [end for n, end in enumerate(ends(name)) if n == 0 or self._names_by_end[end] == 1]
        for n, end in enumerate(tails):
            found = os.path.join(self.path, end)
            if os.path.exists(found):
                return found, n == 0 and "\\" in name
        last = [end for end in (tails[-1:] + [plain_name(name)]) if self._names_by_end[end] == 1]
        for key in (*other_names, *last):
            paths = self._paths_by_name.get(_key(key), [])
            if len(paths) > 1:
                several = ", ".join(sorted(paths)[:3])
                raise DataError(
                    f"{path}: no such image, but {len(paths)} of this name in other folders of"
                    f" {self.path}: {several}."
                )
            if paths:
                as_named = key in other_names or paths[0].endswith(tails[0])
                return os.path.join(self.path, paths[0]), as_named
        tried = f" (nor {', '.join(other_names)} in any folder there)" if other_names else ""
        raise DataError(f"{path}: no such image{tried}")

    @functools.cached_property
    def _paths_by_name(self) -> Dict[str, List[str]]:
        """Name in small letters, as it is and without an upload's first characters -> paths."""
        found: Dict[str, List[str]] = {}
        for path in _walk(self.path):
            for key in {_key(os.path.basename(path)), _key(plain_name(path))}:
                found.setdefault(key, []).append(path)
        return found


def _key(name):
    return unicodedata.normalize("NFC", name).casefold()


def _walk(folder):
    """Paths below a folder without hidden files and what macOS adds to zip files."""
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(directory, name), folder)


def ends(name: str) -> List[str]:
    """A name as a path with slashes, then without its first folder, and so on to its last part."""
    if "?d=" in name:
        name = urllib.parse.unquote(name.partition("?d=")[2])
    elif "://" in name:
        path = re.split("[?#]", name.partition("://")[2])[0].partition("/")[2]
        name = urllib.parse.unquote(path)
    parts = [p for p in name.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def plain_name(name: str) -> str:
    """The last part of a name without the characters that Label Studio puts before it."""
    return _UPLOADED.sub("", (ends(name) or [""])[-1])
