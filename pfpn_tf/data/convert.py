"""COCO panoptic dataset -> sharded TFRecords with a dataset_info.json, in parallel.

Image i goes to a shard that depends on the number of shards alone, so any number of workers writes
the same bytes. Shards get their final names together, when all of them are complete.
"""

import concurrent.futures
import contextlib
import glob
import multiprocessing
import os
import re
from typing import Any, Dict, Mapping

import cv2
import numpy as np
import tensorflow as tf
from absl import logging

from pfpn_tf.data import categories as categories_lib
from pfpn_tf.data import class_list, coco_instances, coco_panoptic, statistics, tfrecord
from pfpn_tf.data.coco_json import DataError
from pfpn_tf.data.record import ALLOW
from pfpn_tf.utils import process, progress
from pfpn_tf.utils.errors import UserError

IMAGES_PER_SHARD = 500  # about 100 MB of COCO

IMAGES_LEFT_OUT = "images are left out as broken (--skip_bad)"
ONLY_CROWDS = (
    "objects are all crowds, which training leaves out (--nocrowds takes them as single objects)"
)
NO_INSTANCES = "segments of the panoptic map are things, but there is no instance"
ABSENT = (
    "classes have no pixel in the split; if they should, compare --class_names and --ignore with"
    " the values of the maps"
)
NO_THINGS = "images hold not one instance of a thing class"
SAME_NAME = "classes have the name of another one"
# If it is so of more than half of all objects, the two JSON files do not go together, or polygons
# are no pixels.
EXCEPTIONS = (coco_instances.BESIDE, coco_instances.OUTSIDE, coco_instances.NO_PIXEL)


def convert(dataset: coco_panoptic.CocoImages, output_dir: str, split: str, *args, **kwargs):
    """`convert_splits` of one split: its counts."""
    return convert_splits({split: dataset}, output_dir, *args, **kwargs)[split]


def convert_splits(
    splits: Mapping[str, coco_panoptic.CocoImages],
    output_dir: str,
    num_shards: int = 0,
    num_workers: int = 0,
    skip_bad: bool = False,
) -> Dict[str, Dict[str, Any]]:
    """Writes `output_dir`/NAME-00000-of-0000n.tfrecord of each split and adds the splits to
    dataset_info.json and the statistics: all of them or, after an error, none.

    Args:
      splits: what to convert, by the name of the split, e.g. train.
      output_dir: made if need be; several splits share it.
      num_shards: of each split; 0: one for every 500 images.
      num_workers: processes; 0: one per CPU core; 1: none beside this one.
      skip_bad: leave broken images and instances out and count them, instead of stopping at the
        first.

    Returns:
      The counts that dataset_info.json holds for each split.

    Raises:
      UserError: the first broken image (`DataError`) unless skip_bad, no usable image, a
        contradiction that would train on wrong labels, or dataset_info.json has other categories.
    """
    info_path = os.path.join(output_dir, categories_lib.FILE_NAME)
    for split, dataset in splits.items():
        if not re.fullmatch(r"\w[\w.-]*", split):
            raise UserError(f"--split={split!r} must be a plain name such as train or val.")
        if not len(dataset):
            raise UserError(f"{dataset.source}: lists no image.")
        _merged_info(info_path, dataset.info)  # a contradiction shows before the work
    os.makedirs(output_dir, exist_ok=True)
    written = {}
    with contextlib.ExitStack() as temporary_files:
        for split, dataset in splits.items():
            count = min(num_shards or -(-len(dataset) // IMAGES_PER_SHARD), len(dataset))
            prefix = os.path.join(output_dir, split)
            paths = [tfrecord.shard_path(prefix, i, count) for i in range(count)]
            temporary = [os.path.join(output_dir, f".{os.path.basename(p)}.tmp") for p in paths]
            for path in temporary:
                temporary_files.callback(_remove_if_there, path)
            found, summary = _write(dataset, split, temporary, num_workers, skip_bad)
            written[split] = prefix, dict(zip(temporary, paths)), found, summary
        for prefix, moves, _, _ in written.values():
            _remove_former_shards(prefix, keep=moves.values())
            for source, target in moves.items():
                os.replace(source, target)
    counts = {}
    for split, dataset in splits.items():
        _, _, found, counts[split] = written[split]
        info = _merged_info(info_path, dataset.info).with_split(split, counts[split])
        info.save(info_path)
        statistics.save(output_dir, split, found, info)
    return counts


def _write(dataset, split, paths, num_workers, skip_bad):
    """Writes a split's shards, checks the whole of it and returns its statistics and summary."""
    bounds = np.linspace(0, len(dataset), len(paths) + 1).round().astype(int)
    tasks = list(zip(paths, bounds[:-1], bounds[1:]))
    num_workers = min(num_workers or process.num_cores(), len(paths))
    results = _run(tasks, dataset, num_workers, skip_bad, description=split)
    found = statistics.Statistics()
    found.notes.merge(dataset.notes)
    for result in results:
        found.merge(result)
    counts = _summary(found, dataset, len(paths))
    if not counts["images"]:
        raise UserError(
            f"{dataset.source}: none of its {len(dataset)} images is usable."
            f" {found.notes.lines()[0]}"
        )
    _check_names(dataset.info, found.notes)
    _check_instances(dataset, counts, found.notes)
    for line in found.notes.lines():
        logging.warning("%s", line)
    return found, counts


def _remove_if_there(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _merged_info(path, info):
    """`info` with the splits already in the file at `path`, if there is one."""
    if not os.path.exists(path):
        return info
    present = categories_lib.DatasetInfo.load(path)
    differences = categories_lib.class_differences(info, present)
    if differences:
        raise UserError(
            f"{path} belongs to a dataset with other categories ({'; '.join(differences)}); choose"
            " another --output_dir or remove the file."
        )
    if present.task != info.task:
        raise UserError(
            f"{path} belongs to records for --task={present.task}, these are for"
            f" --task={info.task}; choose another --output_dir or remove the file."
        )
    for name, counts in present.splits.items():
        info = info.with_split(name, counts)
    return info


# -- the workers ------------------------------------------------------------------------------

_shared: Dict[str, Any] = {}  # in a worker: what all of its tasks use


def _start_worker(dataset, skip_bad, done):
    cv2.setNumThreads(1)  # the processes are the parallelism
    _shared.update(dataset=dataset, skip_bad=skip_bad, done=done)


def _run(tasks, dataset, num_workers, skip_bad, description):
    if num_workers == 1:
        with progress.Bar(description, len(dataset), "image") as bar:
            results = []
            for task in tasks:
                for result in _write_shard(dataset, skip_bad, *task):
                    bar.update()
                results.append(result)
            return results
    # fork shares the parsed JSON and the imported TensorFlow, which has not been used yet
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    done = context.Value("q", 0)
    with process.pool(num_workers, context, _start_worker, (dataset, skip_bad, done)) as pool:
        futures = [pool.submit(_write_shard_in_worker, *task) for task in tasks]
        pending = set(futures)
        with progress.Bar(description, len(dataset), "image") as bar:
            while pending:
                finished, pending = concurrent.futures.wait(pending, timeout=0.2)
                bar.update(done.value - bar.n)
                for future in finished:
                    future.result()
        return [future.result() for future in futures]


def _write_shard_in_worker(path, start, stop):
    for result in _write_shard(_shared["dataset"], _shared["skip_bad"], path, start, stop):
        with _shared["done"].get_lock():
            _shared["done"].value += 1
    return result


def _write_shard(dataset, skip_bad, path, start, stop):
    """Writes images start..stop-1 to `path`; yields the result so far after each of them."""
    found = statistics.Statistics()
    with tf.io.TFRecordWriter(path) as writer:
        for position in range(start, stop):
            try:
                record = dataset.read(position, skip_bad)
            except DataError as error:
                if not skip_bad:
                    raise
                found.notes.add(IMAGES_LEFT_OUT, str(error))
            else:
                writer.write(tfrecord.encode_example(record, dataset.info))
                found.add(record, dataset.info)
            yield found


# -- reporting --------------------------------------------------------------------------------


def _summary(found, dataset, num_shards):
    """The counts that dataset_info.json holds."""
    return {
        **{name: found.counts[name] for name in statistics.COUNTS},
        "max_instances": found.max_instances,
        "skipped": found.notes.count(IMAGES_LEFT_OUT),
        "skipped_instances": found.notes.count(coco_instances.LEFT_OUT),
        "shards": num_shards,
        "string_ids": dataset.has_string_ids,
        "segments_by_category": {
            str(c.id): found.counts["segments", c.id] for c in dataset.info.categories
        },
    }


def _check_names(info, notes):
    first = {}
    for category in info.categories:
        other = first.setdefault(class_list.key(category.name), category)
        if other is not category:
            notes.add(SAME_NAME, f"{category.id} {category.name!r} and {other.id} {other.name!r}")


def _check_instances(dataset, counts, notes):
    """Says where the whole split would teach that nothing is a thing, or other things."""
    if dataset.info.task == "semantic":
        _check_classes(dataset, counts, notes)
        return
    allowed, where = dataset.allow_mismatch, dataset.source
    things = sum(counts["segments_by_category"][str(c.id)] for c in dataset.info.things)
    objects = counts["instances"] + counts["crowds"] + notes.count(coco_instances.NO_PIXEL)
    for what in EXCEPTIONS:
        if notes.count(what) > 0.5 * objects and not allowed:
            raise UserError(
                f"{notes.line(what)}. That is more than half; are segmentation and bbox in pixels"
                f" of the photos? {ALLOW}"
            )
    if counts["instances"] == 0 and counts["crowds"]:
        where = dataset.instances_json or where
        notes.contradiction(ONLY_CROWDS, where, allowed, counts["crowds"])
    elif counts["instances"] == 0 and things:
        notes.contradiction(NO_INSTANCES, where, allowed, things)
    elif counts["instances"] == 0 and counts["segments"] and dataset.info.things:
        notes.add(NO_THINGS, where, counts["images"])


def _check_classes(dataset, counts, notes):
    """Says which classes of class maps no pixel has."""
    if type(dataset) is coco_panoptic.CocoImages:  # Without annotations.
        return
    present = counts["segments_by_category"]
    absent = [c.name for c in dataset.info.categories if not present[str(c.id)]]
    if not counts["segments"]:
        raise UserError(f"{dataset.source}: no pixel of {counts['images']} images has a class.")
    if absent:
        notes.add(ABSENT, ", ".join(absent[:5]), len(absent))


def _remove_former_shards(prefix, keep):
    """Shards of an earlier run with another number of shards would be read beside the new ones."""
    for path in glob.glob(f"{glob.escape(prefix)}-*-of-*.tfrecord"):
        if (
            re.fullmatch(re.escape(prefix) + r"-\d{5}-of-\d{5}\.tfrecord", path)
            and path not in keep
        ):
            logging.info("Removing %s of an earlier conversion.", path)
            os.unlink(path)
