"""How fast prediction files are scored, beside panopticapi.

Both get the same files and the same number of processes; reading and decoding count, so do JSON
files and the start of processes. Where there are more cores than processes, ours also decodes in
threads, which panopticapi does not.
"""

import concurrent.futures
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from typing import Any, Callable, Dict, List, Optional

import numpy as np
from PIL import Image

from pfpn_tf.benchmark import measure
from pfpn_tf.benchmark.inference import coco_like_info
from pfpn_tf.evaluation import score_files
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError

_HW = (480, 640)  # The most frequent size in COCO.
_NUM_DRAWN = 12


def benchmark_panoptic_quality(
    num_images: int = 5000, processes: int = 1, repeats: int = 3, directory: Optional[str] = None
) -> Dict[str, Any]:
    """Times the scoring of panoptic files, ours and panopticapi's, in turn.

    Args:
      num_images: images to score; there are fewer different ones, which are used again.
      processes: of both.
      repeats: timed runs of each, after one that warms up.
      directory: with gt.json, gt/, pred.json and pred/ to score; None: scenes are drawn.

    Returns:
      `ours` and `panopticapi`: milliseconds an image, median and extremes; `speedup`: of the
        medians; `equal`: whether both gave the same PQ to 1e-12; `num_images`, `processes`,
        `cores`, `images`: what they are.

    Raises:
      UserError: panopticapi is not installed, a number is too small, or the directory lacks a
        file.
    """
    for name, value in (("num_images", num_images), ("processes", processes), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"--{name}={value} must be at least 1.")
    if not importlib.util.find_spec("panopticapi"):
        raise UserError(
            "--what=pq compares with panopticapi, which is not installed: pip install"
            " panopticapi-lite."
        )
    with tempfile.TemporaryDirectory() as folder:
        if directory is None:
            _draw(folder)
        else:
            _copy(directory, folder)
        _repeat(folder, num_images)
        paths = [os.path.join(folder, name) for name in ("gt.json", "gt", "pred.json", "pred")]

        def ours():
            metrics = score_files.PanopticFiles(*paths).score(processes)
            return metrics["panoptic"]["All"]["pq"]

        def panopticapi():
            return _panopticapi(paths, processes)

        equal = bool(abs(ours() - panopticapi()) <= 1e-12)  # And both are warm.
        times: Dict[str, List[float]] = {"ours": [], "panopticapi": []}
        for _ in range(repeats):
            times["ours"].append(measure.seconds(ours) / num_images)
            times["panopticapi"].append(measure.seconds(panopticapi) / num_images)
    result = {name: measure.summary(values, warmup=1) for name, values in times.items()}
    return {
        **result,
        "speedup": round(result["panopticapi"]["median_ms"] / result["ours"]["median_ms"], 2),
        "equal": equal,
        "num_images": num_images,
        "processes": processes,
        "cores": process.num_cores(),
        "images": directory or f"{_NUM_DRAWN} drawn, {_HW[1]} x {_HW[0]}",
    }


def _panopticapi(paths, processes):
    from panopticapi import evaluation

    gt_json, gt_dir, pred_json, pred_dir = paths
    with open(gt_json, encoding="utf-8") as f:
        gt = json.load(f)
    with open(pred_json, encoding="utf-8") as f:
        pred = {a["image_id"]: a for a in json.load(f)["annotations"]}
    pairs = [(a, pred[a["image_id"]]) for a in gt["annotations"]]
    categories = {c["id"]: c for c in gt["categories"]}
    stat = evaluation.PQStat()
    for part in _spread(_panopticapi_part, pairs, processes, gt_dir, pred_dir, categories):
        stat += part
    return stat.pq_average(categories, isthing=None)[0]["pq"]


def _panopticapi_part(number, pairs, gt_dir, pred_dir, categories):
    from panopticapi import evaluation

    with contextlib.redirect_stdout(io.StringIO()):  # It reports its progress.
        return evaluation.pq_compute_single_core(number, pairs, gt_dir, pred_dir, categories)


def _spread(function: Callable, pairs, processes, *args):
    """Results of `function`(number, part of the pairs, *args) for equal parts, one for each
    process.
    """
    parts = [pairs[i::processes] for i in range(processes)]
    if processes == 1:
        yield function(0, parts[0], *args)
        return
    context = multiprocessing.get_context(score_files.start_method())
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(function, i, part, *args) for i, part in enumerate(parts)]
        for future in futures:
            yield future.result()


# -- the files --------------------------------------------------------------------------------


def _copy(directory, folder):
    for name in ("gt", "pred"):
        if not os.path.isdir(os.path.join(directory, name)):
            raise UserError(
                f"{directory}: has no folder {name}; it should hold gt.json, gt/, pred.json and"
                " pred/."
            )
        shutil.copytree(os.path.join(directory, name), os.path.join(folder, name))
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(os.path.join(directory, f"{name}.json"), folder)


def _repeat(folder, num_images):
    """Lists the images again, under new ids, until there are `num_images`."""
    contents = {}
    for name in ("gt", "pred"):
        with open(os.path.join(folder, f"{name}.json"), encoding="utf-8") as f:
            contents[name] = json.load(f)
    predictions = {a["image_id"]: a for a in contents["pred"]["annotations"]}
    truths = contents["gt"]["annotations"]
    pairs = [(a, predictions[a["image_id"]]) for a in truths]
    for index, name in enumerate(("gt", "pred")):
        content = contents[name]
        content["annotations"] = [
            {**pairs[i % len(pairs)][index], "image_id": i} for i in range(num_images)
        ]
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as f:
            json.dump(content, f)


def _draw(folder):
    """Scenes of COCO's size and number of segments, as COCO's PNGs are: row filters chosen row by
    row.
    """
    rng = np.random.default_rng(0)
    for name in ("gt", "pred"):
        os.makedirs(os.path.join(folder, name))
    info = coco_like_info()
    contents = {
        name: {"categories": info.coco_categories(), "annotations": []} for name in ("gt", "pred")
    }
    for i in range(_NUM_DRAWN):
        state = rng.bit_generator.state
        for name, wobble in (("gt", 0.0), ("pred", 0.04)):
            rng.bit_generator.state = (
                state  # The same scene twice, the second time with other outlines.
            )
            ids, categories = _scene(rng, wobble)
            file_name = f"{i}.png"
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            Image.fromarray(rgb).save(
                os.path.join(folder, name, file_name)
            )  # Pillow chooses filters by row.
            areas = dict(zip(*(a.tolist() for a in np.unique(ids, return_counts=True))))
            segments = [
                {"id": k, "category_id": c, "area": areas[k], "iscrowd": 0}
                for k, c in categories.items()
                if k in areas
            ]
            contents[name]["annotations"].append(
                {"image_id": i, "file_name": file_name, "segments_info": segments}
            )
    for name, content in contents.items():
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as f:
            json.dump(content, f)


def _scene(rng, wobble):
    """[h, w] int64 ids, and the category of each: stuff below, blobs with wavy outlines on it."""
    height, width = _HW
    y, x = np.mgrid[:height, :width]
    ids, categories = np.zeros(_HW, np.int64), {}

    def add(mask, category_id):
        segment_id = int(rng.integers(1, 2**24))
        ids[mask] = segment_id
        categories[segment_id] = category_id

    for i in range(4):
        level = height * i / 4 + 25 * np.sin(
            x / rng.uniform(20, 90) + rng.uniform(0, 6) + 20 * wobble
        )
        add(y >= level, int(rng.integers(81, 134)))
    for _ in range(11):
        cy, cx, size = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(15, 130)
        angle = np.arctan2(y - cy, x - cx)
        outline = (
            1
            + 0.25 * np.sin(angle * rng.integers(2, 7) + rng.uniform(0, 6))
            + wobble * np.sin(angle * 23)
        )
        add(np.hypot(y - cy, x - cx) < size * outline, int(rng.integers(1, 81)))
    return ids, categories
