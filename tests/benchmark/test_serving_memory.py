"""The memory benchmark on models that keep what they are sent, and that do not."""

import pytest
import tensorflow as tf

from pfpn_tf.benchmark import measure, serving_memory


def save(path, grows):
    module = tf.Module()
    module.kept = tf.Variable(tf.zeros([0]), shape=[None])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(image_bytes):
        if grows:
            module.kept.assign(tf.concat([module.kept, tf.ones([100_000])], 0))
        return {"length": tf.strings.length(image_bytes)}

    module.serve = serve
    tf.saved_model.save(module, str(path), signatures=serve)
    return str(path)


@pytest.mark.parametrize("grows", [False, True])
def test_growth_is_found(grows, tmp_path):
    found = measure.in_fresh_process(serving_memory.serve, save(tmp_path / "model", grows), 300, 50)
    assert found["requests"] == 300
    assert 0 < found["memory_mib"][-1] <= found["peak_memory_mib"]
    assert (found["growth_percent"] > 3) == grows, found


def test_requests_are_reproducible_and_some_are_damaged():
    first, second = (list(serving_memory.requests(16, 60, seed)) for seed in (3, 3))
    assert first == second
    assert len(set(map(len, first))) > 8
