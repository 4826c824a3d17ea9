"""Panoptic quality the plain way: sorts every pixel with `numpy.unique` and loops over segments.

Slow and close to the definition of Kirillov et al., "Panoptic Segmentation", with the conventions of
the COCO panoptic task. Nothing is shared with `pfpn_tf.evaluation`.
"""

import json
import os
from collections import defaultdict

import numpy as np
from PIL import Image

VOID = 0


def read_ids(path):
    """[h, w] int64 segment ids of a COCO panoptic PNG: R + 256 G + 65536 B."""
    rgb = np.asarray(Image.open(path)).astype(np.int64)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def count_image(gt_ids, gt_segments, pred_ids, pred_segments):
    """True positives, false positives, false negatives and IoU sums of one image.

    Args:
      gt_ids, pred_ids: [h, w] int64.
      gt_segments, pred_segments: lists of COCO `segments_info` entries.

    Returns:
      Dict category_id -> [tp, fp, fn, iou_sum].
    """
    counts = defaultdict(lambda: [0, 0, 0, 0.0])
    gt = {s["id"]: s for s in gt_segments}
    pred = {s["id"]: s for s in pred_segments}
    pred_area = dict(zip(*(a.tolist() for a in np.unique(pred_ids, return_counts=True))))
    pairs, sizes = np.unique(gt_ids * 2**24 + pred_ids, return_counts=True)
    overlap = {(p // 2**24, p % 2**24): n for p, n in zip(pairs.tolist(), sizes.tolist())}

    matched_gt, matched_pred = set(), set()
    for (g, p), intersection in overlap.items():
        if g not in gt or p not in pred or gt[g]["iscrowd"] == 1:
            continue
        if gt[g]["category_id"] != pred[p]["category_id"]:
            continue
        union = gt[g]["area"] + pred_area[p] - intersection - overlap.get((VOID, p), 0)
        if intersection / union > 0.5:
            row = counts[gt[g]["category_id"]]
            row[0] += 1
            row[3] += intersection / union
            matched_gt.add(g)
            matched_pred.add(p)

    last_crowd = {}
    for g, segment in gt.items():
        if g in matched_gt:
            continue
        if segment["iscrowd"] == 1:
            last_crowd[segment["category_id"]] = g
        else:
            counts[segment["category_id"]][2] += 1

    for p, segment in pred.items():
        if p in matched_pred:
            continue
        excused = overlap.get((VOID, p), 0)
        if segment["category_id"] in last_crowd:
            excused += overlap.get((last_crowd[segment["category_id"]], p), 0)
        if excused / pred_area[p] <= 0.5:
            counts[segment["category_id"]][1] += 1
    return counts


def score_files(gt_json, gt_dir, pred_json, pred_dir):
    """Dict category_id -> [tp, fp, fn, iou_sum] over all images of two COCO panoptic JSON files."""
    with open(gt_json) as f:
        gt = json.load(f)
    with open(pred_json) as f:
        predictions = {a["image_id"]: a for a in json.load(f)["annotations"]}
    total = defaultdict(lambda: [0, 0, 0, 0.0])
    for annotation in gt["annotations"]:
        prediction = predictions[annotation["image_id"]]
        counts = count_image(
            read_ids(os.path.join(gt_dir, annotation["file_name"])),
            annotation["segments_info"],
            read_ids(os.path.join(pred_dir, prediction["file_name"])),
            prediction["segments_info"],
        )
        for category_id, row in counts.items():
            total[category_id] = [a + b for a, b in zip(total[category_id], row)]
    return total
