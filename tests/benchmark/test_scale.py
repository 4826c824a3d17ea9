import json

import pytest

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import scale, suite
from pfpn_tf.data import tfrecord


def test_a_rehearsal(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_DISTINCT_PHOTOS", 2)
    scale.write_records(str(tmp_path), num_train=501, num_val=2)
    config = config_lib.from_mapping(
        {
            **scale.SETTINGS,
            "task": "semantic",
            "global_batch_size": 2,
            "train_steps": 1,
            "train_records": f"{tmp_path}/train-*.tfrecord",
            "eval_records": f"{tmp_path}/val-*.tfrecord",
        }
    )
    index = tfrecord.read_index(config.data.train_records)
    ids = [tfrecord.decode_example(tfrecord.read_record(index, i)) for i in (0, 250, 500)]
    assert [int(i["image/source_id"]) for i in ids] == [1, 251, 501]

    found = scale.rehearse_training(config, str(tmp_path), resume_step=1000)
    found.update(scale.rehearse_evaluation(config, str(tmp_path)))
    assert found.keys() >= {"first_batch_resumed", "first_batch", "resume", "start"}
    for name in ("training", "evaluation"):
        assert found[name]["cpu_seconds"] > 0
        assert min(found[name]["memory_mib"]) > 100

    def steps_of(run):
        return [json.loads(line)["step"] for line in open(tmp_path / run / "metrics.jsonl")]

    assert steps_of("run") == [1]
    assert steps_of("resumed") == [1001]
    metrics = json.loads((tmp_path / "run/eval/1/metrics.json").read_text())
    assert metrics["num_images"] == 2
    assert len(list((tmp_path / "run/eval/1/semantic").iterdir())) == 2


def test_sizes_of_nothing():
    with pytest.raises(ValueError, match="--num_records=0"):
        suite.run("scale", {}, suite.Options(num_records=0))
