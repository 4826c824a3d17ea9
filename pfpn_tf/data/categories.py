"""The categories of a dataset and the three numberings that everything else uses.

- category_id: the dataset's own id, 0 to 2**31 - 1 (COCO: 1..200 with gaps).
- class_id: 0..K-1, the things by ascending category id; what the box and mask heads predict.
- semantic class: 0..S-1, what the semantic head predicts. With semantic_targets "other", class 0
  is any thing and the stuff follows by ascending category id; with "all", every category by
  ascending id.

TFRecords hold a fourth, the category index: 0..C-1 over all categories by ascending id, from which
both semantic numberings follow by table (`semantic_lookup`). 255 is void in all maps.

This module alone converts between them.
"""

import colorsys
import dataclasses
import functools
import json
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from pfpn_tf.config import TASKS
from pfpn_tf.data import coco_json
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

FILE_NAME = "dataset_info.json"
VOID = 255
MAX_CATEGORIES = 254  # with the class for all things, indices must stay below VOID in a uint8
OTHER_NAME = "things"
OTHER_COLOR = (90, 90, 90)


class Category(NamedTuple):
    """One category; `color` is RGB, 0..255."""

    id: int
    name: str
    is_thing: bool
    color: Tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What `dataset_info.json` holds. Build it with `from_coco_categories` or `load`.

    Attributes:
      categories: by ascending id.
      splits: name -> counts.
      task: what the records can train: "instance", "semantic", or with "panoptic" all three.
    """

    categories: Tuple[Category, ...]
    splits: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    task: str = "panoptic"

    @classmethod
    def from_coco_categories(
        cls,
        categories: Sequence[Mapping[str, Any]],
        source: str = "categories",
        task: str = "panoptic",
    ) -> "DatasetInfo":
        """From the "categories" list of a COCO panoptic JSON.

        Args:
          categories: dicts with id, name, isthing and, if the dataset has colours, color.
          source: the file named in errors.
          task: what the records can train.

        Raises:
          UserError: an entry is incomplete or malformed, an id occurs twice, or there are too
            many.
        """
        entries = coco_json.checked_categories(categories, source)
        if len(categories) > MAX_CATEGORIES:
            raise UserError(
                f"{source}: {len(categories)} categories, but at most {MAX_CATEGORIES} fit an 8-bit"
                " map."
            )
        entries.sort(key=lambda c: c["id"])
        for a, b in zip(entries, entries[1:]):
            if a["id"] == b["id"]:
                raise UserError(
                    f"{source}: category id {a['id']} occurs twice ({a['name']}, {b['name']})."
                )
        palette = distinct_colors(len(entries))
        return cls(
            tuple(
                Category(
                    c["id"], c["name"], bool(c["isthing"]), tuple(c.get("color") or palette[i])
                )
                for i, c in enumerate(entries)
            ),
            task=task,
        )

    @classmethod
    def load(cls, path) -> "DatasetInfo":
        """Reads a file that `save` wrote.

        Raises:
          UserError: the file is missing or not a dataset_info.json; says which and why.
        """
        if not os.path.exists(path):
            raise UserError(
                f"{path}: no such file. tools/create_tfrecords.py writes it beside the TFRecords; "
                "--dataset_info names another place."
            )
        content = coco_json.load_json(path, "The dataset's description")
        if not isinstance(content, dict) or "categories" not in content:
            raise UserError(f"{path}: expected an object with a list named categories.")
        splits = content.get("splits", {})
        if not isinstance(splits, dict) or not all(isinstance(s, dict) for s in splits.values()):
            raise UserError(f"{path}: splits must be an object of objects.")
        task = content.get("task", "panoptic")  # Earlier versions converted nothing else.
        if task not in TASKS:
            raise UserError(f"{path}: task must be one of {', '.join(TASKS)}, not {task!r}.")
        info = cls.from_coco_categories(content["categories"], str(path), task)
        return dataclasses.replace(info, splits=splits)

    def save(self, path) -> None:
        """Writes the JSON, one category and one split a line, atomically."""
        lines = [json.dumps(c, ensure_ascii=False) for c in self.coco_categories()]
        splits = [
            f"{json.dumps(name)}: {json.dumps(counts, ensure_ascii=False)}"
            for name, counts in sorted(self.splits.items())
        ]
        text = '{\n"categories": [\n  ' + ",\n  ".join(lines) + "\n],\n"
        text += f'"task": "{self.task}",\n'
        text += '"splits": {' + ("\n  " + ",\n  ".join(splits) + "\n" if splits else "") + "}\n}\n"
        with atomic_write(path) as f:
            f.write(text)

    def with_split(self, name: str, counts: Mapping[str, Any]) -> "DatasetInfo":
        """A copy in which split `name` has these counts."""
        return dataclasses.replace(self, splits={**self.splits, name: dict(counts)})

    def coco_categories(self) -> List[Dict[str, Any]]:
        """The "categories" list of a COCO panoptic JSON."""
        return [
            {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.color)}
            for c in self.categories
        ]

    def check_task(self, task: str, path: str) -> None:
        """Raises UserError if records of `task` need what these, described in `path`, lack."""
        if self.task not in ("panoptic", task):
            lack = {"instance": "no stuff", "semantic": "no objects"}[self.task]
            raise UserError(
                f"--task={task} does not fit the records of {path}, which hold {lack}; use"
                f" --task={self.task}, or leave --task out."
            )

    # -- all categories -----------------------------------------------------------------------

    @functools.cached_property
    def things(self) -> Tuple[Category, ...]:
        return tuple(c for c in self.categories if c.is_thing)

    @functools.cached_property
    def stuff(self) -> Tuple[Category, ...]:
        return tuple(c for c in self.categories if not c.is_thing)

    @functools.cached_property
    def by_id(self) -> Dict[int, Category]:
        """category_id -> `Category`."""
        return {c.id: c for c in self.categories}

    @functools.cached_property
    def category_to_index(self) -> Dict[int, int]:
        """category_id -> category index, 0..C-1."""
        return {c.id: i for i, c in enumerate(self.categories)}

    # -- things -------------------------------------------------------------------------------

    @property
    def num_thing_classes(self) -> int:
        return len(self.things)

    @functools.cached_property
    def thing_category_ids(self) -> np.ndarray:
        """[K] int32, class_id -> category_id."""
        return np.array([c.id for c in self.things], np.int32)

    @functools.cached_property
    def category_to_class_id(self) -> Dict[int, int]:
        """category_id of a thing -> class_id."""
        return {c.id: i for i, c in enumerate(self.things)}

    @property
    def thing_names(self) -> List[str]:
        """[K] by class_id."""
        return [c.name for c in self.things]

    # -- semantic classes ---------------------------------------------------------------------

    def num_semantic_classes(self, semantic_targets: str) -> int:
        return len(self._semantic_classes(semantic_targets))

    def semantic_category_ids(self, semantic_targets: str) -> np.ndarray:
        """[S] int32, semantic class -> category_id; 0 for the class of all things."""
        return np.array([c.id for c in self._semantic_classes(semantic_targets)], np.int32)

    def semantic_is_thing(self, semantic_targets: str) -> np.ndarray:
        """[S] bool by semantic class; True for the class of all things."""
        return np.array([c.is_thing for c in self._semantic_classes(semantic_targets)], bool)

    def semantic_names(self, semantic_targets: str) -> List[str]:
        """[S] by semantic class."""
        return [c.name for c in self._semantic_classes(semantic_targets)]

    def of_semantic_classes(self, semantic_targets: str) -> "DatasetInfo":
        """The semantic classes as categories of stuff, whose ids are the classes: for pictures."""
        classes = enumerate(self._semantic_classes(semantic_targets))
        return DatasetInfo(tuple(Category(i, c.name, False, c.color) for i, c in classes))

    def semantic_lookup(self, semantic_targets: str) -> np.ndarray:
        """[256] uint8, category index -> semantic class; 255 (void) for every other value."""
        table = np.full(256, VOID, np.uint8)
        class_of = {c.id: i for i, c in enumerate(self._semantic_classes(semantic_targets))}
        # What has no class of its own is a thing among all things, class 0.
        table[: len(self.categories)] = [class_of.get(c.id, 0) for c in self.categories]
        return table

    def _semantic_classes(self, semantic_targets):
        if semantic_targets not in ("other", "all"):
            raise UserError(f"semantic_targets={semantic_targets!r} must be 'other' or 'all'.")
        if semantic_targets == "all":
            return self.categories
        return (Category(0, OTHER_NAME, True, OTHER_COLOR),) + self.stuff


def distinct_colors(count: int) -> List[Tuple[int, int, int]]:
    """`count` RGB colours, the same every time, neighbours far apart."""
    colors = []
    for i in range(count):
        hue = (i * 0.618033988749895) % 1.0  # golden ratio: successive hues never bunch
        saturation = (0.85, 0.6, 0.95)[i % 3]
        value = (0.95, 0.75, 0.55, 0.85)[i % 4]
        rgb = colorsys.hsv_to_rgb(hue, saturation, value)
        red, green, blue = (int(round(255 * v)) for v in rgb)
        colors.append((red, green, blue))
    return colors


def class_differences(here: DatasetInfo, there: DatasetInfo) -> List[str]:
    """How ids, names and thing/stuff of two datasets differ, a line each; at most five."""
    ours, theirs = ({c.id: (c.name, c.is_thing) for c in info.categories} for info in (here, there))

    def say(categories_by_id, category_id):
        if category_id not in categories_by_id:
            return "missing"
        name, is_thing = categories_by_id[category_id]
        return f"{name} ({'thing' if is_thing else 'stuff'})"

    changed = [i for i in sorted({*ours, *theirs}) if ours.get(i) != theirs.get(i)]
    lines = [f"category {i}: {say(theirs, i)} there, {say(ours, i)} here" for i in changed[:5]]
    if len(changed) > 5:
        lines.append(f"and {len(changed) - 5} more")
    return lines
