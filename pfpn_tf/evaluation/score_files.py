"""Scores prediction files against ground-truth files; needs no model and no TensorFlow.

Images are spread over processes in contiguous blocks; where there are more cores than processes,
threads decode ahead. Results depend on neither number.
"""

import collections
import concurrent.futures
import json
import multiprocessing
import os
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from pfpn_tf.data import coco_json, panoptic_png
from pfpn_tf.evaluation import average_precision, file_report, report
from pfpn_tf.evaluation.html_report import Tally
from pfpn_tf.evaluation.panoptic_quality import ImageCounts, PanopticQuality, overlaps_of_pixels
from pfpn_tf.evaluation.semantic_iou import SemanticIoU
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError

_IMAGES_PER_JOB = 64
_MIN_IMAGES_PER_PROCESS = 64
_MAX_THREADS = 4  # More decode faster than one counts.


class _Job(NamedTuple):
    """A block of images: pairs of ground-truth and predicted annotations, and where their PNGs
    are.
    """

    pairs: List[Tuple[dict, dict]]
    gt_dir: str
    pred_dir: str
    categories: List[dict]
    semantic: bool
    num_threads: int


def score_panoptic(
    gt_json: str,
    gt_dir: str,
    pred_json: str,
    pred_dir: str,
    semantic: bool = False,
    num_processes: int = 0,
    show_progress: bool = False,
    max_images: int = 0,
    output_dir: str = "",
    image_dir: str = "",
) -> Dict[str, Any]:
    """PQ, and on request IoU of the classes, of panoptic prediction files.

    Args:
      gt_json, pred_json: COCO panoptic JSON files.
      gt_dir, pred_dir: folders of their PNGs; empty: the JSON's path without ".json".
      semantic: whether to derive mIoU and fwIoU from the same maps.
      num_processes: processes to use; 0: one per CPU.
      show_progress: whether to show how many images are done.
      max_images: score only the first images of the ground truth; 0: all.
      output_dir: where to write report.html and confusion.png; empty: nowhere.
      image_dir: folder of the photos, for the report; empty: it shows the maps alone.

    Returns:
      `panoptic`: see `PanopticQuality.result`; `semantic` if asked for: see `SemanticIoU.result`;
        `notes`: what to know
      about the numbers.

    Raises:
      UserError: a file is missing or malformed; names image, file and segment.
    """
    gt = coco_json.load_panoptic_json(gt_json, "ground-truth", with_categories=True)
    pred = coco_json.load_panoptic_json(pred_json, "prediction", with_categories=False)
    gt_dir = gt_dir or coco_json.png_folder(gt_json)
    pred_dir = pred_dir or coco_json.png_folder(pred_json)
    for what, directory in (("ground-truth", gt_dir), ("prediction", pred_dir)):
        if not os.path.isdir(directory):
            raise UserError(f"The folder of the {what} PNGs {directory} does not exist.")
    categories = list({c["id"]: c for c in gt["categories"]}.values())
    scored = {
        **gt,
        "annotations": gt["annotations"][: max_images or None],
        "categories": categories,
    }
    pairs = _pair(scored, pred, gt_json, pred_json)
    page = (
        file_report.FileReport(scored, gt_json, gt_dir, pred_dir, image_dir) if output_dir else None
    )

    quality, iou = accumulators(categories, semantic or bool(output_dir))
    # Below a number of images, starting a process costs more than it saves.
    most = max(1, len(pairs) // _MIN_IMAGES_PER_PROCESS)
    num_processes = min(num_processes or process.num_cores(), most)
    num_threads = min(process.num_cores() // num_processes, _MAX_THREADS)
    jobs = [
        _Job(
            pairs[i : i + _IMAGES_PER_JOB],
            gt_dir,
            pred_dir,
            categories,
            iou is not None,
            num_threads,
        )
        for i in range(0, len(pairs), _IMAGES_PER_JOB)
    ]
    progress = report.Progress(len(pairs)) if show_progress else None
    position = 0
    for job, (state, confusion, tallies) in zip(jobs, _map(_score_job, jobs, num_processes)):
        quality.add_state(state)
        if iou is not None:
            iou.add_confusion(confusion)
        for pair, tally in zip(job.pairs, tallies):
            if page:
                page.add(position, *pair, tally)
            if progress:
                progress.advance()
            position += 1
    if progress:
        progress.close()

    metrics = {"panoptic": quality.result()}
    if semantic:
        assert iou is not None
        metrics["semantic"] = iou.result()
    metrics["notes"] = notes(metrics["panoptic"]) + _notes_on_files(gt, pred)
    if page:
        assert iou is not None
        page.write(output_dir, metrics, [c["id"] for c in categories], iou.confusion)
    return metrics


def score_instances(gt_json: str, pred_json: str) -> Dict[str, Any]:
    """COCO AP of instance results: `bbox` and `segm`, whichever the results carry.

    Raises:
      UserError: a file is missing or malformed, or the results can be scored for neither.
    """
    gt = coco_json.load_json(gt_json, "The ground-truth instances JSON")
    results = coco_json.load_json(pred_json, "The instance results JSON")
    average_precision.check_ground_truth(gt, f"The ground-truth instances JSON {gt_json}")
    average_precision.check_results(results, gt, f"The instance results JSON {pred_json}")
    kinds = average_precision.kinds_of(results)
    if not kinds:
        raise UserError(
            f'The instance results JSON {pred_json}: every entry must carry "bbox", or every entry'
            ' "segmentation".'
        )
    return {kind: average_precision.average_precision(gt, results, kind) for kind in kinds}


def accumulators(
    categories: List[dict], semantic: bool
) -> Tuple[PanopticQuality, Optional[SemanticIoU]]:
    """Empty accumulators for COCO categories."""
    things = [c["id"] for c in categories if c["isthing"] == 1]
    return (
        PanopticQuality(categories),
        SemanticIoU([c["id"] for c in categories], things) if semantic else None,
    )


def score_image(
    gt: dict,
    pred: dict,
    maps: Tuple[np.ndarray, np.ndarray],
    where: str,
    quality: PanopticQuality,
    iou: Optional[SemanticIoU],
) -> ImageCounts:
    """Adds one image to the accumulators and returns its own counts.

    Args:
      gt, pred: COCO panoptic annotations of the image.
      maps: their two PNGs, [h, w, 3] uint8 RGB.
      where: opening of an error message: image and file.

    Raises:
      UserError: names the image and file.
    """
    gt_map, pred_map = maps
    if gt_map.shape != pred_map.shape:
        raise UserError(
            f"{where} is {pred_map.shape[0]} x {pred_map.shape[1]} (height x width), the ground"
            f" truth {gt['file_name']} is {gt_map.shape[0]} x {gt_map.shape[1]}; predict at the"
            " original image size."
        )
    found = overlaps_of_pixels(gt_map, pred_map)
    counts = quality.update(found, gt["segments_info"], pred["segments_info"], where)
    if iou is not None:
        iou.update(found, gt["segments_info"], pred["segments_info"])
    return counts


def notes(panoptic: Dict[str, Any]) -> List[str]:
    """What a reader of PQ should know."""
    return [
        f"{group} is null: no {kind} occurs in ground truth or prediction, so there is nothing to"
        " average (panopticapi divides by zero here)."
        for group, kind in (("All", "class"), ("Things", "thing class"), ("Stuff", "stuff class"))
        if panoptic[group] is None
    ]


def _pair(gt, pred, gt_json, pred_json):
    """Ground-truth annotations with their predictions, checked, by image id; the last prediction
    counts.
    """
    by_image = {a["image_id"]: a for a in pred["annotations"]}
    missing = [a["image_id"] for a in gt["annotations"] if a["image_id"] not in by_image]
    if missing:
        more = f" and {len(missing) - 1} more images" if len(missing) > 1 else ""
        hint = ""
        if str(missing[0]) in {str(image_id) for image_id in by_image}:
            hint = " The prediction has it as another type: one is a string, the other a number."
        raise UserError(
            f"Image {json.dumps(missing[0])}{more}: the prediction JSON {pred_json} has no"
            f" annotation with this image_id (the ground truth is {gt_json}).{hint}"
        )
    check = coco_json.checked_annotation
    return [
        (
            check(annotation, gt_json, "ground-truth", sizes=True),
            check(by_image[annotation["image_id"]], pred_json, "prediction"),
        )
        for annotation in gt["annotations"]
    ]


def _notes_on_files(gt, pred):
    """What panopticapi passes over in silence."""
    messages = []
    predicted = [a["image_id"] for a in pred["annotations"]]
    unused = len(set(predicted) - {a["image_id"] for a in gt["annotations"]})
    if unused:
        messages.append(
            f"{unused} predicted images are not in the ground truth and were not scored."
        )
    repeated = len(predicted) - len(set(predicted))
    if repeated:
        messages.append(
            f"{repeated} predictions are for an image listed before; the last of an image counts."
        )
    renamed = _renamed_category(gt["categories"], pred.get("categories"))
    if renamed:
        messages.append(
            "Category {} is {!r} in the prediction JSON, {!r} in the ground truth; the ground"
            " truth's counts. Do both use the same ids?".format(*renamed)
        )
    return messages


def _renamed_category(gt_categories, pred_categories):
    """(id, name in the prediction, name in the ground truth) of the first category that differs, or
    None.
    """
    names = {c["id"]: c.get("name") for c in gt_categories}
    for category in pred_categories if isinstance(pred_categories, list) else ():
        if isinstance(category, dict) and isinstance(category.get("id"), (int, str)):
            category_id, name = category["id"], category.get("name")
            if names.get(category_id, name) != name:
                return category_id, name, names[category_id]
    return None


def _score_job(job):
    quality, iou = accumulators(job.categories, job.semantic)
    tallies = []
    for (gt, pred), maps in zip(job.pairs, _decoded(job)):
        where = (
            f"Image {gt['image_id']}: prediction {os.path.join(job.pred_dir, pred['file_name'])}"
        )
        tallies.append(Tally.of(score_image(gt, pred, maps, where, quality, iou)))
    return quality.state(), None if iou is None else iou.confusion, tallies


def _decoded(job):
    """Yields the maps of each pair of PNGs; threads that have a core to themselves decode ahead."""

    def read(directory, annotation, what):
        return panoptic_png.read(
            directory,
            annotation["file_name"],
            annotation["image_id"],
            what,
            panoptic_png.decode_pixels,
        )

    def read_pair(pair):
        gt, pred = pair
        return read(job.gt_dir, gt, "ground-truth"), read(job.pred_dir, pred, "prediction")

    if job.num_threads < 2:
        yield from map(read_pair, job.pairs)
        return
    # This thread counts, which takes a fourth of the time of decoding.
    with concurrent.futures.ThreadPoolExecutor(job.num_threads) as pool:
        waiting = collections.deque()
        for pair in job.pairs:
            waiting.append(pool.submit(read_pair, pair))
            if len(waiting) > 2 * job.num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _map(function, jobs, num_processes):
    """Results in the order of the jobs, from this process or several."""
    if num_processes <= 1:
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context(start_method())
    with concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        yield from pool.map(function, jobs)


def start_method() -> str:
    """How to start processes: a forked one starts at once, but must not inherit TensorFlow's
    threads.
    """
    return "spawn" if "tensorflow" in sys.modules else "fork"
