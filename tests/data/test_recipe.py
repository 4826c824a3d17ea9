"""The recipe suggested for datasets of several kinds, from drawn statistics."""

import numpy as np
import pytest

from pfpn_tf.data import anchor_fit, recipe
from pfpn_tf.data.statistics import Sample, Statistics
from tests import tiny


def drawn(images, hw, objects, median_px, spread, ratio=1.0, ratio_spread=0.5, stuff_px=()):
    """Statistics of a dataset.

    Args:
      images: how many.
      hw: size of each.
      objects: in an image.
      median_px: of the square root of the objects' area.
      spread: standard deviation of its logarithm.
      ratio, ratio_spread: the same of height / width.
      stuff_px: median area of each stuff class.
    """
    rng = np.random.default_rng(0)
    sizes = median_px * np.exp(spread * rng.standard_normal(2000))
    ratios = ratio * np.exp(ratio_spread * rng.standard_normal(2000))
    found = Statistics()
    found.counts.update({"images": images, "instances": images * objects})
    found.counts.update({("instances", len(stuff_px) + 1): images * objects})
    found.max_instances = 3 * objects
    found.images = Sample([(*hw, objects)] * 500)
    if objects:
        sides = np.minimum(np.stack([sizes * ratios**0.5, sizes / ratios**0.5], 1), hw)
        found.boxes = Sample([(*side, *hw) for side in sides])
    rows = []
    for category_id, area in enumerate(stuff_px, 1):
        found.counts["pixels", category_id] = images * area
        rows += [(category_id, a, *hw) for a in area * np.exp(rng.standard_normal(200))]
    found.stuff = Sample(rows)
    return found


def suggest(num_stuff=0, epochs=0, **kind):
    found = drawn(stuff_px=[20000] * num_stuff, **kind)
    info = tiny.info_of(stuff=[f"stuff {i}" for i in range(num_stuff)], things=["thing"])
    return recipe.config_of(recipe.suggest(found, info, epochs=epochs)).flat()


COCO = dict(images=118000, hw=(480, 640), objects=7, median_px=59, spread=1.18, num_stuff=53)
CITYSCAPES = dict(images=2975, hw=(1024, 2048), objects=17, median_px=55, spread=0.8, num_stuff=11)
AERIAL = dict(images=1400, hw=(3000, 4000), objects=60, median_px=30, spread=0.4)
CHIPS = dict(images=5000, hw=(512, 512), objects=20, median_px=14, spread=0.4)
FEW = dict(images=20, hw=(3000, 4000), objects=3, median_px=900, spread=0.4, num_stuff=2)
CELLS = dict(images=600, hw=(520, 704), objects=200, median_px=40, spread=0.15, ratio_spread=0.1)


def test_photos_like_those_of_coco_get_about_the_settings_of_the_paper():
    settings = suggest(**COCO)
    assert settings["task"] == "panoptic"
    assert settings["train_min_sides"] == (384, 403, 422, 442, 461, 480)
    assert (settings["eval_min_side"], settings["eval_max_side"]) == (480, 800)
    np.testing.assert_allclose(settings["anchor_sizes"], [32, 64, 128, 256, 512], rtol=0.3)
    np.testing.assert_allclose(settings["anchor_aspect_ratios"], [0.5, 1, 2], rtol=0.1)
    assert settings["fusion_stuff_area_threshold_px"] == 4096
    assert settings["max_detections"] == 100
    assert settings["train_steps"] * settings["global_batch_size"] == pytest.approx(36 * 118000)


def test_large_photos_of_streets_get_crops_as_in_the_paper():
    settings = suggest(**CITYSCAPES)
    assert settings["crop_size"] == (512, 1024) and settings["random_scale"] == (0.5, 2.0)
    assert (settings["eval_min_side"], settings["eval_max_side"]) == (1024, 2048)
    maps = suggest(**{**CITYSCAPES, "objects": 0})
    assert maps["task"] == "semantic" and maps["crop_size"] == (512, 1024)
    assert maps["semantic_loss_weight"] == 1.0  # as configs/base/semantic_fpn.flags


def test_tiny_objects_in_large_images_are_not_shrunk_away():
    settings = suggest(**AERIAL)
    assert settings["task"] == "instance"
    assert settings["crop_size"] and settings["eval_min_side"] >= 2900
    assert 150 <= settings["max_instances"] <= 180 < 250 <= settings["max_detections"]
    assert settings["max_segments"] > settings["max_detections"]
    assert settings["anchor_sizes"][0] < 25


def test_tiny_objects_in_small_images_get_small_anchors_and_a_hint():
    settings = suggest(**CHIPS)
    assert settings["eval_min_side"] == 512 and not settings["crop_size"]
    assert settings["anchor_sizes"][0] < 15
    assert "multiplied, for example by 1.9" in recipe.image_sizes(drawn(**CHIPS)).section.reason
    assert "multiplied" not in recipe.image_sizes(drawn(**CELLS)).section.reason


def test_large_objects_in_large_photos_are_shrunk_and_few_photos_are_seen_often():
    settings = suggest(**FEW)
    assert settings["eval_min_side"] == 800 and not settings["crop_size"]
    assert settings["global_batch_size"] == 4 and settings["train_steps"] == 1500


def test_objects_of_one_shape_get_one_ratio_and_sizes_that_are_apart():
    settings = suggest(**CELLS)
    assert settings["anchor_aspect_ratios"] == (1.0,)
    sizes = np.array(settings["anchor_sizes"])
    assert (sizes[1:] >= 1.35 * sizes[:-1]).all() and sizes[0] <= 40
    assert settings["max_detections"] == 900 and settings["max_instances"] == 300


def test_the_schedule_follows_the_epochs():
    settings = suggest(**CELLS, epochs=2)
    assert settings["train_steps"] * settings["global_batch_size"] == pytest.approx(1200, abs=8)
    assert settings["warmup_steps"] < settings["lr_decay_steps"][0] < settings["train_steps"]
    one_step = suggest(**{**FEW, "images": 1}, epochs=0.01)
    assert one_step["train_steps"] == 1 and one_step["global_batch_size"] == 2


@pytest.mark.parametrize("hw", [(20, 30), (100, 3000), (9000, 50)])
def test_odd_sizes_get_settings_that_work(hw):
    settings = suggest(images=3, hw=hw, objects=1, median_px=10, spread=0.5, num_stuff=1)
    assert settings["eval_min_side"] >= 32


def test_the_stuff_limit_spares_small_segments():
    """Of a rare class as of a frequent one: 5 % of the segments, averaged over the classes."""
    found = drawn(10, (480, 640), 1, 50, 0.5)
    found.stuff = Sample([(1, 100, 480, 640)] * 10 + [(2, 9000, 480, 640)] * 1000)
    section = recipe.stuff_limit(found)
    assert section.settings == {"fusion_stuff_area_threshold_px": 100}


def test_which_split_is_for_what():
    full, empty = drawn(5, (9, 9), 1, 5, 0.1), Statistics()
    large = drawn(7, (9, 9), 0, 5, 0.1, stuff_px=[20])
    assert recipe.roles({"train": full, "val": large, "test-dev": empty}) == ("train", "val")
    assert recipe.roles({"a": full, "b": large}) == ("b", "a")
    assert recipe.roles({"val": full, "test-dev": empty}) == ("val", "val")
    assert recipe.roles({"test-dev": empty}) == ()


def test_anchors_on_the_grid():
    """A box of 8 x 8 pixels with an anchor of 8 x 8, at most half a cell of 4 pixels away: at best
    IoU 1, at worst 6 * 6 / (64 + 64 - 36).
    """
    iou = anchor_fit.best_iou(np.full((2000, 2), 8.0), [8, 1e4, 1e4, 1e4, 1e4], [1.0])
    assert iou.max() == pytest.approx(1, abs=0.03) and iou.min() == pytest.approx(36 / 92, abs=0.03)
    half_a_cell = anchor_fit.best_iou([[16.0, 64.0]], [1, 1, 32, 1, 1], [0.25])
    assert half_a_cell == pytest.approx([(16 - 8) * (64 - 8) / (2 * 1024 - 8 * 56)])


def test_anchors_that_match_as_much_as_the_papers():
    for size in (0.1, 1e4):  # None matches; all do.
        assert suggest(images=9, hw=(480, 640), objects=5, median_px=size, spread=0)["anchor_sizes"]
