"""Reads a dataset in COCO panoptic format, checks it and gives one plain record per image.

The format: a JSON with images, categories and annotations, one annotation per image with its
segments_info; a folder of PNGs whose pixels hold segment ids (R + 256 G + 256^2 B, 0 is void); a
folder of photos. A COCO instances JSON may be added: it then provides the instances (masks that
overlap, polygons or RLE, crowds); without it they are the thing segments of the panoptic map.

The Cityscapes layout, as cityscapesscripts' createPanopticImgs leaves it, is read too: string image
ids, and photos that are found through the image id because the file names in its JSON do not exist.

Images without any annotation, such as COCO's test-dev, make records as well (`CocoImages`).

No TensorFlow in here: the converter's worker processes use it.
"""

import copy
import os
from typing import Any, Dict, List, Sequence

import numpy as np

from pfpn_tf.data import categories as categories_lib
from pfpn_tf.data import coco_instances, coco_json, coco_masks, panoptic_png, photo_folder, photos
from pfpn_tf.data.coco_json import DataError
from pfpn_tf.data.given import Given
from pfpn_tf.data.record import Instance, Notes, Record, Segment
from pfpn_tf.utils.errors import UserError

UNLISTED = "panoptic annotations belong to no listed image"
SAME_PHOTO = "images have the photo of an image before them"
SAME_MAP = "images have the panoptic PNG of an image before them"


class CocoImages:
    """Images of a split without annotations: `len()`, and by position `read(position)`: a `Record`.

    It can be pickled and is not changed by reading, so worker processes can share it.

    Attributes:
      source: path of the JSON.
      instances_json: path of the instances' JSON; empty: there is none.
      info: the dataset's categories.
      images: entries of the JSON.
      has_string_ids: whether image ids are texts (Cityscapes) rather than numbers (COCO).
      notes: what to know about the whole of it.
      allow_mismatch: whether contradictions that would train on wrong labels are only noted.
    """

    def __init__(self, given: Given, info: categories_lib.DatasetInfo):
        """Parses the JSON file; photos are opened by `read` only.

        Args:
          given: with `image_info_json` and `image_dir`.
          info: categories of the dataset; COCO's own list for test images has no stuff.

        Raises:
          UserError: a file is missing or malformed, or lacks one of `image_ids`; says which and
            where.
        """
        content = coco_json.load_lists(given.image_info_json, "images", ("images",))
        self._open(given, given.image_info_json, content["images"])
        self.info = info
        self._select(given.image_ids)

    def _open(self, given, source, images, sizes=True):
        self.source, self.instances_json = source, given.instances_json
        self.images = coco_json.checked_images(images, self.source, sizes)
        for n, image in enumerate(self.images):
            if not photo_folder.ends(image["file_name"]):
                name = coco_json.shown(image["file_name"])
                raise UserError(f'{self.source}: images[{n}]: "file_name" names no file: {name}.')
        self._photos = photo_folder.PhotoFolder(
            given.image_dir, [i["file_name"] for i in self.images]
        )
        self.has_string_ids = all(isinstance(image["id"], str) for image in self.images)
        self.notes = Notes()
        self._note_repeated(self.images, SAME_PHOTO)
        self.allow_mismatch = given.allow_mismatch

    def _note_repeated(self, entries, what):
        """Notes each entry whose file another one before it has."""
        first: Dict[Any, int] = {}
        for n, entry in enumerate(entries):
            name = entry.get("file_name")
            if isinstance(name, str) and first.setdefault(name, n) != n:
                self.notes.add(what, f"{self.source}: {name}")

    def _select(self, image_ids):
        if image_ids:
            by_id = {str(image["id"]): image for image in self.images}
            unknown = [image_id for image_id in image_ids if image_id not in by_id]
            if unknown:
                raise UserError(f"{self.source}: has no image with id {', '.join(unknown)}.")
            self.images = [by_id[image_id] for image_id in dict.fromkeys(image_ids)]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, positions: Sequence[int]) -> "CocoImages":
        """A dataset of some of its images."""
        part = copy.copy(self)
        part.images = [self.images[position] for position in positions]
        return part

    def read(self, position: int, skip_bad: bool = False) -> Record:
        """The record of image `position`: all void, and with an empty panoptic PNG.

        Raises:
          DataError: the image is missing or unreadable, or of another size than the JSON says.
        """
        record, _ = self._photo(self.images[position], Notes())
        void = np.full(record.hw, categories_lib.VOID, np.uint8)
        return record._replace(category_map=void)

    def _photo(self, image, notes):
        """(the record of an image without annotations, its `Photo`)."""
        path, content = self._read_image_file(image, notes)
        hw = image["height"], image["width"]
        if None in hw:
            hw = photos.size_upright(path, content)
        photo = photos.upright_photo(path, content, hw)
        if photo.note:
            notes.add(photo.note, path)
        name, nothing = os.path.basename(path), np.zeros((0, 0), np.uint8)
        encoded = photo.encoded, photo.format
        return Record(image["id"], name, *encoded, hw, nothing, b"", [], [], notes), photo

    def _read_image_file(self, image, notes):
        by_id = ()
        if isinstance(image["id"], str):  # Cityscapes: <city>_<sequence>_<frame>
            by_id = (f"{image['id']}_leftImg8bit.png",)
        try:
            path, as_named = self._photos.find(image["file_name"], by_id)
        except DataError as error:
            listed = f"{self.source} lists it as image {image['id']}."
            raise DataError(f"{str(error).rstrip('.')}; {listed}") from None
        if not as_named:
            notes.add(photo_folder.ELSEWHERE, f"{image['file_name']} is {path}")
        return path, panoptic_png.read_bytes(path, f"{path}:")


class CocoPanoptic(CocoImages):
    """A split of a dataset with its annotations."""

    def __init__(self, given: Given):
        """Parses the JSON files; photos and PNGs are opened by `read` only.

        Args:
          given: with `panoptic_json` and `image_dir`.

        Raises:
          UserError: a file is missing or malformed, or lacks one of `image_ids`; says which and
            where.
        """
        path = given.panoptic_json
        content = coco_json.load_panoptic_json(
            path, "panoptic", with_categories=True, with_images=True
        )
        self._open(given, path, content["images"])
        self.panoptic_dir = photo_folder.checked_folder(
            given.panoptic_dir or coco_json.png_folder(path), "panoptic PNGs (--panoptic_dir)"
        )
        self.info = categories_lib.DatasetInfo.from_coco_categories(content["categories"], path)
        self._annotations = self._annotations_by_image(content["annotations"])
        self._note_repeated(self._annotations.values(), SAME_MAP)
        self._instances = None
        if given.instances_json:
            content = coco_instances.load(given.instances_json)
            self._instances = coco_instances.CocoInstances(given, content, self.images, self.info)
            self.notes.merge(self._instances.notes)
        self._select(given.image_ids)

    def read(self, position: int, skip_bad: bool = False) -> Record:
        """The record of image `position`, checked.

        Args:
          position: of the image in `images`.
          skip_bad: leave broken instances of the instances JSON out.

        Raises:
          DataError: the image, its PNG or its annotation is missing, unreadable or contradictory.
        """
        image = self.images[position]
        notes = Notes()
        record, photo = self._photo(image, notes)
        entries, png_path, png_bytes = self._read_panoptic(image)
        ids = panoptic_png.decode_ids(png_bytes, f"{png_path} of image {image['id']}", record.hw)
        if photos.fits_as_stored(photo, ids):
            text, where = photos.FITS_AS_STORED, f"{self._photos.path}: {record.file_name}"
            notes.contradiction(text, where, self.allow_mismatch, error=DataError)
        segments, category_map = self._segments(image, entries, ids, png_path, notes)
        if self._instances is None:
            instances = _instances_from_segments(ids, segments, self.info)
        else:
            has_things = any(
                self.info.by_id[s.category_id].is_thing and not s.iscrowd for s in segments
            )
            instances, found = self._instances.read(image, category_map, has_things, skip_bad)
            notes.merge(found)
        return record._replace(
            category_map=category_map,
            panoptic_png=png_bytes,
            segments=segments,
            instances=instances,
        )

    def _annotations_by_image(self, annotations) -> Dict[Any, Dict]:
        by_image: Dict[Any, Dict] = {}
        match = coco_json.matcher(image["id"] for image in self.images)
        for n, annotation in enumerate(annotations):
            image_id = match(annotation["image_id"])
            if image_id is None:
                where = f"{self.source}: annotations[{n}], of image {annotation['image_id']}"
                self.notes.contradiction(UNLISTED, where, self.allow_mismatch)
            elif image_id in by_image:
                raise UserError(f"{self.source}: image {image_id} has two annotations.")
            else:
                by_image[image_id] = {**annotation, "image_id": image_id}
        return by_image

    def _read_panoptic(self, image):
        """(segments_info of an image, path of its PNG, the PNG's bytes)."""
        annotation = self._annotations.get(image["id"])
        if annotation is None:
            raise DataError(
                f"{self.source}: image {image['id']} ({image['file_name']}) has no annotation."
            )
        checked = coco_json.checked_annotation(annotation, self.source, "panoptic", sizes=True)
        path = coco_json.existing_path(self.panoptic_dir, checked["file_name"])
        png_bytes = panoptic_png.read_bytes(path, f"{path} of image {image['id']}")
        return checked["segments_info"], path, png_bytes

    def _segments(self, image, entries, ids, png_path, notes):
        """The segments with what the JSON leaves out, and the [h, w] uint8 category indices."""
        present, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        index_of_id = np.full(len(present), categories_lib.VOID, np.uint8)
        position = {segment_id: i for i, segment_id in enumerate(present.tolist())}
        listed = {0}
        segments = []
        where = f"{self.source}: image {image['id']} ({image['file_name']}): segment "
        for entry in entries:
            segment_id, category_id = entry["id"], entry["category_id"]
            place = f"{where}{segment_id}"
            if segment_id in listed:
                raise DataError(f"{place} is {'void' if segment_id == 0 else 'listed twice'}.")
            if category_id not in self.info.by_id:
                raise DataError(f"{place} has the unknown category {category_id}.")
            if segment_id not in position:
                raise DataError(f"{place} has no pixel in {png_path}.")
            listed.add(segment_id)
            at = position[segment_id]
            index_of_id[at] = self.info.category_to_index[category_id]
            area, box = int(counts[at]), coco_masks.tight_xywh(ids == segment_id)
            if entry.get("area", area) != area:
                given = f"{place}: area {entry['area']}, {area} pixels"
                notes.add(coco_instances.OTHER_AREA, given)
            if not coco_instances.boxes_agree(entry.get("bbox", box), box):
                given = f"{place}: bbox {entry['bbox']}, the pixels' {box}"
                notes.add(coco_instances.OTHER_BOX, given)
            segments.append(Segment(segment_id, category_id, area, box, bool(entry["iscrowd"])))
        unlisted = sorted(set(position) - listed)
        if unlisted:
            raise DataError(
                f"{png_path}: segment {unlisted[0]} has {counts[position[unlisted[0]]]} pixels, but"
                f" {self.source} does not list it for image {image['id']}."
            )
        return segments, index_of_id[inverse].reshape(ids.shape)


def _instances_from_segments(ids, segments, info) -> List[Instance]:
    """Thing segments as instances."""
    return [
        Instance(mask=(ids == segment.id).astype(np.uint8), **segment._asdict())
        for segment in segments
        if segment.category_id in info.category_to_class_id
    ]
