"""Files with results of panopticapi and pycocotools: every number has to be theirs."""

import json

import pytest

from pfpn_tf.evaluation.instance_files import InstanceFiles
from pfpn_tf.evaluation.score_files import PanopticFiles

ROOT = "data/pq_cases/given"
PANOPTIC = """
    01_identity_coco 02_identity_camvid 03_shift_global_coco 04_shift_segments_camvid
    05_morph_coco 06_warp_camvid 07_merge_coco 08_split_camvid 09_wrong_class_coco
    10_void_in_pred_camvid 11_dropped_coco 12_crowd_in_gt_camvid 13_two_crowds_one_class_coco
    14_over_void_camvid 15_over_crowd_camvid 16_iou_exactly_half_coco 17_large_ids_camvid
    18_absent_classes_camvid 19_one_image_without_segments_camvid 20_gt_all_void_camvid
    21_stuff_only_camvid 22_gt_id_not_listed_camvid 23_gt_area_from_json_coco 24_mixed_camvid
    25_mixed0_coco 26_mixed1_coco 27_string_image_ids_city
""".split()
# Case, and what its message has to name: image, file, segment or category.
BAD = {
    "28_bad_png_id_not_in_json": ("368", "0016E5_07959.png", "12492311"),
    "29_bad_json_id_not_in_png": ("379", ".png", "77"),
    "30_bad_unknown_category": ("368", "0016E5_07959.png", "8421504", "4242"),
    "31_bad_missing_image": ("379", "pred.json"),
    "32_bad_size_differs": ("353 x 477", "360 x 480", ".png"),
    "33_bad_missing_png": ("pred/0016E5_07959.png", "368"),
}
INSTANCES = """01_coco 02_coco_ties_few_images 03_coco_perfect 04_coco_over_100_per_image 05_camvid
06_camvid_class_without_gt""".split()


def score(folder):
    paths = [str(folder / name) for name in ("gt.json", "gt", "pred.json", "pred")]
    return PanopticFiles(*paths).score()


def test_every_case_is_listed(test_data):
    folders = {p.name for p in test_data(ROOT + "/panoptic").iterdir() if p.is_dir()}
    assert folders == set(PANOPTIC) | set(BAD)
    assert {p.name for p in test_data(ROOT + "/instances").iterdir() if p.is_dir()} == set(
        INSTANCES
    )


@pytest.mark.parametrize("case", PANOPTIC)
def test_panoptic(test_data, case):
    folder = test_data(f"{ROOT}/panoptic/{case}")
    expected = json.loads((folder / "expected.json").read_text())
    metrics = score(folder)
    assert set(metrics["panoptic"]["per_class"]) == set(expected["panoptic"]["per_class"])
    assert_close(metrics["panoptic"], expected["panoptic"], 1e-12)
    theirs = expected["semantic"]
    assert_semantic(metrics["semantic"], theirs["all_categories"])
    assert_semantic(metrics["semantic"]["things_as_one"], theirs["stuff_plus_one_things_class"])
    for group in ("Things", "Stuff"):
        if expected["panoptic"][group] is None:
            assert any(note.startswith(f"{group} is null") for note in metrics["notes"])


@pytest.mark.parametrize("case", BAD)
def test_bad_predictions(test_data, case):
    with pytest.raises(ValueError) as raised:
        score(test_data(f"{ROOT}/panoptic/{case}"))
    for part in BAD[case]:
        assert part in str(raised.value)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("case", INSTANCES)
def test_instances(test_data, case, kind):
    folder = test_data(f"{ROOT}/instances/{case}")
    expected = json.loads((folder / "expected.json").read_text())[kind]
    paths = [str(folder / name) for name in ("gt.json", f"detections_{kind}.json")]
    metrics = InstanceFiles(*paths).score()
    assert set(metrics) == {kind}
    # The last digit of a mean depends on the NumPy version; the expected numbers come from another
    # one.
    assert_close(metrics[kind], expected["stats"], 1e-14)
    assert_close(metrics[kind]["per_class"], expected["per_class"], 1e-14)
    assert metrics[kind]["AR"] == metrics[kind]["AR100"]


def assert_semantic(ours, theirs):
    assert_close(ours["miou"], theirs["miou_over_classes_in_gt"], 1e-9)
    same = "miou_over_classes_in_gt_or_pred fwiou pixel_accuracy mean_class_accuracy iou"
    for name in same.split():
        assert_close(ours[name], theirs[name], 1e-9)


def assert_close(ours, theirs, tolerance):
    """Equal structure, equal whole numbers, floats within the tolerance."""
    if isinstance(theirs, dict):
        assert set(theirs) <= set(ours)
        for key in theirs:
            assert_close(ours[key], theirs[key], tolerance)
    elif isinstance(theirs, float):
        assert ours is not None and abs(ours - theirs) <= tolerance
    else:
        assert ours == theirs
