"""A run that is stopped and started again ends like one that was not."""

import json
import shutil

import numpy as np
import tensorflow as tf

from pfpn_tf.training import run, summaries


def losses(run_dir):
    lines = [json.loads(line) for line in open(run_dir / summaries.METRICS, encoding="utf-8")]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: [v for k, v in line.items() if k.startswith("loss/") or k == "learning_rate"] for line in lines}


def tensors(run_dir, step):
    reader = tf.train.load_checkpoint(str(run_dir / "checkpoints" / f"ckpt-{step}"))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if not n.startswith("_")}


def test_a_run_killed_after_step_3_ends_like_one_that_was_not(tiny_config, tmp_path):
    config = tiny_config.replace(train_steps=6, summary_interval_steps=2, checkpoint_interval_steps=3)
    run.train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints").glob("ckpt-6.*"):
        path.unlink()
    with open(tmp_path / "parts" / summaries.METRICS, "a", encoding="utf-8") as f:
        f.write('{"step": 7, "lo')  # the line that the kill cut short
    run.train(config, str(tmp_path / "parts"))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert list(whole) == [2, 4, 6] == list(parts)
    for step, values in whole.items():
        np.testing.assert_allclose(parts[step], values, rtol=1e-6)
    whole, parts = tensors(tmp_path / "whole", 6), tensors(tmp_path / "parts", 6)
    assert whole.keys() == parts.keys() and any("optimizer" in name for name in whole)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
