"""The images of a split with the lowest and the highest PQ, drawn beside their ground truth."""

from typing import Callable, Dict, List, NamedTuple

import cv2
import numpy as np

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation.panoptic_quality import SegmentMatches
from pfpn_tf.utils import visualize


class _Picture(NamedTuple):
    score: float
    position: int
    caption: str
    jpeg: bytes


class Gallery:
    """Keeps a few images at either end, and no more than it shows.

    Which ones these are does not depend on the order in which they come: of images with equal PQ
    the first of the split is kept.
    """

    def __init__(self, info: DatasetInfo, size: int = 5):
        """Args: size: images kept at either end."""
        self._info = info
        self._size = size
        self._pictures: Dict[int, _Picture] = {}  # by position

    @property
    def worst(self) -> List[_Picture]:
        """The lowest PQ first."""
        order = sorted(self._pictures.values(), key=lambda p: (p.score, p.position))
        return order[: self._size]

    @property
    def best(self) -> List[_Picture]:
        """The highest PQ first."""
        order = sorted(self._pictures.values(), key=lambda p: (-p.score, p.position))
        return order[: self._size]

    def add(
        self, position: int, name: str, matches: SegmentMatches, read: Callable[[], tuple]
    ) -> None:
        """Draws the image if it belongs to either end so far.

        Args:
          position: of the image in the split.
          name: for the caption.
          matches: of this image.
          read: gives photo, ground truth and prediction; called only to draw. The photo is [h, w,
            3] uint8, the others ([h, w] ids, segments_info).
        """
        score = matches.quality
        if score is None:
            return
        caption = (
            f"{name}: PQ {100 * score:.1f} ({len(matches.matches)} matched,"
            f" {len(matches.false_positives)} false, {len(matches.false_negatives)} missed"
            " segments)"
        )
        self._add(_Picture(score, position, caption, b""))
        if position in self._pictures:
            self._add(_Picture(score, position, caption, self._draw(*read())))

    def merge(self, other: "Gallery") -> None:
        """Takes over what belongs to either end of both."""
        self._add(*other._pictures.values())

    def _add(self, *pictures):
        self._pictures.update((picture.position, picture) for picture in pictures)
        self._pictures = {picture.position: picture for picture in self.worst + self.best}

    def pictures(self) -> Dict[str, np.ndarray]:
        """worst/0, worst/1, ..., best/0, ...: [h, w, 3] uint8."""
        found = {}
        for end, pictures in (("worst", self.worst), ("best", self.best)):
            for i, picture in enumerate(pictures):
                bgr = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
                assert bgr is not None  # `_draw` has encoded it.
                found[f"{end}/{i}"] = bgr[..., ::-1]
        return found

    def _draw(self, photo, gt, pred):
        scale = max(1.0, 600 / photo.shape[1])
        pictures = [
            visualize.overlay_panoptic(photo, ids, segments, self._info, scale)
            for ids, segments in (gt, pred)
        ]
        drawn = visualize.side_by_side(pictures, ["Ground truth", "Prediction"])
        return cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
