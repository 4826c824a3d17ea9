"""Two processes that evaluate together give what one gives, files included."""

import json
import os
import pathlib
import types

import pytest
import tensorflow as tf

from pfpn_tf.data import predictions
from pfpn_tf.distribution import workers
from pfpn_tf.evaluation.evaluator import Evaluator
from tests import processes
from tests.evaluation.oracle import Oracle, config_of, info_of, make_scenes, run


def test_two_workers_give_the_same(tmp_path):
    """7 images in batches of 3: the first worker has two batches, the second one; then one image in
    all.
    """
    make_scenes(tmp_path / "scenes")
    command = "-m", "tests.evaluation.oracle", tmp_path / "scenes", tmp_path / "two"
    log = {"log": tmp_path / "log", "CUDA_VISIBLE_DEVICES": ""}
    started = [
        processes.start(*command, tmp_path / f"metrics{i}.json", **log, TF_CONFIG=cluster)
        for i, cluster in enumerate(processes.cluster_of_workers(2))
    ]
    config, info = config_of(tmp_path / "scenes"), info_of(tmp_path / "scenes")
    one = Evaluator(config, info, Oracle(config, info, Oracle.notes(config, info)))
    expected = {"all": run(one, str(tmp_path / "one")), "one": run(one, None, max_images=1)}
    for process in started:
        assert process.wait(timeout=1200) == 0, (tmp_path / "log").read_text()
    for i in range(2):
        assert json.loads((tmp_path / f"metrics{i}.json").read_text()) == expected

    files = {p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "two") for p in (tmp_path / "two").rglob("*") if p.is_file()
    }
    assert len(files) > 7
    for name in files - {pathlib.Path("metrics.json")}:
        one, two = (content(tmp_path / folder / name) for folder in ("one", "two"))
        assert one == two, name


def content(path):
    """Bytes; of the JSON files the entries, whose order depends on the workers."""
    if path.suffix == ".json":
        return sorted(line.rstrip(",") for line in path.read_text().splitlines())
    return path.read_bytes()


@pytest.mark.parametrize(
    "jobs, task, expected",
    [
        ({}, (None, None), (1, 0)),
        ({"worker": ["a:1"]}, ("worker", 0), (1, 0)),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), (2, 1)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("chief", 0), (3, 0)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}, ("worker", 1), (3, 2)),
    ],
)
def test_place_of_a_worker(jobs, task, expected):
    resolver = types.SimpleNamespace(
        cluster_spec=lambda: tf.train.ClusterSpec(jobs), task_type=task[0], task_id=task[1]
    )
    found = workers.workers_of(types.SimpleNamespace(cluster_resolver=resolver))
    assert (found.count, found.index) == expected
    assert found.is_chief == (expected[1] == 0)


def test_merged_file_names_are_those_of_one_writer(tmp_path):
    """Ids that a plain file name cannot tell apart; an image without instances."""
    ids = ["a/b", "a_b", "c"]
    categories = [{"id": 1, "name": "cat", "isthing": 1}]

    def write(directory, image_ids):
        with predictions.PredictionWriter(directory, categories) as writer:
            for image_id in image_ids:
                writer.add_panoptic(image_id, [[ids.index(image_id)]], [])
                if image_id != "a_b":
                    writer.add_instances([{"image_id": image_id, "score": 0.5}] * 2)

    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    write(one, ids)
    parts = str(tmp_path / "part 0"), str(tmp_path / "part 1")
    write(parts[0], ["a/b", "c"])
    write(parts[1], ["a_b"])
    with predictions.PredictionWriter(two, categories) as writer:
        for part in parts:
            writer.take_over(part)
    maps = [f"panoptic/{name}.png" for name in ("a%2Fb", "a_b", "c")]
    files = ["instances.json", "panoptic.json", *maps]
    assert sorted(str(p.relative_to(one)) for p in pathlib.Path(one).rglob("*.*")) == files
    for name in files:
        assert content(pathlib.Path(one, name)) == content(pathlib.Path(two, name))
    assert sorted(os.listdir(two)) == ["instances.json", "panoptic", "panoptic.json"]
