"""What a conversion leaves beside the records."""

import base64
import json
import re

import cv2
import numpy as np
import pytest

from pfpn_tf import flags
from pfpn_tf.data import overview, pipeline, statistics, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from tests.data import tiny
from tests.data.edits import again

CAT, CAR = 5, 20
TRAIN = [
    (40, 60, [(CAT, 0, 4, 6, 30, 40), (CAR, 1, 30, 40, 38, 58)]),
    (40, 60, [(CAT, 0, 2, 2, 12, 22), (CAR, 0, 20, 20, 36, 36)]),
    (30, 90, []),
]
VAL = [(40, 60, [(CAR, 0, 20, 20, 36, 36)])]


def convert_split(folder, output, split, images, shards=1):
    tiny.make(folder / split, images)
    tiny.convert(folder / split, output, split, shards)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Both splits, in a folder whose name is no plain one."""
    folder = tmp_path_factory.mktemp("data")
    output = folder / "my [new] <data>"
    for split, images in (("train", TRAIN), ("val", VAL)):
        convert_split(folder, output, split, images, shards=len(images))
    overview.write(str(output), epochs=2)
    return output


def load(folder):
    return statistics.load(str(folder), DatasetInfo.load(folder / "dataset_info.json"))


def test_statistics_of_all_splits(converted):
    train, val = (load(converted)[split] for split in ("train", "val"))
    assert train.counts["images"] == 3 and val.counts["images"] == 1
    assert train.counts["instances", CAT] == 2 and train.counts["instances", CAR] == 1
    assert train.counts["images", CAT] == 2 and train.counts["images", CAR] == 2  # a crowd, too
    assert train.max_instances == 2
    assert sorted(train.images.rows()) == [(30, 90, 0), (40, 60, 1), (40, 60, 2)]
    boxes = [(10, 20, 40, 60), (16, 16, 40, 60), (26, 34, 40, 60)]  # the crowd is none
    assert sorted(train.boxes.rows()) == boxes
    assert val.boxes.rows() == [(16, 16, 40, 60)]
    grass = 20 * 60 - 60 - 16 * 16
    assert (7, grass, 40, 60) in val.stuff.rows() and val.counts["pixels", 7] == grass


def test_a_sample_does_not_depend_on_who_took_it(monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLED", 5)
    whole, parts = statistics.Sample(), [statistics.Sample() for _ in range(3)]
    for n in range(100):
        whole.add(f"image {n}", (n,))
        parts[n % 3].add(f"image {n}", (n,))
    merged = statistics.Sample()
    for part in reversed(parts):
        merged.merge(part)
    assert merged.rows() == whole.rows() and len(whole.rows()) == 5
    assert np.ptp(whole.rows()) > 20


def test_the_recipe_works_from_any_folder(converted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = flags.settings_of([f"--flagfile={converted}/recipe.flags"])
    config = flags.config_lib.Config().replace(**settings)
    assert settings["task"] == "panoptic" and config.data.eval_records.startswith(f"{converted}/v")
    info = pipeline.load_info(config)
    assert info.splits.keys() == {"train", "val"}
    for name, count in (("train_records", 3), ("eval_records", 1)):
        index = tfrecord.read_index(getattr(config.data, name), name)
        assert len(index.hw) == count
    steps = config.train.train_steps * config.train.global_batch_size
    assert abs(steps - 2 * len(TRAIN)) <= config.train.global_batch_size


def test_the_page_stands_alone(converted):
    page = (converted / "dataset.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(TRAIN)
    assert not re.search(r"(src|href)=.(?!data:image|#)", page)
    assert "Dataset my [new] &lt;data&gt;" in page and page.count("data:image/png") == 4
    rows = {re.sub("<.*?>", " ", row).split()[0]: row for row in page.split("<tr>")[1:]}
    values = [re.sub("<.*?>", "", cell) for cell in rows["cat"].split("<td>")[1:]]
    assert values[:4] == ["cat", "thing", "2", "2"] and values[5:7] == ["none", "0"]
    assert "--anchor_sizes=" in page


def test_samples_are_titled_by_their_files(converted):
    page = (converted / "dataset.html").read_text()
    samples = re.findall(r"<figcaption>(\d\.png)</figcaption><img .*?base64,(.*?)'", page)
    widths = {
        name: cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), -1).shape[1]
        for name, jpeg in samples
    }
    assert widths.keys() == {"0.png", "1.png", "2.png"}
    assert max(widths, key=lambda name: widths[name]) == "2.png"  # the widest photo


def test_samples_are_not_drawn_again_for_another_split(tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert_split(tmp_path, out, "train", VAL)
    drawn = []

    def draw(config, info, count):
        drawn.append(count)
        yield "", np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(overview.show, "draw_examples", draw)
    overview.write(str(out), converted=["train"])
    convert_split(tmp_path, out, "val", VAL)
    overview.write(str(out), converted=["val"])
    page = (out / "dataset.html").read_text()
    assert drawn == [1] and page.count("<figcaption>0.png") == 1 and "val: images" in page
    overview.write(str(out), converted=["train", "val"])
    assert drawn == [1, 1]


def test_warnings_stand_on_the_page_with_their_example(tmp_path):
    tiny.make(tmp_path / "d", TRAIN)
    again("panoptic.json", "images", id=99)(tmp_path / "d")
    again("panoptic.json", "annotations", image_id=99)(tmp_path / "d")
    tiny.convert(tmp_path / "d", tmp_path / "out")
    info = DatasetInfo.load(tmp_path / "out/dataset_info.json")
    shown = overview._warnings(load(tmp_path / "out"))
    assert "images have the photo of an image before them" in shown and "0.png" in shown
    assert info.splits["train"]["images"] == 4


def test_what_fails_leaves_the_records(tmp_path, monkeypatch, caplog):
    convert_split(tmp_path, tmp_path / "out", "train", VAL)
    path = tmp_path / "out/dataset_info.json"
    DatasetInfo.load(path).with_split("old", {}).save(path)  # as if by an earlier version
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(overview.show, "draw_examples", fail)
    overview.write(str(tmp_path / "out"))
    assert "the records are complete, but not dataset.html: no room" in caplog.text
    assert "no statistics of split old; convert it again" in caplog.text
    after = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert after.pop("recipe.flags") and after == before


def test_statistics_of_another_dataset_are_not_kept(tmp_path):
    """Its description is removed, so that the folder can take this one."""
    out = tmp_path / "out"
    convert_split(tmp_path, out, "old", VAL)
    (out / "dataset_info.json").unlink()
    convert_split(tmp_path, out, "train", TRAIN)
    assert load(out).keys() == {"train"}
    (out / statistics.FILE_NAME).write_text('{"train": {"counts": 3}}')
    assert load(out) == {}
    good = statistics.Statistics().to_json()
    for damage in (
        {"counts": {"images": "3"}},
        {"counts": {"images": -1}},
        {"max_instances": None},
        {"images": [[40, 60]]},
        {"boxes": [["a", 2, 3, 4]]},
        {"stuff": [[1, float("nan"), 3, 4]]},
    ):
        (out / statistics.FILE_NAME).write_text(json.dumps({"train": {**good, **damage}}))
        assert load(out) == {}, damage
    convert_split(tmp_path, out, "val", VAL)
    assert load(out).keys() == {"val"}
