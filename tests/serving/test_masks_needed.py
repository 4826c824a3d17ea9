"""The mask head runs for what fusion takes, and answers are those with all masks."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import structures
from pfpn_tf.benchmark import inference
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.postprocess import fusion, instances, segment_table, semantic_labels
from pfpn_tf.runs import run_directory
from pfpn_tf.serving import exporter, results
from tests.serving.photos import encode, photo

IMAGES = np.stack([photo(90, 130), photo(130, 90).transpose(1, 0, 2), photo(90, 130)[::-1]])


def build(run_dir, head_norm):
    """A random network with many instances; the threshold of fusion splits them."""
    config, info = run_directory.load_run(run_dir)
    config = config.replace(fusion_score_threshold=0.5, head_norm=head_norm)
    tf.keras.utils.set_random_seed(0)
    network = panoptic_fpn.build_for_dataset(config.model, info)
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
    reply = module.serving_instances(tf.constant([encode(image) for image in IMAGES]))
    weak = (reply["scores"] < module.config.model.fusion_score_threshold) & (reply["scores"] > 0)
    pngs = reply["masks_png_bytes"][weak].numpy()
    assert len(pngs) and any(np.any(tf.io.decode_png(png)) for png in pngs)


def test_each_image_has_thresholds_of_its_own(plain):
    module, _, _ = plain
    content = encode(photo(90, 130))
    default = module.serving_default(image_bytes=tf.constant([content]))
    things = default["scores"][0].numpy()[default["is_thing"][0].numpy()]
    middle = float(np.sort(things)[:2].mean())  # between two, so that rounding does not matter
    most = 90 * 130 + 1  # more than the picture has
    # The third leaves out every instance, whatever it overlaps with; the last everything.
    score = np.float32([0.5, middle, 0.5, np.nan])
    overlap, area = np.float32([0.5, 0.5, -1.0, 0.5]), np.int32([16, 16, 16, most])
    reply = module.serving_thresholds([content] * 4, score, overlap, area)
    for name, value in default.items():
        name = name.replace("_png", "_png_bytes")
        if value.dtype != tf.string:
            np.testing.assert_allclose(reply[name][0], value[0], rtol=1e-5, err_msg=name)
    num_things = tf.reduce_sum(tf.cast(reply["is_thing"], tf.int32), 1).numpy().tolist()
    assert num_things[:2] == [len(things), (things >= middle).sum()]
    assert num_things[2:] == [0, 0]
    assert int(reply["num_segments"][3]) == 0 < int(reply["num_segments"][2])
    for i in range(4):
        one = slice(i, i + 1)
        alone = module.serving_thresholds([content], score[one], overlap[one], area[one])
        maps = (r["panoptic_png_bytes"][n] for r, n in ((alone, 0), (reply, i)))
        ids, of_all = (results.decode_ids(png.numpy()) for png in maps)
        assert np.mean(ids != of_all) < 1e-3 and ids.max() == reply["num_segments"][i]
    with pytest.raises(tf.errors.InvalidArgumentError, match="one of each threshold"):
        module.serving_thresholds([content] * 2, score[:1], overlap[:2], area[:2])


def test_instances_as_pngs_of_their_windows(plain):
    """The same as the masks that evaluation pastes."""
    module, _, _ = plain
    image = photo(90, 130)
    reply = module.serving_instances(image_bytes=tf.constant([encode(image)]))
    reply = {name: value[0].numpy() for name, value in reply.items()}
    raw = module.network(image[None])
    detections = structures.Detections(
        **{name: raw[name][0] for name in structures.Detections._fields}
    )
    placed = instances.place_instances(detections, raw["image_hw"][0], (90, 130))
    expected = instances.original_instances(placed)
    count = int(reply["num_instances"])
    assert count == len(expected.boxes) >= 2
    np.testing.assert_allclose(reply["boxes"][:count], expected.boxes, atol=1e-4)
    np.testing.assert_allclose(reply["scores"][:count], expected.scores, atol=1e-5)
    assert set(reply["category_ids"][:count]) <= {2, 5, 8, 11}
    masks = instances.full_masks(expected, (90, 130))
    for window, png, mask in zip(reply["windows"], reply["masks_png_bytes"], masks):
        y0, x0, y1, x1 = window
        inside = tf.io.decode_png(png).numpy()
        assert inside.shape == (y1 - y0, x1 - x0, 1)
        assert mask.sum() == mask[y0:y1, x0:x1].sum()
        assert np.mean(inside[..., 0] != 255 * mask[y0:y1, x0:x1]) < 1e-2
    assert set(reply["masks_png_bytes"][count:]) <= {b""} and not reply["boxes"][count:].any()
