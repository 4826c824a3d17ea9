"""The losses on validation data against those of the images one by one."""

import numpy as np
import pytest

from pfpn_tf import losses
from pfpn_tf.data import pipeline
from pfpn_tf.training import trainer
from pfpn_tf.training.validation_losses import ValidationLosses
from tests.training.conftest import ToyNetwork
from tests.training.test_replicas import two_cpus


def test_losses_of_three_images_on_two_replicas(tiny_config):
    """Their sum over the labelled pixels of all three, not the mean of three means."""
    config = tiny_config.replace(
        task="semantic",
        eval_records=tiny_config.data.train_records,
        max_images=3,
        semantic_loss_weight=0.25,
    )
    info = pipeline.load_info(config)
    strategy = two_cpus()
    with strategy.scope():
        model = ToyNetwork()
    computed = ValidationLosses(config, info, model, strategy)
    found = computed()
    total, pixels = 0.0, []
    for batch in pipeline.validation_dataset(config, info):
        truth = trainer.ground_truth(batch)
        outputs = model(batch["images"], batch["image_hw"], ground_truth=truth)
        sums, counts = losses.sums_and_counts(outputs, truth, config.model)
        total += float(sums["semantic"])
        pixels.append(int(counts["semantic"]))
    assert len(set(pixels)) > 1 and len(pixels) == 3
    expected = 0.25 * total / sum(pixels)
    assert found == pytest.approx({"semantic": expected, "total": expected}, rel=1e-5)
    assert computed() == found
    # Half of the steps of such a training have a loss of 0, and so has the mean that it logs.
    computed._config = config.replace(task="panoptic", alternate_losses=True)
    assert computed() == {name: value / 2 for name, value in found.items()}


def test_validation_images_are_not_augmented(tiny_config):
    """Whole images as an evaluation has them, with the labels of training."""
    config = tiny_config.replace(
        crop_size=(32, 32), random_scale=(0.5, 2.0), color_jitter=True, crop_bootstrap=1.0
    )
    info = pipeline.load_info(config)
    first, second = (list(pipeline.validation_dataset(config, info)) for _ in range(2))
    plain = pipeline.build_dataset(config, info, training=False)
    for batch, again, expected in zip(first, second, plain):
        for key in ("images", "image_hw", "source_id_bytes"):
            np.testing.assert_array_equal(batch[key], expected[key])
        np.testing.assert_array_equal(batch["seed"], again["seed"])
        assert batch["gt_semantic"].shape == batch["images"].shape[:3]
        assert (batch["gt_class_ids"].numpy() >= 0).any()
    assert (first[0]["seed"] != first[1]["seed"]).numpy().any()
