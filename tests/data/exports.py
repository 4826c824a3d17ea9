"""Small datasets as annotation tools and users leave them."""

import json

import numpy as np
from PIL import Image

from tests.data import tiny

HW = 24, 32
BOXES = {"a": ("cat", 4, 6, 14, 20), "b": ("dog", 2, 3, 10, 12)}  # photo -> class, y1, x1, y2, x2


def photos(folder, *names):
    pixels = np.random.RandomState(0).randint(0, 256, (*HW, 3), np.uint8)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def mask_of(name):
    _, y1, x1, y2, x2 = BOXES[name]
    mask = np.zeros(HW, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def runs(mask):
    """RLE as a list, down the columns."""
    columns = mask.T.ravel()
    edges = np.flatnonzero(np.diff(columns)) + 1
    return np.diff([0, *edges, columns.size]).tolist()


def coco(category_ids, names, image_ids=(0, 1), supercategory=None):
    """The two photos under their `names`, with a polygon each."""
    images, annotations, categories = [], [], []
    kinds = zip(category_ids, names, image_ids, BOXES.values())
    for n, (category_id, name, image_id, (category, *box)) in enumerate(kinds):
        images.append({"id": image_id, "file_name": name, "height": HW[0], "width": HW[1]})
        ids = {"id": n, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
        annotations.append({**ids, **tiny.shape(*box)})
        categories.append({"id": category_id, "name": category, "supercategory": supercategory})
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": {}, "licenses": [], **lists}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def roboflow(folder):
    names = ["a_png.rf.0a1b.png", "b_png.rf.99ff.png"]
    photos(folder / "train", *names)
    content = coco((1, 2), names, supercategory="pets")
    content["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
    return write(folder / "train/_annotations.coco.json", content)


def cvat(folder):
    photos(folder / "images/default/day 1", "a.png", "b.png")
    content = coco((1, 2), ["day 1/a.png", "day 1/b.png"], (1, 2), "")
    for annotation, name in zip(content["annotations"], "ab"):
        annotation["segmentation"] = {"counts": runs(mask_of(name)), "size": list(HW)}
        annotation["attributes"] = {"occluded": False, "rotation": 0.0}
    return write(folder / "annotations/instances_default.json", content)


def label_studio(folder):
    names = ["cb0618f6-a.png", "0a0b0c0d-b.png"]
    photos(folder / "images", *names)
    upload = "..\\..\\label-studio\\label-studio\\media\\upload\\4\\"
    content = coco((0, 1), [upload + name for name in names])
    for annotation in content["annotations"]:
        del annotation["iscrowd"], annotation["area"]
        annotation["ignore"] = 0
    return write(folder / "result.json", content)


def label_studio_local_files(folder):
    photos(folder / "photos", "a.png", "b.png")
    content = coco((0, 1), ["data/local-files/?d=my%20disk/a.png", "images/1/11112222-b.png"])
    for image in content["images"]:
        image.update(height=None, width=None)
    for category in content["categories"]:
        del category["supercategory"]
    return write(folder / "result.json", content)


def labelme2coco(folder):
    photos(folder / "labelme", "a.png", "b.png")
    content = coco((0, 1), ["labelme/a.png", "labelme/b.png"], (1, 2))
    for category in content["categories"]:
        category["supercategory"] = category["name"]
    return write(folder / "runs/dataset.json", content), folder


def fiftyone(folder):
    photos(folder / "data", "a.png", "b.png")
    return write(folder / "labels.json", coco((0, 1), ["a.png", "b.png"], (1, 2)))


def ids_of_other_kinds(folder):
    photos(folder, "a.PNG", "b.PNG", "__MACOSX/a.png")
    content = coco((7.0, "30"), ["a.png", "b.png"], ("5f2c-1", "5f2c-2"))
    first, second = content["annotations"]
    first.update(id="5f2c-3", segmentation=[[], *first["segmentation"]])
    second.update(segmentation=second["segmentation"][0])
    return write(folder / "export.json", content)


TOOLS = [
    roboflow, cvat, label_studio, label_studio_local_files, labelme2coco, fiftyone,
    ids_of_other_kinds,
]  # fmt: skip

# A map of classes.
NAMES = ["sky", "grass", "cat"]
VALUES = np.zeros(HW, np.uint8)
VALUES[10:] = 1
VALUES[4:14, 6:20] = 2
COLORS = np.array([[128, 128, 128], [0, 200, 0], [200, 0, 0]], np.uint8)
TABLE = "name, r, g, b\nsky,128,128,128\ngrass,0,200,0\ncat,200,0,0\n"
