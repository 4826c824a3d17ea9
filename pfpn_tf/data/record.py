"""What a dataset says about one image: the plain values that a TFRecord holds."""

from typing import Dict, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from pfpn_tf.utils.errors import UserError

ALLOW = "--allow_mismatch converts the data all the same."


class Segment(NamedTuple):
    """A segment of the panoptic map; area and box are those of its pixels."""

    id: int
    category_id: int
    area: int
    bbox_xywh: Sequence[float]
    iscrowd: bool


class Instance(NamedTuple):
    """An instance annotation; `mask` is [h, w] uint8, 0 or 1, and may overlap others."""

    id: int
    category_id: int
    area: float
    bbox_xywh: Sequence[float]
    iscrowd: bool
    mask: np.ndarray


class Notes:
    """What to know about data: for each kind of finding how often, and where the first was."""

    def __init__(self):
        self._found: Dict[str, Tuple[int, str]] = {}

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Counts a finding; `what` is the same text for all of its kind."""
        before, first = self._found.get(what, (0, where))
        self._found[what] = before + count, first

    def contradiction(
        self, what: str, where: str, allowed: bool, count: int = 1, error: type = UserError
    ) -> None:
        """Counts a finding that would train on wrong labels, if that is allowed.

        Raises:
          `error`: it is not.
        """
        if not allowed:
            raise error(f"{count} {what}; the first: {where}. {ALLOW}")
        self.add(what, where, count)

    def merge(self, other: "Notes") -> None:
        for what, (count, first) in other._found.items():
            self.add(what, first, count)

    def count(self, what: str) -> int:
        return self._found.get(what, (0, ""))[0]

    def line(self, what: str) -> str:
        count, first = self._found[what]
        return f"{count} {what}; the first: {first}"

    def lines(self) -> List[str]:
        """One for each kind."""
        return [self.line(what) for what in self._found]

    def to_json(self) -> List[Tuple[str, int, str]]:
        """(finding, how often, where the first was)."""
        return [(what, *found) for what, found in self._found.items()]


class Record(NamedTuple):
    """All that a TFRecord holds about one image, and what to know about it.

    Attributes:
      image_id: as in the JSON, a number or a string.
      file_name: of the photo, without folder.
      image_bytes: the encoded photo, JPEG or PNG, upright without the help of EXIF.
      image_format: "jpeg" or "png".
      hw: its size.
      category_map: [h, w] uint8 category index (see `categories.py`), 255 void.
      panoptic_png: the panoptic PNG's bytes; empty without annotations.
      segments: of the panoptic map.
      instances: things only.
      notes: what was mended or left out.
    """

    image_id: Union[int, str]
    file_name: str
    image_bytes: bytes
    image_format: str
    hw: Tuple[int, int]
    category_map: np.ndarray
    panoptic_png: bytes
    segments: List[Segment]
    instances: List[Instance]
    notes: Notes
