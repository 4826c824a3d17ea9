"""COCO JSON files: the only place that reads and checks them.

Values are read as what they are beyond doubt: a whole number may be 5, 5.0 or "5", a flag 0, 1,
true or "0". Every other value is an error that names file, entry and field. `null` is like a field
that is not there.
"""

import json
import os
import re
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence

from pfpn_tf.utils.errors import UserError

_WHOLE = re.compile(r"[+-]?[0-9]{1,300}(\.0*)?")
_REQUIRED = object()
MAX_TEXT = 1000  # characters of names and ids


class DataError(UserError):
    """What is wrong with one image of a dataset; the message names file, image and segment."""


def whole_number(value: Any) -> Optional[int]:
    """The whole number that a value is beyond doubt, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):  # Larger floats may be neighbours of the number that was meant.
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return None


def number(value: Any) -> Optional[float]:
    """The finite number that a value is beyond doubt, else None. An int stays one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < 1e300 else None  # Neither infinite nor NaN.


def flag(value: Any) -> Optional[bool]:
    """Whether a value is 1 and not 0; None if it is neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    whole = whole_number(value)
    return bool(whole) if whole in (0, 1) else None


def text(value: Any) -> Optional[str]:
    """A text that fits in a line and can be written to a file; None if a value is none."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or min(value) < " ":
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # Half of a surrogate pair.
        return None
    return value


def name(value: Any) -> Optional[str]:
    """A text, or a number as one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return text(value)


def image_id(value: Any) -> Any:
    """An image id, a whole number or a text; None if a value is neither."""
    return text(value) if isinstance(value, str) else whole_number(value)


def box(value: Any) -> Optional[List[float]]:
    """Four numbers x, y, width, height."""
    numbers = [number(v) for v in value] if isinstance(value, (list, tuple)) else []
    return numbers if len(numbers) == 4 and None not in numbers else None  # type: ignore


def color(value: Any) -> Optional[List[int]]:
    """Red, green and blue of a list or of #rrggbb."""
    if isinstance(value, str) and re.fullmatch("#?[0-9a-fA-F]{6}", value.strip()):
        value = list(bytes.fromhex(value.strip().lstrip("#")))
    channels = [whole_number(v) for v in value] if isinstance(value, (list, tuple)) else []
    fit = [c for c in channels if c is not None and 0 <= c <= 255]
    return fit if len(fit) == len(channels) == 3 else None


class Kind(NamedTuple):
    """A kind of value: what reads it, returning None for any other, and its name in errors."""

    read: Callable[[Any], Any]
    name: str


WHOLE = Kind(whole_number, "a whole number")
SIDE = Kind(lambda v: w if (w := whole_number(v) or 0) > 0 else None, "a whole number from 1")
CATEGORY_ID = Kind(
    lambda v: w if 0 <= (-1 if (w := whole_number(v)) is None else w) < 2**31 else None,
    "a whole number from 0 to 2147483647",
)
NUMBER = Kind(number, "a finite number")
FLAG = Kind(flag, "0 or 1")
_TEXT = f"a text of 1 to {MAX_TEXT} characters"
IMAGE_ID = Kind(image_id, f"a whole number or {_TEXT}")
FILE_NAME = Kind(text, _TEXT)
NAME = Kind(name, _TEXT)
BOX = Kind(box, "four numbers x, y, width, height")
COLOR = Kind(color, "three whole numbers 0..255 or #rrggbb")


def field(
    entry: Dict[str, Any],
    key: str,
    kind: Kind,
    where: str,
    default: Any = _REQUIRED,
    error: Callable[[str], Exception] = UserError,
) -> Any:
    """The value of a field of a JSON object.

    Args:
      entry: the object.
      key: of the field.
      kind: what the value must be.
      where: opening of an error message: file and entry.
      default: returned where the field is missing or null; without one, that is an error.
      error: the exception to raise.

    Raises:
      `error`: the field is missing or of another kind.
    """
    value = entry.get(key)
    if value is None:
        if default is not _REQUIRED:
            return default
        raise error(f'{where} has no "{key}".')
    found = kind.read(value)
    if found is None:
        raise error(f'{where}: "{key}" must be {kind.name}, not {shown(value)}.')
    return found


def shown(value: Any) -> str:
    """A JSON value as an error message shows it."""
    return json.dumps(value, ensure_ascii=False, default=repr)[:200]


def load_json(path: str, what: str) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises:
      UserError: it cannot be read or is not JSON; the message names `what` and the place.
    """
    try:
        with open(path, "rb") as f:
            return json.load(f)
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from None


def load_lists(path: str, what: str, keys: Sequence[str]) -> Dict[str, Any]:
    """A JSON file that holds an object with lists of objects.

    Args:
      path: the file.
      what: what an error calls it, e.g. "panoptic".
      keys: of the lists that must be there.

    Raises:
      UserError: names the file, the list and its entry.
    """
    content = load_json(path, f"The {what} JSON")
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            is_list = isinstance(content, list)
            hint = " It is a list: is it a file of instance results?" if is_list else ""
            raise UserError(f'The {what} JSON {path} must be an object with a list "{key}".{hint}')
        for index, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                raise UserError(
                    f"The {what} JSON {path}: {key}[{index}] must be an object, not {shown(entry)}."
                )
    return content


def existing_path(directory: str, file_name: str) -> str:
    """Where a file named in a JSON is; a name written on Windows has backslashes."""
    path = os.path.join(directory, file_name)
    if "\\" in file_name and not os.path.exists(path):
        return os.path.join(directory, file_name.replace("\\", "/"))
    return path


def png_folder(json_path: str) -> str:
    """Where the PNGs of a panoptic JSON are by default: in the folder of its name."""
    return json_path[: -len(".json")] if json_path.endswith(".json") else os.path.dirname(json_path)


def matcher(known_ids: Iterable[Any]) -> Callable[[Any], Any]:
    """A function from an image id in another list to the one of `known_ids` that it means.

    The same id comes first, then the same whole number as the other kind: 5 and "5". None if there
    is neither.
    """
    known = set(known_ids)

    def match(value):
        if value in known:
            return value
        other = whole_number(value) if isinstance(value, str) else str(value)
        return other if other is not None and other in known else None

    return match


def checked_images(
    images: List[Dict[str, Any]], where: str, sizes: bool = True
) -> List[Dict[str, Any]]:
    """The entries of "images" with `id` (all texts, or each that is a whole number becomes one),
    `file_name`, `height` and `width` as they are meant.

    Args:
      images: of `load_lists`.
      where: opening of an error message.
      sizes: whether sizes must be there; else a missing one is None.

    Raises:
      UserError: names the entry and field.
    """
    size: Dict[str, Any] = {} if sizes else {"default": None}
    ids = unique_image_ids(images, where)
    return [
        {
            "id": i,
            "file_name": field(image, "file_name", FILE_NAME, f"{where}: images[{n}]"),
            "height": field(image, "height", SIDE, f"{where}: images[{n}]", **size),
            "width": field(image, "width", SIDE, f"{where}: images[{n}]", **size),
        }
        for n, (i, image) in enumerate(zip(ids, images))
    ]


def unique_image_ids(images: List[Dict[str, Any]], where: str) -> List[Any]:
    """The ids of "images", each once; args and raises as `checked_images`."""
    ids = [field(image, "id", IMAGE_ID, f"{where}: images[{n}]") for n, image in enumerate(images)]
    if not all(isinstance(i, str) for i in ids):
        ids = [canonical_id(i) for i in ids]
    seen: Dict[str, int] = {}
    for n, i in enumerate(ids):
        first = seen.setdefault(str(i), n)
        if first != n:
            raise UserError(
                f"{where}: image id {i} occurs twice, in images[{first}] and images[{n}]."
            )
    return ids


def canonical_id(value: Any) -> Any:
    """A text that is how a whole number is written ("7", not "007") as that number; else itself."""
    if isinstance(value, str) and re.fullmatch("0|-?[1-9][0-9]{0,300}", value):
        return int(value)
    return value


def checked_categories(
    categories: Any, where: str, used: Optional[Iterable[Any]] = None
) -> List[Dict[str, Any]]:
    """The "categories" of a panoptic JSON: `id`, `name`, `isthing` and, if given, `color`.

    Args:
      categories: the list.
      where: opening of an error message.
      used: the category ids of all segments. A category without `isthing` that is not among them,
        such as the root category that some tools write, is left out.

    Raises:
      UserError: names the category and field.
    """
    entries = []
    known = set(map(whole_number, used)) if used is not None else None
    for n, entry in enumerate(named_categories(categories, where)):
        if entry["isthing"] is None:
            if known is not None and entry["id"] not in known and len(categories) > 1:
                continue
            raise UserError(
                f'{where}: categories[{n}] ({entry["name"]}) has no "isthing". A COCO instances'
                " JSON has none; give the panoptic one, or convert it by --instances_json alone."
            )
        entries.append({**entry, "isthing": int(entry["isthing"])})
    return entries


def named_categories(categories: Any, where: str) -> List[Dict[str, Any]]:
    """`checked_categories`, but `isthing` is None where it is missing."""
    if not isinstance(categories, list) or not categories:
        raise UserError(f'{where} has no list "categories" of at least one category.')
    entries = []
    for n, category in enumerate(categories):
        place = f"{where}: categories[{n}]"
        if not isinstance(category, dict):
            raise UserError(f"{place} must be an object, not {shown(category)}.")
        category_id = field(category, "id", CATEGORY_ID, place)
        label = field(category, "name", NAME, place, str(category_id))
        place += f" ({label})"
        isthing = field(category, "isthing", FLAG, place, None)
        entry = {"id": category_id, "name": label, "isthing": isthing}
        if category.get("color"):
            entry["color"] = field(category, "color", COLOR, place)
        entries.append(entry)
    return entries


def load_panoptic_json(
    path: str, what: str, with_categories: bool, with_images: bool = False
) -> Dict[str, Any]:
    """A COCO panoptic JSON file, checked as far as telling its images apart takes.

    `checked_annotation` checks the rest, for the images that are used.

    Args:
      path: the JSON file.
      what: what an error calls it, e.g. "prediction".
      with_categories: whether `categories` must be there; they are then as `checked_categories`
        has them.
      with_images: whether `images` must be there.

    Raises:
      UserError: something is missing or of the wrong type; names file and annotation.
    """
    content = load_lists(path, what, ("images",) * with_images + ("annotations",))
    where = f"The {what} JSON {path}"
    for n, annotation in enumerate(content["annotations"]):
        place = f"{where}: annotations[{n}]"
        annotation["image_id"] = field(annotation, "image_id", IMAGE_ID, place)
    if with_categories:
        lists = [annotation.get("segments_info") for annotation in content["annotations"]]
        segments = [s for found in lists if isinstance(found, list) for s in found]
        used = [s.get("category_id") for s in segments if isinstance(s, dict)]
        content["categories"] = checked_categories(content.get("categories"), where, used)
    return content


def checked_annotation(
    annotation: Dict[str, Any], path: str, what: str, sizes: bool = False
) -> Dict[str, Any]:
    """The annotation of one image in a panoptic JSON, down to each segment, as it is meant.

    Args:
      annotation: of `load_panoptic_json`.
      path, what: the JSON file and what an error calls it.
      sizes: whether areas and boxes are used, and so have to be numbers where they are given.

    Returns:
      `image_id`, `file_name` and `segments_info`: `id`, `category_id`, `iscrowd` (0 or 1) and, of
      `area` and `bbox`, what is given and used.

    Raises:
      DataError: something is missing or of the wrong type; names image, file and segment.
    """
    where = f"Image {annotation['image_id']}: in the {what} JSON {path}"
    place = f"{where} the annotation"
    file_name = field(annotation, "file_name", FILE_NAME, place, error=DataError)
    segments = annotation.get("segments_info")
    if not isinstance(segments, list):
        raise DataError(
            f'{where} the annotation has no list "segments_info", but {shown(segments)}.'
        )
    return {
        "image_id": annotation["image_id"],
        "file_name": file_name,
        "segments_info": [
            _checked_segment(segment, f"{where} segments_info[{n}]", where, sizes)
            for n, segment in enumerate(segments)
        ],
    }


def _checked_segment(segment, place, where, sizes):
    if not isinstance(segment, dict):
        raise DataError(f"{place} must be an object, not {shown(segment)}.")
    entry = {"id": field(segment, "id", WHOLE, place, error=DataError)}
    place = f"{where} segment {entry['id']}"
    entry["category_id"] = field(segment, "category_id", CATEGORY_ID, place, error=DataError)
    entry["iscrowd"] = int(field(segment, "iscrowd", FLAG, place, False, error=DataError))
    for key, kind in (("area", NUMBER), ("bbox", BOX)) if sizes else ():
        if segment.get(key) not in (None, []):
            entry[key] = field(segment, key, kind, place, error=DataError)
    return entry
