"""Draws scenes with exact labels.

They hold what real data holds: things that hide one another or leave the image, textured stuff with
winding borders, void along the borders and in patches, crowds, images without things, images of
every orientation, and category ids with gaps. The same seed draws the same scene.

Shapes: h, w size of one scene · P corners of an outline.
"""

from typing import List, NamedTuple, Tuple

import cv2
import numpy as np

CATEGORIES = [
    {"id": 1, "name": "ball", "supercategory": "shape", "isthing": 1, "color": [220, 40, 60]},
    {"id": 3, "name": "crate", "supercategory": "shape", "isthing": 1, "color": [150, 90, 200]},
    {"id": 4, "name": "tent", "supercategory": "shape", "isthing": 1, "color": [250, 140, 20]},
    {"id": 8, "name": "star", "supercategory": "shape", "isthing": 1, "color": [30, 200, 200]},
    {"id": 20, "name": "sky", "supercategory": "ground", "isthing": 0, "color": [120, 180, 250]},
    {"id": 23, "name": "water", "supercategory": "ground", "isthing": 0, "color": [20, 60, 160]},
    {"id": 24, "name": "grass", "supercategory": "ground", "isthing": 0, "color": [60, 150, 50]},
    {"id": 31, "name": "brick", "supercategory": "ground", "isthing": 0, "color": [170, 80, 60]},
    {"id": 35, "name": "sand", "supercategory": "ground", "isthing": 0, "color": [230, 210, 150]},
]
_BY_NAME = {category["name"]: category for category in CATEGORIES}
_BY_ID = {category["id"]: category for category in CATEGORIES}
THING_NAMES = tuple(c["name"] for c in CATEGORIES if c["isthing"])

# Shares of scenes; each keeps a kind of image in the data that real data has and code forgets.
_NO_THINGS_SHARE = 0.05
_CROWD_SHARE = 0.15
_VOID_PATCH_SHARE = 0.3
_MAX_HIDDEN_SHARE = 0.5  # of any thing, by those in front of it


class Scene(NamedTuple):
    """One drawn image with its labels.

    Attributes:
      image: [h, w, 3] uint8 RGB.
      panoptic_ids: [h, w] int64 segment id, 0 for void.
      segments_info: the image's `segments_info` as in a COCO panoptic JSON.
    """

    image: np.ndarray
    panoptic_ids: np.ndarray
    segments_info: List[dict]


def draw_scene(seed, sides: Tuple[int, int] = (112, 192)) -> Scene:
    """Draws one scene.

    Args:
      seed: an integer or a sequence of integers.
      sides: smallest and largest side of the image, in pixels.
    """
    rng = np.random.default_rng(seed)
    hw = _draw_size(rng, sides)
    image, category_ids = _draw_stuff(rng, hw)
    if rng.random() < _VOID_PATCH_SHARE:
        _draw_void_patch(rng, image, category_ids)

    owners = np.zeros(hw, np.int64)  # [h, w] 1-based index into `things`, 0 where there is none
    things = []  # (category name, iscrowd)
    if rng.random() < _CROWD_SHARE:
        things.append((_draw_crowd(rng, image, owners, 1), 1))
    if rng.random() >= _NO_THINGS_SHARE:
        _draw_things(rng, image, owners, things)
    noise = 3 * rng.standard_normal(image.shape, np.float32)
    image = np.clip(image * rng.uniform(0.85, 1.1) + noise, 0, 255).astype(np.uint8)
    return Scene(image, *_label(rng, category_ids, owners, things))


def _draw_size(rng, sides):
    """Landscape, portrait and square in equal shares; odd numbers included."""
    longer, shorter = (int(v) for v in sorted(rng.integers(sides[0], sides[1] + 1, 2))[::-1])
    return [(shorter, longer), (longer, shorter), (longer, longer)][rng.integers(3)]


# Stuff: two to four regions with winding borders.


def _draw_stuff(rng, hw):
    """Returns image [h, w, 3] float32 RGB and category_ids [h, w] int64, 0 along the borders."""
    top = rng.choice(["sky", "sky", "brick"])
    grounds = list(rng.permutation(["water", "grass", "sand"]))
    names = [top] + (["brick"] if top == "sky" and rng.random() < 0.4 else [])
    borders = (
        [rng.uniform(0.25, 0.4)]
        if len(names) == 1
        else [rng.uniform(0.15, 0.25), rng.uniform(0.4, 0.5)]
    )
    y, x = np.ogrid[: hw[0], : hw[1]]

    region = np.zeros(hw, np.int64)  # [h, w] index into `names`
    for border in borders:
        region += y > hw[0] * border + _winding(rng, x, hw)
    names.append(grounds[0])
    if rng.random() < 0.7:  # a slanting border divides the ground
        names.append(grounds[1])
        slope = rng.uniform(-1, 1)
        divide = hw[1] * rng.uniform(0.35, 0.65) + slope * (y - hw[0] * 0.7) + _winding(rng, y, hw)
        region[(region == len(names) - 2) & (x > divide)] += 1

    image = np.zeros(hw + (3,), np.float32)
    for index, name in enumerate(names):
        np.copyto(image, _TEXTURES[name](rng, hw), where=(region == index)[..., None])
    category_ids = np.array([_BY_NAME[name]["id"] for name in names])[region]
    lowest, highest = (
        f(region.astype(np.uint8), np.ones((3, 3), np.uint8)) for f in (cv2.erode, cv2.dilate)
    )
    category_ids[lowest != highest] = 0  # as between COCO's segments
    return image, category_ids


def _winding(rng, along, hw):
    """A smooth offset in pixels along a border."""
    size = max(hw)
    waves = [(0.035 * size, 1.3), (0.012 * size, 4.0)]
    return sum(
        a * rng.uniform(0.4, 1) * np.sin(2 * np.pi * (f * along / size + rng.random()))
        for a, f in waves
    )


def _smooth_noise(rng, hw, cells_yx):
    """[h, w] float32 noise in 0..1 with about `cells_yx` bumps along each axis."""
    coarse = rng.random((max(2, cells_yx[0]), max(2, cells_yx[1]))).astype(np.float32)
    return cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)


def _mix(low, high, share):
    """Colours between `low` and `high` (RGB) by share [h, w]. -> [h, w, 3] float32"""
    share = np.clip(np.float32(share), 0, 1)
    return cv2.merge([a + np.float32(b - a) * share for a, b in zip(low, high)])


def _sky(rng, hw):
    y = np.arange(hw[0])[:, None]
    gradient = _mix((70, 130, 225), (190, 220, 250), np.broadcast_to(y / (0.5 * hw[0]), hw))
    clouds = np.clip(_smooth_noise(rng, hw, (9, 5)) * 2.4 - 1.3, 0, 0.9)
    return gradient + (250 - gradient) * clouds[..., None]


def _water(rng, hw):
    y = np.arange(hw[0])[:, None]
    bend = _smooth_noise(rng, hw, (5, 9))
    stripes = 0.5 + 0.5 * np.sin(2 * np.pi * np.float32(y / rng.uniform(7, 11) + bend))
    return _mix(
        (15, 60, 130), (70, 140, 190), stripes * (0.5 + 0.5 * _smooth_noise(rng, hw, (30, 12)))
    )


def _grass(rng, hw):
    blades = _smooth_noise(rng, hw, (hw[0] // 7, hw[1] // 2))
    return _mix(
        (25, 80, 25), (130, 190, 60), 0.75 * blades + 0.35 * _smooth_noise(rng, hw, (4, 4)) - 0.05
    )


def _brick(rng, hw):
    height, width = 9, 20
    y, x = np.ogrid[: hw[0], : hw[1]]
    row = y // height
    shifted = x + (row % 2) * (width // 2)  # every other row by half a brick
    tones = rng.random((hw[0] // height + 1, hw[1] // width + 2))
    bricks = _mix((130, 55, 40), (190, 95, 70), tones[row, shifted // width])
    bricks[(y % height < 1.5) | (shifted % width < 1.5)] = (195, 185, 175)  # mortar
    return bricks + 10 * (_smooth_noise(rng, hw, (60, 60)) - 0.5)[..., None]


def _sand(rng, hw):
    y, x = np.ogrid[: hw[0], : hw[1]]
    dunes = np.sin(2 * np.pi * np.float32(x / 60 + y / 25 + 1.5 * _smooth_noise(rng, hw, (4, 4))))
    grains = rng.random(hw, np.float32)
    return _mix((185, 150, 95), (245, 222, 170), 0.5 + 0.25 * dunes + 0.3 * (grains - 0.5))


_TEXTURES = {"sky": _sky, "water": _water, "grass": _grass, "brick": _brick, "sand": _sand}


def _draw_void_patch(rng, image, category_ids):
    """An unlabelled patch: a hatched blob somewhere in the scene."""
    hw = category_ids.shape
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = min(hw) * rng.uniform(0.06, 0.12) * (1 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)))
    centre = np.array([rng.uniform(0, hw[0]), rng.uniform(0, hw[1])])
    outline = centre + radius[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)  # [P, 2] yx
    cover = _cover(outline, hw)
    y, x = np.ogrid[: hw[0], : hw[1]]
    hatch = _mix((70, 70, 75), (120, 120, 125), (y + x) % 8 < 4)
    image += (hatch - image) * cover[..., None]
    category_ids[cover >= 0.5] = 0


# Things: outlines in a frame of half-size 1, turned, scaled and shaded.


def _regular(corners, phase=0.0):
    angle = np.arange(corners) * 2 * np.pi / corners + phase
    return np.stack([np.sin(angle), np.cos(angle)], 1)  # [P, 2] yx


def _star_outline():
    outline = _regular(10, -np.pi / 2)
    outline[1::2] *= 0.45
    return outline * 1.15


_OUTLINES = {
    "ball": _regular(48),
    "crate": np.array([[-0.85, -0.85], [-0.85, 0.85], [0.85, 0.85], [0.85, -0.85]]),
    "tent": np.array([[-0.95, 0.0], [0.75, 1.05], [0.75, -1.05]]),
    "star": _star_outline(),
}
_HUES = {"ball": 0, "crate": 135, "tent": 25, "star": 85}  # the usual ones, of OpenCV's 0..179
_HUE_DEVIATION = 20
_LARGEST_TURN = {"ball": 0.0, "crate": np.pi / 4, "tent": 0.4, "star": np.pi / 5}  # radians


def _shade(name, v, u):
    """Brightness factor [h, w] of a thing's surface at (v, u) in its own frame."""
    if name == "ball":
        return 1.15 - 0.75 * np.clip((v + 0.35) ** 2 + (u + 0.35) ** 2, 0, 1.2) / 1.2
    if name == "crate":
        planks = np.where(np.abs(np.modf((v + 2) * 2.4)[0] - 0.5) > 0.4, 0.65, 1.0)
        frame = np.maximum(np.abs(v), np.abs(u)) > 0.66
        return np.where(frame, 0.8, planks)
    if name == "tent":
        return np.where(np.abs(u) < 0.3 * (v + 0.6), 0.45, np.where(u < 0, 1.1, 0.8))
    return 1.2 - 0.45 * np.hypot(v, u)


def _cover(outline, hw):
    """Share of each pixel inside an outline [P, 2] yx. -> [h, w] float"""
    fine = 4  # OpenCV's own antialiasing makes shapes one pixel too large
    canvas = np.zeros((hw[0] * fine, hw[1] * fine), np.uint8)
    # fillPoly's pixel centres are whole numbers, ours are at .5; `shift` counts 1/16 px.
    corners = np.round((outline[:, ::-1] * fine - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 255, shift=4)
    return cv2.resize(canvas, hw[::-1], interpolation=cv2.INTER_AREA) / 255.0


def _paint(rng, image, name, centre, radius):
    """Paints one thing with its shadow. Returns its pixels [h, w] bool."""
    turn = rng.uniform(-1, 1) * _LARGEST_TURN[name]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    hue = int(rng.normal(_HUES[name], _HUE_DEVIATION)) % 180
    hsv = np.uint8([[[hue, rng.integers(150, 240), rng.integers(180, 256)]]])
    color = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)

    # All that follows touches only a window around the thing.
    low = np.maximum(centre - 1.7 * radius, 0).astype(int)
    high = np.minimum(centre + 1.7 * radius + 1, image.shape[:2]).astype(int)
    window = tuple(slice(start, stop) for start, stop in zip(low, high))
    view, centre = image[window], centre - low
    outline = centre + radius * _OUTLINES[name] @ rotation.T  # [P, 2] yx
    cover = _cover(outline, view.shape[:2])
    shadow = cv2.GaussianBlur(
        _cover(outline + 0.12 * radius, view.shape[:2]), (0, 0), max(1.0, 0.08 * radius)
    )
    view *= 1 - 0.35 * shadow[..., None]
    y, x = np.mgrid[: view.shape[0], : view.shape[1]] + 0.5
    v, u = np.tensordot(rotation.T, np.stack([y - centre[0], x - centre[1]]) / radius, 1)
    surface = np.clip(color * _shade(name, v, u)[..., None], 0, 255)
    view += (surface - view) * cover[..., None]
    pixels = np.zeros(image.shape[:2], bool)
    pixels[window] = cover >= 0.5
    return pixels


def _draw_things(rng, image, owners, things):
    """Draws things from back to front, so that none is hidden by more than _MAX_HIDDEN_SHARE."""
    hw = owners.shape
    y, x = np.ogrid[: hw[0], : hw[1]]
    areas = {1: (owners == 1).sum()} if things else {}
    for _ in range(rng.integers(1, 8)):
        name = THING_NAMES[rng.integers(len(THING_NAMES))]
        radius = min(hw) * np.exp(rng.uniform(np.log(0.09), np.log(0.24)))
        centre = np.array([rng.uniform(0.05, 0.95) * hw[0], rng.uniform(0.05, 0.95) * hw[1]])
        distance = np.hypot(y + 0.5 - centre[0], x + 0.5 - centre[1])
        disc = distance < 1.3 * radius
        left = np.bincount(owners[~disc], minlength=len(things) + 1)
        if any(left[k] < (1 - _MAX_HIDDEN_SHARE) * area for k, area in areas.items()):
            continue
        things.append((name, 0))
        inside = _paint(rng, image, name, centre, radius)
        owners[inside] = len(things)
        areas[len(things)] = inside.sum()


def _draw_crowd(rng, image, owners, number):
    """Draws a group too dense to tell apart. Returns the category name."""
    hw = owners.shape
    name = THING_NAMES[rng.integers(len(THING_NAMES))]
    middle = np.array([rng.uniform(0.3, 0.8) * hw[0], rng.uniform(0.2, 0.8) * hw[1]])
    for _ in range(rng.integers(14, 26)):
        centre = np.clip(
            middle + rng.normal(0, 1, 2) * np.array([0.05, 0.1]) * min(hw), 0, np.subtract(hw, 1)
        )
        owners[_paint(rng, image, name, centre, min(hw) * rng.uniform(0.03, 0.045))] = number
    return name


# Labels and files.


def _label(rng, category_ids, owners, things):
    """Panoptic ids [h, w] and segments_info, with ids near the category's colour as in COCO."""
    panoptic_ids = np.zeros(owners.shape, np.int64)
    segments_info = []
    used = {0}
    stuff = [
        (category_id, 0, (category_ids == category_id) & (owners == 0))
        for category_id in np.flatnonzero(np.bincount(category_ids.ravel()))
    ]
    instances = [
        (_BY_NAME[name]["id"], iscrowd, owners == k) for k, (name, iscrowd) in enumerate(things, 1)
    ]
    for category_id, iscrowd, mask in stuff + instances:
        if category_id == 0 or not mask.any():
            continue
        segment_id = _segment_id(rng, _BY_ID[int(category_id)], used)
        panoptic_ids[mask] = segment_id
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        segments_info.append(
            {
                "id": segment_id,
                "category_id": int(category_id),
                "area": int(mask.sum()),
                "bbox": [x, y, width, height],
                "iscrowd": iscrowd,
            }
        )
    return panoptic_ids, segments_info


def _segment_id(rng, category, used):
    color = np.array(category["color"])
    while True:
        r, g, b = (int(v) for v in color)
        segment_id = r + 256 * g + 256 * 256 * b
        if segment_id not in used:
            used.add(segment_id)
            return segment_id
        color = np.clip(np.array(category["color"]) + rng.integers(-25, 26, 3), 0, 255)
