"""The list of classes of class maps: which value or colour of a pixel is which class.

The list is names after one another or a file:

- text: a name a line; the first line is value 0, unless all lines are a value and a name, such as
  `0 sky`. Lines that begin with # do not count, nor does LabelMe's `__ignore__` at the top.
- CVAT's labelmap.txt: `name:r,g,b:parts:actions` a line.
- CSV with the columns name, r, g, b, such as CamVid's class_dict.csv; a column value, id, index or
  idx tells the values, otherwise the first class is value 0.
- JSON: a list of names, an object from values to names or back, or COCO's categories.
- YAML: the same, or under `names`, such as the data.yaml of YOLO.
"""

import csv
import json
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import yaml

from pfpn_tf.data import coco_json
from pfpn_tf.utils.errors import UserError

_VALUE_COLUMNS = "value", "id", "index", "idx"
_NUMBERED = re.compile(r"(\d+)(?:\s*[:,;]\s*|\s+)(\S.*)")
_LABELMAP = re.compile(r"([^:]+):(\d+),(\d+),(\d+):[^:]*:[^:]*")


class LabelClass(NamedTuple):
    """A class of class maps.

    Attributes:
      value: of its pixels; also its category id.
      name: the name.
      color: of its pixels in colour maps, R, G, B; None if the list tells none.
      is_thing: what the list says; None if it says nothing.
    """

    value: int
    name: str
    color: Optional[Tuple[int, int, int]] = None
    is_thing: Optional[bool] = None


def key(name: str) -> str:
    """What two names of a class have in common: case, spaces, - and _ do not count."""
    return re.sub(r"[\s_-]+", " ", name.strip().casefold())


def read_classes(names: Sequence[str]) -> List[LabelClass]:
    """The classes of a list, by rising value.

    Args:
      names: the path of a file, or the names themselves.

    Raises:
      UserError: the file is missing or malformed, or a name or value occurs twice.
    """
    where = f"--class_names={','.join(names)}"[:200]
    if len(names) == 1 and (os.path.exists(names[0]) or re.search(r"\.\w{2,6}$|/", names[0])):
        where = names[0]
        classes = _from_file(where)
    else:
        classes = [LabelClass(value, name.strip()) for value, name in enumerate(names)]
    for attribute, what in ((lambda c: c.value, "value"), (lambda c: key(c.name), "name")):
        seen: Dict[Any, LabelClass] = {}
        for entry in classes:
            first = seen.setdefault(attribute(entry), entry)
            if first is not entry:
                raise UserError(
                    f"{where}: classes {first.value} ({first.name}) and {entry.value}"
                    f" ({entry.name}) have the same {what}."
                )
    for entry in classes:
        coco_json.field(entry._asdict(), "name", coco_json.NAME, f"{where}: class {entry.value}")
    if not classes:
        raise UserError(f"{where}: has no name of a class.")
    return sorted(classes)


def _from_file(path):
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"--class_names={path} cannot be read ({reason}).") from None
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".yaml", ".yml"):
        return _from_json(_names_of_yaml(text, path), path)
    if suffix == ".json" or text.lstrip().startswith(("{", "[")):
        return _from_json(coco_json.load_json(path, "The list of classes"), path)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if suffix == ".csv":
        return _from_table(lines, path)
    if any(map(_LABELMAP.fullmatch, lines)):
        lines = [line for line in _without_comments(lines) if line]
        return [_from_labelmap(value, line, path) for value, line in enumerate(lines)]
    if "" in lines:
        raise UserError(f"{path}: line {lines.index('') + 1} is empty; each line names a class.")
    lines = _without_comments(lines)
    numbered = [match for match in map(_NUMBERED.fullmatch, lines) if match]
    if lines and len(numbered) == len(lines):
        return [LabelClass(int(match[1]), match[2]) for match in numbered]
    if lines[:1] == ["__ignore__"]:
        lines = lines[1:]
    return [LabelClass(value, line) for value, line in enumerate(lines)]


def _without_comments(lines):
    return [line for line in lines if not line.startswith("#")]


def _names_of_yaml(text, path):
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML ({' '.join(str(error).split())}).") from None
    return content["names"] if isinstance(content, dict) and "names" in content else content


def _from_labelmap(value, line, path):
    match = _LABELMAP.fullmatch(line)
    if match is None:
        raise UserError(f"{path}: expected name:r,g,b:: as in the other lines, not {line!r}.")
    return LabelClass(value, match[1].strip(), _color(match.groups()[1:], path, line))


def _from_table(lines, path):
    try:
        rows = list(csv.reader(lines, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}).") from None
    head = [column.strip().lower() for column in rows[0]] if rows else []
    columns = {name: head.index(name) for name in ("name", "r", "g", "b") if name in head}
    if "name" not in columns:
        raise UserError(f"{path}: the first line must name the columns: name,r,g,b or name.")
    values = next((head.index(name) for name in _VALUE_COLUMNS if name in head), None)
    classes = []
    for value, row in enumerate(rows[1:]):
        place = f"{path}: line {value + 2}"
        if len(row) < len(head):
            raise UserError(f"{place} has {len(row)} of {len(head)} columns.")
        if values is not None:
            given = {head[values]: row[values]}
            value = coco_json.field(given, head[values], coco_json.CATEGORY_ID, place)
        color = None
        if len(columns) == 4:
            color = _color([row[columns[c]] for c in "rgb"], path, ",".join(row))
        classes.append(LabelClass(value, row[columns["name"]].strip(), color))
    return classes


def _color(channels, path, line):
    color = coco_json.color(list(channels))
    if color is None:
        raise UserError(f"{path}: r, g, b must be three whole numbers 0 to 255, in {line!r}.")
    return tuple(color)


def _from_json(content, path):
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = content["categories"]
    if isinstance(content, dict):
        pairs = list(content.items())
        if all(coco_json.whole_number(value) is not None for _, value in pairs):
            pairs = [(value, name) for name, value in pairs]
        content = [{"id": value, "name": name} for value, name in pairs]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of names, or an object from values to names.")
    classes = []
    for n, entry in enumerate(content):
        entry = entry if isinstance(entry, dict) else {"id": n, "name": entry}
        place = f"{path}: entry {json.dumps(entry, ensure_ascii=False)[:100]}"
        value = coco_json.field(entry, "id", coco_json.CATEGORY_ID, place)
        name = coco_json.field(entry, "name", coco_json.NAME, place)
        is_thing = coco_json.field(entry, "isthing", coco_json.FLAG, place, None)
        color = coco_json.field(entry, "color", coco_json.COLOR, place, None)
        classes.append(LabelClass(value, name, color and tuple(color), is_thing))
    return classes
