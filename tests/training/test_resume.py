"""A run that is stopped and started again ends like one that was not."""

import json

import numpy as np
import tensorflow as tf

from pfpn_tf.training import summaries, trainer


def losses(run_dir):
    lines = [json.loads(line) for line in open(run_dir / summaries.METRICS, encoding="utf-8")]
    return {line["step"]: [v for k, v in line.items() if k.startswith("loss/") or k == "learning_rate"] for line in lines}


def tensors(run_dir, step):
    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints" / f"ckpt-{step}"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if not n.startswith("_")}


def test_three_steps_and_three_more_equal_six(tiny_config, tmp_path):
    config = tiny_config.replace(train_steps=6, summary_interval_steps=2)
    trainer.train(config, str(tmp_path / "whole"))
    trainer.train(config.replace(train_steps=3), str(tmp_path / "parts"))
    # Two lines that a run killed after its last checkpoint left behind, one of them cut short.
    with open(tmp_path / "parts" / summaries.METRICS, "a", encoding="utf-8") as f:
        f.write('{"step": 5, "loss/total": 1e9}\n{"step": 6, "lo')
    trainer.train(config, str(tmp_path / "parts"))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    parts.pop(3)  # the end of the first part
    assert whole.keys() == {2, 4, 6} == parts.keys()
    for step in (2, 6):
        np.testing.assert_allclose(parts[step], whole[step], rtol=1e-6)
    whole, parts = tensors(tmp_path / "whole", 6), tensors(tmp_path / "parts", 6)
    assert whole.keys() == parts.keys() and any("optimizer" in name for name in whole)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
