"""Statistics of a split, gathered while it is converted; page and recipe follow from them.

Counts are exact. Sizes come from samples of at most `SAMPLED` rows, so that workers can merge
theirs and the file stays small.
"""

import collections
import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np
from absl import logging

from pfpn_tf.data import coco_json
from pfpn_tf.data.categories import VOID, DatasetInfo
from pfpn_tf.data.record import Notes, Record
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

FILE_NAME = "dataset_statistics.json"
SAMPLED = 2000
COUNTS = ("images", "images_without_instances", "instances", "crowds", "segments", "crowd_segments")


class Sample:
    """A random sample of rows of numbers. Which rows it keeps depends on their keys alone, not on
    the order in which they come or on who saw them.
    """

    def __init__(self, rows=()):
        self._kept: List[Tuple[bytes, Tuple]] = [(b"", tuple(row)) for row in rows]

    def add(self, key: str, row) -> None:
        priority = hashlib.blake2b(key.encode(), digest_size=8).digest()
        self._kept.append((priority, tuple(row)))
        if len(self._kept) >= 2 * SAMPLED:
            self._cut()

    def merge(self, other: "Sample") -> None:
        self._kept += other._kept
        self._cut()

    def rows(self) -> List[Tuple]:
        self._cut()
        return [row for _, row in self._kept]

    def _cut(self):
        self._kept = sorted(self._kept)[:SAMPLED]


class Statistics:
    """Of one split.

    Attributes:
      counts: images, instances (no crowds), crowds, segments, crowd_segments among them,
        images_without_instances; and by (kind, category id) instances, segments, and images and
        pixels that have the category.
      max_instances: of an image.
      images: sample of (height, width, number of instances).
      boxes: sample of (height, width, height of the image, width of the image) of instances.
      stuff: sample of (category id, pixels, height of the image, width of the image) of what
        an image has of a stuff class.
      notes: what to know about the data.
    """

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()
        self.max_instances = 0
        self.images, self.boxes, self.stuff = Sample(), Sample(), Sample()
        self.notes = Notes()

    def add(self, record: Record, info: DatasetInfo) -> None:
        """Counts an image."""
        usable = [i for i in record.instances if not i.iscrowd]
        self.max_instances = max(self.max_instances, len(usable))
        self.counts.update(
            images=1,
            instances=len(usable),
            crowds=len(record.instances) - len(usable),
            segments=len(record.segments),
            crowd_segments=sum(segment.iscrowd for segment in record.segments),
            images_without_instances=int(not usable),
        )
        self.counts.update(("segments", s.category_id) for s in record.segments)
        self.counts.update(("instances", i.category_id) for i in usable)
        key = str(record.image_id)
        self.images.add(key, (*record.hw, len(usable)))
        for n, instance in enumerate(usable):
            width, height = (round(float(side), 1) for side in instance.bbox_xywh[2:])
            self.boxes.add(f"{key} {n}", (height, width, *record.hw))
        present = {i.category_id for i in usable}
        pixels = np.bincount(record.category_map.ravel(), minlength=VOID + 1)
        for category, area in zip(info.categories, pixels.tolist()):
            if area:
                present.add(category.id)
                self.counts["pixels", category.id] += area
                if not category.is_thing:
                    self.stuff.add(f"{key} {category.id}", (category.id, area, *record.hw))
        self.counts.update(("images", category_id) for category_id in present)
        self.notes.merge(record.notes)

    def merge(self, other: "Statistics") -> None:
        self.counts += other.counts
        self.max_instances = max(self.max_instances, other.max_instances)
        self.images.merge(other.images)
        self.boxes.merge(other.boxes)
        self.stuff.merge(other.stuff)
        self.notes.merge(other.notes)

    def is_annotated(self) -> bool:
        """Whether there is anything to train on."""
        return any(self.counts[kind] for kind in self.counts if kind[0] in ("instances", "pixels"))

    def to_json(self) -> Dict[str, Any]:
        counts: Dict[str, Any] = {}
        for key, n in self.counts.items():
            if isinstance(key, str):
                counts[key] = n
            else:
                counts.setdefault(f"{key[0]}_by_category", {})[str(key[1])] = n
        return {
            "counts": counts,
            "max_instances": self.max_instances,
            "images": self.images.rows(),
            "boxes": self.boxes.rows(),
            "stuff": self.stuff.rows(),
            "notes": self.notes.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Statistics":
        """What `to_json` gave; raises some exception if it is damaged."""
        found = cls()
        for name, value in content["counts"].items():
            kind, by_category, _ = name.partition("_by_category")
            if by_category:
                found.counts.update({(kind, int(i)): n for i, n in value.items()})
            else:
                found.counts[name] = value
        found.max_instances = content["max_instances"]
        if not all(
            type(n) is int and n >= 0 for n in (*found.counts.values(), found.max_instances)
        ):
            raise ValueError("a count is no whole number")
        for name, columns in (("images", 3), ("boxes", 4), ("stuff", 4)):
            rows = np.array(content[name], float)
            if rows.size and rows.shape[1:] != (columns,) or not (rows >= 0).all():
                raise ValueError(f"{name} are no rows of {columns} numbers")
            setattr(found, name, Sample(content[name]))
        for what, count, first in content["notes"]:
            found.notes.add(what, first, count)
        return found


def load(folder: str, info: DatasetInfo) -> Dict[str, Statistics]:
    """By name of the split; of those splits alone that `info`, the folder's description, has.

    Splits that an earlier version converted are missing. So are all if the file is damaged.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.exists(path):
        return {}
    try:
        content = coco_json.load_json(path, "The statistics of the dataset")
        return {n: Statistics.from_json(s) for n, s in content.items() if n in info.splits}
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        logging.warning("%s: damaged; convert the other splits again to have theirs.", path)
        return {}


def save(folder: str, split: str, found: Statistics, info: DatasetInfo) -> None:
    """Adds a split to the file, which has a line for each."""
    splits = {**load(folder, info), split: found}
    lines = [
        f"{json.dumps(name)}: "
        + json.dumps(splits[name].to_json(), ensure_ascii=False, sort_keys=True)
        for name in sorted(splits)
    ]
    with atomic_write(os.path.join(folder, FILE_NAME)) as f:
        f.write("{\n" + ",\n".join(lines) + "\n}\n")
