"""Pictures for TensorBoard: what the network says beside the ground truth, always of the same
images.
"""

from typing import Dict

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.data import predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import counts
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.postprocess.instances import full_masks, original_instances
from pfpn_tf.utils import visualize

NUM_IMAGES = 4


def draw(
    evaluator: Evaluator, config: config_lib.Config, info: DatasetInfo
) -> Dict[str, np.ndarray]:
    """Draws the first images that an evaluation sees.

    Args:
      evaluator: of the network; it is traced once for pictures and evaluations.
      config: settings of the run.
      info: the dataset.

    Returns:
      Name -> picture, [h, w, 3] uint8: photo, ground truth and prediction in a row.
    """
    drawn = {}
    for i, (outputs, example, photo) in enumerate(evaluator.first_images(NUM_IMAGES)):
        truth = counts.read_truth(example, string_ids=True)
        gt_ids = truth.panoptic_ids
        if gt_ids is None:  # Without annotations all of the image is void.
            gt_ids = np.zeros(truth.hw, np.uint32)
        parts = [
            photo,
            visualize.overlay_panoptic(photo, gt_ids, truth.segments, info),
            _overlay(photo, outputs, config.model, info),
        ]
        titles = ["photo", "ground truth", "prediction"]
        drawn[f"panoptic/{i}"] = visualize.side_by_side(parts, titles)
    return drawn


def _overlay(photo, outputs, config, info):
    if outputs.panoptic is not None:
        ids = outputs.panoptic.panoptic_ids[: photo.shape[0], : photo.shape[1]]
        segments = predictions.segments_info(outputs.panoptic._asdict())
        return visualize.overlay_panoptic(photo, ids, segments, info)
    if outputs.labels is not None:
        labels = outputs.labels[: photo.shape[0], : photo.shape[1]]
        return visualize.overlay_semantic(photo, labels, info, config.semantic_targets)
    found = original_instances(outputs.detections)
    sure = found.scores >= config.fusion_score_threshold
    class_ids = found.class_ids[sure]
    return visualize.overlay_instances(
        photo,
        found.boxes[sure],
        [f"{info.thing_names[c]} {100 * s:.0f}%" for c, s in zip(class_ids, found.scores[sure])],
        [info.things[c].color for c in class_ids],
        [mask for mask, is_sure in zip(full_masks(found, photo.shape[:2]), sure) if is_sure],
    )
