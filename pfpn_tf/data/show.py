"""Pictures of training examples, made from the very batches that the network receives."""

import re
from typing import Any, Iterator, Mapping, Tuple

import numpy as np

from pfpn_tf.config import Config
from pfpn_tf.data import pipeline
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.utils import visualize


def draw_examples(
    config: Config, info: DatasetInfo, num_images: int, start_step: int = 0
) -> Iterator[Tuple[str, np.ndarray]]:
    """Yields (name, [h, w, 3] uint8 RGB picture) of the first examples from `start_step` on."""
    drawn = 0
    dataset = pipeline.build_dataset(config, info, training=True, start_step=start_step)
    for step, batch in enumerate(dataset.as_numpy_iterator(), start_step):
        for row, source_id in enumerate(pipeline.source_ids(batch["source_id_bytes"])):
            example = {key: value[row] for key, value in batch.items()}
            safe_id = re.sub(r"[^\w.-]", "_", source_id)
            yield f"step{step:06d}_{row:02d}_{safe_id}", draw_example(example, config, info)
            drawn += 1
            if drawn == num_images:
                return


def draw_example(example: Mapping[str, Any], config: Config, info: DatasetInfo) -> np.ndarray:
    """The image with its instances, and with the semantic target, side by side.

    Args:
      example: one row of a training batch, as arrays.
      config: its pixel mean and std undo the normalisation.
      info: names and colours.
    """
    data = config.data
    image = example["images"] * np.array(data.pixel_std) + np.array(data.pixel_mean)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    things = np.flatnonzero(example["gt_class_ids"] >= 0)
    class_ids = example["gt_class_ids"][things]
    categories = info.thing_category_ids[class_ids]
    instances = visualize.overlay_instances(
        image,
        example["gt_boxes"][things],
        [info.thing_names[c] for c in class_ids],
        visualize.segment_colors([{"category_id": c} for c in categories], info),
        example["gt_masks"][things],
    )
    targets = config.model.semantic_targets
    semantic = visualize.overlay_semantic(image, example["gt_semantic"], info, targets)
    return visualize.side_by_side([instances, semantic])
