"""A handful of small images in COCO panoptic format, for tests that need to control every pixel."""

import json
import os
import pathlib

import cv2
import numpy as np

from pfpn_tf.data import convert as convert_lib
from pfpn_tf.data.coco_panoptic import CocoPanoptic
from pfpn_tf.data.given import Given

# sky 3 (stuff), cat 5 (thing), grass 7 (stuff), car 20 (thing): ids with gaps, kinds mixed
CATEGORIES = [
    {"id": 3, "name": "sky", "isthing": 0},
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 7, "name": "grass", "isthing": 0},
    {"id": 20, "name": "car", "isthing": 1},
]


def id_map(h, w, things):
    """Sky (id 1) above, grass (id 2) below, the last row void; `things` are (id, y1, x1, y2,
    x2).
    """
    ids = np.ones((h, w), np.int32)
    ids[h // 2 :] = 2
    ids[-1] = 0
    for segment_id, y1, x1, y2, x2 in things:
        ids[y1:y2, x1:x2] = segment_id
    return ids


def make(folder, images):
    """Writes panoptic.json, panoptic/, images/ and the things as polygons in instances.json.

    Args:
      folder: path.
      images: list of (h, w, things); a thing is (category_id, iscrowd, y1, x1, y2, x2).

    Returns:
      What panoptic.json holds.
    """
    folder = pathlib.Path(folder)
    (folder / "panoptic").mkdir(parents=True)
    (folder / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    instances = []
    for i, (h, w, things) in enumerate(images):
        ids = id_map(h, w, [(1000 * k + 300, *box) for k, (_, _, *box) in enumerate(things, 1)])
        segments = [
            {"id": 1, "category_id": 3, "iscrowd": 0},
            {"id": 2, "category_id": 7, "iscrowd": 0},
        ]
        for k, (category_id, crowd, *box) in enumerate(things, 1):
            segments.append({"id": 1000 * k + 300, "category_id": category_id, "iscrowd": crowd})
            number = {"id": len(instances) + 1, "image_id": 10 + i}
            instances.append(
                {**number, "category_id": category_id, "iscrowd": crowd, **shape(*box)}
            )
        segments = [s for s in segments if (ids == s["id"]).any()]
        for s in segments:
            s["area"] = int((ids == s["id"]).sum())
        photo = np.random.RandomState(i).randint(0, 256, (h, w, 3), np.uint8)
        cv2.imwrite(str(folder / f"images/{i}.png"), photo)
        save_ids(folder / f"panoptic/{i}.png", ids)
        content["images"].append({"id": 10 + i, "file_name": f"{i}.png", "height": h, "width": w})
        content["annotations"].append(
            {"image_id": 10 + i, "file_name": f"{i}.png", "segments_info": segments}
        )
    (folder / "panoptic.json").write_text(json.dumps(content))
    things = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES if c["isthing"]]
    content_of_things = {**content, "annotations": instances, "categories": things}
    (folder / "instances.json").write_text(json.dumps(content_of_things))
    return content


def shape(y1, x1, y2, x2):
    """A box as COCO describes an instance."""
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    h, w = y2 - y1, x2 - x1
    return {"bbox": [x1, y1, w, h], "area": h * w, "segmentation": [polygon]}


def open_panoptic(panoptic_json, panoptic_dir, image_dir, instances_json=None, **given):
    """The `CocoPanoptic` of these files; `given` as in `Given`."""
    given.update(panoptic_json=panoptic_json, panoptic_dir=panoptic_dir, image_dir=image_dir)
    given["instances_json"] = instances_json or ""
    paths = {k: os.fspath(v) for k, v in given.items() if isinstance(v, os.PathLike)}
    return CocoPanoptic(Given(**{**given, **paths}))


def open_dataset(folder, instances=False, **settings):
    """What `make` has written, with or without instances.json."""
    paths = [folder / name for name in ("panoptic.json", "panoptic", "images")]
    return open_panoptic(*paths, folder / "instances.json" if instances else None, **settings)


def convert(folder, output, split="train", num_shards=1, **settings):
    """TFRecords of what `make` has written; returns what was counted."""
    dataset = open_dataset(folder)
    return convert_lib.convert(dataset, str(output), split, num_shards, num_workers=1, **settings)


def save_ids(path, ids):
    bgr = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], -1).astype(np.uint8)
    cv2.imwrite(str(path), bgr)


def read_rgb(path):
    return cv2.imread(str(path))[..., ::-1]
