"""The annotations of a COCO instances JSON, checked against the panoptic annotation beside them."""

from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from pfpn_tf.data import coco_json, coco_masks
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.coco_json import DataError, field
from pfpn_tf.data.given import Given
from pfpn_tf.data.record import Instance, Notes
from pfpn_tf.utils.errors import UserError

OUTSIDE_PX = 2
_LARGE_PX = 2  # sides of a box that cannot be without a pixel

LEFT_OUT = "instances are left out as broken (--skip_bad)"
PARTS_LEFT_OUT = "instances have broken polygons beside good ones, which are left out (--skip_bad)"
NO_PIXEL = "objects are too small for a pixel and left out"
OUTSIDE = "instances reach outside their image and are cut off"
OTHER_BOX = "boxes (bbox) contradict their masks; the masks' boxes are taken"
OTHER_AREA = "areas (area) contradict the pixels, which are counted instead"
ORPHANS = "instance annotations belong to no listed image"
ELSEWHERE = "instance annotations belong to no image of the panoptic JSON"
UNLISTED = "images have things in the panoptic map, but the instances JSON does not list them"
OTHER_SIZE = "images have another size in the instances JSON than in the panoptic one"
NO_INSTANCE = "images have things in the panoptic map, but no instance"
CVAT_CROWD = (
    "crowds come from CVAT, which calls each RLE mask a crowd, and training leaves crowds out; if"
    " they are single objects, give --nocrowds"
)
REPEATED = "instances repeat another one of their image, with the same class and pixels"
BESIDE = "instances lie for the most part on other categories of the map"


def load(path: str) -> Dict[str, List[Dict[str, Any]]]:
    """The content of an instances JSON: images, annotations, categories.

    Raises:
      UserError: it cannot be read, is of another kind, or has boxes alone.
    """
    content = coco_json.load_lists(path, "instances", ("images", "annotations", "categories"))
    annotations = content["annotations"]
    if any("segments_info" in annotation for annotation in annotations):
        raise UserError(f"The instances JSON {path} is a panoptic one; give it as --panoptic_json.")
    if annotations and not any(annotation.get("segmentation") for annotation in annotations):
        raise UserError(
            f"The instances JSON {path} has {len(annotations)} boxes and no segmentation. Boxes"
            " alone cannot train masks; export polygons or masks (COCO segmentation)."
        )
    return content


class CocoInstances:
    """Instances by image, parsed from the JSON; masks are decoded by `read` only."""

    def __init__(
        self,
        given: Given,
        content: Dict[str, List[Dict[str, Any]]],
        images: List[Dict[str, Any]],
        info: DatasetInfo,
        category_ids: Optional[Dict[int, int]] = None,
    ):
        """Groups the annotations by image.

        Args:
          given: with `instances_json`.
          content: of `load`.
          images: entries of the dataset's images, those of the panoptic JSON if there is one.
          info: the dataset's categories.
          category_ids: category id in this JSON -> in `info`, for instances that are to be joined
            with a map or stand alone. None: the panoptic JSON has them, too, as things.

        Raises:
          UserError: the file is malformed, has other categories or, unless that is allowed, other
            images.
        """
        self._path = path = given.instances_json
        self._info = info
        self._allow_mismatch = given.allow_mismatch
        self._crowds = given.crowds
        self._joined = category_ids is not None
        self.notes = Notes()
        self._where = f"The instances JSON {path}"
        if category_ids is None:
            self._check_categories(content)
            category_ids = {i: i for i in info.category_to_class_id}
        self._category_ids = category_ids
        match = coco_json.matcher(image["id"] for image in images)
        own_ids = [
            field(image, "id", coco_json.IMAGE_ID, f"{self._where}: images[{n}]")
            for n, image in enumerate(content["images"])
        ]
        self._listed = {match(i): image for i, image in zip(own_ids, content["images"])}
        self._by_image = self._group(content["annotations"], match, coco_json.matcher(own_ids))

    def _check_categories(self, content):
        """Those that annotations use must be the things of the panoptic JSON."""
        used = {coco_json.whole_number(a.get("category_id")) for a in content["annotations"]}
        for n, category in enumerate(content["categories"]):
            where = f"{self._where}: categories[{n}]"
            category_id = field(category, "id", coco_json.CATEGORY_ID, where)
            name = field(category, "name", coco_json.NAME, where, str(category_id))
            known = self._info.by_id.get(category_id)
            if category_id not in used or (known and known.is_thing and known.name == name):
                continue
            other = "no category there" if known is None else f"there {known.name!r}"
            if known is not None and not known.is_thing:
                other += ", which is no thing"
            raise UserError(
                f"{where} ({name}) has id {category_id}, {other}; the categories of instances must"
                " be the things of the panoptic JSON."
            )

    def _group(self, annotations, match, match_own):
        by_image: Dict[Any, List[Tuple[int, Dict]]] = {}
        orphans = []
        for n, annotation in enumerate(annotations):
            where = f"{self._where}: annotations[{n}]"
            image_id = field(annotation, "image_id", coco_json.IMAGE_ID, where)
            matched = match(image_id)
            if matched is not None:
                by_image.setdefault(matched, []).append((n, annotation))
            elif match_own(image_id) is None:
                orphans.append(f"annotation {annotation.get('id', n)} (image_id {image_id!r})")
        if orphans:
            self.notes.contradiction(
                ORPHANS, f"{self._path}: {orphans[0]}", self._allow_mismatch, len(orphans)
            )
        elif annotations and not by_image:
            where = f"all of {self._path}"
            self.notes.contradiction(ELSEWHERE, where, self._allow_mismatch, len(annotations))
        return by_image

    def read(
        self, image: Dict[str, Any], category_map: np.ndarray, has_things: bool, skip_bad: bool
    ) -> Tuple[List[Instance], Notes]:
        """The instances of one image, and what to know about them.

        Args:
          image: its entry in the panoptic JSON, or in this.
          category_map: [h, w] uint8 category index of its pixels.
          has_things: whether its panoptic map has a thing segment that is no crowd.
          skip_bad: leave broken instances out.

        Raises:
          DataError: an annotation is malformed or does not fit the image; names it.
        """
        where = f"{self._path}: image {image['id']}"
        annotations = self._by_image.get(image["id"], [])
        instances, notes, seen = [], Notes(), set()
        self._check_listed(image, where, has_things and not annotations, notes)
        for n, annotation in annotations:
            place = f"{where}: annotation {annotation.get('id', n)}"
            try:
                instance = self._instance(annotation, n, category_map, place, skip_bad, notes)
            except DataError as error:
                if not skip_bad:
                    raise
                instance = None
                notes.add(LEFT_OUT, str(error))
            if instance is not None:
                key = instance.category_id, instance.iscrowd, hash(instance.mask.tobytes())
                if key in seen:
                    notes.add(REPEATED, place)
                seen.add(key)
                instances.append(instance)
        return instances, notes

    def _check_listed(self, image, where, lacks_instances, notes):
        entry = self._listed.get(image["id"], {})
        if lacks_instances and entry:
            notes.add(NO_INSTANCE, where)
        elif lacks_instances:
            where += f" ({image['file_name']})"
            notes.contradiction(UNLISTED, where, self._allow_mismatch, error=DataError)
        for side in ("height", "width"):
            value = coco_json.whole_number(entry.get(side))
            if value is not None and image[side] not in (None, value):
                text = f"{where}: {side} {value} instead of {image[side]}"
                notes.contradiction(OTHER_SIZE, text, self._allow_mismatch, error=DataError)

    def _instance(self, annotation, n, category_map, where, skip_bad, notes):
        """The instance, or None if it has no pixel; adds notes."""
        read = {"where": where, "error": DataError}
        given = field(annotation, "category_id", coco_json.CATEGORY_ID, **read)
        category_id = self._category_ids.get(given)
        if category_id is None:
            what = "which is not listed" if self._joined else "which is no thing"
            raise DataError(f"{where} has category {given}, {what}.")
        iscrowd = field(annotation, "iscrowd", coco_json.FLAG, default=False, **read)
        iscrowd = iscrowd and self._crowds
        if iscrowd and "attributes" in annotation:
            notes.add(CVAT_CROWD, where)
        box = None
        if annotation.get("bbox") != []:
            box = field(annotation, "bbox", coco_json.BOX, default=None, **read)
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            if segmentation and all(coco_json.number(v) is not None for v in segmentation):
                segmentation = [segmentation]  # One polygon without the list around it.
            segmentation = [part for part in segmentation if part != []]
        if skip_bad:
            good = coco_masks.good_polygons(segmentation, category_map.shape)
            if good != segmentation:
                notes.add(PARTS_LEFT_OUT, where)
            segmentation = good
        mask = coco_masks.decode_mask(segmentation, category_map.shape, where)
        outside = coco_masks.reaches_outside(segmentation, category_map.shape, OUTSIDE_PX)
        if not mask.any():
            if outside or isinstance(segmentation, dict):
                raise DataError(f"{where}: its segmentation has no pixel in the image.")
            if box is not None and min(box[2:]) > _LARGE_PX:
                raise DataError(f"{where}: its segmentation has no pixel, but its bbox is {box}.")
            notes.add(NO_PIXEL, where)
            return None
        if outside:
            notes.add(OUTSIDE, where)
        tight = coco_masks.tight_xywh(mask)
        if box is not None and not boxes_agree(box, tight):
            if isinstance(segmentation, dict) and boxes_agree(box, _row_major_box(mask)):
                raise DataError(f"{where}: its RLE goes along the rows; COCO's goes down columns.")
            notes.add(OTHER_BOX, f"{where}: bbox {box}, the mask's {tight}")
            box = None
        pixels = int(np.count_nonzero(mask))
        area = field(annotation, "area", coco_json.NUMBER, default=pixels, **read)
        if abs(area - pixels) > 20 + 0.5 * pixels:  # A polygon's differs from its pixels'.
            notes.add(OTHER_AREA, f"{where}: area {area}, {pixels} pixels")
            area = pixels
        index = self._info.category_to_index[category_id]
        if not self._joined and np.count_nonzero(category_map[mask > 0] == index) < 0.5 * pixels:
            notes.add(BESIDE, where)
        number = coco_json.whole_number(annotation.get("id"))
        if number is None or abs(number) >= 2**63:  # Other ids, such as UUIDs, are of no use.
            number = n + 1
        return Instance(number, category_id, area, box or tight, iscrowd, mask)


def boxes_agree(box, pixels_box) -> bool:
    """Whether the sides of two boxes x, y, w, h differ by 2 pixels and a twentieth of the longer
    side at most: COCO's polygons have thin tips without a pixel. A box that has no area agrees with
    none.
    """
    if pixels_box is None or min(box[2:]) <= 0:
        return False
    starts = np.subtract(box[:2], pixels_box[:2])
    ends = starts + np.subtract(box[2:], pixels_box[2:])
    return bool(np.abs([starts, ends]).max() <= 2 + 0.05 * max(pixels_box[2:]))


def _row_major_box(mask):
    """The box of the mask if its RLE, read down the columns, was meant along the rows."""
    return coco_masks.tight_xywh(mask.T.reshape(mask.shape))
