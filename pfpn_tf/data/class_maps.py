"""Class maps: pictures whose pixels hold the class, one beside each photo.

A map is a grey picture (of 1 to 16 bits) or one with a palette, whose values are the classes, or an
RGB picture whose colours are those of the list of classes. The colours of a palette count where
all that occur are colours of the list: some tools save a picture in colours with a palette, in an
order of its own.

Shapes: h, w size of the map · n colours.
"""

import collections
import io
import os
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from pfpn_tf.data import class_list, panoptic_png
from pfpn_tf.data.categories import MAX_CATEGORIES, VOID
from pfpn_tf.data.coco_json import DataError
from pfpn_tf.data.given import Given
from pfpn_tf.data.photo_folder import checked_folder, image_files
from pfpn_tf.data.record import Notes
from pfpn_tf.utils.errors import UserError

NO_PHOTO = "class maps have no photo"
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP"}
_FORMATS = ("PNG", "BMP", "TIFF")


class ClassMaps:
    """The class maps of a folder, by photo.

    Attributes:
      classes: the classes that are not ignored.
      notes: maps without a photo.
    """

    def __init__(self, given: Given, photos: Sequence[str]):
        """Finds the map of each photo; `read` opens them.

        Args:
          given: with `class_map_dir`, which is searched with all its folders and may hold the
            photos, too, and `class_names`.
          photos: their paths below `image_dir`.

        Raises:
          UserError: two maps of a photo, two photos of a map, or no pair at all.
        """
        self._folder = checked_folder(given.class_map_dir, "class maps (--class_map_dir)")
        classes = class_list.read_classes(given.class_names)
        ignored = {class_list.key(name) for name in given.ignore}
        self.classes = [
            c
            for c in classes
            if str(c.value) not in ignored and class_list.key(c.name) not in ignored
        ]
        if not 0 < len(self.classes) <= MAX_CATEGORIES:
            raise UserError(
                f"--class_names has {len(self.classes)} classes that --ignore does not name; it"
                f" must be 1 to {MAX_CATEGORIES}."
            )
        numbers = {c.value for c in classes if c not in self.classes}
        numbers.update(int(name) for name in ignored if name.isdecimal())
        names = {c.value: c.name for c in self.classes}
        listed = {class_list.key(c.name) for c in classes}
        unknown = [
            name
            for name in given.ignore
            if not class_list.key(name).isdecimal() and class_list.key(name) not in listed
        ]
        if unknown:
            raise UserError(f"--ignore={unknown[0]} is neither a value nor the name of a class.")
        self._ignored, self._names = sorted(numbers), names
        self._colors: Dict[Tuple[int, int, int], int] = {}
        self._shared_colors = set()  # of two classes that are not both ignored
        for c in classes:
            if c.color is not None and self._colors.setdefault(c.color, c.value) != c.value:
                if not {c.value, self._colors[c.color]} <= numbers:
                    self._shared_colors.add(c.color)
        self.notes = Notes()
        are_photos = {os.path.abspath(os.path.join(given.image_dir, photo)) for photo in photos}
        files = image_files(self._folder)
        self._map_of_photo = self._pairs(
            photos,
            [f for f in files if os.path.abspath(os.path.join(self._folder, f)) not in are_photos],
        )

    def _pairs(self, photos, files) -> Dict[str, str]:
        maps = _by_stem(files)
        stems = {photo: _match(photo, maps) for photo in photos}
        suffix = "" if any(stems.values()) else _common_suffix(photos, maps)
        if suffix:
            stems = {photo: _match(photo, maps, suffix) for photo in photos}
        pairs: Dict[str, str] = {}
        photo_of: Dict[str, str] = {}
        for photo, found in stems.items():
            if len(found) > 1:
                raise UserError(
                    f"{self._folder}: photo {photo} has {len(found)} class maps:"
                    f" {', '.join(found[:3])}. Leave one."
                )
            for path in found:
                other = photo_of.setdefault(path, photo)
                if other != photo:
                    raise UserError(
                        f"{self._folder}: class map {path} belongs to two photos, {other} and"
                        f" {photo}. Leave one."
                    )
                pairs[photo] = path
        if photos and not pairs:
            has = files[0] if files else "no picture"
            raise UserError(
                f"{self._folder}: has a class map for none of the {len(photos)} photos. A map has"
                f" the name of its photo, such as {os.path.splitext(photos[0])[0]}.png; here is"
                f" {has}."
            )
        for path in sorted(set(files) - set(photo_of)):
            self.notes.add(NO_PHOTO, os.path.join(self._folder, path))
        self._photos_without = len(photos) - len(pairs)
        return pairs

    def read(
        self, photo: str, hw: Optional[Tuple[int, int]], index_of_value: Dict[int, int]
    ) -> np.ndarray:
        """The map of a photo.

        Args:
          photo: one of `photos`.
          hw: the size that it must have, if it is known.
          index_of_value: class -> category index.

        Returns:
          [h, w] uint8 category index, 255 where a pixel has no label.

        Raises:
          DataError: there is none, it cannot be read, has another size or values without a class.
        """
        if photo not in self._map_of_photo:
            more = self._photos_without - 1
            also = f", nor have {more} other photos" if more else ""
            raise DataError(f"{photo}: has no class map in {self._folder}{also}.")
        path = os.path.join(self._folder, self._map_of_photo[photo])
        values = self._values(path, panoptic_png.read_bytes(path, path), hw)
        present, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        indices = np.full(len(present), VOID, np.uint8)
        for n, value in enumerate(present.tolist()):
            if value in self._ignored:
                continue
            if value not in self._names:
                raise DataError(
                    f"{path}: {counts[n]} pixels have the value {value}, and no class has;"
                    f" --class_names has {self._shown_values()}. Name it there, or ignore it:"
                    f" --ignore={','.join(map(str, [*self._ignored, value]))}."
                )
            indices[n] = index_of_value[value]
        return indices[inverse].reshape(values.shape)

    def _shown_values(self):
        shown = [f"{value} {name}" for value, name in sorted(self._names.items())]
        return ", ".join(shown if len(shown) < 6 else [*shown[:3], "...", shown[-1]])

    def _values(self, path, content, hw):
        """[h, w] values of a map's file."""
        try:
            with Image.open(io.BytesIO(content)) as picture:
                kind, mode, size = picture.format, picture.mode, picture.size[::-1]
                if kind in _LOSSY:
                    raise DataError(
                        f"{path}: is a {_LOSSY[kind]}, whose compression changes the values of the"
                        " classes; save class maps as PNG."
                    )
                if kind not in _FORMATS or getattr(picture, "n_frames", 1) != 1:
                    raise DataError(f"{path}: is no PNG, BMP or TIFF of one picture, but {kind}.")
                if hw is not None and size != tuple(hw):
                    raise DataError(
                        f"{path}: is {size[1]}x{size[0]}, but its photo is {hw[1]}x{hw[0]} (width x"
                        " height); a class map has a value for each pixel of the photo."
                    )
                pixels = np.asarray(picture)
                palette = picture.getpalette("RGB") or []
        except DataError:
            raise
        except Exception:  # Pillow's parsers raise whatever they stumble over.
            raise DataError(f"{path}: not a readable class map ({len(content)} bytes).") from None
        bits, color_type = content[24:26] if kind == "PNG" else (8, 0)
        if bits == 16 and color_type != 0:  # Pillow leaves the lower 8 bits out.
            raise DataError(f"{path}: has 16 bits a colour; save the classes as a grey PNG.")
        if mode in ("LA", "PA"):
            pixels = pixels[..., 0]
        if palette and pixels.ndim == 2:
            pixels = self._listed_colors(pixels, np.reshape(palette, [-1, 3]))
        if pixels.ndim == 3:
            return self._from_colors(path, pixels[..., :3])
        if color_type == 0:  # Pillow spreads 2 and 4 bits over 0..255.
            pixels = pixels // {2: 85, 4: 17}.get(bits, 1)
        if pixels.dtype.kind == "f":
            raise DataError(f"{path}: holds fractions; a class map holds whole numbers.")
        return pixels.astype(np.int64)

    def _listed_colors(self, values, palette):
        """The colours [h, w, 3] of values [h, w] where the list of classes has all, else the values
        themselves.
        """
        present = np.unique(values)
        if present[-1] < len(palette):
            if set(map(tuple, palette[present].tolist())) <= self._colors.keys():
                return palette[values]
        return values

    def _from_colors(self, path, rgb):
        if (rgb == rgb[..., :1]).all() and not self._colors:  # Grey, saved with three channels.
            return rgb[..., 0].astype(np.int64)
        if not self._colors:
            raise DataError(
                f"{path}: is a picture in colours, and --class_names tells no colours. Give a CSV"
                " with the columns name,r,g,b, or save the classes as grey or palette PNG."
            )
        codes = rgb.astype(np.int64) @ (65536, 256, 1)
        present, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
        values = np.zeros(len(present), np.int64)
        for n, code in enumerate(present.tolist()):
            color = code >> 16, code >> 8 & 255, code & 255
            if color not in self._colors:
                raise DataError(
                    f"{path}: {counts[n]} pixels have the colour {color}, which no class has. Were"
                    " the map's colours mixed by resizing or saving?"
                )
            if color in self._shared_colors:
                raise DataError(
                    f"{path}: {counts[n]} pixels have the colour {color}, which two classes of"
                    " --class_names have; leave one, or give maps with values."
                )
            values[n] = self._colors[color]
        return values[inverse].reshape(codes.shape)


def _stem(path):
    return os.path.splitext(path)[0].lower()


def _by_stem(paths: Sequence[str]) -> Dict[str, List[str]]:
    """Files by their path and by their name, both without what follows the last point."""
    found: Dict[str, List[str]] = collections.defaultdict(list)
    for path in paths:
        for stem in {_stem(path), os.path.basename(_stem(path))}:
            found[stem].append(path)
    return found


def _match(photo: str, maps: Dict[str, List[str]], suffix: str = "") -> List[str]:
    stem = _stem(photo) + suffix
    return maps.get(stem) or maps.get(os.path.basename(stem)) or []


def _common_suffix(photos, maps) -> str:
    """What most maps have behind the name of their photo, such as `_mask`; else nothing."""
    names = {os.path.basename(_stem(photo)) for photo in photos}
    suffixes: Dict[str, int] = collections.Counter()
    for stem in maps:
        for end in range(len(stem) - 1, 0, -1):
            if stem[end] in "_-." and stem[:end] in names:
                suffixes[stem[end:]] += 1
                break
    return max(suffixes, key=lambda s: suffixes[s], default="")
