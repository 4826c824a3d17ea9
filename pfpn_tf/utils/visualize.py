"""Pictures of what goes into the network and what comes out. numpy and OpenCV only.

Images are [h, w, 3] uint8 RGB, boxes yxyx pixels, and sizes (h, w). Every function returns a new
image. Line widths and text follow the size of the picture.
"""

import colorsys
import unicodedata
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import cv2
import numpy as np

Color = Tuple[int, int, int]

THING_OPACITY = 0.5
STUFF_OPACITY = 0.38
VOID_BRIGHTNESS = 0.45
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_CAP_HEIGHT = 22.0  # of that font at scale 1, in pixels


def overlay_panoptic(
    image: np.ndarray,
    panoptic_ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    info,
    scale: float = 1.0,
    draw_labels: bool = True,
) -> np.ndarray:
    """Translucent segments with outlines and labels over the image.

    Args:
      image: [h, w, 3] uint8.
      panoptic_ids: [h, w] segment ids; void, which is 0 or not in `segments`, is dark grey with
        stripes.
      segments: dicts with `id` and `category_id`, and perhaps `score` (written beside the name)
        and `iscrowd`.
      info: `DatasetInfo`, for names and colours.
      scale: enlarges the picture first, which makes room for labels on a small one.

    Returns:
      [h * scale, w * scale, 3] uint8.

    Raises:
      ValueError: image and map differ in size.
    """
    if image.shape[:2] != panoptic_ids.shape:
        raise ValueError(f"The image is {image.shape[:2]}, its map {panoptic_ids.shape}.")
    image, ids = _enlarge(image, panoptic_ids, scale)
    colors = segment_colors(segments, info)
    known = {int(s["id"]): i for i, s in enumerate(segments)}
    found, index = np.unique(ids, return_inverse=True)
    position = np.array([known.get(int(v), -1) for v in found])
    order = position[index].reshape(ids.shape)  # [h, w] index of the segment, -1 for none

    things = [bool(info.by_id[int(s["category_id"])].is_thing) for s in segments]
    text_px = _text_height(image.shape)
    # The last row answers for index -1.
    fill = np.array([*colors, (0, 0, 0)], np.float32)[order]
    opacities = [THING_OPACITY if t else STUFF_OPACITY for t in things]
    opacity = np.array([*opacities, 0.0], np.float32)[order]
    canvas = image + (fill - image) * opacity[..., None]
    canvas = np.where(order[..., None] < 0, _striped_grey(image, text_px), canvas)
    canvas = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)

    parts = [_Part.of(order, i) for i in range(len(segments))]
    for i, part in sorted(enumerate(parts), key=lambda item: things[item[0]]):
        if part is not None:
            line = max(1, round(text_px / 7)) if things[i] else 1
            _draw_outline(canvas, part, _lighter(colors[i], 0.45 if things[i] else 0.2), line)
    if draw_labels:
        _draw_labels(canvas, parts, [_caption(s, info) for s in segments], colors, things, text_px)
    return canvas


def overlay_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    masks: Optional[Sequence[np.ndarray]] = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Boxes, and masks if given, with captions over the image.

    Args:
      image: [h, w, 3] uint8.
      boxes: [N, 4] yxyx pixels.
      captions: N texts; empty ones are not drawn.
      colors: N RGB colours.
      masks: N arrays [h, w] of 0 and 1; may overlap, later ones lie on top.
      scale: enlarges the picture first.
    """
    canvas, _ = _enlarge(image, np.zeros(image.shape[:2], np.int32), scale)
    canvas = canvas.copy()
    text_px = _text_height(canvas.shape)
    line = max(1, round(text_px / 7))
    for mask, color in zip(() if masks is None else masks, colors):
        enlarged = cv2.resize(
            np.asarray(mask, np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST
        )
        part = _Part.of(enlarged.astype(np.int32) - 1, 0)
        if part is None:
            continue
        height, width = part.mask.shape
        window = canvas[part.top : part.top + height, part.left : part.left + width]
        inside = part.mask > 0
        window[inside] = (
            window[inside] * (1 - THING_OPACITY) + np.array(color, np.float32) * THING_OPACITY
        )
        _draw_outline(canvas, part, _lighter(color, 0.45), line)
    placed = _Placed(canvas.shape)
    for box, color in zip(boxes, colors):
        y0, x0, y1, x1 = (int(round(float(c) * scale)) for c in box)
        cv2.rectangle(canvas, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), color, line)
    for box, caption, color in zip(boxes, captions, colors):
        y0, x0 = (int(round(float(c) * scale)) for c in box[:2])
        width, height = _tag_size(caption, text_px)
        spots = [(y0 + lines * height, x0) for lines in (-1, 0, 1, -2, 2)]
        spot = placed.first_free(spots, width, height)
        if caption and spot is not None:
            _draw_tag(canvas, caption, spot, color, text_px)
    return canvas


def color_semantic(
    labels: np.ndarray, colors: np.ndarray, void_color: Color = (0, 0, 0)
) -> np.ndarray:
    """A semantic map in colours.

    Args:
      labels: [h, w] integers; those outside of `colors` are void.
      colors: [S, 3] uint8.
    """
    table = np.concatenate(
        [np.asarray(colors, np.uint8).reshape(-1, 3), np.array([void_color], np.uint8)]
    )
    labels = np.asarray(labels).astype(np.int64)
    return table[np.where((labels < 0) | (labels >= len(colors)), len(colors), labels)]


def blend(image: np.ndarray, colored: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """`colored` laid over `image`."""
    return cv2.addWeighted(image, 1 - opacity, colored, opacity, 0)


def side_by_side(
    images: Sequence[np.ndarray], titles: Sequence[str] = (), gap_px: int = 8
) -> np.ndarray:
    """Images in a row at the height of the tallest, each under its title, on white."""
    height = max(image.shape[0] for image in images)
    columns = []
    for i, image in enumerate(images):
        factor = height / image.shape[0]
        if factor != 1:
            size = (max(1, round(image.shape[1] * factor)), height)
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        if titles:
            image = np.concatenate([_title_bar(titles[i], image.shape[1], height), image])
        columns.append(image)
    tallest = max(column.shape[0] for column in columns)  # a narrow column has a smaller title
    aligned = []
    for i, column in enumerate(columns):
        padded = np.full((tallest, column.shape[1] + (gap_px if i else 0), 3), 255, np.uint8)
        padded[tallest - column.shape[0] :, padded.shape[1] - column.shape[1] :] = column
        aligned.append(padded)
    return np.concatenate(aligned, axis=1)


def stack(images: Sequence[np.ndarray], gap_px: int = 8) -> np.ndarray:
    """Images of any width under each other, on white."""
    width = max(image.shape[1] for image in images)
    rows = []
    for i, image in enumerate(images):
        padded = np.full((image.shape[0] + (gap_px if i else 0), width, 3), 255, np.uint8)
        padded[padded.shape[0] - image.shape[0] :, : image.shape[1]] = image
        rows.append(padded)
    return np.concatenate(rows)


def legend(
    entries: Sequence[Tuple[str, Sequence[int]]], width: int, text_px: int = 14
) -> np.ndarray:
    """Colour swatches with names, in as many columns as the width has room for."""
    pad = text_px // 2
    widest = max([_text_size(_plain(name), text_px)[0] for name, _ in entries] or [1])
    cell = widest + 2 * text_px + 2 * pad
    columns = max(1, width // cell)
    line = text_px + 2 * pad
    rows = -(-len(entries) // columns)
    canvas = np.full((max(1, rows) * line, width, 3), 255, np.uint8)
    for i, (name, color) in enumerate(entries):
        y, x = (i // columns) * line + pad, (i % columns) * cell + pad
        swatch = (x + round(1.5 * text_px), y + text_px)
        cv2.rectangle(canvas, (x, y), swatch, tuple(int(c) for c in color), -1)
        cv2.rectangle(canvas, (x, y), swatch, (90, 90, 90), 1)
        _put_text(canvas, _plain(name), (y + text_px, swatch[0] + pad), (30, 30, 30), text_px * 0.8)
    return canvas


def segment_colors(segments: Sequence[Mapping[str, Any]], info) -> List[Color]:
    """One colour per segment: stuff has its class colour, instances shades around theirs.

    The n-th instance of a class always gets the same shade.
    """
    count: Dict[int, int] = {}
    colors = []
    for segment in segments:
        category = info.by_id[int(segment["category_id"])]
        n = count[category.id] = count.get(category.id, -1) + 1
        red, green, blue = (int(c) for c in category.color)
        color = (red, green, blue)
        colors.append(_shade(color, n) if category.is_thing else color)
    return colors


def _shade(color, n):
    """The n-th variation of a colour: hue within 0.13 of a turn, different lightness."""
    if n == 0:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(*(c / 255 for c in color))
    step = n * 0.618034  # golden ratio: spreads any number of instances evenly
    hue = (hue + 0.26 * (step % 1.0) - 0.13) % 1.0
    lightness = 0.32 + 0.42 * ((lightness + 2.3 * step) % 1.0)
    return tuple(
        int(round(255 * c)) for c in colorsys.hls_to_rgb(hue, lightness, max(saturation, 0.45))
    )


def _striped_grey(image, text_px):
    """What void looks like: no object is grey with stripes."""
    grey = VOID_BRIGHTNESS * image.mean(-1, keepdims=True)  # [h, w, 1]
    height, width = image.shape[:2]
    diagonal = np.arange(height)[:, None] + np.arange(width)  # [h, w]
    return np.where((diagonal % text_px < text_px // 3)[..., None], 0.6 * grey, grey)


def _lighter(color, share):
    return tuple(int(round(c + (255 - c) * share)) for c in color)


def _caption(segment, info):
    text = info.by_id[int(segment["category_id"])].name
    if segment.get("iscrowd"):
        text += " (crowd)"
    if segment.get("score"):
        text += f" {100 * float(segment['score']):.0f}%"
    return text


def _enlarge(image, ids, scale):
    image = np.ascontiguousarray(image)
    ids = np.ascontiguousarray(ids, dtype=np.int32)
    if scale == 1:
        return image, ids
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_CUBIC),
        cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST),
    )


class _Part:
    """The pixels of one segment inside its bounding box."""

    def __init__(self, mask, top, left):
        self.mask, self.top, self.left = mask, top, left
        self.area = int(mask.sum())

    @classmethod
    def of(cls, order, i):
        mask = (order == i).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        if not width:
            return None
        return cls(np.ascontiguousarray(mask[top : top + height, left : left + width]), top, left)

    def centres(self):
        """Points deep inside, (distance to the border, y, x), deepest first; one per region."""
        depth = cv2.distanceTransform(
            cv2.copyMakeBorder(self.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3
        )
        points = []
        for _ in range(3):
            _, deepest, _, (x, y) = cv2.minMaxLoc(depth)
            if deepest < 1:
                break
            points.append((deepest, self.top + y - 1, self.left + x - 1))
            cv2.circle(depth, (x, y), int(2 * deepest) + 1, 0, -1)
        return points


def _draw_outline(canvas, part, color, line):
    contours, _ = cv2.findContours(
        part.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(part.left, part.top)
    )
    cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA)


def _draw_labels(canvas, parts, captions, colors, things, text_px):
    """A tag per segment, larger segments first, where there is room that no other tag has."""
    placed = _Placed(canvas.shape)
    smallest = 0.5 * text_px**2
    order = sorted(
        (i for i, p in enumerate(parts) if p is not None),
        key=lambda i: (not things[i], -parts[i].area),
    )
    for i in order:
        if parts[i].area < (smallest if things[i] else 4 * smallest):
            continue
        width, height = _tag_size(captions[i], text_px)
        spots = []
        for _, y, x in parts[i].centres():
            top, left = y - height // 2, x - width // 2
            spots += [(top, left), (top - height, left), (top + height, left)]
        spot = placed.first_free(spots, width, height)
        if spot is not None:
            _draw_tag(canvas, captions[i], spot, colors[i], text_px)


class _Placed:
    """Where tags lie already."""

    def __init__(self, shape):
        self._hw = shape[:2]
        self._boxes = []

    def first_free(self, spots, width, height):
        """The first of the (top, left) spots, moved into the picture, that is free; it is taken."""
        for top, left in spots:
            top = min(max(top, 0), self._hw[0] - height)
            left = min(max(left, 0), self._hw[1] - width)
            box = (top, left, top + height, left + width)
            if top >= 0 and left >= 0 and not any(_touch(box, other) for other in self._boxes):
                self._boxes.append(box)
                return top, left
        return None


def _touch(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_height(shape):
    """Capital letters' height for a picture of this shape, in pixels."""
    return int(np.clip(0.0145 * (shape[0] * shape[1]) ** 0.5, 7, 40))


def _plain(text):
    """The OpenCV font has ASCII only: accents are dropped, other letters become '?'."""
    letters = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in letters)


def _thickness(text_px):
    return max(1, round(text_px / 12))


def _text_size(text, text_px):
    (width, _), _ = cv2.getTextSize(text, _FONT, text_px / _CAP_HEIGHT, _thickness(text_px))
    return width, int(round(text_px * 1.35))  # with descenders


def _put_text(canvas, text, base, color, text_px):
    scale, thickness = text_px / _CAP_HEIGHT, _thickness(text_px)
    cv2.putText(canvas, text, base[::-1], _FONT, scale, color, thickness, cv2.LINE_AA)


def _tag_size(caption, text_px):
    width, height = _text_size(_plain(caption), text_px)
    pad = max(2, text_px // 3)
    return width + 2 * pad, height + 2 * pad


def _draw_tag(canvas, caption, spot, color, text_px):
    """A dark plate with a stripe in the segment's colour and white text."""
    width, height = _tag_size(caption, text_px)
    top, left = spot
    plate = canvas[top : top + height, left : left + width]
    plate[:] = plate * 0.25 + np.float32([14, 14, 18]) * 0.75
    plate[:, : max(2, text_px // 4)] = color
    pad = max(2, text_px // 3)
    base = (top + pad + text_px, left + pad + max(1, text_px // 6))
    _put_text(canvas, _plain(caption), base, (255, 255, 255), text_px)


def _title_bar(title, width, picture_height):
    text_px = int(np.clip(picture_height * 0.025, 9, 28))
    while text_px > 5 and _text_size(_plain(title), text_px)[0] > width - 8:
        text_px -= 1
    bar = np.full((int(text_px * 2.2), width, 3), 255, np.uint8)
    _put_text(bar, _plain(title), (int(text_px * 1.6), 4), (20, 20, 20), text_px)
    return bar
