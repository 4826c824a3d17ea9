"""Fusion against the full-size reference and against Detectron2's own output."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.config import Config
from pfpn_tf.data import categories
from pfpn_tf.evaluation import inference
from pfpn_tf.postprocess import fusion
from tests.reference import fusion as reference

THINGS = np.array([1, 5, 9], np.int32)
# Class 0 is "other"; 0 is a category id like any other.
STUFF = np.array([-1, 0, 7, 11, 20], np.int32)
SETTINGS = fusion.FusionSettings(THINGS, STUFF, stuff_area_threshold_px=40)
OTHER_SETTINGS = SETTINGS._replace(overlap_threshold=0.3, stuff_area_threshold_px=5)


def make_case(rng, image_hw, num=6, width=8, padding=(0, 0)):
    """Random outputs of one image. Mask logits are blobs, so that masks have shape."""
    size = np.array([-(-s // 32) * 32 for s in image_hw]) + padding
    corner = rng.uniform(-0.1, 0.8, (width, 2)) * image_hw
    extent = rng.uniform(0.05, 0.7, (width, 2)) * image_hw
    boxes = np.concatenate([corner, corner + extent], 1).clip(0, np.tile(image_hw, 2))
    detections = structures.Detections(
        boxes=np.float32(boxes),
        scores=np.float32(np.sort(rng.uniform(0.3, 1, width))[::-1]),
        class_ids=rng.integers(0, 3, width).astype(np.int32),
        num_detections=np.int32(num),
        mask_logits=np.float32(rng.normal(0.6, 1.5, (width, 28, 28))),
    )
    logits = np.float32(rng.normal(size=(*(size // 4), len(STUFF))))
    return structures.InferenceOutputs(detections, logits)


def tensors(outputs):
    return tf.nest.map_structure(lambda x: None if x is None else tf.constant(x), outputs)


def run(outputs, image_hw, original_hw, settings=SETTINGS):
    return fusion.fuse_image(
        tensors(outputs), tf.constant(image_hw), tf.constant(original_hw), settings
    )


@functools.cache
def graph_for_all_sizes(is_other):
    """As the project traces it: everything but the number of detections is unknown."""
    outputs = make_case(np.random.default_rng(0), (32, 32))
    signature = tf.nest.map_structure(lambda x: tf.TensorSpec(np.shape(x), x.dtype), outputs)
    signature = signature._replace(semantic_logits=tf.TensorSpec([None, None, len(STUFF)]))
    size = tf.TensorSpec([2], tf.int32)
    settings = OTHER_SETTINGS if is_other else SETTINGS
    return tf.function(
        lambda *case: fusion.fuse_image(*case, settings), [signature, size, size], autograph=False
    )


def run_graph(outputs, image_hw, original_hw, settings=SETTINGS):
    function = graph_for_all_sizes(settings is OTHER_SETTINGS)
    return function(tensors(outputs), tf.constant(image_hw), tf.constant(original_hw))


either_way = pytest.mark.parametrize("run", [run, run_graph])


def check(result, outputs, image_hw, original_hw, settings=SETTINGS):
    """Compares with the reference and returns its segments."""
    values = reference.semantic_values(outputs.semantic_logits, image_hw, original_hw)
    d = outputs.detections
    n = int(d.num_detections)
    detections = d.boxes[:n], d.scores[:n], d.class_ids[:n], d.mask_logits[:n]
    stuff_scores = reference.class_scores(outputs.semantic_logits, image_hw)
    ids, segments = reference.fuse(
        *detections, values.argmax(-1), image_hw, original_hw, *settings, stuff_scores
    )
    np.testing.assert_array_equal(result.panoptic_ids, ids)
    assert int(result.num_segments) == len(segments)
    for i, segment in enumerate(segments):
        assert int(result.segment_ids[i]) == segment["id"]
        assert int(result.category_ids[i]) == segment["category_id"]
        assert bool(result.is_thing[i]) == segment["is_thing"]
        allowed = 1e-7 if segment["is_thing"] else 1e-5  # that of things is copied
        assert float(result.scores[i]) == pytest.approx(segment["score"], abs=allowed)
        assert int(result.areas[i]) == segment["area"]
        np.testing.assert_array_equal(result.boxes[i], segment["box"])
    for column in result[2:]:
        assert not np.any(column[len(segments) :]), "padded rows must be zero"
    return segments


@pytest.mark.parametrize(
    "image_hw, original_hw",
    [
        ((48, 80), (48, 80)),  # no resize
        ((50, 90), (25, 44)),  # the original is smaller
        ((33, 61), (97, 150)),  # the original is larger, more than one tile
        ((64, 96), (70, 301)),  # three tiles across, other aspect ratio
        ((32, 32), (1, 1)),  # one pixel
        ((32, 2), (500, 30)),  # long and narrow
        ((1, 32), (3, 130)),
    ],
)
@either_way
def test_equal_to_reference_on_random_cases(image_hw, original_hw, run):
    rng = np.random.default_rng(sum(image_hw) + sum(original_hw))
    outputs = make_case(rng, image_hw)
    case = outputs, image_hw, original_hw
    check(run(*case, OTHER_SETTINGS), *case, OTHER_SETTINGS)


def test_many_random_cases():
    rng = np.random.default_rng(7)
    seen = 0
    for _ in range(12):
        image_hw = rng.integers(16, 60, 2).astype(np.int32)
        original_hw = rng.integers(1, 90, 2).astype(np.int32)
        outputs = make_case(rng, image_hw, num=rng.integers(0, 9), padding=(32, 0))
        case = outputs, image_hw, original_hw
        seen += len(check(run_graph(*case, OTHER_SETTINGS), *case, OTHER_SETTINGS))
    assert seen > 20


HW = (40, 60)


def adversarial(boxes, logit=8.0, scores=None):
    """Solid masks in given boxes; semantic class 1 in the upper and 'other' in the lower half."""
    num, width = len(boxes), max(8, len(boxes))
    padding = width - num
    scores = np.linspace(0.9, 0.6, num) if scores is None else scores
    semantic = np.zeros((16, 16, len(STUFF)), np.float32)
    semantic[:5, :, 1] = 1
    return structures.InferenceOutputs(
        structures.Detections(
            boxes=np.pad(np.float32(boxes), [(0, padding), (0, 0)]),
            scores=np.pad(np.float32(scores), (0, padding)),
            class_ids=np.zeros(width, np.int32),
            num_detections=np.int32(num),
            mask_logits=np.full((width, 28, 28), logit, np.float32),
        ),
        semantic,
    )


CASES = {
    "same box twice": adversarial([[4, 4, 30, 30]] * 2),
    "overlap of exactly one half": adversarial([[0, 0, 20, 20], [0, 10, 20, 30]]),
    "just over one half": adversarial([[0, 0, 20, 20], [0, 9, 20, 29]]),
    "nested, small one first": adversarial([[10, 10, 14, 14], [0, 0, 40, 60]]),
    "empty box": adversarial([[5, 5, 5, 20], [6, 6, 20, 6], [1, 1, 9, 9]]),
    "outside after clipping": adversarial([[40, 60, 50, 70], [0, 60, 40, 80], [-9, -9, 3, 3]]),
    "box between two pixel centres": adversarial([[3.6, 3.6, 4.4, 4.4]]),
    "one pixel": adversarial([[3, 7, 4, 8]]),
    "box border on pixel centres, saturated mask": adversarial(
        [[2.5, 3.5, 9.5, 11.5]], logit=200.0
    ),
    "value of one half everywhere": adversarial([[3, 3, 31, 31]], logit=0.0),
    "empty mask": adversarial([[3, 3, 31, 31]], logit=-8.0),
    "score at the threshold, and just below": adversarial(
        [[0, 0, 9, 9], [0, 20, 9, 29]], scores=[0.5, np.nextafter(np.float32(0.5), np.float32(0))]
    ),
    "all image": adversarial([[0, 0, 40, 60]]),
}


@pytest.mark.parametrize("name", CASES)
@either_way
def test_adversarial(name, run):
    check(run(CASES[name], HW, HW), CASES[name], HW, HW)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_extreme_overlap_thresholds(overlap):
    case = adversarial([[0, 0, 20, 20], [5, 5, 15, 15], [10, 10, 30, 30]])
    settings = SETTINGS._replace(overlap_threshold=overlap)
    segments = check(run(case, HW, HW, settings), case, HW, HW, settings)
    # at 1 the nested box has no free pixel: no segment without pixels
    assert sum(s["is_thing"] for s in segments) == (1 if overlap == 0 else 2)


def test_logits_that_are_no_numbers_become_void():
    case = adversarial([[0, 0, 9, 9]])
    case.semantic_logits[:] = np.nan
    result = run(case, HW, HW)
    assert int(result.num_segments) == 1
    assert np.count_nonzero(result.panoptic_ids) == 81


def test_no_detections_and_no_stuff():
    case = adversarial([[0, 0, 9, 9]])
    case = case._replace(detections=case.detections._replace(num_detections=np.int32(0)))
    result = run(case, HW, HW, SETTINGS._replace(stuff_area_threshold_px=10**6))
    assert int(result.num_segments) == 0 and not np.any(result.panoptic_ids)


def test_stuff_limit_counts_what_instances_leave():
    case = adversarial([[0, 0, 10, 60]])

    def fused(limit):
        return run(case, HW, HW, SETTINGS._replace(stuff_area_threshold_px=limit))

    area = int(fused(0).areas[1])
    assert int(fused(area).num_segments) == 2
    assert int(fused(area + 1).num_segments) == 1


@pytest.mark.parametrize("missing", ["detections", "semantic_logits"])
def test_network_with_one_branch(missing):
    case = adversarial([[0, 0, 10, 60]])._replace(**{missing: None})
    result = run(case, HW, HW)
    assert int(result.num_segments) == 1
    assert bool(result.is_thing[0]) == (missing == "semantic_logits")


def test_three_hundred_detections():
    boxes = [[8 * (i // 30), 8 * (i % 30), 8 * (i // 30) + 6, 8 * (i % 30) + 6] for i in range(300)]
    case = adversarial(boxes)
    case = case._replace(semantic_logits=np.zeros((24, 64, 5), np.float32))
    result = run(case, (80, 240), (80, 240))
    assert int(result.num_segments) == 300
    np.testing.assert_array_equal(result.areas[:300], 36)


def test_settings_leave_out_things():
    info = categories.DatasetInfo.from_coco_categories(
        [{"id": i, "name": str(i), "isthing": int(i in (2, 4))} for i in (0, 2, 3, 4)]
    )
    config = Config().replace(semantic_targets="all", fusion_overlap_threshold=0.4).model
    things, stuff, *thresholds = fusion.fusion_settings(info, config)
    np.testing.assert_array_equal(things, [2, 4])
    np.testing.assert_array_equal(stuff, [0, -1, 3, -1])
    assert thresholds == [0.5, 0.4, 4096]
    np.testing.assert_array_equal(
        fusion.fusion_settings(info, Config().model).stuff_category_ids, [-1, 0, 3]
    )


@pytest.mark.both_stacks
def test_batch_of_different_sizes_equals_single_images():
    rng = np.random.default_rng(3)
    image_hw = np.array([[40, 64], [64, 50]], np.int32)
    original_hw = np.array([[80, 130], [31, 25]], np.int32)
    cases = [make_case(rng, (64, 64)) for _ in original_hw]
    batch = tf.nest.map_structure(lambda *x: tf.constant(np.stack(x)), *cases)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), batch),
            tf.TensorSpec([None, 2], tf.int32),
            tf.TensorSpec([None, 2], tf.int32),
        ],
    )
    def fuse(outputs, image_hw, original_hw):
        return inference.batch_outputs(outputs, image_hw, original_hw, SETTINGS, image_hw).panoptic

    result = fuse(batch, image_hw, original_hw)
    assert result.panoptic_ids.shape == (2, 80, 130)
    for i, case in enumerate(cases):
        one = tf.nest.map_structure(lambda t: t[i], result)
        h, w = original_hw[i]
        assert not np.any(one.panoptic_ids[h:]) and not np.any(one.panoptic_ids[:, w:])
        one = one._replace(panoptic_ids=one.panoptic_ids[:h, :w])
        check(one, case, image_hw[i], original_hw[i])


def golden(test_data, name):
    """Detectron2's arrays and its photo, and its detections as ours."""
    folder = test_data("golden/detectron2")
    data = np.load(folder / f"{name}_000000142238.npz")
    photo = np.load(folder / str(data["input_file"]))
    boxes, mask_logits = data["det_boxes_resized"][:, [1, 0, 3, 2]], data["mask_logits"]
    detections = structures.Detections(
        boxes, data["det_scores"], data["det_classes"], len(boxes), np.float32(mask_logits)
    )
    return data, photo, detections


@pytest.mark.parametrize("name", ["b", "c"])
def test_panoptic_map_of_detectron2(name, test_data):
    data, photo, detections = golden(test_data, name)
    outputs = structures.InferenceOutputs(detections, np.zeros((1, 1, 54), np.float32))
    categories = np.arange(80, dtype=np.int32), np.r_[-1, 1:54].astype(np.int32)
    result = fusion.fuse_image(
        tensors(outputs),
        tf.constant(photo["resized_bgr"].shape[:2]),
        tf.constant(photo["orig_hw"], tf.int32),
        fusion.FusionSettings(*categories),
        tf.constant(data["sem_argmax_orig"]),
    )
    segments = json.loads(str(data["segments_info_json"]))
    assert int(result.num_segments) == len(segments)
    for i, segment in enumerate(segments):
        assert int(result.segment_ids[i]) == segment["id"]
        assert int(result.category_ids[i]) == segment["category_id"]
        assert bool(result.is_thing[i]) == segment["isthing"]
    # mask logits in the file are float16
    assert np.count_nonzero(result.panoptic_ids.numpy() != data["panoptic_seg"]) <= 30
