"""Panoptic fusion step by step, with everything at full size, in float64."""

import numpy as np

from tests.reference import paste
from tests.reference.resize import resize


def semantic_values(logits, image_hw, original_hw):
    """[h4, w4, S] -> [h, w, S]: 4x up, crop, resize."""
    logits = np.asarray(logits, np.float64)
    padded = resize(logits, (logits.shape[0] * 4, logits.shape[1] * 4))
    return resize(padded[: image_hw[0], : image_hw[1]], original_hw)


def fuse(
    boxes,
    scores,
    class_ids,
    mask_logits,
    labels,
    image_hw,
    original_hw,
    thing_ids,
    stuff_ids,
    score_threshold=0.5,
    overlap_threshold=0.5,
    stuff_area_threshold=4096,
):
    """The paper's heuristic for one image.

    Args:
      boxes [D, 4] yxyx in the input, scores [D] falling, class_ids [D], mask_logits [D, P, P];
      labels [h, w]. thing_ids, stuff_ids: category ids by class; -1 in stuff_ids is left out.

    Returns:
      (ids [h, w], segments): segments are dicts of id, category_id, is_thing, score, area, box.
    """
    ids = np.zeros(original_hw, int)
    segments = []

    def add(mask, category_id, is_thing, score):
        ids[mask] = len(segments) + 1
        ys, xs = np.nonzero(mask)
        segments.append(
            dict(
                id=len(segments) + 1,
                category_id=int(category_id),
                is_thing=is_thing,
                score=float(score),
                area=int(mask.sum()),
                box=(ys.min(), xs.min(), ys.max() + 1, xs.max() + 1),
            )
        )

    boxes = paste.scale_boxes(boxes, image_hw, original_hw)
    for box, score, class_id, logits in zip(boxes, scores, class_ids, mask_logits):
        if float(score) < score_threshold:
            break
        mask = paste.paste(1 / (1 + np.exp(-logits.astype(np.float64))), box, original_hw)
        taken = mask & (ids > 0)
        if (
            not mask.any()
            or taken.sum() / mask.sum() > overlap_threshold
            or not (mask & ~taken).any()
        ):
            continue
        add(mask & ~taken, thing_ids[class_id], True, score)
    for label in range(len(stuff_ids)):
        mask = (labels == label) & (ids == 0)
        if stuff_ids[label] >= 0 and mask.sum() >= max(1, stuff_area_threshold):
            add(mask, stuff_ids[label], False, 0.0)
    return ids, segments
