"""How much memory an evaluation needs, and how fast it counts.

What is counted are drawn scenes, their maps moved a little as predictions, and detections around
their things, as many as a network gives on COCO. No network runs.

Shapes: h, w image size · D detections · P mask size.
"""

from typing import Any, Dict

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure
from pfpn_tf.data import coco_masks, scenes
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils.errors import UserError

_SIDES = (240, 320)
_NUM_DETECTIONS = 50  # D
_MASK_SIZE = 28  # P
_DISTINCT_IMAGES = 8  # drawn once, then used in turn with new ids and scores


def benchmark_evaluator_memory(num_images: int) -> Dict[str, Any]:
    """Memory of an evaluation over its length.

    Returns:
      num_images; what `measure.watched` tells of counting them; kib_per_image, the growth from the
      middle to the end over the images between; peak_memory_mib; images_per_second; sides, of the
      images; num_detections, on each of them.

    Raises:
      UserError: no image.
    """
    if num_images < 1:
        raise UserError(f"--num_images={num_images} must be at least 1; 1000 is usual.")
    return measure.in_fresh_process(count_images, num_images)


def count_images(num_images: int) -> Dict[str, Any]:
    """`benchmark_evaluator_memory` in this process."""
    # This needs TensorFlow, which is not for the process that only waits.
    from pfpn_tf.evaluation.counts import EvaluationMetrics

    info = DatasetInfo.from_coco_categories(scenes.CATEGORIES)
    metrics = EvaluationMetrics(config_lib.Config().model, info)
    rng = np.random.default_rng(0)
    drawn = [_draw(rng, info) for _ in range(_DISTINCT_IMAGES)]

    def count():
        for i in range(num_images):
            photo, truth, outputs = drawn[i % len(drawn)]
            annotations = [{**annotation, "image_id": i} for annotation in truth.annotations]
            truth = truth._replace(image_id=i, annotations=annotations)
            scores = np.sort(rng.uniform(0.05, 1.0, _NUM_DETECTIONS))[::-1].astype(np.float32)
            outputs = outputs._replace(detections=outputs.detections._replace(scores=scores))
            metrics.add(i, outputs, truth, lambda: photo)

    watched = measure.watched(count)
    metrics.result()
    parts = watched["memory_mib"]
    growth = 1024 * (parts[-1] - parts[len(parts) // 2])
    return {
        "num_images": num_images,
        **watched,
        "kib_per_image": round(growth / (num_images / 2), 2),
        "peak_memory_mib": measure.peak_memory_mib(),
        "images_per_second": round(num_images / watched["seconds"], 2),
        "sides": list(_SIDES),
        "num_detections": _NUM_DETECTIONS,
    }


def _draw(rng, info):
    """Photo, `ImageTruth` and `ImageOutputs` of a scene with things."""
    from pfpn_tf.evaluation.counts import ImageTruth
    from pfpn_tf.evaluation.inference import ImageOutputs
    from pfpn_tf.structures import Detections, PanopticResult

    is_thing, things = np.zeros(0, bool), []
    while not things:
        photo, ids, segments = scenes.draw_scene(rng.integers(2**31), _SIDES)
        is_thing = np.array([info.by_id[s["category_id"]].is_thing for s in segments])
        things = [segment for segment, thing in zip(segments, is_thing) if thing]
    annotations = [
        {**thing, "id": n, "segmentation": coco_masks.encode_rle(ids == thing["id"])}
        for n, thing in enumerate(things, 1)
    ]
    truth = ImageTruth(0, ids.shape, ids.astype(np.uint32), segments, annotations)

    segment_ids, category_ids, areas = (
        np.array([s[name] for s in segments]) for name in ("id", "category_id", "area")
    )
    panoptic = PanopticResult(
        panoptic_ids=np.roll(ids, rng.integers(1, 6), axis=1).astype(np.int32),
        num_segments=len(segments),
        segment_ids=segment_ids,
        category_ids=category_ids,
        is_thing=is_thing,
        scores=np.where(is_thing, 0.9, 0.0),
        areas=areas,
        boxes=np.zeros((len(segments), 4)),
    )
    semantic_class = {c: n for n, c in enumerate(info.semantic_category_ids("other").tolist())}
    labels = np.full(ids.shape, len(semantic_class), np.int32)
    for segment_id, category_id in zip(segment_ids, category_ids):
        labels[ids == segment_id] = semantic_class.get(category_id, 0)  # class 0 is any thing

    index = np.arange(_NUM_DETECTIONS) % len(things)
    x, y, width, height = np.array([thing["bbox"] for thing in things])[index].T
    boxes = np.stack([y, x, y + height, x + width], -1) + rng.uniform(-4, 4, (len(index), 4))
    boxes = np.clip(boxes, 0, np.tile(ids.shape, 2))
    class_ids = np.array([info.category_to_class_id[thing["category_id"]] for thing in things])
    others = rng.integers(info.num_thing_classes, size=len(index))
    detections = Detections(
        boxes=boxes.astype(np.float32),
        scores=np.zeros(len(index), np.float32),
        class_ids=np.where(np.arange(len(index)) == index, class_ids[index], others),
        num_detections=np.int32(len(index)),
        mask_logits=np.full((len(index), _MASK_SIZE, _MASK_SIZE), 4.0, np.float32),
    )
    return photo, truth, ImageOutputs(panoptic, labels, detections)
