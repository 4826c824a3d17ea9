"""Pictures of what goes into the network and what comes out. No TensorFlow here.

Images are [h, w, 3] uint8 RGB, boxes yxyx pixels, and sizes (h, w). Every function returns a new
image. Line widths and text follow the size of the picture. Text is white on a dark plate, and a
line of a light colour lies on a wider dark one, so that both show on light and dark ground.
"""

import colorsys
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import cv2
import numpy as np

from pfpn_tf.utils import lettering

Color = Tuple[int, int, int]

THING_OPACITY = 0.5
STUFF_OPACITY = 0.38
VOID_BRIGHTNESS = 0.45
_DARK = (20, 20, 20)
_GAP_PX = 8  # between images side by side, or stacked


def overlay_panoptic(
    image: np.ndarray,
    panoptic_ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    info,
    scale: float = 1.0,
) -> np.ndarray:
    """Translucent segments with outlines and labels over the image.

    Args:
      image: [h, w, 3] uint8.
      panoptic_ids: [h, w] segment ids; void, which is 0 or not in `segments`, is dark grey with
        stripes.
      segments: dicts with `id` and `category_id`, and perhaps `score` (written beside the name)
        and `iscrowd`.
      info: `DatasetInfo`, for names and colours.
      scale: changes the picture's size first; larger ones have more room for labels.

    Returns:
      [h * scale, w * scale, 3] uint8.

    Raises:
      ValueError: image and map differ in size.
    """
    if image.shape[:2] != panoptic_ids.shape:
        raise ValueError(f"The image is {image.shape[:2]}, its map {panoptic_ids.shape}.")
    colors = segment_colors(segments, info)
    known = {int(s["id"]): i for i, s in enumerate(segments)}
    found, index = np.unique(panoptic_ids, return_inverse=True)
    position = np.array([known.get(int(v), -1) for v in found])
    order = position[index].reshape(panoptic_ids.shape)  # [h, w] index of the segment, -1 for none
    image, order = resize(image, scale), _resize_order(order, scale)

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
            if things[i]:
                _draw_outline(canvas, part, _line_color(colors[i]), _line_width(text_px))
            else:  # Specks of stuff would fill the picture with outlines.
                _draw_outline(canvas, part, _lighter(colors[i], 0.2), 1, shortest=3 * text_px)
    _draw_labels(canvas, parts, [_caption(s, info) for s in segments], colors, things, text_px)
    return canvas


def overlay_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[Color],
    masks: Sequence[np.ndarray],
) -> np.ndarray:
    """Boxes and masks with captions over the image.

    Args:
      image: [h, w, 3] uint8.
      boxes: [N, 4] yxyx pixels.
      captions: N texts.
      colors: N RGB colours.
      masks: N arrays [h, w] of 0 and 1; may overlap, later ones lie on top.
    """
    canvas = image.copy()
    text_px = _text_height(canvas.shape)
    line = _line_width(text_px)
    for mask, color in zip(masks, colors):
        part = _Part.of(mask, 1)
        if part is None:
            continue
        height, width = part.mask.shape
        window = canvas[part.top : part.top + height, part.left : part.left + width]
        inside = part.mask > 0
        window[inside] = (
            window[inside] * (1 - THING_OPACITY) + np.array(color, np.float32) * THING_OPACITY
        )
        _draw_outline(canvas, part, _line_color(color), line)
    for box, color in zip(boxes, colors):
        y0, x0, y1, x1 = (int(round(float(c))) for c in box)
        corners = (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0))
        for line_color, width in _cased(_line_color(color), line):
            cv2.rectangle(canvas, *corners, line_color, width)
    tags = lettering.Tags(canvas, text_px)
    for box, caption, color in zip(boxes, captions, colors):
        y0, x0 = (int(round(float(c))) for c in box[:2])
        _, height = tags.size(caption)
        spots = [(y0 + lines * height, x0) for lines in (-1, 0, 1, -2, 2)]
        tags.draw(caption, spots, _line_color(color))
    return canvas


def overlay_semantic(
    image: np.ndarray, labels: np.ndarray, info, semantic_targets: str
) -> np.ndarray:
    """`overlay_panoptic` of a semantic map.

    Args:
      image: [h, w, 3] uint8.
      labels: [h, w] semantic classes; all other values are void.
      info: `DatasetInfo`, for names and colours.
      semantic_targets: the setting, which says what the classes are.
    """
    classes = info.of_semantic_classes(semantic_targets)
    segments = [{"id": c.id, "category_id": c.id} for c in classes.categories]
    return overlay_panoptic(image, labels, segments, classes)


def side_by_side(images: Sequence[np.ndarray], titles: Sequence[str] = ()) -> np.ndarray:
    """Images in a row at the height of the tallest, each under its title, on white."""
    height = max(image.shape[0] for image in images)
    columns = [resize(image, height / image.shape[0]) for image in images]
    for i, title in enumerate(titles):
        bar = _title_bar(title, columns[i].shape[1], height)
        columns[i] = np.concatenate([bar, columns[i]])
    tallest = max(len(column) for column in columns)  # a narrow column has a smaller title
    aligned = [
        _on_white(column, top=tallest - len(column), left=_GAP_PX if i else 0)
        for i, column in enumerate(columns)
    ]
    return np.concatenate(aligned, axis=1)


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images of any width under each other, on white."""
    width = max(image.shape[1] for image in images)
    aligned = [
        _on_white(image, top=_GAP_PX if i else 0, right=width - image.shape[1])
        for i, image in enumerate(images)
    ]
    return np.concatenate(aligned)


def _on_white(image, top=0, left=0, right=0):
    white = (255, 255, 255)
    return cv2.copyMakeBorder(image, top, 0, left, right, cv2.BORDER_CONSTANT, value=white)


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


def resize(image: np.ndarray, scale: float) -> np.ndarray:
    """The image `scale` times as large."""
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image), _scaled(image, scale), interpolation=method)


def _scaled(image, scale):
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return width, height


def _resize_order(order, scale):
    """[h, w] indices from -1 on, `scale` times as large, with smooth borders instead of steps."""
    if scale == 1:
        return order
    size = _scaled(order, scale)
    resized, strongest = np.full(size[::-1], -1), np.zeros(size[::-1], np.uint8)
    for i in np.unique(order):
        mask = cv2.resize(np.where(order == i, np.uint8(255), np.uint8(0)), size)
        if scale > 1:
            mask = cv2.GaussianBlur(mask, (0, 0), scale / 2)  # Lines of one pixel stay.
        resized[mask > strongest] = i
        strongest = np.maximum(mask, strongest)
    return resized


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


def _draw_outline(canvas, part, color, line, shortest=0):
    """Draws along the border pixels; borders of fewer than `shortest` pixels are left out."""
    contours, _ = cv2.findContours(
        part.mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(part.left, part.top)
    )
    contours = [contour for contour in contours if len(contour) >= shortest]
    for line_color, width in _cased(color, line):
        cv2.drawContours(canvas, contours, -1, line_color, width, cv2.LINE_AA)


def _cased(color, width):
    """(colour, width) of the lines to draw over one another; the finest have no room for two."""
    return [(_DARK, width + 2), (color, width)] if width > 1 else [(color, width)]


def _line_color(color):
    return _lighter(color, 0.45)


def _line_width(text_px):
    return max(1, round(text_px / 9))


def _draw_labels(canvas, parts, captions, colors, things, text_px):
    """A tag per segment, larger segments first, where there is room that no other tag has."""
    tags = lettering.Tags(canvas, text_px)
    smallest = 0.5 * text_px**2
    order = sorted(
        (i for i, p in enumerate(parts) if p is not None),
        key=lambda i: (not things[i], -parts[i].area),
    )
    for i in order:
        part = parts[i]
        if part.area < (smallest if things[i] else 4 * smallest):
            continue
        width, height = tags.size(captions[i])
        part_height, part_width = part.mask.shape
        spots = []
        if width > part_width:  # A tag above a narrow segment hides less than one on it.
            left = part.left + (part_width - width) // 2
            spots = [(part.top - height - 2, left), (part.top + part_height + 2, left)]
        for _, y, x in part.centres():
            top, left = y - height // 2, x - width // 2
            spots += [(top, left), (top - height, left), (top + height, left)]
        tags.draw(captions[i], spots, _line_color(colors[i]))


def _text_height(shape):
    """Font size for a picture of this shape, in pixels."""
    return int(np.clip(0.02 * (shape[0] * shape[1]) ** 0.5, 10, 56))


def _title_bar(title, width, picture_height):
    text_px = int(np.clip(picture_height * 0.035, 12, 40))
    while text_px > 6 and lettering.text_size(title, text_px)[0] > width - 8:
        text_px -= 1
    bar = np.full((int(text_px * 1.6), width, 3), 255, np.uint8)
    lettering.write(bar, title, (text_px // 5, 4), _DARK, text_px)
    return bar
