"""Panoptic quality the plain way: sorts every pixel with `numpy.unique` and loops over segments.

Slow and close to the definition of Kirillov et al., "Panoptic Segmentation", with the conventions
of the COCO panoptic task and the cost of its published evaluator: every pixel of the prediction is
sorted once, every pixel of ground truth and prediction together once more. Nothing is shared with
`pfpn_tf.evaluation`.
"""

import json
import os
from collections import defaultdict

import numpy as np
from PIL import Image

VOID = 0
NUM_IDS = np.uint64(2**24)


class Refused(Exception):
    """The prediction cannot be scored."""


def read_ids(path):
    """[h, w] uint32 segment ids of a COCO panoptic PNG: R + 256 G + 65536 B."""
    rgb = np.array(Image.open(path), dtype=np.uint32)
    return rgb[:, :, 0] + 256 * rgb[:, :, 1] + 65536 * rgb[:, :, 2]


def count_image(gt_ids, gt_segments, pred_ids, pred_segments, categories):
    """True positives, false positives, false negatives and IoU sums of one image.

    Args:
      gt_ids, pred_ids: [h, w] integers.
      gt_segments, pred_segments: lists of COCO `segments_info` entries.
      categories: known category ids.

    Returns:
      Dict category_id -> [tp, fp, fn, iou_sum].
    """
    counts = defaultdict(lambda: [0, 0, 0, 0.0])
    gt = {s["id"]: s for s in gt_segments}
    pred = {s["id"]: s for s in pred_segments}

    pred_area = {}
    without_pixels = {s["id"] for s in pred_segments}
    for p, area in zip(*np.unique(pred_ids, return_counts=True)):
        if p in pred:
            pred_area[int(p)] = int(area)
            without_pixels.remove(p)
            if pred[p]["category_id"] not in categories:
                raise Refused(f"unknown category {pred[p]['category_id']}")
        elif p != VOID:
            raise Refused(f"segment {p} is not listed")
    if without_pixels:
        raise Refused(f"segments {without_pixels} have no pixel")

    both = gt_ids.astype(np.uint64) * NUM_IDS + pred_ids.astype(np.uint64)
    overlap = {}
    for pair, pixels in zip(*np.unique(both, return_counts=True)):
        overlap[int(pair // NUM_IDS), int(pair % NUM_IDS)] = int(pixels)

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


def pair(gt_json, pred_json):
    """(Pairs of annotations by image id, categories by id) of two COCO panoptic JSON files."""
    with open(gt_json) as f:
        gt = json.load(f)
    with open(pred_json) as f:
        predictions = {a["image_id"]: a for a in json.load(f)["annotations"]}
    for annotation in gt["annotations"]:
        if annotation["image_id"] not in predictions:
            raise Refused(f"no prediction for image {annotation['image_id']}")
    pairs = [(a, predictions[a["image_id"]]) for a in gt["annotations"]]
    return pairs, {c["id"]: c for c in gt["categories"]}


def average(total, categories, is_thing=None):
    """(PQ, SQ, RQ, number of classes) over the classes that occur; None if there is none."""
    rows = []
    for category_id, category in categories.items():
        tp, fp, fn, iou = total.get(category_id, (0, 0, 0, 0.0))
        if tp + fp + fn and (is_thing is None or (category["isthing"] == 1) == is_thing):
            rows.append(
                (iou / (tp + fp / 2 + fn / 2), iou / tp if tp else 0, tp / (tp + fp / 2 + fn / 2))
            )
    return (*np.mean(rows, axis=0), len(rows)) if rows else None


def score_files(gt_json, gt_dir, pred_json, pred_dir):
    """`average` of all classes, of things and of stuff.

    Raises:
      Exception: whatever a malformed file leads to.
    """
    pairs, categories = pair(gt_json, pred_json)
    total = defaultdict(lambda: [0, 0, 0, 0.0])
    for gt, pred in pairs:
        gt_ids = read_ids(os.path.join(gt_dir, gt["file_name"]))
        pred_ids = read_ids(os.path.join(pred_dir, pred["file_name"]))
        segments = gt["segments_info"], pred["segments_info"]
        counts = count_image(gt_ids, segments[0], pred_ids, segments[1], categories)
        for category_id, row in counts.items():
            total[category_id] = [a + b for a, b in zip(total[category_id], row)]
    return [average(total, categories, is_thing) for is_thing in (None, True, False)]
