import numpy as np
import pytest

from pfpn_tf.config import Config
from pfpn_tf.data import order, preprocess, repeat_factors
from tests.reference import preprocess as reference

HW = np.array([[20, 30], [40, 25], [33, 33], [20, 31], [60, 20], [24, 40], [21, 22]], np.int32)


def config(**settings):
    defaults = dict(global_batch_size=3, train_min_sides=(32, 40, 48), train_max_side=96, seed=5)
    return Config().replace(**{**defaults, **settings})


def take(c, count, hw=HW, **kwargs):
    size = c.train.global_batch_size // kwargs.get("num_workers", 1)
    rows = list(
        order.training_examples(c, hw, **kwargs).batch(size).take(count).as_numpy_iterator()
    )
    return {key: np.stack([r[key] for r in rows]) for key in rows[0]}


def test_an_epoch_has_every_record_and_ends_without_a_partial_batch():
    drawn = take(config(), 6)["position"]  # 7 records in 3 batches of 3, twice
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(set(epoch.ravel())) == list(range(7))
        assert np.bincount(epoch.ravel()).max() <= 2
    assert (drawn[:3] != drawn[3:]).any()


def test_a_batch_larger_than_the_dataset():
    drawn = take(config(global_batch_size=16), 2, HW[:3])["position"]
    assert all(np.bincount(row).tolist() in ([6, 5, 5], [5, 6, 5], [5, 5, 6]) for row in drawn)


def test_resuming_late_costs_nothing():
    drawn = take(config(), 1, start_step=90_000_000 // 3)
    assert drawn["seed"].shape == (1, 3, 2)


def test_seeds_differ_between_examples_and_between_runs():
    a, b = take(config(), 20), take(config(seed=6), 20)
    assert len(np.unique(a["seed"].reshape(-1, 2), axis=0)) == 60
    assert (a["position"] != b["position"]).any() and (a["seed"] != b["seed"]).any()


def test_repeat_factors_as_lvis_defines_them():
    """Four images; the first class is in all of them, the second in one, the third in none."""
    present = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    factors, of_class = repeat_factors.repeat_factors(present, threshold=0.5)
    np.testing.assert_allclose(of_class[:2], [1, 2**0.5])  # sqrt(0.5 / 0.25)
    np.testing.assert_allclose(factors, [1, 2**0.5, 1, 1])
    no_class = np.zeros([1, 3], bool)
    assert repeat_factors.repeat_factors(np.concatenate([present, no_class]), 1.0)[0][-1] == 1


FACTORS = np.array([1, 1.25, 2, 1, 3.5, 1, 1], np.float32)


def test_repeated_records_come_as_often_as_their_factor_says():
    """Each epoch rounds up or down: 10.75 records on average, in batches of one."""
    c, epochs = config(global_batch_size=1), 400
    drawn = take(c, round(epochs * FACTORS.sum()), factors=FACTORS)["position"].ravel()
    share = np.bincount(drawn) / epochs
    np.testing.assert_allclose(share, FACTORS, atol=0.1)
    np.testing.assert_array_equal(share[[0, 2, 3, 5, 6]].round(1), [1, 2, 1, 1, 1])
    first = np.bincount(drawn[:10], minlength=7)  # an epoch has at least 10
    assert (first <= np.ceil(FACTORS)).all() and first.sum() == 10


def test_repeat_factors_of_one_change_nothing():
    ones, none = (take(config(), 9, factors=f) for f in (np.ones(7, np.float32), None))
    for key in none:
        np.testing.assert_array_equal(ones[key], none[key])


@pytest.mark.parametrize("factors", [None, FACTORS], ids=["plain", "repeated"])
@pytest.mark.parametrize("start", [0, 1, 7, 100])
def test_workers_share_each_batch_and_resuming_continues_exactly(start, factors):
    c = config(global_batch_size=4)
    whole = take(c, start + 4, factors=factors)
    shares = [
        take(c, 4, start_step=start, num_workers=2, worker=w, factors=factors) for w in (0, 1)
    ]
    for key in whole:
        rest = np.concatenate([share[key] for share in shares], 1)
        np.testing.assert_array_equal(whole[key][start:], rest)


def test_sizes_are_drawn_from_the_list_and_padded_to_the_largest():
    drawn = take(config(), 40)
    sides = set()
    for positions, resized, content, padded in zip(
        *(drawn[k] for k in ("position", "resize_hw", "content_hw", "padded_hw"))
    ):
        for position, hw in zip(positions, resized):
            allowed = {reference.resized_hw(HW[position], side, 96): side for side in (32, 40, 48)}
            assert tuple(hw) in allowed
            sides.add(allowed[tuple(hw)])
        np.testing.assert_array_equal(content, resized)
        np.testing.assert_array_equal(padded, np.tile(-(-resized.max(0) // 32) * 32, (3, 1)))
    assert sides == {32, 40, 48}


def test_random_scale_and_crop():
    drawn = take(config(random_scale=(0.5, 2.0), crop_size=(32, 40)), 60)
    scale = drawn["resize_hw"] / HW[drawn["position"]]
    assert 0.45 < scale.min() < 0.6 and 1.85 < scale.max() < 2.05
    np.testing.assert_array_equal(drawn["content_hw"], np.minimum(drawn["resize_hw"], (32, 40)))


def test_landscape_and_portrait_do_not_mix_where_there_are_enough():
    hw = np.array([[30, 40]] * 30 + [[40, 30]] * 13)
    drawn = take(config(), 40, hw)["position"]  # 10 + 5 batches an epoch
    assert all(len(set(row >= 30)) == 1 for row in drawn)
    assert sorted(set(drawn[:15].ravel())) == list(range(43))
    few = take(config(), 40, hw[:34])["position"]  # four portraits: one group
    assert any(len(set(row >= 30)) == 2 for row in few)


def coco_like_sizes():
    """The commonest sizes of COCO's photos with their rough shares, landscape and portrait."""
    shares = [
        (480, 640, 33, 10), (427, 640, 17, 6), (426, 640, 7, 0), (425, 640, 0, 4), (640, 640, 3, 0),
        (375, 500, 8, 3), (333, 500, 5, 2), (360, 640, 3, 1), (612, 612, 3, 0),
    ]  # fmt: skip
    both = [*((hw, n) for *hw, n, _ in shares), *((hw[::-1], n) for *hw, _, n in shares)]
    return np.array([hw for hw, n in both for _ in range(n * 4)], np.int32)


def test_static_shapes_are_few_and_waste_little():
    c = Config().replace(static_shapes=True, global_batch_size=8)
    drawn = take(c, 150, coco_like_sizes())
    assert len(np.unique(drawn["padded_hw"].reshape(-1, 2), axis=0)) <= 9
    content, padded = drawn["content_hw"].prod(-1).sum(), drawn["padded_hw"].prod(-1).sum()
    assert 1 - content / padded < 0.15
    assert (drawn["padded_hw"] >= drawn["content_hw"]).all()
    assert (drawn["padded_hw"] == drawn["padded_hw"][:, :1]).all()
    sides = np.minimum(*np.moveaxis(drawn["content_hw"], -1, 0))
    assert {640, 672, 704, 736, 768, 800} <= set(sides.ravel())


def test_static_shapes_need_a_crop_with_random_scale():
    c = config(static_shapes=True, random_scale=(0.5, 2.0))
    with pytest.raises(ValueError, match="--crop_size"):
        order.make_buckets(HW, c)
    buckets = order.make_buckets(HW, c.replace(crop_size=(32, 40)))
    assert buckets.shapes.tolist() == [[[32, 64]]]
    drawn = take(c.replace(crop_size=(32, 40)), 5)
    assert (drawn["padded_hw"] == [32, 64]).all()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_evaluation_is_one_pass_in_order(workers):
    c = Config().replace(eval_batch_size=2, eval_min_side=32, eval_max_side=64)
    units = {}
    for worker in range(workers):
        rows = list(order.evaluation_examples(c, HW, workers, worker).as_numpy_iterator())
        for i in range(0, len(rows), 2):
            assert rows[i]["position"] // 2 not in units, "two workers have the same batch"
            units[rows[i]["position"] // 2] = rows[i : i + 2]
    rows = [row for unit in sorted(units) for row in units[unit]]
    assert [r["position"] for r in rows] == list(range(7))
    for row in rows:
        assert tuple(row["resize_hw"]) == tuple(
            preprocess.resized_hw(HW[row["position"]], 32, 64).numpy()
        )
    for unit in units.values():
        largest = np.max([r["resize_hw"] for r in unit], 0)
        assert all((r["padded_hw"] == -(-largest // 32) * 32).all() for r in unit)


def test_evaluation_of_a_subset():
    c = Config().replace(eval_batch_size=2, max_images=3)
    examples = order.evaluation_examples(c, HW).as_numpy_iterator()
    assert [example["position"] for example in examples] == [0, 1, 2]
