"""How fast prediction files are scored, beside panopticapi.

Both get the same files; reading and decoding count, so do JSON files.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import tempfile
from typing import Any, Dict, List

import numpy as np
from PIL import Image

from pfpn_tf.benchmark import measure
from pfpn_tf.data import scenes
from pfpn_tf.evaluation import score_files
from pfpn_tf.utils import process
from pfpn_tf.utils.errors import UserError

_SIDES = (480, 640)  # About the size of COCO's photos.
_NUM_DRAWN = 12


def benchmark_panoptic_quality(num_images: int, repeats: int) -> Dict[str, Any]:
    """Times the scoring of panoptic files of drawn scenes, ours and panopticapi's, in turn.

    Args:
      num_images: images to score; there are fewer different ones, which are used again.
      repeats: timed runs of each, after one that warms up.

    Returns:
      `one_thread`, `all_cores` and `panopticapi`, which gets one core: milliseconds an image,
        median and extremes; `speedup`: of one thread, by the medians; `equal`: whether all gave the
        same PQ to 1e-12; `num_images`, `cores`, `images`: what they are.

    Raises:
      UserError: panopticapi is not installed, or a number is too small.
    """
    for name, value in (("num_images", num_images), ("repeats", repeats)):
        if value < 1:
            raise UserError(f"--{name}={value} must be at least 1.")
    if not importlib.util.find_spec("panopticapi"):
        raise UserError(
            "--what=pq compares with panopticapi, which is not installed: pip install"
            " panopticapi-lite."
        )
    with tempfile.TemporaryDirectory() as folder:
        _draw(folder, num_images)
        paths = [os.path.join(folder, name) for name in ("gt.json", "gt", "pred.json", "pred")]

        def ours(num_threads):
            metrics = score_files.PanopticFiles(*paths).score(num_threads)
            return metrics["panoptic"]["All"]["pq"]

        ways = {
            "one_thread": lambda: ours(1),
            "all_cores": lambda: ours(0),
            "panopticapi": lambda: _panopticapi(*paths),
        }
        found = [way() for way in ways.values()]  # And all are warm.
        times: Dict[str, List[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                times[name].append(measure.seconds(way) / num_images)
    result = {name: measure.summary(values, warmup=1) for name, values in times.items()}
    speedup = result["panopticapi"]["median_ms"] / result["one_thread"]["median_ms"]
    return {
        **result,
        "speedup": round(speedup, 2),
        "equal": bool(max(found) - min(found) <= 1e-12),
        "num_images": num_images,
        "cores": process.num_cores(),
        "images": f"{_NUM_DRAWN} drawn, sides of {_SIDES[0]} to {_SIDES[1]} pixels",
    }


def _panopticapi(gt_json, gt_dir, pred_json, pred_dir):
    from panopticapi import evaluation

    with open(gt_json, encoding="utf-8") as f:
        gt = json.load(f)
    with open(pred_json, encoding="utf-8") as f:
        pred = {a["image_id"]: a for a in json.load(f)["annotations"]}
    pairs = [(a, pred[a["image_id"]]) for a in gt["annotations"]]
    categories = {c["id"]: c for c in gt["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):  # It reports its progress.
        stat = evaluation.pq_compute_single_core(0, pairs, gt_dir, pred_dir, categories)
    return stat.pq_average(categories, isthing=None)[0]["pq"]


def _draw(folder, num_images):
    """Scenes as ground truth, and moved a little as predictions; each is listed again and again."""
    segments = []
    for i in range(_NUM_DRAWN):
        scene = scenes.draw_scene(i, _SIDES)
        segments.append(scene.segments_info)
        for name, shift in (("gt", 0), ("pred", 6)):
            ids = np.roll(scene.panoptic_ids, shift, axis=1)
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            os.makedirs(os.path.join(folder, name), exist_ok=True)
            # As in COCO's PNGs, Pillow chooses a filter for each row.
            Image.fromarray(rgb).save(os.path.join(folder, name, f"{i}.png"))
    annotations = [
        {"image_id": i, "file_name": f"{k}.png", "segments_info": segments[k]}
        for i, k in zip(range(num_images), itertools.cycle(range(_NUM_DRAWN)))
    ]
    for name in ("gt", "pred"):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as f:
            json.dump({"annotations": annotations, "categories": scenes.CATEGORIES}, f)
