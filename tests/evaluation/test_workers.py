"""Two processes that evaluate together give what one gives, files included."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import types

import pytest
import tensorflow as tf

from pfpn_tf.data import predictions
from pfpn_tf.distribution import workers
from pfpn_tf.evaluation.evaluator import Evaluator
from tests.evaluation.oracle import Oracle, config_of, info_of, make_scenes, run

ROOT = pathlib.Path(__file__).parents[2]


def start_workers(count, arguments):
    """Processes of tests.evaluation.worker that form a cluster on this machine."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    cluster = {"worker": [f"localhost:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    started = []
    for index in range(count):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "tests.evaluation.worker", *arguments(index)]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    return started


def test_two_workers_give_the_same(tmp_path):
    """7 images in batches of 3: the first worker has two batches, the second one; then one image in
    all.
    """
    make_scenes(tmp_path / "scenes")
    started = start_workers(
        2,
        lambda i: [
            str(tmp_path / "scenes"),
            str(tmp_path / "two"),
            str(tmp_path / f"metrics{i}.json"),
        ],
    )
    config, info = config_of(tmp_path / "scenes"), info_of(tmp_path / "scenes")
    one = Evaluator(config, info, Oracle(config, info, Oracle.notes(config, info)))
    expected = {"all": run(one, str(tmp_path / "one")), "one": run(one, None, max_images=1)}
    for process in started:
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output.decode()
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
    files = sorted(
        os.path.relpath(os.path.join(d, f), one) for d, _, names in os.walk(one) for f in names
    )
    assert files == [
        "instances.json",
        "panoptic.json",
        "panoptic/a%2Fb.png",
        "panoptic/a_b.png",
        "panoptic/c.png",
    ]
    for name in files:
        assert content(pathlib.Path(one, name)) == content(pathlib.Path(two, name))
    assert sorted(os.listdir(two)) == ["instances.json", "panoptic", "panoptic.json"]
