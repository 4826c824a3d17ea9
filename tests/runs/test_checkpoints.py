"""Saving, damage, resuming, initialising: on a network of a few numbers."""

import contextlib
import dataclasses
import gc
import logging
import os
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.config import Config, fixed_settings
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.runs import checkpoints, restore, run_directory
from tests import tiny
from tests.test_configs import parse_flagfile


class Net(tf.keras.Model):
    def __init__(self, classes=3, with_extra=False):
        super().__init__()
        self.body = tf.keras.layers.Dense(4)
        self.predictor = tf.keras.layers.Dense(classes)
        if with_extra:
            self.extra = tf.keras.layers.Dense(2)

    def call(self, x):
        y = self.body(x)
        return self.predictor(y) + (tf.reduce_sum(self.extra(y)) if hasattr(self, "extra") else 0)


def net(value, **kwargs):
    model = Net(**kwargs)
    model(tf.zeros([1, 2]))
    for v in model.variables:
        v.assign(tf.fill(v.shape, float(value)))
    return model


@pytest.fixture
def info():
    return tiny.info_of(things=["cat"], stuff=["sky"])


def run_of(tmp_path, model, keep=3, writes=True):
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    step = tf.Variable(0, dtype=tf.int64)
    parts = {"model": model, "optimizer": optimizer, "global_step": step}
    return checkpoints.RunCheckpoints(str(tmp_path), keep, writes, **parts), step


def resume(saved):
    return saved.restore(checkpoints.newest_step(os.path.dirname(saved.directory)))


def save_steps(tmp_path, steps, keep=3):
    model = net(0)
    saved, step = run_of(tmp_path, model, keep)
    for s in steps:
        step.assign(s)
        for v in model.variables:
            v.assign(tf.fill(v.shape, float(s)))
        saved.save(s)
    return model


def steps_on_disk(tmp_path):
    return [
        checkpoints.step_of(p) for p in checkpoints.saved_prefixes(str(tmp_path / "checkpoints"))
    ]


def test_restore_takes_the_newest_and_retention_keeps_the_newest(tmp_path):
    """Also after a restart."""
    save_steps(tmp_path, [2, 9, 10, 11], keep=2)
    assert steps_on_disk(tmp_path) == [11, 10]
    model = net(-1)
    saved, step = run_of(tmp_path, model, keep=2)
    assert checkpoints.step_of(resume(saved)) == 11 and int(step) == 11
    np.testing.assert_array_equal(model.variables[0], 11.0)
    saved.save(12)
    assert steps_on_disk(tmp_path) == [12, 11]


def rewrite(change, name="data-00000-of-00001"):
    """A damage of the checkpoint's data, or of its index."""

    def damage(prefix):
        path = pathlib.Path(f"{prefix}.{name}")
        path.write_bytes(change(path.read_bytes()))

    return damage


DAMAGES = {
    "cut data": rewrite(lambda data: data[: len(data) // 2]),
    "another byte": rewrite(lambda data: data[:4] + bytes([data[4] ^ 1]) + data[5:]),
    "no data": lambda prefix: os.unlink(f"{prefix}.data-00000-of-00001"),
    "cut index": rewrite(lambda data: data[:20], "index"),
    "empty index": rewrite(lambda data: b"", "index"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    save_steps(tmp_path, [1, 2])
    DAMAGES[damage](checkpoints.saved_prefixes(str(tmp_path / "checkpoints"))[0])
    model = net(-1)
    saved, step = run_of(tmp_path, model)
    with caplog.at_level("WARNING"):
        prefix = resume(saved)
    assert checkpoints.step_of(prefix) == 1 and int(step) == 1
    assert "ckpt-2 is damaged" in caplog.text
    assert checkpoints.step_of(restore.restore_for_inference(net(-1), str(tmp_path))) == 1
    step.assign(2)
    saved.save(2)  # the run comes by again and replaces it
    assert checkpoints.damage(str(tmp_path / "checkpoints" / "ckpt-2")) is None


def test_a_damaged_marker_file_does_not_matter(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "gone"\nall_')
    saved, step = run_of(tmp_path, net(0), keep=2)
    assert checkpoints.step_of(resume(saved)) == 2
    saved.save(3)
    assert steps_on_disk(tmp_path) == [3, 2]
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")) == str(
        tmp_path / "checkpoints" / "ckpt-3"
    )


def test_all_damaged_is_an_error_not_a_new_start(tmp_path):
    save_steps(tmp_path, [1])
    DAMAGES["cut data"](str(tmp_path / "checkpoints" / "ckpt-1"))
    with pytest.raises(ValueError, match="damaged"):
        resume(run_of(tmp_path, net(0))[0])


def test_nothing_saved_yet(tmp_path):
    assert resume(run_of(tmp_path, net(0))[0]) is None


def test_weights_alone_cannot_be_continued(tmp_path, info):
    checkpoints.save_weights(net(5), Config(), info, str(tmp_path))
    with pytest.raises(ValueError, match="--init_weights"):
        resume(run_of(tmp_path, net(0))[0])


def test_an_unwritable_place_is_an_error_that_names_the_last_good_checkpoint(tmp_path):
    save_steps(tmp_path, [1])
    saved, step = run_of(tmp_path, net(0))
    resume(saved)
    # A file where the temporary directory of the checkpoint has to be made: fails for root, too.
    (tmp_path / "checkpoints" / "ckpt-2_temp").write_text("in the way")
    with pytest.raises(OSError, match=r"ckpt-2.*ckpt-1"):
        saved.save(2)
    assert checkpoints.damage(str(tmp_path / "checkpoints" / "ckpt-1")) is None


@contextlib.contextmanager
def full_disk():
    """No file can grow beyond 20 kB, as on a disk that fills up in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_no_rubbish(tmp_path):
    model = net(1, classes=4000)  # 80 kB
    saved, step = run_of(tmp_path, model)
    saved.save(1)
    with full_disk(), pytest.raises(
        OSError, match=r"Cannot write the checkpoint .*ckpt-2: .*good one is .*ckpt-1; make"
    ):
        saved.save(2)
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
    assert resume(run_of(tmp_path, net(0, classes=4000))[0]).endswith("ckpt-1")
    saved.save(2)  # there is room again
    assert steps_on_disk(tmp_path) == [2, 1]


def test_what_a_killed_save_left_is_removed(tmp_path):
    save_steps(tmp_path, [1])
    folder = tmp_path / "checkpoints"
    kept = sorted(os.listdir(folder)) + ["mine.data-00000-of-00001"]
    (folder / "ckpt-2_temp").mkdir()
    (folder / "ckpt-2_temp" / "part-00000-of-00001.data-00000-of-00001").touch()
    for name in (
        "ckpt-3.data-00000-of-00001",
        "ckpt-1.index.tempstate123",
        "mine.data-00000-of-00001",
    ):
        (folder / name).touch()
    resume(run_of(tmp_path, net(0))[0])
    assert sorted(os.listdir(folder)) == sorted(kept)


def test_a_worker_that_does_not_write_takes_what_the_chief_has_chosen(tmp_path):
    save_steps(tmp_path, [1, 2])
    before = sorted(os.listdir(tmp_path / "checkpoints"))
    saved, step = run_of(tmp_path, net(0), keep=1, writes=False)
    saved.restore(1)
    assert int(step) == 1
    saved.save(3)
    saved.save_best(3)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == before


def test_best_is_kept_apart(tmp_path):
    save_steps(tmp_path, [1, 2])
    saved, step = run_of(tmp_path, net(8))
    saved.save_best(1)
    saved.save_best(2)
    assert [
        os.path.basename(p)
        for p in checkpoints.saved_prefixes(str(tmp_path / "checkpoints" / "best"))
    ] == ["ckpt-2"]
    assert steps_on_disk(tmp_path) == [2, 1]
    model = net(0)
    restore.restore_for_inference(model, str(tmp_path), "best")
    np.testing.assert_array_equal(model.variables[0], 8.0)


def test_restore_for_inference_by_step(tmp_path):
    save_steps(tmp_path, [1, 2])
    model = net(0)
    restore.restore_for_inference(model, str(tmp_path), "1")
    np.testing.assert_array_equal(model.variables[0], 1.0)
    with pytest.raises(ValueError, match="steps: 2, 1"):
        restore.restore_for_inference(model, str(tmp_path), "5")


@pytest.mark.parametrize("other", [{"with_extra": True}, {"classes": 9}])
def test_a_network_that_does_not_fit_is_told_in_one_line(tmp_path, other):
    save_steps(tmp_path, [1])
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    with pytest.raises(ValueError, match="does not fit"):
        restore.restore_for_inference(net(0, **other), str(tmp_path))
    gc.collect()
    tf.get_logger().removeHandler(handler)
    assert not lines


def test_not_a_run_directory(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        run_directory.load_run(str(tmp_path))


def test_initial_weights_from_nowhere(tmp_path):
    with pytest.raises(ValueError, match="neither a run directory"):
        restore.find_init_checkpoint(str(tmp_path))


def test_a_run_directory_of_another_config_is_refused_with_the_differences(tmp_path, info):
    config = Config().replace(learning_rate=0.01)
    run_directory.prepare(str(tmp_path), config, info)
    with pytest.raises(ValueError, match="--learning_rate: 0.01 there, 0.02 here"):
        run_directory.prepare(str(tmp_path), Config(), info)
    assert run_directory.load_run(str(tmp_path))[0] == config


def test_classes_that_differ_are_listed(tmp_path, info):
    run_directory.prepare(str(tmp_path), Config(), info)
    other = DatasetInfo.from_coco_categories(
        [{"id": 1, "name": "cat", "isthing": 0}, {"id": 9, "name": "sea", "isthing": 0}]
    )
    with pytest.raises(ValueError) as error:
        run_directory.prepare(str(tmp_path), Config(), other)
    for line in (
        "category 1: cat (thing) there, cat (stuff) here",
        "category 2: sky (stuff) there, missing here",
        "category 9: missing there, sea (stuff) here",
    ):
        assert line in str(error.value)


def test_a_run_directory_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, info):
    (tmp_path / "file").touch()
    for refuse in (run_directory.prepare, run_directory.check):
        with pytest.raises(ValueError, match="--run_dir.*file"):
            refuse(str(tmp_path / "file" / "run"), Config(), info)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()
    with pytest.raises(ValueError, match="--run_dir: cannot write in .*run/checkpoints"):
        run_directory.prepare(str(tmp_path / "run"), Config(), info)


def test_a_dry_run_leaves_nothing_behind(tmp_path, info):
    run_directory.check(str(tmp_path / "new" / "run"), Config(), info)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_run_directory_says_so(tmp_path, info):
    with pytest.raises(ValueError, match="a folder that all workers share"):
        run_directory.check_shared(str(tmp_path), Config(), info)
    run_directory.prepare(str(tmp_path), Config(), info)
    run_directory.check_shared(str(tmp_path), Config(), info)
    with pytest.raises(ValueError, match="--seed: 0 there, 1 here"):
        run_directory.check_shared(str(tmp_path), Config().replace(seed=1), info)


def test_settings_of_length_evaluation_and_export_may_change(tmp_path, info):
    run_directory.prepare(str(tmp_path), Config(), info)
    changed = Config().replace(
        train_steps=95000,
        keep_checkpoints=9,
        semantic_flip=True,
        max_segments=300,
        score_threshold=0.1,
    )
    run_directory.prepare(str(tmp_path), changed, info)
    assert run_directory.load_run(str(tmp_path))[0] == changed
    fixed = fixed_settings()
    groups = vars(Config())
    assert not fixed & {f.name for g in ("eval", "export") for f in dataclasses.fields(groups[g])}
    assert {"learning_rate", "rpn_post_nms_top_k", "crop_size", "seed"} <= fixed


def test_the_recipe_is_a_flagfile_of_the_same_settings(tmp_path):
    config = Config().replace(
        crop_size=(64, 96), random_flip=False, learning_rate=0.0123, train_records="a b-*.tfrecord"
    )
    recipe = tmp_path / "recipe.flags"
    recipe.write_text(run_directory.recipe_text(config))
    assert parse_flagfile(recipe)[1] == config
