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
from pfpn_tf.postprocess.instances import instances_at_original_size
from pfpn_tf.utils import visualize

NUM_IMAGES = 4


class Pictures:
    """Draws the first images that an evaluation sees."""

    def __init__(self, evaluator: Evaluator, config: config_lib.Config, info: DatasetInfo):
        """Takes the network.

        Args:
          evaluator: of the network; it is traced once for pictures and evaluations.
          config: settings of the run.
          info: the dataset.
        """
        self._evaluator = evaluator
        self._config = config
        self._info = info

    def draw(self) -> Dict[str, np.ndarray]:
        """Name -> picture, [h, w, 3] uint8: photo, ground truth and prediction in a row."""
        pictures = {}
        for i, (outputs, example, photo) in enumerate(self._evaluator.first_images(NUM_IMAGES)):
            truth = counts.read_truth(example, string_ids=True)
            gt_ids = truth.panoptic_ids
            if gt_ids is None:  # Without annotations all of the image is void.
                gt_ids = np.zeros(truth.hw, np.uint32)
            parts = [
                photo,
                visualize.overlay_panoptic(photo, gt_ids, truth.segments, self._info),
                self._overlay(photo, outputs, example["image_hw"]),
            ]
            pictures[f"panoptic/{i}"] = visualize.side_by_side(
                parts, ["photo", "ground truth", "prediction"]
            )
        return pictures

    def _overlay(self, photo, outputs, image_hw):
        if outputs.panoptic is not None:
            ids = outputs.panoptic.panoptic_ids[: photo.shape[0], : photo.shape[1]]
            segments = predictions.segments_info(outputs.panoptic._asdict())
            return visualize.overlay_panoptic(photo, ids, segments, self._info)
        if outputs.labels is not None:
            colors = self._info.semantic_colors(self._config.model.semantic_targets)
            labels = outputs.labels[: photo.shape[0], : photo.shape[1]]
            return visualize.blend(photo, visualize.color_semantic(labels, colors))
        found = instances_at_original_size(outputs.detections, image_hw, photo.shape[:2])
        sure = found.scores >= self._config.model.fusion_score_threshold
        class_ids = found.class_ids[sure]
        return visualize.overlay_instances(
            photo,
            found.boxes[sure],
            [
                f"{self._info.thing_names[c]} {100 * s:.0f}%"
                for c, s in zip(class_ids, found.scores[sure])
            ],
            [self._info.things[c].color for c in class_ids],
            [mask for mask, is_sure in zip(found.masks(), sure) if is_sure],
        )
