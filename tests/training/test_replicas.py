"""One replica with batch 4 and two with batch 2 take the same step."""

import numpy as np
import tensorflow as tf

from pfpn_tf.data import pipeline
from pfpn_tf.training import trainer


def two_cpus():
    """Reduced by copying: TensorFlow's collective operations take only one strategy per process."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def test_two_replicas_step_like_one(tiny_config):
    config = tiny_config.replace(
        global_batch_size=4,
        momentum=0.0,
        learning_rate=0.1,
        warmup_steps=0,
        lr_decay_steps=(),
        gradient_clip_norm=0.5,
    )
    one = steps(config, tf.distribute.OneDeviceStrategy("CPU:0"))
    two = steps(config, two_cpus())
    for (scalars_one, ids_one), (scalars_two, ids_two) in zip(one[0], two[0]):
        np.testing.assert_array_equal(ids_one, ids_two)
        np.testing.assert_allclose(scalars_two, scalars_one, rtol=2e-5)
    for name, (before, after_one), (_, after_two) in zip(one[1], one[2], two[2]):
        np.testing.assert_allclose(after_two, after_one, atol=2e-6, rtol=2e-5, err_msg=name)
    assert any(np.abs(after - before).max() > 1e-3 for before, after in one[2])


def steps(config, strategy, count=2):
    info = pipeline.load_info(config)
    built = trainer.build_trainer(config, info, strategy)
    built.set_dataset(trainer.distributed_dataset(config, info, strategy, 0))
    variables = built.model.trainable_variables
    before = [v.numpy() for v in variables]
    iterator = iter(built.train_dataset)
    results = []
    for _ in range(count):
        result = built.train_step(iterator)
        assert result.healthy and result.updated
        results.append((list(result.scalars.values()), result.source_ids.numpy()))
    for v in variables:
        for copy in strategy.experimental_local_results(v):
            np.testing.assert_array_equal(copy.numpy(), v.numpy(), err_msg=v.name)
    return results, [v.name for v in variables], [(b, v.numpy()) for b, v in zip(before, variables)]
