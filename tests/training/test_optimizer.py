"""SGD against the update rule in float64, its weight decay, state and distribution."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.training import optimizer as optimizer_lib
from tests.reference import sgd
from tests.training.test_replicas import two_cpus

RATES = [0.1, 0.1, 0.01, 0.02]


class _Rates(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return tf.gather(tf.constant(RATES), step)


def _gradients(shape, seed=0):
    return np.random.default_rng(seed).normal(size=[len(RATES), *shape])


@pytest.mark.both_stacks
@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-5), ("float64", 1e-7)])
def test_rule_with_changing_rate(dtype, tolerance, maybe_graph):
    start = np.array([[1.0, -2.0, 3.0]])
    gradients = _gradients(start.shape)
    variable = tf.Variable(start, dtype=dtype)
    optimizer = optimizer_lib.SGD(_Rates(), momentum=0.9, l2=0.1)
    optimizer.build([variable])
    apply = maybe_graph(lambda g: optimizer.apply_gradients([(g, variable)]))
    for gradient, expected in zip(gradients, sgd.steps(start, gradients, RATES, 0.9, 0.1)):
        apply(tf.constant(gradient, dtype))
        np.testing.assert_allclose(variable, expected, rtol=tolerance)


def test_sparse_gradient_is_a_dense_one():
    variables = [tf.Variable([[1.0], [2.0], [3.0]]) for _ in range(2)]
    sparse = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]), tf.constant([3, 1]))
    for variable, gradient in zip(variables, [sparse, tf.constant([[0.0], [0.0], [3.0]])]):
        optimizer_lib.SGD(0.1, l2=0.5).apply_gradients([(gradient, variable)])
    np.testing.assert_allclose(variables[0], variables[1])


@pytest.mark.parametrize("already_summed", [False, True])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_two_replicas_apply_the_sum_once(policy, already_summed):
    strategy = two_cpus()
    gradients = _gradients([3, 1])
    start = [[1.0], [2.0], [3.0]]
    with strategy.scope():
        layer = tf.keras.layers.Dense(1, dtype=policy)
        layer.build((None, 3))
        layer.kernel.assign(start)
        optimizer = optimizer_lib.SGD(_Rates(), l2=0.1)
        optimizer.exclude_from_weight_decay(var_list=[layer.bias])
        optimizer.build([layer.kernel, layer.bias])
        layer.bias.assign([1.0])

    @tf.function(autograph=False)
    def step(gradient):
        def replica_step():
            context = tf.distribute.get_replica_context()
            share = tf.constant([0.25, 0.75])[context.replica_id_in_sync_group] * gradient
            if already_summed:
                share = context.all_reduce(tf.distribute.ReduceOp.SUM, share)
            optimizer.apply_gradients(
                [(share, layer.kernel), (tf.zeros([1]), layer.bias)],
                skip_gradients_aggregation=already_summed,
            )

        strategy.run(replica_step)

    for gradient in gradients:
        step(tf.constant(gradient, tf.float32))
    expected = sgd.steps(start, gradients, RATES, 0.9, 0.1)[-1]
    for value in strategy.experimental_local_results(layer.kernel):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    for value in strategy.experimental_local_results(layer.bias):
        np.testing.assert_array_equal(value, [1.0])


@pytest.mark.parametrize(
    "settings,num_norms",
    [
        # 7 norms in the semantic head, each with scale and shift.
        ({}, 7),
        # 1 in the stem, 3 in each of the 3 + 4 + 6 + 3 blocks, 4 shortcuts.
        ({"backbone_norm": "sync_bn"}, 7 + 53),
        # 53 as above, 8 in the FPN, 4 in the mask head.
        ({"backbone_norm": "group_norm", "head_norm": "group_norm"}, 7 + 53 + 8 + 4),
    ],
)
def test_only_norm_variables_of_a_real_model_have_no_decay(settings, num_norms):
    thin = {"fpn_channels": 32, "semantic_channels": 32, "mask_channels": 32, "box_fc_channels": 16}
    config = Config().replace(backbone="resnet50", freeze_stages=0, **thin, **settings)
    model = panoptic_fpn.build_model(config.model, 3, 5)
    optimizer = optimizer_lib.build_optimizer(config.train, model)
    optimizer.build(model.trainable_variables)
    without = [v for v in model.trainable_variables if not optimizer._use_weight_decay(v)]
    assert len(without) == 2 * num_norms
    assert all(v.name.split("/")[-1] in ("gamma:0", "beta:0") for v in without)
    with_decay = [v for v in model.trainable_variables if optimizer._use_weight_decay(v)]
    assert not any(v.name.split("/")[-1] in ("gamma:0", "beta:0") for v in with_decay)
    assert sum("bias" in v.name for v in with_decay) >= 10
