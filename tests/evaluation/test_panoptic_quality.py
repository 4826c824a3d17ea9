"""PQ against panopticapi on drawn scenes, and PQ and IoU of maps that can be worked out by hand."""

import json

import numpy as np
import pytest

from pfpn_tf.data import panoptic_png
from pfpn_tf.evaluation.panoptic_quality import PanopticQuality
from pfpn_tf.evaluation.score_files import PanopticFiles
from pfpn_tf.evaluation.segment_pairs import segment_pairs
from pfpn_tf.evaluation.semantic_iou import SemanticIoU
from tests.reference import panoptic_quality as reference

CATEGORIES = [{"id": i, "isthing": int(i < 40)} for i in (1, 7, 30, 90, 200)]


def random_scene(rng, hw, num_ids, crowds=True):
    """A blocky id map with its segments_info; some ids are unlisted, some listed ones have no
    pixel.
    """
    ids = np.append(0, np.unique(rng.integers(1, 2**24, num_ids))).astype(np.uint32)
    coarse = rng.integers(0, len(ids), (hw[0] // 4 + 1, hw[1] // 5 + 1))
    id_map = ids[np.kron(coarse, np.ones((4, 5), int))][: hw[0], : hw[1]]
    segments = [
        {
            "id": int(i),
            "category_id": CATEGORIES[int(rng.integers(len(CATEGORIES)))]["id"],
            "area": int((id_map == i).sum()),
            "iscrowd": int(crowds and rng.random() < 0.3),
        }
        for i in ids[1:]
    ]
    return id_map, segments


def distort(rng, gt_ids, gt_segments):
    """A prediction that overlaps the ground truth more or less."""
    pred = np.roll(gt_ids, rng.integers(-2, 3, 2), (0, 1))
    old = np.unique(pred)
    new_ids = dict(zip(old.tolist(), (rng.permutation(100)[: len(old)] * 65537 + 1).tolist()))
    listed = {s["id"]: s["category_id"] for s in gt_segments}
    out, segments = np.zeros_like(pred), []
    for i, n in new_ids.items():
        if i == 0 or rng.random() < 0.1:
            continue
        other = CATEGORIES[int(rng.integers(len(CATEGORIES)))]["id"]
        category = listed[i] if rng.random() < 0.8 else other
        segments.append({"id": n, "category_id": category})
        out[pred == i] = n
    return out, segments


@pytest.mark.parametrize("hw", [(50, 70), (1, 200), (128, 1)])
def test_drawn_scenes_equal_panopticapi(tmp_path, hw):
    rng = np.random.default_rng(3)
    contents = {name: {"categories": CATEGORIES, "annotations": []} for name in ("gt", "pred")}
    for name in contents:
        (tmp_path / name).mkdir()
    for i in range(40):
        gt_ids, gt = random_scene(rng, hw, int(rng.integers(0, 12)))
        pred_ids, pred = distort(rng, gt_ids, gt)
        gt = gt[: len(gt) - 1] if rng.random() < 0.3 else gt  # an unlisted id
        for name, ids, segments in (("gt", gt_ids, gt), ("pred", pred_ids, pred)):
            (tmp_path / name / f"{i}.png").write_bytes(panoptic_png.encode_ids(ids))
            annotation = {"image_id": i, "file_name": f"{i}.png", "segments_info": segments}
            contents[name]["annotations"].append(annotation)
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    paths = [tmp_path / name for name in ("gt.json", "gt", "pred.json", "pred")]
    ours = PanopticFiles(*map(str, paths)).score()["panoptic"]
    (average, _, _), theirs = reference.score_files(*paths)
    for category_id, stat in ((c["id"], theirs[c["id"]]) for c in CATEGORIES):
        row = ours["per_class"][str(category_id)]
        assert (row["tp"], row["fp"], row["fn"]) == (stat.tp, stat.fp, stat.fn)
        assert row["iou_sum"] == pytest.approx(stat.iou, abs=1e-12)
    assert ours["All"] == pytest.approx(average, abs=1e-12)
    assert all(sum(row[k] for row in ours["per_class"].values()) > 10 for k in ("tp", "fp", "fn"))


@pytest.mark.parametrize("hw", [(37, 61), (1, 1), (1, 2), (300, 500)])
@pytest.mark.parametrize("ids", [[0, 1], [0, 1, 256, 65536], [5, 5 << 8, 5 << 16], [2**24 - 1]])
def test_overlaps_are_counted_pixel_by_pixel(hw, ids):
    """Ids that differ in one byte only, maps of a single segment, runs of more than 16 bits."""
    rng = np.random.default_rng(0)
    maps = [
        np.kron(rng.choice(ids, (hw[0], 1)), np.ones((1, hw[1]))).astype(np.uint32)
        for _ in range(2)
    ]
    maps[1][:, hw[1] // 2 :] = ids[0]
    both, counts = np.unique(np.stack(maps).reshape(2, -1), axis=1, return_counts=True)
    for ours, expected in zip(segment_pairs(*maps), (*both, counts)):
        np.testing.assert_array_equal(ours, expected)


def test_sums_do_not_depend_on_order_or_split():
    rng = np.random.default_rng(1)
    images = []
    for _ in range(30):
        gt_ids, gt = random_scene(rng, (40, 50), 8)
        pred_ids, pred = distort(rng, gt_ids, gt)
        images.append((segment_pairs(gt_ids, pred_ids), gt, pred))

    def run(order, parts):
        accumulators = [PanopticQuality(CATEGORIES) for _ in range(parts)]
        for n, i in enumerate(order):
            accumulators[n % parts].update(*images[i])
        for other in accumulators[1:]:
            accumulators[0].merge(other)
        return accumulators[0].result()

    expected = run(range(30), 1)
    assert run(rng.permutation(30), 1) == expected
    assert run(rng.permutation(30), 7) == expected


def test_perfect_crowd_void_by_hand():
    """Ground truth, 1 row: a a a a c c c c 0 0; prediction: p p p q q q q r r r (a, p: 1; the rest
    of class 7).

    p hits a with IoU 3/4; q has 3 of 4 pixels in the crowd c and r 1 of 3 in c, 2 in void: both
    excused.
    """
    gt = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]], np.uint32)
    pred = np.array([[5, 5, 5, 6, 6, 6, 6, 7, 7, 7]], np.uint32)
    gt_segments = [
        {"id": 1, "category_id": 1, "area": 4, "iscrowd": 0},
        {"id": 2, "category_id": 7, "area": 4, "iscrowd": 1},
    ]
    pred_segments = [
        {"id": 5, "category_id": 1},
        {"id": 6, "category_id": 7},
        {"id": 7, "category_id": 7},
    ]
    quality = PanopticQuality(CATEGORIES)
    quality.update(segment_pairs(gt, pred), gt_segments, pred_segments)
    result = quality.result()
    assert result["All"] == {"pq": 0.75, "sq": 0.75, "rq": 1.0, "n": 1}
    assert result["Stuff"] is None


def test_no_images():
    result = PanopticQuality(CATEGORIES).result()
    assert result["All"] is None and result["per_class"]["1"]["pq"] == 0.0
    assert SemanticIoU([1, 2]).result()["miou"] is None
