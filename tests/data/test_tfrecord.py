import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import convert, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.coco_panoptic import DataError
from pfpn_tf.utils.errors import UserError
from tests import processes
from tests.data import tiny
from tests.data.edits import entry

TOOL = "tools/create_tfrecords.py"
IMAGES = [(20 + i, 30 - i, [(5, 0, 2, 3, 9, 12), (20, i % 2, 10, 15, 15, 22)]) for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    tiny.make(tmp_path / "d", IMAGES)
    return tmp_path / "d"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_round_trip(folder, tmp_path):
    dataset = tiny.open_dataset(folder)
    counts = tiny.convert(folder, tmp_path / "out", num_shards=3)
    assert names(tmp_path / "out") == ["dataset_info.json", "dataset_statistics.json"] + [
        f"train-0000{i}-of-00003.tfrecord" for i in range(3)
    ]
    index = tfrecord.read_index(f"{tmp_path}/out/train-*.tfrecord")
    assert index.hw.tolist() == [[20 + i, 30 - i] for i in range(7)]  # in the order of the JSON
    for position in (6, 0, 3):
        record = dataset.read(position)
        parsed = tfrecord.decode_example(tfrecord.read_record(index, tf.constant(position)))
        parsed = {k: v.numpy() for k, v in parsed.items()}
        assert parsed.keys() == tfrecord.FEATURES.keys()
        assert parsed["image/source_id"].decode() == str(10 + position)
        assert parsed["image/encoded"] == record.image_bytes
        assert parsed["image/object/class/label"].tolist() == [5, 20]
        assert parsed["image/object/class/text"].tolist() == [b"cat", b"car"]
        assert parsed["image/object/is_crowd"].tolist() == [0, position % 2]
        assert parsed["image/object/bbox_px"].tolist() == [[2, 3, 9, 12], [10, 15, 15, 22]]
        for side, length, expected in (
            ("xmax", 30 - position, [12, 22]),
            ("ymin", 20 + position, [2, 10]),
        ):
            values = parsed[f"image/object/bbox/{side}"] * length
            np.testing.assert_allclose(values, expected, rtol=1e-6)
        for png, instance in zip(parsed["image/object/mask"], record.instances):
            np.testing.assert_array_equal(tf.io.decode_png(png)[..., 0], instance.mask)
        labels = tf.io.decode_png(parsed["image/segmentation/class/encoded"])[..., 0]
        np.testing.assert_array_equal(labels, record.category_map)
        assert parsed["image/panoptic/segment/id"].tolist() == [1, 2, 1300, 2300]
        assert parsed["image/panoptic/segment/category_id"].tolist() == [3, 7, 5, 20]
        png = (folder / f"panoptic/{position}.png").read_bytes()
        assert parsed["image/panoptic/encoded"] == png
    assert counts["images"] == 7 and counts["instances"] == 11 and counts["crowds"] == 3
    assert counts["segments"] == 28 and counts["max_instances"] == 2
    assert counts["segments_by_category"] == {"3": 7, "5": 7, "7": 7, "20": 7}


def test_other_readers_understand_the_records(folder, tmp_path):
    """The hand-made head is a plain tf.train.Example to protobuf, and its absence costs only
    time.
    """
    tiny.convert(folder, tmp_path, "a")
    shard = str(tmp_path / "a-00000-of-00001.tfrecord")
    serialized = [x.numpy() for x in tf.data.TFRecordDataset(shard)]
    examples = [tf.train.Example.FromString(s) for s in serialized]
    assert examples[2].features.feature.keys() == tfrecord.FEATURES.keys()
    assert examples[2].features.feature["image/height"].int64_list.value[:] == [22]
    head = serialized[2][: 2 + serialized[2][1]]
    assert tfrecord._parsed_hw(head) == (22, 28) and len(head) < 100
    with tf.io.TFRecordWriter(str(tmp_path / "other.tfrecord")) as writer:
        for example in examples:
            feature = {k: v for k, v in example.features.feature.items() if k != "image/filename"}
            feature["a"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 300]))
            other = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(other.SerializeToString(deterministic=True))
    found = tfrecord.read_index(str(tmp_path / "other.tfrecord"))
    assert found.hw.tolist() == tfrecord.read_index(shard).hw.tolist()


def test_any_number_of_workers_writes_the_same_bytes(folder, tmp_path):
    """Several through the tool, where nothing has used TensorFlow before the processes fork."""
    a, b = tmp_path / "1", tmp_path / "3"
    tiny.convert(folder, a, num_shards=3)
    run_tool(folder, b, "--num_workers=3", "--num_shards=3")
    assert names(b) == sorted([*names(a), "dataset.html", "recipe.flags"]) and len(names(a)) == 5
    for name in names(a):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def run_tool(folder, output_dir, *extra, expect=0):
    sources = [f"--panoptic_json={folder}/panoptic.json", f"--image_dir={folder}/images"]
    flags = ["--split=train", f"--output_dir={output_dir}", *sources, *extra]
    return processes.call(TOOL, *flags, expect=expect)


def test_broken_input_stops_the_tool_or_is_skipped_and_counted(folder, tmp_path):
    (folder / "panoptic/5.png").unlink()
    done = run_tool(folder, tmp_path / "out", "--num_workers=2", "--num_shards=2", expect=2)
    assert "panoptic/5.png" in done.stderr
    assert names(tmp_path / "out") == []
    counts = tiny.convert(folder, tmp_path, num_shards=2, skip_bad=True)
    assert (counts["images"], counts["skipped"]) == (6, 1)
    assert len(tfrecord.read_index(f"{tmp_path}/train-*")) == 6


def test_failure_keeps_the_former_shards(folder, tmp_path):
    out = tmp_path / "out"
    tiny.convert(folder, out, num_shards=2)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (folder / "images/6.png").write_bytes(b"")
    with pytest.raises(DataError, match="images/6.png"):
        tiny.convert(folder, out, num_shards=2)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_splits_share_the_info_and_old_shards_go(folder, tmp_path):
    out = tmp_path / "out"
    for split, shards in (("train", 3), ("val", 1), ("train", 2)):
        tiny.convert(folder, out, split, shards)
    assert [n for n in names(out) if n.startswith("train")] == [
        f"train-0000{i}-of-00002.tfrecord" for i in range(2)
    ]
    info = DatasetInfo.load(out / "dataset_info.json")
    assert info.splits.keys() == {"train", "val"} and info.splits["train"]["shards"] == 2
    entry("categories", 0, name="clouds")(folder)
    with pytest.raises(ValueError, match="other categories"):
        tiny.convert(folder, out, "test")


def test_nothing_usable(folder, tmp_path):
    for path in (folder / "panoptic").iterdir():
        cv2.imwrite(str(path), np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="none of its 7 images"):
        tiny.convert(folder, tmp_path / "out", skip_bad=True)
    assert names(tmp_path / "out") == []


def test_index_names_what_is_missing(folder, tmp_path):
    tiny.convert(folder, tmp_path / "out", num_shards=3)
    pattern = f"{tmp_path}/out/train-*"
    shard = tmp_path / "out/train-00001-of-00003.tfrecord"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="train-00001-of-00003.tfrecord.*cut off"):
        tfrecord.read_index(pattern)
    for damaged in (whole + bytes(100), bytes(16 * 99), whole[:12] + b"\xff" * 9 + whole[21:]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match="train-00001-of-00003.tfrecord: the record at .*dam"):
            tfrecord.read_index(pattern)
    shard.unlink()
    with pytest.raises(ValueError, match="train-00001-of-00003"):
        tfrecord.read_index(pattern)
    with pytest.raises(ValueError, match="--eval_records=.*no file matches"):
        tfrecord.read_index(f"{tmp_path}/nothing-*", "eval_records")
    with pytest.raises(ValueError, match="--train_records is empty"):
        tfrecord.read_index("")


def test_cityscapes(test_data, tmp_path):
    """Real layout, by label ids and by train ids: string ids, photos that the JSON names
    wrongly.
    """
    root = test_data("data/cityscapes_like")
    for split, suffix, road in (("train", "", 7), ("val", "_trainId", 0)):
        maps = root / f"gtFine/cityscapes_panoptic_{split}{suffix}"
        dataset = tiny.open_panoptic(maps.with_suffix(".json"), maps, root / "leftImg8bit" / split)
        convert.convert(dataset, str(tmp_path / split), split, num_workers=1)
        info = DatasetInfo.load(tmp_path / split / "dataset_info.json")
        assert len(info.categories) == 19 and info.num_thing_classes == 8
        assert info.by_id[road].name == "road"
        if split == "val":
            assert info.splits[split]["crowds"] == 5
        assert info.splits[split]["string_ids"] and info.num_semantic_classes("all") == 19
        paths = (root / "leftImg8bit" / split).rglob("*.png")
        photos = {p.name[: -len("_leftImg8bit.png")]: p for p in paths}
        index = tfrecord.read_index(f"{tmp_path}/{split}/{split}-*")
        assert len(index) == len(photos) == {"train": 6, "val": 5}[split]
        for position in range(len(index)):
            parsed = tfrecord.decode_example(tfrecord.read_record(index, tf.constant(position)))
            photo = photos[parsed["image/source_id"].numpy().decode()]
            assert parsed["image/encoded"].numpy() == photo.read_bytes()


def test_tool_adds_images_without_annotations(folder, tmp_path):
    images = json.loads((folder / "panoptic.json").read_text())["images"]
    (folder / "image_info.json").write_text(json.dumps({"images": images}))
    arguments = ["--split=test-dev", f"--output_dir={tmp_path}/out", "--num_workers=1"]
    arguments += [f"--image_info_json={folder}/image_info.json", f"--image_dir={folder}/images"]
    done = processes.call(TOOL, *arguments, expect=2)
    for words in ("dataset_info.json does not exist", "with annotations first"):
        assert words in done.stderr
    tiny.convert(folder, tmp_path / "out", "val")
    processes.call(TOOL, *arguments)
    info = DatasetInfo.load(tmp_path / "out/dataset_info.json")
    assert info.splits["test-dev"]["images"] == 7 and info.splits["test-dev"]["segments"] == 0
    index = tfrecord.read_index(f"{tmp_path}/out/test-dev-*")
    parsed = tfrecord.decode_example(tfrecord.read_record(index, tf.constant(4)))
    assert parsed["image/panoptic/encoded"] == b"" and parsed["image/object/mask"].shape == [0]
    assert parsed["image/encoded"].numpy() == (folder / "images/4.png").read_bytes()
    assert tf.reduce_min(tf.io.decode_png(parsed["image/segmentation/class/encoded"])) == 255


@pytest.mark.parametrize("pattern", ["train-*.tfrecord", "train-*", "train*", "train-?????-of-*"])
def test_a_split_never_takes_the_shards_of_a_longer_name(tmp_path, pattern):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "train-small-00000-of-00001"):
        (tmp_path / f"{name}.tfrecord").touch()
    files = tfrecord.matching_files(f"{tmp_path}/{pattern}", "train_records")
    assert [f[-len("00000-of-00002.tfrecord") - 6 :] for f in files] == [
        f"train-0000{i}-of-00002.tfrecord" for i in range(2)
    ]


def test_shards_of_two_conversions_are_named(tmp_path):
    for name in ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"):
        (tmp_path / f"{name}.tfrecord").touch()
    with pytest.raises(UserError, match="two conversions, of 1 and of 2 shards"):
        tfrecord.matching_files(f"{tmp_path}/train-*", "train_records")
