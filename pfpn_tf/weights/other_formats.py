"""Files that are taken for checkpoints and are none, told by what they begin with."""

import re
import zipfile
from typing import BinaryIO

from pfpn_tf.utils.errors import UserError

EXPECTED = "A PyTorch .pth or .pkl file, or a run directory, is expected."
_PACKED = "a packed file; unpack it and give the file inside"
# What other files begin with.
_OTHERS = {
    rb".{4}\0{4}\{": "a safetensors file; load it with safetensors and write it with torch.save",
    rb"\x89HDF": f"an HDF5 file, such as Keras writes. {EXPECTED} For Keras' ResNets give imagenet",
    rb"\x08.\x12": f"an ONNX file. {EXPECTED} Give the one that it was exported from",
    rb"\x93NUMPY": f"a single NumPy array. {EXPECTED} Give one with all tensors",
    rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar": _PACKED,
}


def refuse(f: BinaryIO) -> None:
    """Refuses what people take for weights: other formats, and what a failed download leaves.

    Raises:
      UserError: it is one of them; says which and what to do.
    """
    start = f.read(512)
    f.seek(0)
    for pattern, what in _OTHERS.items():
        if re.match(pattern, start, re.DOTALL):
            raise UserError(f"is {what}.")
    if re.search(r"\.(index|data-\d+-of-\d+)$", f.name):
        raise UserError(
            "is a part of a TensorFlow checkpoint; give the run directory that it lies in."
        )
    if start.startswith(b"PK") and not zipfile.is_zipfile(f):
        raise UserError("is damaged: its end is missing. Copy or download it again.")
    f.seek(0)
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        raise UserError("is a Git LFS pointer, not the weights themselves; run `git lfs pull`.")
    if start.startswith((b"<", b"{")):
        raise UserError(
            "is a web page or a server's message, not weights: the address leads to a page about"
            " the file, or the download was refused. Open it in a text editor to see which."
        )


def start_of_text(path: str) -> str:
    """The first line of a text file, empty for other files."""
    try:
        with open(path, "rb") as f:
            start = f.read(80)
        utf_16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
        lines = start.decode("utf-16" if utf_16 else "utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[0] if lines and all(line.isprintable() for line in lines) else ""
