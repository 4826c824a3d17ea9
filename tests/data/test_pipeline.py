import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pfpn_tf.config import Config
from pfpn_tf.data import convert, pipeline, repeat_factors, tfrecord
from tests.data import tiny
from tests.reference import preprocess as reference

CROWD, CAT, CAR = (5, 1, 2, 3, 9, 12), (5, 0, 2, 3, 9, 12), (20, 0, 10, 15, 15, 22)
IMAGES = [
    (24, 40, [CAT, CAR]),
    (24, 40, []),  # no instance
    (24, 40, [CROWD]),  # crowd only
    (30, 25, [(5, 0, 1 + 4 * y, 1 + 4 * x, 3 + 4 * y, 3 + 4 * x + y) for y, x in np.ndindex(2, 5)]),
    (25, 31, [CAR]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "d"
    tiny.make(folder, IMAGES)
    for split in ("train", "val"):
        tiny.convert(folder, folder, split, num_shards=2)
    return folder


def config(folder, **settings):
    defaults = dict(
        train_records=f"{folder}/train-*",
        eval_records=f"{folder}/val-*",
        global_batch_size=5,
        train_min_sides=(24, 40),
        train_max_side=64,
        eval_min_side=32,
        eval_max_side=64,
    )
    return Config().replace(**{**defaults, **settings})


def batches(c, count, **kwargs):
    dataset = pipeline.build_dataset(c, pipeline.load_info(c), training=True, **kwargs)
    return list(dataset.take(count).as_numpy_iterator())


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def test_training_batch_against_plain_numpy(folder):
    c = config(folder, random_flip=False, train_min_sides=(24,))
    (batch,) = batches(c, 1)
    assert sorted(pipeline.source_ids(batch["source_id_bytes"])) == ["10", "11", "12", "13", "14"]
    assert batch["images"].dtype == np.float32 and batch["gt_masks"].dtype == np.uint8
    dataset = tiny.open_dataset(folder)
    lookup = np.array([1, 0, 2, 0] + [255] * 252)  # sky 1, cat 0, grass 2, car 0: "other" targets
    for row, source_id in enumerate(pipeline.source_ids(batch["source_id_bytes"])):
        record = dataset.read(int(source_id) - 10)
        hw = reference.resized_hw(record.hw, 24, 64)
        h, w = hw
        assert tuple(batch["image_hw"][row]) == hw and tuple(batch["original_hw"][row]) == record.hw
        photo = tiny.read_rgb(folder / f"images/{int(source_id) - 10}.png")
        image = Image.fromarray(photo).resize(hw[::-1], Image.BILINEAR)
        image = np.asarray(image) - np.array(c.data.pixel_mean)
        assert np.abs(batch["images"][row, :h, :w] - image).max() <= 1.001
        assert not batch["images"][row, h:].any() and not batch["images"][row, :, w:].any()
        semantic = lookup[reference.resize_labels(record.category_map, hw)]
        np.testing.assert_array_equal(batch["gt_semantic"][row, :h, :w], semantic)
        assert (batch["gt_semantic"][row, h:] == 255).all()
        assert (batch["gt_semantic"][row, :, w:] == 255).all()
        expected = [i for i in record.instances if not i.iscrowd]
        count = len(expected)
        class_ids = [{5: 0, 20: 1}[i.category_id] for i in expected]
        padding = [-1] * (batch["gt_class_ids"].shape[1] - count)
        assert batch["gt_class_ids"][row].tolist() == class_ids + padding
        scale = np.array([h / record.hw[0], w / record.hw[1]] * 2)
        for k, instance in enumerate(expected):
            x, y, bw, bh = instance.bbox_xywh
            np.testing.assert_allclose(
                batch["gt_boxes"][row, k], np.array([y, x, y + bh, x + bw]) * scale, rtol=1e-6
            )
            mask = reference.resize_labels(instance.mask, hw)
            np.testing.assert_array_equal(batch["gt_masks"][row, k, :h, :w], mask)
            assert batch["gt_masks"][row, k].sum() == mask.sum()
        assert not batch["gt_boxes"][row, count:].any() and not batch["gt_masks"][row, count:].any()


def test_targets_over_all_classes(folder):
    (batch,) = batches(config(folder, semantic_targets="all", max_instances=3), 1)
    assert set(np.unique(batch["gt_semantic"])) == {0, 1, 2, 3, 255}


def test_crowds_are_things_of_the_semantic_target_only(folder):
    (batch,) = batches(config(folder), 1)
    row = pipeline.source_ids(batch["source_id_bytes"]).index("12")
    assert (batch["gt_class_ids"][row] == -1).all() and not batch["gt_masks"][row].any()
    assert (batch["gt_semantic"][row] == 0).any()


def test_more_than_max_instances_keeps_the_largest(folder):
    (batch,) = batches(config(folder, max_instances=5, random_flip=False, train_min_sides=(40,)), 1)
    row = pipeline.source_ids(batch["source_id_bytes"]).index("13")
    assert batch["gt_boxes"].shape[1] == 5
    widths = batch["gt_boxes"][row, :, 3] - batch["gt_boxes"][row, :, 1]
    np.testing.assert_allclose(widths, 3 * 40 / 25, rtol=1e-5)  # the lower row of five is wider


def test_no_instance_in_the_whole_batch(folder, tmp_path):
    tiny.make(tmp_path / "d", [(24, 40, []), (24, 40, [CROWD])])
    dataset = tiny.open_dataset(tmp_path / "d", allow_mismatch=True)
    convert.convert(dataset, str(tmp_path), "train", num_workers=1)
    (batch,) = batches(config(tmp_path, global_batch_size=2, crop_size=(32, 32)), 1)
    assert batch["gt_boxes"].shape == (2, 0, 4) and batch["gt_masks"].shape == (2, 0, 32, 32)
    assert batch["gt_class_ids"].shape == (2, 0)


def test_the_same_seed_and_step_give_the_same_batch_also_after_resuming(folder):
    c = config(
        folder, global_batch_size=2, color_jitter=True, random_scale=(0.5, 2.0), crop_size=(32, 32)
    )
    whole = batches(c, 4)
    assert_equal(whole[:2], batches(c, 2))
    assert_equal(whole[3:], batches(c, 1, start_step=3))
    other = batches(c.replace(seed=1), 2)
    assert any(
        a["images"].shape != b["images"].shape or (a["images"] != b["images"]).any()
        for a, b in zip(whole, other)
    )


def test_replicas_and_workers_share_each_batch(folder):
    """Two workers with two replicas each: their four batches in a row are the global batch, padding
    included.
    """
    c = config(folder, global_batch_size=4)
    whole = batches(c, 3)
    contexts = [tf.distribute.InputContext(2, worker, 4) for worker in (0, 1)]
    shares = [batches(c, 6, input_context=context) for context in contexts]
    for step, batch in enumerate(whole):
        for key in ("images", "image_hw", "gt_semantic", "seed", "source_id_bytes"):
            parts = [np.concatenate([s[2 * step][key], s[2 * step + 1][key]]) for s in shares]
            np.testing.assert_array_equal(np.concatenate(parts), batch[key])


def test_flip_and_crop_keep_masks_boxes_and_pixels_together(folder):
    """Under every augmentation, boxes lie in the content and enclose their masks."""
    c = config(folder, random_scale=(0.7, 2.0), crop_size=(32, 32), global_batch_size=5)
    seen = 0
    for batch in batches(c, 6):
        for row in range(5):
            h, w = batch["image_hw"][row]
            assert h <= 32 and w <= 32
            for k in np.flatnonzero(batch["gt_class_ids"][row] >= 0):
                mask, (y1, x1, y2, x2) = batch["gt_masks"][row, k], batch["gt_boxes"][row, k]
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert 0 <= y1 < y2 <= h and 0 <= x1 < x2 <= w
                assert abs(rows[0] - y1) <= 1 and abs(rows[-1] + 1 - y2) <= 1
                assert abs(columns[0] - x1) <= 1 and abs(columns[-1] + 1 - x2) <= 1
                assert set(batch["gt_semantic"][row][mask > 0]) == {0}
                seen += 1
    assert seen > 20


def test_static_shapes(folder):
    c = config(
        folder, static_shapes=True, max_instances=7, global_batch_size=1, train_min_sides=(24,)
    )
    shapes = {b["images"].shape for b in batches(c, 8)}
    assert len(shapes) <= 3
    (batch,) = batches(c, 1)
    assert batch["gt_boxes"].shape == (1, 7, 4) and batch["gt_masks"].shape[:2] == (1, 7)


def test_evaluation_is_one_pass_with_everything_needed(folder):
    c = config(folder, eval_batch_size=2)
    dataset = pipeline.build_dataset(c, pipeline.load_info(c), training=False)
    rows = list(dataset.as_numpy_iterator())
    assert [len(b["images"]) for b in rows] == [2, 2, 1]
    assert [s.decode() for b in rows for s in b["source_id"]] == ["10", "11", "12", "13", "14"]
    for row, (h, w, _) in enumerate(IMAGES):
        batch, k = rows[row // 2], row % 2
        assert tuple(batch["original_hw"][k]) == (h, w)
        assert tuple(batch["image_hw"][k]) == reference.resized_hw((h, w), 32, 64)
        ids = tf.io.decode_png(batch["panoptic_png"][k]).numpy().astype(int) @ [1, 256, 65536]
        assert set(np.unique(ids)) - {0} == set(batch["segment_ids"][k]) - {0}
    first = rows[0]
    assert first["instance_category_ids"][0].tolist() == [5, 20]
    assert first["instance_iscrowd"][0].tolist() == [0, 0]
    assert first["instance_boxes"][0].tolist() == [[2, 3, 9, 12], [10, 15, 15, 22]]
    mask = cv2.imdecode(np.frombuffer(first["instance_mask_png"][0][0], np.uint8), 0)
    assert mask.shape == (24, 40) and mask.sum() == 63
    assert first["instance_mask_png"][1].tolist() == [b"", b""]


def test_info_beside_the_records_or_named(folder, tmp_path):
    c = config(folder)
    assert pipeline.load_info(c) == pipeline.load_info(
        c.replace(dataset_info=f"{folder}/dataset_info.json")
    )
    assert pipeline.load_info(c.replace(train_records="")).num_thing_classes == 2
    with pytest.raises(ValueError, match="--train_records=.*no file matches"):
        pipeline.load_info(c.replace(train_records=f"{tmp_path}/x-*"))
    (tmp_path / "x-0").write_bytes(b"")
    with pytest.raises(ValueError, match="dataset_info.json"):
        pipeline.load_info(c.replace(train_records=f"{tmp_path}/x-*"))
    with pytest.raises(ValueError, match="--train_records"):
        pipeline.load_info(c.replace(train_records="", eval_records=""))


@pytest.mark.parametrize(
    "task, names, expected",
    [
        ("panoptic", ["sky", "cat", "grass", "car"], ["1111", "1010", "1010", "1110", "1011"]),
        ("instance", ["sky", "cat", "grass", "car"], ["0101", "0000", "0000", "0100", "0001"]),
        ("semantic", ["things", "sky", "grass"], ["111", "011", "111", "111", "111"]),
    ],
)
def test_classes_that_a_task_finds_in_the_records(folder, task, names, expected):
    c = config(folder, task=task)
    index = tfrecord.read_index(c.data.train_records)
    found, present = repeat_factors.classes_of_records(c, pipeline.load_info(c), index)
    assert found == names
    assert ["".join(str(int(v)) for v in row) for row in present] == expected


def test_repeat_factors_of_the_records(folder):
    """Cars are in two of five images: sqrt(0.9 / 0.4) = 1.5; sky and grass are in all."""
    c = config(folder, repeat_factor_threshold=0.9, global_batch_size=1)
    index = tfrecord.read_index(c.data.train_records)
    factors = repeat_factors.of_records(c, pipeline.load_info(c), index)
    np.testing.assert_allclose(factors, [1.5, 1, 1, 1.5, 1.5])  # cats: images 0 and 3
    drawn = [pipeline.source_ids(b["source_id_bytes"])[0] for b in batches(c, 40)]
    share = np.array([drawn.count(str(10 + i)) for i in range(5)])
    assert share[[0, 3, 4]].sum() > 24 and share[[1, 2]].max() <= 8


def test_repeat_factors_of_records_without_classes(tmp_path):
    tiny.make(tmp_path, [(24, 40, [])])
    tiny.convert(tmp_path, tmp_path)
    c = config(tmp_path, repeat_factor_threshold=0.1, task="instance")
    with pytest.raises(ValueError, match="--repeat_factor_threshold=0.1: .*--task=instance.*use 0"):
        batches(c, 1)
