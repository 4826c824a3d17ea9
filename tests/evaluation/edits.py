"""Damages of small panoptic files: functions of their folder."""

import json

import cv2
import numpy as np
from PIL import Image

from pfpn_tf.data import panoptic_png

# Image 1 (the second) is the one that gets changed.
PRED_PNG = "pred/1.png"


def edit(name, change):
    """A damage: `change` applied to the content of a JSON file."""

    def damage(folder):
        content = json.loads((folder / f"{name}.json").read_text())
        change(content)
        (folder / f"{name}.json").write_text(json.dumps(content))

    return damage


def pred(change=None, **new):
    """A damage of the annotation of image 1."""
    change = change or (lambda annotation: annotation.update(new))
    return edit("pred", lambda content: change(content["annotations"][1]))


def segment(change=None, **new):
    """A damage of the first predicted segment, 70000."""
    change = change or (lambda segment: segment.update(new))
    return pred(lambda annotation: change(annotation["segments_info"][0]))


def gt_segment(**new):
    """A damage of the same segment of the ground truth."""
    return edit("gt", lambda c: c["annotations"][1]["segments_info"][0].update(new))


def one_more(segment):
    return pred(lambda annotation: annotation["segments_info"].append(segment))


def every(name, change):
    """A damage of each segment of a JSON file."""
    return edit(name, lambda c: [change(s) for a in c["annotations"] for s in a["segments_info"]])


def annotations(name, change):
    """A damage of each annotation of a JSON file."""
    return edit(name, lambda content: [change(a) for a in content["annotations"]])


def save(mode):
    """A damage: the PNG in another mode of Pillow."""
    return lambda folder: Image.open(folder / PRED_PNG).convert(mode).save(folder / PRED_PNG)


def save_with_alpha(folder):
    image = Image.open(folder / PRED_PNG)
    image.putalpha(9)
    image.save(folder / PRED_PNG)


def save_16_bit(folder):
    cv2.imwrite(str(folder / PRED_PNG), cv2.imread(str(folder / PRED_PNG)).astype(np.uint16) * 257)


def move(new_name):
    def damage(folder):
        target = folder / "pred" / new_name
        target.parent.mkdir(exist_ok=True)
        (folder / PRED_PNG).rename(target)
        pred(file_name=new_name)(folder)

    return damage


def set_pixel(value):
    def damage(folder):
        ids = panoptic_png.read(str(folder), PRED_PNG, 1, "")
        ids[5, 7] = value
        (folder / PRED_PNG).write_bytes(panoptic_png.encode_ids(ids))

    return damage


def rewrite(change, name=PRED_PNG):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def remove(name):
    return lambda folder: (folder / name).unlink()


def both(*damages):
    return lambda folder: [damage(folder) for damage in damages]


def worse_then_better(content):
    """The image twice: first with a wrong class, then as it was."""
    wrong = json.loads(json.dumps(content["annotations"][1]))
    wrong["segments_info"][0]["category_id"] = 5
    content["annotations"].insert(0, wrong)
