"""How much memory an evaluation needs, and how fast it counts.

What is counted is drawn: segments of many classes and detections around them, of the number and
kind that a network gives on COCO. No network runs; each length is measured in a process of its own.

Shapes: h, w image size · D detections · P mask size.
"""

import time
from typing import Any, Dict, Sequence, Tuple

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure
from pfpn_tf.benchmark.inference import coco_like_info
from pfpn_tf.utils.errors import UserError

_NUM_THINGS = 80
_THINGS_PER_IMAGE = 8
_BLOCKS = (6, 8)  # of stuff
_MASK_SIZE = 28
_DISTINCT_IMAGES = 8  # drawn once, then used in turn with new ids and scores


def benchmark_evaluator_memory(
    num_images: Sequence[int] = (100, 1000),
    hw: Tuple[int, int] = (240, 320),
    num_detections: int = 50,
) -> Dict[str, Any]:
    """Peak memory after few and after many images.

    Args:
      num_images: lengths to compare, rising.
      hw: size of the images.
      num_detections: D, on each image.

    Returns:
      runs: for each length num_images, peak_mib (Python, TensorFlow and all), images_per_second;
      kib_per_image: growth of the peak from the first to the last length, over the images between.

    Raises:
      UserError: fewer than two lengths, or they do not rise.
    """
    if len(num_images) < 2 or list(num_images) != sorted(set(num_images)) or num_images[0] < 1:
        raise UserError(
            f"num_images={tuple(num_images)} must be two or more rising numbers, e.g. 100, 1000."
        )
    runs = [measure.in_fresh_process(count_images, n, hw, num_detections) for n in num_images]
    growth = 1024 * (runs[-1]["peak_mib"] - runs[0]["peak_mib"]) / (num_images[-1] - num_images[0])
    return {
        "runs": runs,
        "kib_per_image": round(growth, 2),
        "image_hw": list(hw),
        "num_detections": num_detections,
    }


def count_images(num_images: int, hw: Tuple[int, int], num_detections: int) -> Dict[str, Any]:
    """Counts drawn images in this process: num_images, peak_mib, images_per_second."""
    # This needs TensorFlow, which is not for the process that only waits.
    from pfpn_tf.evaluation.counts import EvaluationMetrics

    info = coco_like_info()
    metrics = EvaluationMetrics(config_lib.Config().model, info)
    photo = np.zeros((*hw, 3), np.uint8)
    rng = np.random.default_rng(0)
    drawn = [_draw(rng, info, hw, num_detections) for _ in range(_DISTINCT_IMAGES)]
    start = time.perf_counter()
    for i in range(num_images):
        truth, outputs = drawn[i % len(drawn)]
        annotations = [{**annotation, "image_id": i} for annotation in truth.annotations]
        truth = truth._replace(image_id=i, annotations=annotations)
        scores = np.sort(rng.uniform(0.05, 1.0, num_detections))[::-1].astype(np.float32)
        outputs = outputs._replace(detections=outputs.detections._replace(scores=scores))
        metrics.add(i, outputs, truth, hw, lambda: photo)
    seconds = time.perf_counter() - start
    metrics.result()
    return {
        "num_images": num_images,
        "peak_mib": measure.peak_memory_mib(),
        "images_per_second": round(num_images / seconds, 2),
    }


def _draw(rng, info, hw, num_detections):
    """(`ImageTruth`, `ImageOutputs`) of one image: blocks of stuff, boxes of things, detections
    near them.
    """
    from pycocotools import mask as mask_utils

    from pfpn_tf.evaluation.counts import ImageTruth
    from pfpn_tf.evaluation.inference import ImageOutputs
    from pfpn_tf.structures import Detections

    height, width = hw
    things = [c.id for c in info.things]
    stuff = rng.choice([c.id for c in info.stuff], _BLOCKS)
    rows, columns = (np.arange(side) * blocks // side for side, blocks in zip(hw, _BLOCKS))
    ids = stuff[rows][:, columns].astype(np.uint32)  # [h, w]: category ids serve as segment ids
    labels = (ids - _NUM_THINGS).astype(np.int32)  # class 0 is any thing
    category_of = {int(i): int(i) for i in np.unique(ids)}
    boxes, class_ids, annotations = [], [], []
    for n in range(_THINGS_PER_IMAGE):
        size = rng.integers(8, np.array(hw) // 3)
        y, x = rng.integers(0, np.array(hw) - size)
        segment_id, class_id = 1000 + n, int(rng.integers(_NUM_THINGS))
        ids[y : y + size[0], x : x + size[1]] = segment_id
        labels[y : y + size[0], x : x + size[1]] = 0
        category_of[segment_id] = things[class_id]
        boxes.append([y, x, y + size[0], x + size[1]])
        class_ids.append(class_id)
    truth_segments = _segments(ids, category_of)
    for n, (y1, x1, y2, x2) in enumerate(boxes):
        mask = np.zeros(hw, np.uint8, order="F")
        mask[y1:y2, x1:x2] = 1
        annotation = {"id": n + 1, "image_id": 0, "category_id": things[class_ids[n]], "iscrowd": 0}
        box = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
        annotation.update(bbox=box, area=box[2] * box[3], segmentation=mask_utils.encode(mask))
        annotations.append(annotation)

    index = np.arange(num_detections) % len(boxes)
    shifted = np.array(boxes, np.float32)[index] + rng.uniform(-4, 4, (num_detections, 4)).astype(
        np.float32
    )
    detections = Detections(
        boxes=np.clip(shifted, 0, np.tile(np.float32(hw), 2)),
        scores=np.zeros(num_detections, np.float32),
        class_ids=np.where(
            index == np.arange(num_detections),
            np.array(class_ids)[index],
            rng.integers(_NUM_THINGS),
        ),
        num_detections=np.int32(num_detections),
        mask_logits=np.full((num_detections, _MASK_SIZE, _MASK_SIZE), 4.0, np.float32),
    )
    pred_ids = np.roll(ids, rng.integers(1, 6), axis=int(rng.integers(2))).astype(np.int32)
    outputs = ImageOutputs(_panoptic_result(pred_ids, category_of, info), labels, detections)
    return ImageTruth(0, (height, width), ids, truth_segments, annotations), outputs


def _segments(ids, category_of):
    values, areas = np.unique(ids, return_counts=True)
    return [
        {"id": int(i), "category_id": category_of[int(i)], "area": int(area), "iscrowd": 0}
        for i, area in zip(values, areas)
    ]


def _panoptic_result(ids, category_of, info):
    from pfpn_tf.structures import PanopticResult

    segments = _segments(ids, category_of)
    category_ids = np.array([s["category_id"] for s in segments])
    is_thing = np.array([info.by_id[c].is_thing for c in category_ids.tolist()])
    return PanopticResult(
        panoptic_ids=ids,
        num_segments=len(segments),
        segment_ids=np.array([s["id"] for s in segments]),
        category_ids=category_ids,
        is_thing=is_thing,
        scores=np.where(is_thing, 0.9, 0.0),
        areas=np.array([s["area"] for s in segments]),
        boxes=np.zeros((len(segments), 4)),
    )
