"""Pictures for TensorBoard: what the network says beside the ground truth, always of the same
images.
"""

from typing import Dict

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline, predictions
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import counts, inference
from pfpn_tf.postprocess import fusion
from pfpn_tf.postprocess.instances import instances_at_original_size
from pfpn_tf.utils import visualize

NUM_IMAGES = 4


class Pictures:
    """Draws the first evaluation images, or the first training ones if there are no others."""

    def __init__(self, config: config_lib.Config, info: DatasetInfo, model: tf.keras.Model):
        self._config = config.replace(
            eval_records=config.data.eval_records or config.data.train_records,
            eval_batch_size=1,
            max_images=NUM_IMAGES,
        )
        self._info = info
        self._model = model
        self._tables = fusion.fusion_tables(info, config.model.semantic_targets)
        self._dataset = pipeline.build_dataset(self._config, info, training=False)
        self._predict_function = None

    def draw(self) -> Dict[str, np.ndarray]:
        """Name -> picture, [h, w, 3] uint8: photo, ground truth and prediction in a row."""
        pictures = {}
        for i, batch in enumerate(self._dataset):
            example = {name: value[0].numpy() for name, value in batch.items()}
            truth = counts.read_truth(example, string_ids=True)
            gt_ids = truth.panoptic_ids
            if gt_ids is None:  # Without annotations all of the image is void.
                gt_ids = np.zeros(truth.hw, np.uint32)
            photo = self._photo(batch, truth.hw)
            outputs = self._predict(batch["images"], batch["image_hw"], batch["original_hw"])
            outputs = tf.nest.map_structure(lambda t: None if t is None else t[0].numpy(), outputs)
            parts = [
                photo,
                visualize.overlay_panoptic(photo, gt_ids, truth.segments, self._info),
                self._overlay(photo, outputs, batch["image_hw"][0].numpy()),
            ]
            pictures[f"panoptic/{i}"] = visualize.side_by_side(
                parts, ["photo", "ground truth", "prediction"]
            )
        return pictures

    def _predict(self, *arguments):
        if self._predict_function is None:
            spec = self._dataset.element_spec
            signature = [spec["images"], spec["image_hw"], spec["original_hw"]]
            self._predict_function = tf.function(
                self._forward, input_signature=signature, autograph=False
            )
        return self._predict_function(*arguments)

    def _forward(self, images, image_hw, original_hw):
        outputs = self._model(images, image_hw, training=False)
        return inference.batch_outputs(
            outputs, image_hw, original_hw, self._config.model, self._tables
        )

    def _photo(self, batch, hw):
        """The image as the network got it, [h, w, 3] uint8 at the original size."""
        height, width = batch["image_hw"][0].numpy()
        image = batch["images"][0, :height, :width].numpy()
        image = image * self._config.data.pixel_std + self._config.data.pixel_mean
        return cv2.resize(np.clip(np.rint(image), 0, 255).astype(np.uint8), (hw[1], hw[0]))

    def _overlay(self, photo, outputs, image_hw):
        if outputs.panoptic is not None:
            segments = predictions.segments_info(outputs.panoptic._asdict())
            return visualize.overlay_panoptic(
                photo, outputs.panoptic.panoptic_ids, segments, self._info
            )
        if outputs.labels is not None:
            colors = self._info.semantic_colors(self._config.model.semantic_targets)
            return visualize.blend(photo, visualize.color_semantic(outputs.labels, colors))
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
            [tuple(int(v) for v in self._info.thing_colors[c]) for c in class_ids],
            [mask for mask, is_sure in zip(found.masks, sure) if is_sure],
        )
