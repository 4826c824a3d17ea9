"""A trained network in three lines of Python.

import pfpn_tf
model = pfpn_tf.load("models/panoptic/1")
result = model("photo.jpg")

The same for a network behind TensorFlow Serving: `client.connect(...).model()`. TensorFlow is
imported only where pictures are drawn.
"""

import io
import os
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Sequence,
    Tuple,
    Union,
    overload,
)

import cv2
import numpy as np
from PIL import Image, ImageOps

from pfpn_tf.data import coco_json, panoptic_png, predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.serving import results
from pfpn_tf.utils import overlap, progress, visualize
from pfpn_tf.utils.errors import UserError

_SHEET_SIDE = 640  # pixels of the longer side of each picture of a contact sheet

Photo = Union[str, "os.PathLike[str]", bytes, np.ndarray, Image.Image]
"""A path, an encoded image, [h, w, 3] uint8 RGB or [h, w] uint8 grey, or a PIL image."""


class Segment:
    """A segment of one image.

    Attributes:
      id: its number in `Result.ids`.
      category, name: name of its class.
      category_id: the dataset's number of its class.
      is_thing: whether its class is countable.
      score: 0 to 1; of stuff the mean probability of its class.
      area: pixels.
      box: y0, x0, y1, x1 in pixels, tight; y1 and x1 are one past the last.
    """

    def __init__(self, ids: np.ndarray, entry: Mapping[str, Any], category: str):
        x, y, width, height = entry["bbox"]
        self.id: int = entry["id"]
        self.category = self.name = category
        self.category_id: int = entry["category_id"]
        self.is_thing = bool(entry["isthing"])
        self.score: float = entry["score"]
        self.area: int = entry["area"]
        self.box: Tuple[int, int, int, int] = (y, x, y + height, x + width)
        self._ids = ids

    def mask(self) -> np.ndarray:
        """[h, w] bool, where the segment is."""
        return self._ids == self.id

    def __repr__(self):
        return (
            f"<{self.category} {self.id}: {self.area} pixels, box {self.box}, score"
            f" {self.score:.2f}>"
        )


class Result:
    """What a network says of one image.

    Attributes:
      ids: [h, w] int32 segment id of every pixel, 0 where there is none.
      segments: the segments, a `Segment` each.
      file_name: of the image; "image" if it was no file.
    """

    def __init__(self, name: str, image: bytes, reply: Mapping[str, Any], info: DatasetInfo):
        self.ids = results.decode_ids(reply["panoptic_png"])
        entries = predictions.segments_info(reply)
        self.segments = [Segment(self.ids, e, info.by_id[e["category_id"]].name) for e in entries]
        self.file_name = results.readable(os.path.basename(name))
        self._image = image
        self._reply = reply
        self._entries = entries
        self._info = info

    def __repr__(self):
        height, width = self.ids.shape
        return f"<{self.file_name}: {len(self.segments)} segments on {width} x {height} pixels>"

    def draw(self) -> Image.Image:
        """The map over the image, with names; small images are enlarged."""
        return Image.fromarray(results.draw(self._pixels(), self.ids, self._entries, self._info))

    def _pixels(self):
        """[h, w, 3] uint8 RGB, by the decoder that the network has."""
        from pfpn_tf.serving import images

        return images.upright_pixels(self._image).numpy()

    def save(self, folder: Union[str, "os.PathLike[str]"]) -> None:
        """Writes the map in COCO panoptic format, and the picture of `draw`.

        Files are those of `tools/predict.py`: FOLDER/predictions.json with this image alone,
        FOLDER/predictions/NAME.png and FOLDER/pictures/NAME_overlay.png. Of several images take
        `pfpn_tf.serving.model.save`.
        """
        save([self], folder)

    def write(self, writer: results.Writer, name: str, file_name: str = "") -> None:
        """Writes the image's files; see `results.Writer.write`.

        Args:
          writer: where they go.
          name: of the files, without suffix.
          file_name: of the image; empty: its own.
        """
        writer.write(name, file_name or self.file_name, self._pixels, self._reply)

    def to_supervision(self):
        """The things as `supervision.Detections`, with class names and masks.

        Raises:
          UserError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("to_supervision() needs supervision: pip install supervision") from None
        things = [segment for segment in self.segments if segment.is_thing]
        boxes = [(x0, y0, x1, y1) for y0, x0, y1, x1 in (segment.box for segment in things)]
        height, width = self.ids.shape
        return supervision.Detections(
            xyxy=np.array(boxes, np.float32).reshape(-1, 4),
            mask=np.array([segment.mask() for segment in things]).reshape(-1, height, width),
            confidence=np.array([segment.score for segment in things], np.float32),
            class_id=np.array([segment.category_id for segment in things], int),
            data={"class_name": np.array([segment.category for segment in things])},
        )


def save(found: Sequence[Result], folder: Union[str, "os.PathLike[str]"]) -> None:
    """Writes several results into one folder, as `Result.save` does one.

    Raises:
      UserError: there is none.
    """
    _check_any(found)
    # Two results may be of the same file, or of arrays, which have no name.
    keys = [os.path.join(str(i), result.file_name) for i, result in enumerate(found)]
    names = results.unique_names(keys)
    with results.Writer(os.fspath(folder), found[0]._info) as writer:
        for key, result in zip(keys, found):
            result.write(writer, names[key])


def contact_sheet(found: Sequence[Result], panoptic_json: str = "") -> Image.Image:
    """Photo, truth and prediction of a few images in one picture.

    Args:
      found: a column each; the pictures of a single image stand side by side.
      panoptic_json: COCO panoptic JSON with the truth, its PNGs in the folder of its name; empty:
        photos and predictions alone.

    Raises:
      UserError: there is no result, or the truth of an image is missing or damaged.
    """
    _check_any(found)
    of_images = truths(panoptic_json, [result.file_name for result in found])
    columns = []
    for result, truth in zip(found, of_images):
        photo = result._pixels()
        if truth and truth[0].shape != photo.shape[:2]:
            raise UserError(
                f"{panoptic_json}: the map of {result.file_name} has {truth[0].shape} pixels, the"
                f" photo {photo.shape[:2]}; is it the truth of other photos?"
            )
        scale = min(_SHEET_SIDE / max(photo.shape[:2]), results.MAX_SCALE)
        maps = {"truth": truth, "prediction": (result.ids, result._entries, result._info)}
        column = {"photo": visualize.resize(photo, scale)}
        for kind, of_kind in maps.items():
            if of_kind:
                ids, segments, info = of_kind
                column[kind] = visualize.overlay_panoptic(photo, ids, segments, info, scale)
        columns.append(column)
    if len(columns) == 1:
        sheet = visualize.side_by_side(list(columns[0].values()), list(columns[0]))
    else:
        rows = [[column[kind] for column in columns] for kind in columns[0]]
        titles = [[f"{kind}: {result.file_name}" for result in found] for kind in columns[0]]
        sheet = visualize.stack([visualize.side_by_side(*row) for row in zip(rows, titles)])
    return Image.fromarray(sheet)


def _check_any(found):
    if not found:
        raise UserError("There is no result; give those of at least one image.")


def truths(panoptic_json: str, names: Sequence[str]) -> list:
    """(ids, segments_info, `DatasetInfo`) of each image of a COCO panoptic JSON; None without.

    Raises:
      UserError: the truth of an image is missing or damaged.
    """
    if not panoptic_json:
        return [None] * len(names)
    content = coco_json.load_panoptic_json(panoptic_json, "panoptic", True, with_images=True)
    info = DatasetInfo.from_coco_categories(content["categories"], panoptic_json)
    images = coco_json.checked_images(content["images"], panoptic_json)
    id_of = {os.path.basename(image["file_name"]): image["id"] for image in images}
    match = coco_json.matcher(id_of.values())
    annotations = {match(a["image_id"]): a for a in content["annotations"]}
    found = []
    for name in names:
        if id_of.get(name) not in annotations:
            raise UserError(f"{panoptic_json} has no annotation of an image with the name {name}.")
        entry = coco_json.checked_annotation(annotations[id_of[name]], panoptic_json, "panoptic")
        folder = coco_json.png_folder(panoptic_json)
        ids = panoptic_png.read(folder, entry["file_name"], entry["image_id"], "panoptic")
        found.append((ids, entry["segments_info"], info))
    return found


class Model:
    """A network that answers for images; from `pfpn_tf.load`, or `model` of a client's connection.

    Attributes:
      answer: function of one encoded image to its reply, see the head of `results`; raises
        `results.Refused`.
      metadata: the network's own description; see `module.metadata_json`.
      info: the dataset.
      categories: names of its classes by the dataset's category id.
    """

    def __init__(self, answer: Callable[[bytes], Mapping[str, Any]], metadata: Mapping[str, Any]):
        self.answer = answer
        self.metadata = metadata
        self.info = DatasetInfo.from_coco_categories(metadata["categories"])
        self.categories: Dict[int, str] = {c.id: c.name for c in self.info.categories}

    @overload
    def __call__(self, images: List[Photo]) -> List[Result]: ...

    @overload
    def __call__(self, images: Photo) -> Result: ...

    def __call__(self, images):
        """The `Result` of an image, or a list of them of a list of images.

        EXIF orientation is applied to files, encoded images and PIL images.

        Args:
          images: a `Photo`, or a list of them. An array is RGB.

        Raises:
          UserError: an image cannot be read or decoded, or is too large.
        """
        if isinstance(images, (list, tuple)):
            return [self(image) for image in images]
        name, encoded = _encode(images)
        try:
            return Result(name, encoded, self._reply(encoded), self.info)
        except results.Refused as error:
            raise UserError(f"{name}: {error}") from None

    def _reply(self, image):
        reply = self.answer(image)
        if reply["error"]:
            raise results.Refused(reply["error"])
        return reply

    def predict_files(
        self, paths: Sequence[str], writer: results.Writer, workers: int = 1
    ) -> Iterator[Union[Result, results.Failure]]:
        """Writes the answer for every file. Reading, answering and writing overlap.

        Args:
          paths: image files.
          writer: where the answers go.
          workers: how many answers are asked for at a time.

        Yields:
          For each file its result, or why it could not be read, is refused, or could not be drawn
          or written.
        """
        names = results.unique_names(paths)

        def work(image):
            return image, self._reply(image)

        def write(path, answered):
            try:
                result = Result(path, *answered, self.info)
                result.write(writer, names[path])
            except (OSError, ValueError, MemoryError, cv2.error) as error:
                if writer.error:
                    raise
                text = results.reason(error)
                other = getattr(error, "filename", None) not in (None, path)
                raise results.Refused(f"{error.filename}: {text}" if other else text) from error
            return result

        read = results.read_image
        found = overlap.overlapped(paths, read, work, write, workers, results.Refused)
        bar = progress.Bar("Predicting", len(paths), "image", found)
        for result, path in zip(bar, paths):
            refused = isinstance(result, results.Refused)
            yield results.Failure(path, str(result)) if refused else result


def _encode(image) -> Tuple[str, bytes]:
    """A name for an image, and the image as a file that the network decodes."""
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        try:
            return path, results.read_image(path)
        except results.Refused as error:
            raise UserError(f"{path}: {error}.") from None
    if isinstance(image, bytes):
        return "image", image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(
                f"An image as array must be uint8 [h, w, 3] RGB or [h, w] grey, not {image.dtype}"
                f" {list(image.shape)}."
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            "An image must be a path, bytes, a numpy array or a PIL image, not a"
            f" {type(image).__name__}."
        )
    if image.mode.startswith(("I", "F")):  # Pillow would cut values off at 255.
        raise UserError(
            f"A PIL image must have 8 bits a channel, not mode {image.mode}; scale it to 0..255"
            " (or give the path of its file if that has 16 bits a channel)."
        )
    stream = io.BytesIO()
    try:
        ImageOps.exif_transpose(image).convert("RGB").save(stream, "PNG", compress_level=1)
    except (ValueError, OSError) as error:  # Closed, cut off or without a pixel.
        raise UserError(f"The image cannot be used ({error}).") from None
    return "image", stream.getvalue()
