"""Datasets of a COCO instances JSON, of class maps, or of both, as panoptic truth.

Where both say something of a pixel, the instance is believed: see `join`.

Shapes: h, w size of the image.
"""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from pfpn_tf.data import categories as categories_lib
from pfpn_tf.data import (
    class_list,
    class_maps,
    coco_instances,
    coco_json,
    coco_masks,
    panoptic_png,
    photo_folder,
    photos,
)
from pfpn_tf.data.coco_json import DataError
from pfpn_tf.data.coco_panoptic import CocoImages
from pfpn_tf.data.given import Given
from pfpn_tf.data.record import Instance, Notes, Record, Segment
from pfpn_tf.utils.errors import UserError

DISAGREE = (
    "pixels have another class in the class map than the instance on them; the instance's is taken"
)
UNCOVERED = (
    "pixels of the class maps have the class of a thing, but no instance; they become crowd"
    " regions, which the semantic branch learns and the others leave out"
)
ADDED = "categories of the instances JSON are not in the list of classes and come on top of it"
ROOT = "categories have no instance and only name the group of the others; they are left out"
_PHOTOS_AMONG_MAPS = (".jpg", ".jpeg")


class JoinedDataset(CocoImages):
    """A split whose records hold instances, classes of pixels, or both."""

    def __init__(self, given: Given):
        """Reads the JSON and the names of the files; `read` opens the pictures.

        Args:
          given: with `image_dir`, and `instances_json`, which then lists the images, or
            `class_map_dir` and `class_names`, or both.

        Raises:
          UserError: a file is missing or malformed, or they do not go together; says why.
        """
        content = None
        if given.instances_json:
            content = coco_instances.load(given.instances_json)
            if not content["annotations"]:
                raise UserError(f"{given.instances_json}: has no annotation.")
            images = content["images"]
        else:
            folder = photo_folder.checked_folder(given.image_dir, "photos")
            images = _listed(folder, given.class_map_dir)
        self._open(given, given.instances_json or given.image_dir, images, sizes=False)
        self._maps: Optional[class_maps.ClassMaps] = None
        if given.class_map_dir:
            names = [_path(image) for image in self.images]
            self._maps = class_maps.ClassMaps(given, names)
            self.notes.merge(self._maps.notes)
        categories, ids = _categories(
            self._maps.classes if self._maps else (), content, given.things, self.source, self.notes
        )
        has_stuff = not all(c["isthing"] for c in categories)
        task = "panoptic" if has_stuff or self._maps else "instance"
        self.info = categories_lib.DatasetInfo.from_coco_categories(
            categories, self.source, task if content else "semantic"
        )
        self._instances = None
        if content:
            self._instances = coco_instances.CocoInstances(
                given, content, self.images, self.info, ids
            )
            self.notes.merge(self._instances.notes)
        self._select(given.image_ids)

    def read(self, position: int, skip_bad: bool = False) -> Record:
        """The record of image `position`, checked.

        Args:
          position: of the image in `images`.
          skip_bad: leave broken instances out.

        Raises:
          DataError: a picture or an annotation is missing, unreadable or contradictory.
        """
        image, notes = self.images[position], Notes()
        if self._maps is not None:
            hw = image["height"], image["width"]
            category_map = self._maps.read(
                _path(image), None if None in hw else hw, self.info.category_to_index
            )
            image = {**image, "height": category_map.shape[0], "width": category_map.shape[1]}
        record, photo = self._photo(image, notes)
        if self._maps is None:
            category_map = np.full(record.hw, categories_lib.VOID, np.uint8)
        instances: List[Instance] = []
        if self._instances is not None:
            image = {**image, "height": record.hw[0], "width": record.hw[1]}
            instances, found = self._instances.read(image, category_map, False, skip_bad)
            notes.merge(found)
        where = f"{self.source}: image {image['id']} ({image['file_name']})"
        joined = join(category_map, instances, self.info)
        _count(joined, notes, where, self._maps is not None and self._instances is not None)
        if photos.fits_as_stored(photo, joined.ids):
            notes.contradiction(photos.FITS_AS_STORED, where, self.allow_mismatch, error=DataError)
        return record._replace(
            category_map=joined.category_map,
            panoptic_png=panoptic_png.encode_ids(joined.ids),
            segments=joined.segments,
            instances=[i for i in instances if i.category_id in self.info.category_to_class_id],
        )


class JoinedTruth(NamedTuple):
    """A class map with instances on it.

    Attributes:
      ids: [h, w] int32 segment ids, 0 void.
      category_map: [h, w] uint8 category index, 255 void.
      segments: of `ids`.
      disagreeing: pixels whose class in the map gave way to an instance's.
      uncovered: pixels that have the class of a thing, but no instance.
      beside: instances that lie for the most part on other classes of the map.
    """

    ids: np.ndarray
    category_map: np.ndarray
    segments: List[Segment]
    disagreeing: int
    uncovered: int
    beside: int


def join(
    category_map: np.ndarray, instances: Sequence[Instance], info: categories_lib.DatasetInfo
) -> JoinedTruth:
    """Lays instances on a class map.

    Each pixel belongs to the smallest instance on it, and single objects lie on crowds, as they do
    in front of them. Instances of stuff lie below all things and only give their pixels the class.
    What the map says of the pixels of an instance gives way. Pixels without an instance have the
    class of the map; those of a thing become one crowd region of the class.

    Args:
      category_map: [h, w] uint8 category index, 255 void; stays as it is.
      instances: of things or stuff.
      info: the categories.
    """
    things = info.category_to_class_id
    joined, ids = category_map.copy(), np.zeros(category_map.shape, np.int32)
    layers = [(i.category_id in things, not i.iscrowd, -int(i.mask.sum())) for i in instances]
    parts: Dict[int, Tuple[int, bool]] = {}  # segment id -> category id, is crowd
    beside = 0
    for number in sorted(range(len(instances)), key=lambda n: layers[n]):
        instance = instances[number]
        mask, index = instance.mask > 0, info.category_to_index[instance.category_id]
        other = mask & (category_map != index) & (category_map != categories_lib.VOID)
        beside += int(np.count_nonzero(other)) > 0.5 * np.count_nonzero(mask)
        joined[mask] = index
        is_thing = instance.category_id in things
        ids[mask] = number + 1 if is_thing else 0
        parts[number + 1] = instance.category_id, instance.iscrowd
    disagreeing = np.count_nonzero((joined != category_map) & (category_map != categories_lib.VOID))
    rest = np.where(ids == 0, joined, categories_lib.VOID)
    uncovered = 0
    for index in np.unique(rest[rest != categories_lib.VOID]).tolist():
        category = info.categories[index]
        segment_id = len(instances) + 1 + index
        ids[rest == index] = segment_id
        parts[segment_id] = category.id, category.is_thing
        uncovered += int(np.count_nonzero(rest == index)) if category.is_thing else 0
    segments = []
    for segment_id, area in zip(*(v.tolist() for v in np.unique(ids, return_counts=True))):
        if segment_id:
            category_id, iscrowd = parts[segment_id]
            box = coco_masks.tight_xywh(ids == segment_id) or []
            segments.append(Segment(segment_id, category_id, area, box, iscrowd))
    return JoinedTruth(ids, joined, segments, int(disagreeing), uncovered, int(beside))


def _count(joined, notes, where, both):
    for what, count in (
        (DISAGREE, joined.disagreeing),
        (UNCOVERED, joined.uncovered),
        (coco_instances.BESIDE, joined.beside),
    ):
        if both and count:
            notes.add(what, f"{where}: {count}", count)


def _listed(image_dir: str, class_map_dir) -> List[Dict[str, Any]]:
    """The photos of a folder, which may hold the class maps, too, as a JSON would list them."""
    files = photo_folder.image_files(image_dir)
    inside = os.path.relpath(class_map_dir, image_dir)
    if inside == ".":
        files = [name for name in files if name.lower().endswith(_PHOTOS_AMONG_MAPS)]
    elif not inside.startswith(".."):
        files = [name for name in files if not name.startswith(inside + os.sep)]
    if not files:
        raise UserError(f"{image_dir}: has no photo.")
    first: Dict[str, str] = {}
    for name in files:
        other = first.setdefault(os.path.splitext(name)[0], name)
        if other != name:
            raise UserError(f"{image_dir}: {other} and {name} are photos of one name; leave one.")
    return [{"id": stem, "file_name": name} for stem, name in first.items()]


def _path(image):
    return photo_folder.ends(image["file_name"])[0]


def _categories(
    classes: Sequence[class_list.LabelClass], content, things: Sequence[str], source: str, notes
) -> Tuple[List[Dict[str, Any]], Dict[int, int]]:
    """COCO's "categories" of the dataset, and category id in the JSON -> in these."""
    by_id: Dict[int, Dict[str, Any]] = {
        c.value: {"id": c.value, "name": c.name, "isthing": c.is_thing} for c in classes
    }
    for c in classes:
        if c.color:
            by_id[c.value]["color"] = list(c.color)
    id_of_name = {class_list.key(c.name): c.value for c in classes}
    ids: Dict[int, int] = {}
    own = coco_json.named_categories(content["categories"], source) if content else []
    roots = _roots(content) if content else set()
    for category in own:
        if category["id"] in roots:
            notes.add(ROOT, f"{source}: {category['name']}")
            continue
        new_id = id_of_name.get(class_list.key(category["name"])) if classes else category["id"]
        if new_id is None:
            notes.add(ADDED, f"{source}: {category['name']}")
            new_id = category["id"]
            if new_id in by_id:
                new_id = max(*by_id, *(c["id"] for c in own)) + 1
        if not classes and new_id in by_id:
            raise UserError(f"{source}: category id {new_id} occurs twice.")
        listed = by_id.setdefault(new_id, {**category, "id": new_id})
        if category["isthing"] is not None or listed["isthing"] is None:
            listed["isthing"] = category["isthing"] in (None, 1)
        ids[category["id"]] = new_id
    entries = [by_id[category_id] for category_id in sorted(by_id)]
    named = {class_list.key(name): name for name in things}
    unknown = [n for k, n in named.items() if k not in [class_list.key(e["name"]) for e in entries]]
    if unknown:
        names = ", ".join(entry["name"] for entry in entries[:20])
        raise UserError(f"--things={unknown[0]} is none of the classes: {names}.")
    for entry in entries:
        is_thing = class_list.key(entry["name"]) in named if named else bool(entry["isthing"])
        entry["isthing"] = int(is_thing)
    return entries, ids


def _roots(content) -> Set[Any]:
    """Ids of the categories that only name the group of others, as Roboflow writes them first."""
    used = {coco_json.whole_number(a.get("category_id")) for a in content["annotations"]}
    groups = {coco_json.name(c.get("supercategory")) for c in content["categories"]}
    return {
        coco_json.whole_number(c.get("id"))
        for c in content["categories"]
        if c.get("supercategory") in (None, "", "none")
        and coco_json.name(c.get("name")) in groups - {None, "none"}
        and coco_json.whole_number(c.get("id")) not in used
    }
