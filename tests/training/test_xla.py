"""The training step that XLA compiles computes what the plain one does."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import pipeline
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.structures import GroundTruth
from pfpn_tf.training import checks, train
from tests import precision
from tests.training.runs import metrics
from tests.training.test_replicas import two_cpus


def static(config):
    return config.replace(static_shapes=True, max_instances=8)


def test_the_compiled_network_equals_the_plain_one(tiny_config):
    """In float64: every loss, every gradient and all that is drawn."""
    config, info = static(tiny_config), pipeline.load_info(tiny_config)
    batch = next(iter(pipeline.build_dataset(config, info, training=True)))
    with precision.policy():
        losses, gradients, outputs = step(config, info, batch, False)
        xla_losses, xla_gradients, xla_outputs = step(config, info, batch, True)

    np.testing.assert_array_equal(xla_outputs.rpn_targets.labels, outputs.rpn_targets.labels)
    rois, xla_rois = outputs.roi_targets, xla_outputs.roi_targets
    slots = xla_rois.masks.shape[1]
    assert slots == 4 and np.any(rois.mask_class_ids >= 0)  # a quarter of the 16 samples
    assert not np.any(rois.mask_class_ids[:, slots:] >= 0)
    for name, value in rois._asdict().items():
        value = value[:, :slots] if name.startswith("mask") else value
        np.testing.assert_allclose(getattr(xla_rois, name), value, atol=1e-8, err_msg=name)

    for name, value in losses.items():
        assert xla_losses[name] == pytest.approx(value, rel=1e-10) and value > 0, name
    for name, gradient in gradients.items():
        tolerance = 1e-8 * np.abs(gradient).max()
        np.testing.assert_allclose(xla_gradients[name], gradient, atol=tolerance, err_msg=name)


def step(config, info, batch, for_xla):
    """Losses, gradients and outputs, as numpy, of a network with seeded weights."""
    tf.keras.utils.set_random_seed(1)
    model = panoptic_fpn.build_for_dataset(config.model, info, for_xla)

    @tf.function(autograph=False, jit_compile=for_xla)
    def function(batch):
        names = ("gt_boxes", "gt_class_ids", "gt_masks", "gt_semantic")
        ground_truth = GroundTruth(*(batch[name] for name in names))
        images = tf.cast(batch["images"], tf.float64)
        with tf.GradientTape() as tape:
            outputs = model(images, batch["image_hw"], ground_truth, batch["seed"], training=True)
            losses = panoptic_fpn_losses(outputs, ground_truth, config)
        gradients = tape.gradient(losses["total"], model.trainable_variables)
        return losses, [tf.convert_to_tensor(g) for g in gradients], outputs

    losses, gradients, outputs = tf.nest.map_structure(lambda x: x.numpy(), function(batch))
    return losses, dict(zip((v.name for v in model.trainable_variables), gradients)), outputs


def test_a_run_of_the_network(tiny_config, tmp_path):
    config = static(tiny_config).replace(xla=True, train_steps=2, backbone_recompute=True)
    assert train.train(config, str(tmp_path)) == 0
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss/mask"] > 0 and line["gradient_norm"] > 0 for line in lines)


@pytest.mark.parametrize(
    "settings, strategy",
    [
        ({}, None),
        ({"global_batch_size": 4, "gradient_accumulation_steps": 2, "ema_decay": 0.9}, None),
        ({"precision": "mixed_float16"}, None),
        ({}, two_cpus),
    ],
)
def test_a_compiled_run_goes_as_a_plain_one(toy, tmp_path, settings, strategy):
    """Six steps with images of two sizes, by which the loss falls."""
    config = static(toy.config).replace(**settings)
    for xla in (False, True):
        where = strategy() if strategy else None
        train.train(config.replace(xla=xla), str(tmp_path / str(xla)), where)
    rel = 1e-5 if config.train.precision == "float32" else 2e-3
    plain, compiled = metrics(tmp_path / "False"), metrics(tmp_path / "True")
    assert len(plain) == len(compiled) == 6
    for a, b in zip(plain, compiled):
        for name in ("loss/semantic", "loss/total", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=rel), (a["step"], name)


def test_statistics_of_all_replicas_are_refused(tiny_config):
    config = static(tiny_config).replace(xla=True, backbone_norm="sync_bn")
    checks.check(config, 1)
    with pytest.raises(ValueError, match="--backbone_norm=sync_bn .* 2 replicas .*--noxla"):
        checks.check(config, 2)
