"""Damages of the files that `tiny.make` writes: functions of their folder."""

import json

import numpy as np
from PIL import Image

from tests.data import exports, tiny

PNG, PHOTO = "panoptic/0.png", "images/0.png"


def edit(name, change):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def panoptic(change):
    return edit("panoptic.json", change)


def instances(change):
    return edit("instances.json", change)


def entry(*path, **new):
    """A damage: new values in an entry of the panoptic JSON."""

    def change(content):
        for key in path:
            content = content[key]
        content.update(new)

    return panoptic(change)


def segment(position, **new):
    """A damage of a segment of the first image."""
    return entry("annotations", 0, "segments_info", position, **new)


def every(key, function):
    """A damage of one field of every instance annotation."""
    return instances(lambda c: [a.update({key: function(a[key])}) for a in c["annotations"]])


def first(**new):
    return instances(lambda c: c["annotations"][0].update(new))


def rewrite(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def ids_are(height, width):
    """A damage: another panoptic PNG, of sky and grass alone."""
    return lambda folder: tiny.save_ids(folder / PNG, tiny.id_map(height, width, []))


def again(name, key, **new):
    """A damage: the first entry of a list once more, with new values."""
    return edit(name, lambda c: c[key].append({**c[key][0], **new}))


def turn(folder, orientation, stored):
    """Saves the first photo as a camera does: other pixels, and how to turn them."""
    exif = Image.Exif()
    exif[0x112] = orientation
    pixels = stored(np.array(Image.open(folder / PHOTO)))
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / PHOTO, exif=exif.tobytes())


def upright_with_a_tag(folder):
    """A photo whose edges fit its segments, and an orientation that was left behind."""
    Image.open(folder / PNG).save(folder / PHOTO)
    turn(folder, 3, lambda p: p)


def to_corners(box):
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def mask_rle(**new):
    """A damage: the first instance as RLE, its 18 columns of 14 pixels one after the other."""
    counts = [6 * 40 + 4, *[14, 26] * 17, 14, 36 * 40 + 22]
    return first(segmentation={"size": [40, 60], "counts": counts, **new})


def along_rows(folder):
    mask = np.zeros((40, 60), np.uint8)
    mask[4:18, 6:24] = 1
    first(segmentation={"size": [40, 60], "counts": exports.runs(mask.T)})(folder)


def backslashes(folder):
    for kind, key in (("images", "images"), ("panoptic", "annotations")):
        (folder / kind / "a").mkdir()
        (folder / kind / "0.png").rename(folder / kind / "a/0.png")
        panoptic(lambda c, key=key: c[key][0].update(file_name="a\\0.png"))(folder)


def as_texts(content):
    for image in content["images"]:
        image.update({k: str(image[k]) for k in ("id", "height", "width")})
    content["images"][0]["id"] = 10  # One number, so the texts are numbers, too.
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        for s in annotation["segments_info"]:
            s.update({k: str(v) for k, v in s.items()})
    for category in content["categories"]:
        category.update(id=str(category["id"]), isthing=str(category["isthing"]))


def as_floats(content):
    for entry in content["images"] + content["categories"]:
        entry.update({k: float(v) for k, v in entry.items() if isinstance(v, int)})
