"""A trained network in three lines of Python.

import pfpn_tf
model = pfpn_tf.load("models/panoptic/1")
result = model("photo.jpg")
"""

import io
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union, overload

import numpy as np
from PIL import Image

from pfpn_tf.data import predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.runs import run_directory
from pfpn_tf.serving import images as images_lib
from pfpn_tf.serving import predictor, results
from pfpn_tf.utils.errors import UserError

Photo = Union[str, "os.PathLike[str]", bytes, np.ndarray, Image.Image]
"""A path, an encoded image, [h, w, 3] uint8 RGB or [h, w] uint8 grey, or a PIL image."""


class Segment:
    """A segment of one image.

    Attributes:
      id: its number in `Result.ids`.
      category: name of its class.
      category_id: the dataset's number of its class.
      is_thing: whether its class is countable.
      score: 0 to 1; of stuff the mean probability of its class.
      area: pixels.
      box: y0, x0, y1, x1 in pixels, tight; y1 and x1 are one past the last.
    """

    def __init__(self, ids: np.ndarray, entry: Mapping[str, Any], category: str):
        x, y, width, height = entry["bbox"]
        self.id: int = entry["id"]
        self.category = category
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
    """

    def __init__(self, name: str, image: bytes, reply: Mapping[str, Any], info: DatasetInfo):
        self.ids = results.decode_ids(reply["panoptic_png"])
        entries = predictions.segments_info(reply)
        names = {category.id: category.name for category in info.categories}
        self.segments = [Segment(self.ids, e, names[e["category_id"]]) for e in entries]
        self._name = name
        self._image = image
        self._reply = reply
        self._entries = entries
        self._info = info

    def draw(self) -> Image.Image:
        """The map over the image, with names; small images are enlarged."""
        return Image.fromarray(results.draw(self._pixels(), self.ids, self._entries, self._info))

    def _pixels(self):
        """What the network saw, by its own decoder, so that the map always fits."""
        return images_lib.upright_pixels(self._image).numpy()

    def save(self, folder: Union[str, "os.PathLike[str]"]) -> None:
        """Writes the map in COCO panoptic format, and the picture of `draw`.

        Files are those of `tools/predict.py`: FOLDER/predictions.json with this image alone,
        FOLDER/predictions/NAME.png and FOLDER/pictures/NAME_overlay.png. Of several images take
        `pfpn_tf.serving.model.save`.
        """
        save([self], folder)

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
    """Writes several results into one folder, as `Result.save` does one."""
    # Two results may be of the same file, or of arrays, which have no name.
    keys = [os.path.join(str(i), os.path.basename(result._name)) for i, result in enumerate(found)]
    names = results.unique_names(keys)
    with results.Writer(os.fspath(folder), found[0]._info) as writer:
        for key, result in zip(keys, found):
            file_name = os.path.basename(result._name)
            writer.write(names[key], file_name, result._pixels, result._reply)


class Model:
    """A network that answers for images; from `pfpn_tf.load`.

    Attributes:
      categories: names of its classes by the dataset's category id.
    """

    def __init__(self, network: predictor.Predictor):
        self._network = network
        self.categories: Dict[int, str] = {c.id: c.name for c in network.info.categories}

    @overload
    def __call__(self, images: List[Photo]) -> List[Result]: ...

    @overload
    def __call__(self, images: Photo) -> Result: ...

    def __call__(self, images):
        """The `Result` of an image, or a list of them of a list of images.

        EXIF orientation is applied to files and encoded images.

        Args:
          images: a `Photo`, or a list of them. An array is RGB.

        Raises:
          UserError: an image cannot be read or decoded, or is too large.
        """
        if isinstance(images, (list, tuple)):
            return [self(image) for image in images]
        name, encoded = _encode(images)
        try:
            reply = self._network.answer(encoded)
        except results.Refused as error:
            raise UserError(f"{name}: {error}") from None
        return Result(name, encoded, reply, self._network.info)


def load(
    source: Union[str, "os.PathLike[str]"], checkpoint: Optional[str] = None, **settings: Any
) -> Model:
    """A network that answers for images.

    Args:
      source: folder of an export, or a run directory.
      checkpoint: of a run directory: None for the newest, "best", a step, or a prefix.
      **settings: of a run directory: settings that replace those of the run, such as
        `score_threshold=0.3`.

    Raises:
      UserError: it is neither, or has no usable weights.
    """
    source = os.fspath(source)
    if os.path.isfile(os.path.join(source, run_directory.CONFIG)):
        return Model(predictor.load_run(source, checkpoint, settings))
    if checkpoint or settings:
        raise UserError(
            f"{source} is no run directory, so checkpoint and settings cannot be chosen; they are"
            " fixed when a network is exported."
        )
    return Model(predictor.load_saved_model(source))


def _encode(image) -> Tuple[str, bytes]:
    """A name for an image, and the image as a file that the network decodes."""
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        try:
            return path, results.read_image(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}.") from None
        except ValueError as error:
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
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG", compress_level=1)
    return "image", stream.getvalue()
