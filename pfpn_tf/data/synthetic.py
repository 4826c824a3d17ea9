"""Drawn scenes, written as a dataset in COCO panoptic format."""

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import tempfile
from typing import Tuple

import cv2

from pfpn_tf.data import coco_masks, panoptic_png, scenes
from pfpn_tf.utils import process, progress
from pfpn_tf.utils.errors import UserError
from pfpn_tf.utils.files import atomic_write

_THING_IDS = {c["id"] for c in scenes.CATEGORIES if c["isthing"]}


def make_dataset(
    directory,
    num_train: int,
    num_val: int,
    seed: int = 0,
    sides: Tuple[int, int] = (112, 192),
    num_workers: int = 1,
) -> None:
    """Writes a dataset: train/, val/ and annotations/ in `directory`, as COCO lays them out.

    annotations/ holds panoptic_{split}.json, the folder panoptic_{split}/ of PNGs and
    instances_{split}.json (visible masks as RLE). It appears last, when everything is complete.

    Args:
      directory: created if missing; must hold none of the three folders.
      num_train: images of the training split.
      num_val: images of the validation split.
      seed: same seed, same scenes; the splits share none.
      sides: smallest and largest side of an image, in pixels.
      num_workers: processes; 0: one per CPU core; 1: none beside this one. Any number draws the
        same scenes.

    Raises:
      UserError: the directory already holds one of the folders, or a process was killed.
    """
    directory = os.fspath(directory)
    folders = ("train", "val", "annotations")
    for name in folders:
        if os.path.exists(os.path.join(directory, name)):
            raise UserError(
                f"{directory} already holds {name}/; remove it or choose another directory."
            )
    os.makedirs(directory, exist_ok=True)
    partial = tempfile.mkdtemp(dir=directory, prefix=".partial-")
    try:
        os.makedirs(os.path.join(partial, "annotations"))
        with _mapping(num_workers or process.num_cores()) as run:
            _write_split(run, partial, "train", num_train, (seed, 0), sides, 1)
            _write_split(run, partial, "val", num_val, (seed, 1), sides, num_train + 1)
        for name in folders:
            os.rename(os.path.join(partial, name), os.path.join(directory, name))
    finally:
        shutil.rmtree(partial)


@contextlib.contextmanager
def _mapping(num_workers):
    """A `map` whose calls run in `num_workers` processes; the results come in order."""
    if num_workers == 1:
        yield map
        return
    # Not fork: the caller may have started TensorFlow's threads.
    spawn = multiprocessing.get_context("spawn")
    with process.pool(num_workers, spawn, cv2.setNumThreads, (1,)) as pool:
        yield functools.partial(pool.map, chunksize=4)


def _write_split(run, directory, split, num_images, seed, sides, first_id):
    os.makedirs(os.path.join(directory, split))
    os.makedirs(os.path.join(directory, "annotations", f"panoptic_{split}"))
    write = functools.partial(_write_scene, directory, split, seed, sides, first_id)
    images, annotations, instances = [], [], []
    with progress.Bar(split, num_images, "image") as bar:
        for image, annotation, instances_of_image in run(write, range(num_images)):
            images.append(image)
            annotations.append(annotation)
            for instance in instances_of_image:
                instances.append({"id": len(instances) + 1, **instance})
            bar.update()

    things = [c for c in scenes.CATEGORIES if c["isthing"]]
    for name, annotations_of_kind, categories in (
        ("panoptic", annotations, scenes.CATEGORIES),
        ("instances", instances, things),
    ):
        content = {"images": images, "annotations": annotations_of_kind, "categories": categories}
        with atomic_write(os.path.join(directory, "annotations", f"{name}_{split}.json")) as f:
            json.dump(content, f)


def _write_scene(directory, split, seed, sides, first_id, index):
    """Draws a scene and writes its two files.

    Returns:
      Its entries in the JSON files: image, panoptic annotation and instances, these without ids.
    """
    scene = scenes.draw_scene((*seed, index), sides)
    image_id = first_id + index
    stem = f"{image_id:012d}"
    photo = os.path.join(directory, split, stem + ".jpg")
    bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(photo, bgr, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"{photo}: could not be written.")
    png_path = os.path.join(directory, "annotations", f"panoptic_{split}", stem + ".png")
    with open(png_path, "wb") as f:
        f.write(panoptic_png.encode_ids(scene.panoptic_ids))
    height, width = scene.panoptic_ids.shape
    image = {"id": image_id, "file_name": stem + ".jpg", "height": height, "width": width}
    annotation = {
        "image_id": image_id,
        "file_name": stem + ".png",
        "segments_info": scene.segments_info,
    }
    things = [s for s in scene.segments_info if s["category_id"] in _THING_IDS]
    return image, annotation, [_instance(scene, segment, image_id) for segment in things]


def _instance(scene, segment, image_id):
    """The segment as an annotation of a COCO instances JSON, without its id."""
    return {
        "image_id": image_id,
        "category_id": segment["category_id"],
        "segmentation": coco_masks.encode_rle(scene.panoptic_ids == segment["id"]),
        "area": segment["area"],
        "bbox": segment["bbox"],
        "iscrowd": segment["iscrowd"],
    }
