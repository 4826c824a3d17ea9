"""The mask head runs for what fusion takes, and answers are those with all masks."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.benchmark import inference
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.postprocess import fusion, segment_table, semantic_labels
from pfpn_tf.runs import run_directory
from pfpn_tf.serving import exporter
from tests.serving.test_module import encode, photo

IMAGES = np.stack([photo(90, 130), photo(130, 90).transpose(1, 0, 2), photo(90, 130)[::-1]])


def build(run_dir, head_norm):
    """A random network with many instances; the threshold of fusion splits them."""
    config, info = run_directory.load_run(run_dir)
    config = config.replace(fusion_score_threshold=0.5, head_norm=head_norm)
    tf.keras.utils.set_random_seed(0)
    network = panoptic_fpn.build_model(
        config.model, info.num_thing_classes, info.num_semantic_classes("other")
    )
    inference.spread_predictions(network, config, (90, 130))
    return exporter.module_of(network, config, info)


def with_all_masks(module):
    """(`InferenceOutputs` with all masks, some of whose pixels are inside; their fusion: a function
    of outputs and threshold.)
    """
    outputs = module._run(tf.constant(IMAGES), -np.inf)[0]
    assert np.any(outputs.detections.mask_logits > 0, axis=(2, 3)).mean() > 0.5
    settings = module._fusion

    @tf.function(autograph=False)
    def fuse(outputs, threshold):
        return fusion.map_images(
            lambda *image: fusion.fuse_image(*image, settings._replace(score_threshold=threshold)),
            outputs,
            tf.constant([[64, 92]] * len(IMAGES)),
            tf.constant([[90, 130]] * len(IMAGES)),
            segment_table.result_signature(outputs),
        )

    return outputs, lambda outputs, threshold: fuse(outputs, tf.constant(threshold, tf.float64))


@pytest.fixture(scope="module")
def built(run_dir):
    """A function of the mask head's norm: (module, outputs with all masks, fusion)."""

    @functools.lru_cache
    def of_norm(head_norm):
        module = build(run_dir, head_norm)
        return module, *with_all_masks(module)

    return of_norm


@pytest.fixture(params=["none", "group_norm"])
def either(request, built):
    return built(request.param)


@pytest.fixture
def plain(built):
    return built("none")


def thresholds(scores):
    """Name -> score: [B, D] scores of which all, some or none reach it."""
    highest = np.sort(scores.max(1))
    falling = np.unique(scores)[::-1]
    uneven = next(s for s in falling if len(set((scores >= s).sum(1))) == len(scores))
    return {
        "all": 0.0,
        "different numbers": uneven,
        "of one image": highest[-1],
        "exactly one": highest[0],
        "none": np.nextafter(highest[-1], np.float32(2)),
    }


@pytest.mark.parametrize(
    "survivors", ["all", "different numbers", "of one image", "exactly one", "none"]
)
def test_fusion_misses_no_mask(survivors, either):
    module, full, fuse = either
    scores = full.detections.scores.numpy()
    threshold = float(thresholds(scores)[survivors])
    counts = (scores >= threshold).sum(1)
    assert (counts.max() == 0) == (survivors == "none")
    if survivors in ("of one image", "none"):
        assert counts.min() == 0
    outputs = module._run(tf.constant(IMAGES), threshold)[0]

    most = max(counts.max(), 1)
    masks, all_masks = outputs.detections.mask_logits, full.detections.mask_logits
    assert masks.shape == all_masks.shape
    np.testing.assert_array_equal(masks[:, :most], all_masks[:, :most])
    assert not np.any(masks[:, most:])
    actual, expected = (fuse(o, threshold) for o in (outputs, full))
    for name, value in expected._asdict().items():
        np.testing.assert_array_equal(getattr(actual, name), value, err_msg=name)
    assert np.any(actual.is_thing) == (survivors != "none")


def test_signatures(plain):
    """`network` gives all masks; panoptic maps come of those that fusion takes, to the same."""
    module, full, fuse = plain
    raw = module.network(tf.constant(IMAGES))
    np.testing.assert_array_equal(raw["mask_logits"], full.detections.mask_logits)
    threshold = module.config.model.fusion_score_threshold
    assert 0 < (raw["scores"].numpy() >= threshold).sum() < raw["num_detections"].numpy().sum()
    image_hw, semantic_logits = raw.pop("image_hw"), raw.pop("semantic_logits")
    assert image_hw.numpy().tolist() == [[64, 92]] * len(IMAGES)
    expected = fuse(
        structures.InferenceOutputs(structures.Detections(**raw), semantic_logits), threshold
    )
    assert np.any(expected.is_thing) and not np.all(expected.is_thing)
    of_pixels = module.panoptic(tf.constant(IMAGES))
    of_bytes = module.serving_default(tf.constant([encode(image) for image in IMAGES]))
    np.testing.assert_array_equal(of_pixels["panoptic_ids"], expected.panoptic_ids)
    for reply in (of_pixels, of_bytes):
        np.testing.assert_array_equal(reply["num_segments"], expected.num_segments)
        for name in ("segment_ids", "category_ids", "is_thing", "scores", "areas", "boxes"):
            column = getattr(expected, name)
            np.testing.assert_array_equal(reply[name][:, : column.shape[1]], column, name)


def test_semantic_needs_no_mask(plain):
    module, full, _ = plain
    labels = module.semantic(tf.constant(IMAGES))["semantic_labels"]
    for i, logits in enumerate(full.semantic_logits):
        expected = semantic_labels.semantic_labels(
            logits, tf.constant([64, 92]), tf.constant([90, 130])
        )
        np.testing.assert_array_equal(labels[i], expected)


def test_instances_keep_all_masks(plain):
    module, _, _ = plain
    reply = module.instances(tf.constant(IMAGES))
    weak = (reply["scores"] < module.config.model.fusion_score_threshold) & (reply["scores"] > 0)
    assert np.any(np.any(reply["masks"], axis=(2, 3)) & weak)
