"""What TF_CONFIG must say, and the strategies without it."""

import json

import pytest
import tensorflow as tf

from pfpn_tf.distribution import strategies
from pfpn_tf.distribution.workers import Workers

TWO = {"worker": ["a:1", "b:2"]}


def tf_config(cluster, job="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})


def test_workers_in_order():
    with_chief, all_three = {"chief": ["c:3"], **TWO}, ["c:3", "a:1", "b:2"]
    for text, expected in (
        (tf_config(TWO, index=1), (["a:1", "b:2"], 1)),
        (tf_config(with_chief, "chief"), (all_three, 0)),
        (tf_config(with_chief, index=1), (all_three, 2)),
        (tf_config({"worker": ["[::1]:5"]}), (["[::1]:5"], 0)),
    ):
        assert strategies.parse_tf_config(text) == expected


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "the environment variable TF_CONFIG is not set."),
        ("{'cluster': 1}", "TF_CONFIG is not JSON"),
        ("[1]", 'needs the objects "cluster" and "task"'),
        (json.dumps({"cluster": TWO}), 'needs the objects "cluster" and "task"'),
        (tf_config({}), 'names no "worker"'),
        (tf_config({"worker": []}), 'names no "worker"'),
        (tf_config({"worker": "a:1"}), "must be a list"),
        (tf_config({"ps": ["p:1"], **TWO}), 'has "ps"'),
        (tf_config({"worker": ["a:1", "b"]}), "'b', which is not HOST:PORT"),
        (tf_config({"worker": ["a:1", "a:1"]}), "a:1 twice"),
        (
            tf_config(TWO, index=2),
            '"index": 2}, but the cluster has {"type": "worker", "index": 0}, ',
        ),
        (tf_config(TWO, index="0"), '"index": "0"}, but'),
        (tf_config(TWO, job="chief"), '"type": "chief"'),
        (tf_config(TWO, job="evaluator"), '"type": "evaluator"'),
    ],
)
def test_mistakes_in_tf_config_are_named(monkeypatch, text, what):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError) as error:
        strategies.build_strategy("multi_worker")
    for words in (what, "--distribution=multi_worker", '"cluster": {"worker": ['):
        assert words in str(error.value)


@pytest.mark.parametrize(
    "name, index, expected",
    [("multi_worker", 0, False), ("multi_worker", 1, True), ("cpu", 1, False)],
)
def test_followers(monkeypatch, name, index, expected):
    monkeypatch.setenv("TF_CONFIG", tf_config(TWO, index=index))
    assert strategies.is_follower(name) is expected


@pytest.mark.parametrize("name", ["mirrored", "cpu", "one_device"])
def test_a_cluster_is_not_ignored(monkeypatch, name):
    monkeypatch.setenv("TF_CONFIG", tf_config(TWO))
    words = f"--distribution={name} trains in one process alone, but TF_CONFIG names 2"
    with pytest.raises(ValueError, match=words):
        strategies.build_strategy(name)
    monkeypatch.setenv("TF_CONFIG", tf_config({"worker": ["a:1"]}))
    assert strategies.build_strategy(name).num_replicas_in_sync == 1


class Waiting:
    """Stands for a `Gatherer` whose calls of `wait` end one after the other as told."""

    def __init__(self, count, index, ends=()):
        self.workers = Workers(count, index)
        self.ends = list(ends)

    def wait(self):
        error = self.ends.pop(0)
        if error:
            raise error


GONE = tf.errors.UnavailableError(
    None, None, "Graph execution error:\n\nCollective ops is aborted by: Socket closed\n"
)


def test_only_a_lost_worker_is_called_one():
    with pytest.raises(strategies.WorkerLost, match=r"Worker 1 of 2 stops.*Socket closed"):
        with strategies.losing_workers(Waiting(2, 1)):
            raise GONE
    with pytest.raises(tf.errors.UnavailableError):
        with strategies.losing_workers(Waiting(1, 0)):
            raise GONE
    for other in (tf.errors.InternalError(None, None, "cuDNN failed"), ValueError("a setting")):
        with pytest.raises(type(other)):
            with strategies.losing_workers(Waiting(2, 0)):
                raise other


def test_a_worker_that_leaves_is_not_lost_once_all_are_done():
    with pytest.raises(strategies.WorkerLost):
        with strategies.losing_workers(Waiting(2, 0, [GONE])):
            pass
    leaving = Waiting(2, 0, [None, GONE])
    with strategies.losing_workers(leaving):
        pass
    assert not leaving.ends


def test_what_xla_cannot_compile():
    place, reason = "node cluster_23_1/xla_compile", "Fail to prove equality at compile time"
    text = f"Graph execution error:\n\n{place}\n{reason}: a vs b"
    error = tf.errors.InvalidArgumentError(None, None, text)
    with pytest.raises(ValueError, match=f"--xla: .*{reason}.*--noxla"):
        with strategies.compiling(True):
            raise error
    with pytest.raises(tf.errors.InvalidArgumentError):
        with strategies.compiling(False):
            raise error
    with pytest.raises(tf.errors.ResourceExhaustedError):
        with strategies.compiling(True):
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
