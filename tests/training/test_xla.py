"""The training step that XLA compiles computes what the plain one does."""

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import pipeline
from pfpn_tf.losses import panoptic_fpn_losses
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.ops import methods
from pfpn_tf.structures import GroundTruth


@pytest.fixture
def xla_config(tiny_config):
    return tiny_config.replace(static_shapes=True, max_instances=8, xla=True)


def test_the_compiled_step_equals_the_plain_one(xla_config):
    """In float64: every loss, every gradient and all that is drawn."""
    info = pipeline.load_info(xla_config)
    batch = next(iter(pipeline.build_dataset(xla_config, info, training=True)))
    tf.keras.backend.set_floatx("float64")
    tf.keras.mixed_precision.set_global_policy("float64")
    try:
        plain, compiled = (
            gradients_and_targets(xla_config, info, batch, *how)
            for how in ((methods.KERNELS, False), (methods.XLA, True))
        )
    finally:
        tf.keras.backend.set_floatx("float32")
        tf.keras.mixed_precision.set_global_policy("float32")
    losses, gradients, outputs = plain
    assert all(value > 0 for value in losses.values())
    for name, value in losses.items():
        assert compiled[0][name] == pytest.approx(value, rel=1e-10), name
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(compiled[1][name], gradient, atol=1e-8 * scale, err_msg=name)
    foreground = int(np.count_nonzero(outputs.roi_targets.mask_class_ids >= 0))
    assert foreground > 0


def gradients_and_targets(config, info, batch, training_methods, jit_compile):
    """Losses, gradients and outputs, as numpy, of a network with seeded weights."""
    tf.keras.utils.set_random_seed(1)
    model = panoptic_fpn.build_model(
        config.model,
        info.num_thing_classes,
        info.num_semantic_classes(config.model.semantic_targets),
        training_methods,
    )

    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(batch):
        names = ("gt_boxes", "gt_class_ids", "gt_masks", "gt_semantic")
        ground_truth = GroundTruth(*(batch[name] for name in names))
        images = tf.cast(batch["images"], tf.float64)
        with tf.GradientTape() as tape:
            outputs = model(images, batch["image_hw"], ground_truth, batch["seed"], training=True)
            losses = panoptic_fpn_losses(outputs, ground_truth, config)
        gradients = tape.gradient(losses["total"], model.trainable_variables)
        return losses, [tf.convert_to_tensor(g) for g in gradients], outputs

    losses, gradients, outputs = tf.nest.map_structure(lambda x: x.numpy(), step(batch))
    names = [v.name for v in model.trainable_variables]
    return losses, dict(zip(names, gradients)), outputs
