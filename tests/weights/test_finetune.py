"""Trained weights as the start of a training on other classes."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints, restore
from pfpn_tf.training import optimizer
from pfpn_tf.weights import detectron2, initialise, safe_pickle, zoo
from tests import tiny

HERE = tiny.info_of(things=["Traffic  Light", "robot"], stuff=["SKY", "lava"])
THERE = tiny.info_of(stuff=["sky", "grass"], things=["person", "robots", "traffic light"])


def settings(**changes):
    return config_lib.Config().replace(**{**tiny.NETWORK, **changes})


_built = functools.lru_cache(panoptic_fpn.build_model)


def model_of(info, config):
    """A network with random values, biases included. Networks of one kind are one network, as
    building takes longest.
    """
    num_semantic_classes = info.num_semantic_classes(config.model.semantic_targets)
    model = _built(config.model, info.num_thing_classes, num_semantic_classes)
    for variable in model.variables:
        variable.assign(np.random.normal(size=variable.shape))
    return model


def values_of(model):
    return {path: v.numpy() for path, v in restore.model_variables(model).items()}


def run_of(path, info=THERE, **changes):
    """A run directory and the values in it."""
    config = settings(**changes)
    model = model_of(info, config)
    checkpoints.save_weights(model, config, info, str(path))
    return str(path), values_of(model)


def start(weights, info=HERE, **changes):
    """values before and after, and what `initialise` returns."""
    config = settings(init_weights=weights, **changes)
    model = model_of(info, config)
    before = values_of(model)
    taken = initialise.initialise(model, config, info)
    return before, values_of(model), taken


def assert_rows(before, after, there, things, semantic):
    """Every value is what it should be.

    Args:
      things, semantic: for each class here its place there, or None.
    """
    rows_of = {
        "box_head/classes": [*things, -1],  # background
        "box_head/deltas": [t if t is None else 4 * t + i for t in things for i in range(4)],
        "mask_head/predictor": things,
        "semantic_head/predictor": semantic,
    }
    for path, value in after.items():
        axis = 0 if path.startswith("mask_head") else -1
        expected = there[path]
        for rows in (rows for start, rows in rows_of.items() if path.startswith(start)):
            own = [
                old if row is None else np.take(there[path], row, axis)
                for row, old in zip(rows, np.moveaxis(before[path], axis, 0), strict=True)
            ]
            expected = np.stack(own, axis)
        np.testing.assert_array_equal(value, expected, err_msg=path)


def test_rows_of_equal_names_are_taken_from_a_run(tmp_path):
    weights, there = run_of(tmp_path)
    before, after, taken = start(weights, restored_lr_factor=0.1)
    # Things there: person, robots, traffic light; semantic: any thing, sky, grass.
    assert_rows(before, after, there, things=[2, None], semantic=[0, 1, None])
    text = "\n".join(taken.report)
    assert "Rows of 1 thing classes are taken: Traffic  Light" in text
    assert "Rows of 1 thing classes start at random: robot" in text
    assert "Rows of 2 semantic classes are taken: any thing, SKY" in text
    assert "Rows of 1 semantic classes start at random: lava" in text
    assert taken.report[-1] == "What is taken whole has 0.1 times the learning rate."
    taken_whole = {v.ref() for v in taken.restored}
    model_parts = len(after) - len(taken_whole)
    assert model_parts == 8  # the weights and biases of the four predictors


RENAMED = tiny.info_of(things=["new Traffic  Light", "new robot"], stuff=["new SKY", "new lava"])
TURNED = tiny.info_of(stuff=["lava", "SKY"], things=["robot", "Traffic  Light"])
NAMED = tiny.info_of(stuff=["any thing"], things=["robots"])


@pytest.mark.parametrize(
    "there, here, changes, things, semantic",
    [
        # Equal shapes do not mean equal classes.
        (HERE, RENAMED, {}, [None, None], [0, None, None]),
        (HERE, TURNED, {}, [1, 0], [0, 2, 1]),
        # Semantic classes of things are other classes than any thing.
        (THERE, HERE, {"semantic_targets": "all"}, [2, None], [None, None, 1, None]),
        # A class called "any thing" is not the class of all things.
        (THERE, NAMED, {}, [1], [0, None]),
    ],
)
def test_rows_go_by_names_and_kinds(tmp_path, there, here, changes, things, semantic):
    weights, values = run_of(tmp_path, there)
    before, after, taken = start(weights, here, **changes)
    assert_rows(before, after, values, things, semantic)
    assert (len(taken.restored) == len(after)) == (here is TURNED)


def test_a_semantic_network_takes_its_part_of_a_panoptic_one(tmp_path):
    weights, there = run_of(tmp_path)
    _, after, taken = start(weights, task="semantic")
    np.testing.assert_array_equal(after["fpn/lateral/c2/kernel"], there["fpn/lateral/c2/kernel"])
    assert "Not used: box_head/classes/bias" in taken.report[-1]


@pytest.fixture
def coco_file(tmp_path):
    """A Detectron2 file of COCO's classes, and its values by our names."""
    model = model_of(zoo.coco_info(), settings())
    path = str(tmp_path / "model_final.pkl")
    detectron2.write(path, detectron2.to_detectron2(model))
    return path, values_of(model)


def test_a_detectron2_file_of_80_and_54_classes_has_coco_names(coco_file):
    path, there = coco_file
    info = tiny.info_of(stuff=["sky-other-merged"], things=["ball", "Dog"])
    before, after, taken = start(path, info)
    coco = zoo.coco_info()
    dog = coco.thing_names.index("dog")
    sky = coco.semantic_names("other").index("sky-other-merged")
    assert_rows(before, after, there, things=[None, dog], semantic=[0, sky])
    assert "start at random: ball" in "\n".join(taken.report)


def test_classes_without_names_are_taken_in_order_or_not_at_all(tmp_path):
    config = settings()
    model = model_of(HERE, config)
    there, path = values_of(model), str(tmp_path / "mine.pth")
    detectron2.write(path, detectron2.to_detectron2(model))
    before, after, taken = start(path)
    assert_rows(before, after, there, things=[0, 1], semantic=[0, 1, 2])
    assert "thing classes of the weights are not known" in "\n".join(taken.report)
    before, after, taken = start(path, THERE)
    np.testing.assert_array_equal(after["box_head/deltas/kernel"], before["box_head/deltas/kernel"])
    assert "Starts at random: box_head/classes/bias ((3,) there, (4,) here)" in taken.report


def test_a_backbone_file_leaves_the_rest_at_random(tmp_path):
    model = model_of(HERE, settings())
    tensors, there = detectron2.to_detectron2(model), values_of(model)
    path = str(tmp_path / "R-50.pkl")
    detectron2.write(path, {n: t for n, t in tensors.items() if "bottom_up" in n})
    before, after, taken = start(path)
    for name, value in after.items():
        expected = there if name.startswith("backbone/") else before
        np.testing.assert_array_equal(value, expected[name])
    assert (
        "Missing, so they start at random: box_head, fpn, mask_head, rpn_head, semantic_head"
        in taken.report
    )


def test_the_backbone_fits_as_a_whole_or_not_at_all(tmp_path):
    weights, _ = run_of(tmp_path / "run", backbone="resnext_tiny")
    with pytest.raises(ValueError, match="does not fit the backbone: backbone/.* there"):
        start(weights)
    weights, _ = run_of(tmp_path / "groups", backbone_norm="group_norm")
    with pytest.raises(ValueError, match="does not fit the backbone: backbone/.*missing"):
        start(weights)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_a_deeper_backbone_is_not_cut_off(tmp_path, prefix):
    tensors = detectron2.to_detectron2(model_of(HERE, settings()))
    tensors[f"{prefix}res4.22.conv1.weight"] = np.zeros([4, 4, 1, 1], np.float32)
    path = str(tmp_path / "deeper.pkl")
    detectron2.write(path, tensors)
    with pytest.raises(ValueError, match="res4.22.conv1.weight .has no use here"):
        start(path)


def test_heads_of_another_build_start_at_random(coco_file):
    """Deltas for all classes together, a mask predictor and a first layer of other ranks."""
    path, _ = coco_file
    tensors = safe_pickle.read(path).tensors
    tensors["roi_heads.box_predictor.bbox_pred.bias"] = np.zeros(4)
    tensors["roi_heads.mask_head.predictor.weight"] = np.zeros([80, 8])
    tensors["roi_heads.box_head.fc1.weight"] = np.zeros([16, 100])
    detectron2.write(path, tensors)
    before, after, taken = start(path)
    for name in ("box_head/deltas/bias", "mask_head/predictor_kernel", "box_head/fc1/kernel"):
        np.testing.assert_array_equal(after[name], before[name])
    assert "Starts at random: box_head/deltas/bias ((4,) there, (8,) here)" in taken.report


@pytest.mark.parametrize(
    "changes, needed",
    [({"pixel_std": (58.0, 57.0, 57.0)}, "--pixel_std=58.0"), ({"stride_in_1x1": False}, "false")],
)
def test_weights_of_other_pixels_or_strides_are_refused(tmp_path, changes, needed):
    weights, _ = run_of(tmp_path, **changes)
    with pytest.raises(ValueError, match=needed):
        start(weights)


def test_networks_that_detectron2_lacks_take_its_backbones(tmp_path):
    config = settings(task="semantic", decoder="none", semantic_head="deeplabv3")
    model = model_of(HERE, config)
    names = [p.name for p in detectron2.parameters(model)]
    assert names and all(name.startswith("backbone.bottom_up.") for name in names)


def test_what_is_restored_learns_slower_and_a_checkpoint_holds_it(tmp_path):
    config = config_lib.Config().replace(
        restored_lr_factor=0.25, init_weights="x", warmup_steps=0, learning_rate=1.0, momentum=0.0
    )

    def network():
        model = tf.keras.Sequential([tf.keras.layers.Dense(2), tf.keras.layers.Dense(2)])
        model.build([None, 2])
        sgd = optimizer.build_optimizer(config.train, model)
        sgd.build(model.trainable_variables)
        return model, sgd

    model, sgd = network()
    frozen = tf.Variable(0.0)
    sgd.slow_down([*model.layers[0].variables, frozen], config.train.restored_lr_factor)
    path = tf.train.Checkpoint(model=model, optimizer=sgd).save(str(tmp_path / "ckpt"))
    model, sgd = network()
    tf.train.Checkpoint(model=model, optimizer=sgd).restore(path).assert_consumed()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    sgd.apply_gradients([(tf.ones_like(v), v) for v in model.variables])
    for layer, rate in zip(model.layers, (0.25, 1.0)):
        for variable in layer.variables:
            np.testing.assert_allclose(variable, np.full(variable.shape, -rate))
