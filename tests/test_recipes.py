"""Every recipe is known to work: its network is built, and a shrunken version takes one training
step and one evaluation.

Recipes that differ in nothing but schedule, data paths and the sizes of loss weights run the same
graph. Data and network meet in the batch alone. So a recipe takes its step if the recipes before it
have not had its data or not had its network.
"""

import dataclasses
import gc

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf.data import pipeline
from pfpn_tf.distribution import strategies
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.training import trainer
from tests import tiny
from tests.data import tiny as tiny_data
from tests.test_configs import RECIPES, ROOT, parse_flagfile, relative

SHRUNKEN = {
    **tiny.SETTINGS,
    "fpn_channels": 64,
    "score_threshold": 0.05,
    "max_images": 1,
    "keep_checkpoints": 3,
    "base_batch_size": 0,
    "warmup_steps": 0,
    "lr_decay_steps": (),
    "gradient_clip_norm": 0.0,
    "dataset_info": "",
    "init_weights": "",
    "random_flip": True,
}
NO_PART_OF_THE_NETWORK = (
    "semantic_targets",
    "freeze_stages",
    "stride_in_1x1",
    "roi_sampling_ratio",
    "roi_level_rule",
    "anchor_sizes",
    "clamp_small_deltas",
    "class_agnostic_nms",
    "nms_by_offset",
)


@pytest.fixture(autouse=True)
def eager():
    """One step does not pay for a graph, and Python would hold on to the graphs of all recipes."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
    gc.collect()


def shrink(config):
    """The recipe with everything that is a size made small; everything that is a kind stays."""
    kind = "resnext" if "resnext" in config.model.backbone else "resnet"
    settings = {**SHRUNKEN, "backbone": f"{kind}_tiny", "train_records": "", "eval_records": ""}
    if config.data.crop_size:
        settings["crop_size"] = (32, 64)
    if len(config.eval.semantic_scales) > 1:
        settings["semantic_scales"] = (1.0, 0.75)
    for name in ("instance_loss_weight", "semantic_loss_weight"):
        settings[name] = float(getattr(config.train, name) > 0)
    return config.replace(**settings)


def network(config):
    """The settings of the model that make its variables."""
    ignored = {
        f.name: f.default
        for f in dataclasses.fields(config.model)
        if f.name in NO_PART_OF_THE_NETWORK or "threshold" in f.name or "top_k" in f.name
    }
    return dataclasses.replace(config.model, **ignored)


def first_of_each(key):
    found = {}
    for path in RECIPES:
        found.setdefault(key(parse_flagfile(path)[1]), path)
    return [pytest.param(what, id=relative(path)) for what, path in found.items()]


def with_something_new():
    """The shrunken recipes whose data, or whose network and losses, no earlier recipe has."""
    found, seen = [], set()
    for path in RECIPES:
        config = shrink(parse_flagfile(path)[1])
        model = config.model
        parts = {
            ("data", config.data, model.semantic_targets, model.roi_sampling_ratio),
            ("network", network(config), config.train, config.eval),
        }
        if parts - seen:
            found.append(pytest.param(config, id=relative(path)))
        seen |= parts
    return found


@pytest.mark.parametrize("model_config", first_of_each(network))
def test_the_network_of_a_recipe(model_config, zero_weights):
    model = panoptic_fpn.build_model(model_config, 8, 19)
    names = [layer.name for layer in model.layers]
    assert ("box_head" in names) == (model_config.task in ("panoptic", "instance"))
    assert ("semantic_head" in names) == (model_config.task in ("panoptic", "semantic"))
    if "semantic_head" in names:
        assert model.semantic_head.predictor.kernel.shape[-1] == 19
    assert len(model.trainable_variables) > 50
    del model
    gc.collect()


@pytest.mark.parametrize("config", with_something_new())
def test_a_step_and_an_evaluation(config, tiny_records):  # noqa: F811
    train_and_evaluate(config, tiny_records)


def test_the_stuff_recipe_on_a_dataset_without_things(tmp_path):
    """COCO-Stuff 2017 has 92 classes of stuff and not one of things."""
    tiny_data.make(tmp_path / "d", [(64, 96, [])] * 2)
    path = tmp_path / "d" / "panoptic.json"
    path.write_text(path.read_text().replace('"isthing": 1', '"isthing": 0'))
    for split in ("train", "val"):
        tiny_data.convert(tmp_path / "d", tmp_path / "records", split)
    recipe = ROOT / "configs/coco/semantic_fpn_x152_32x8d_stuff2017.flags"
    config = shrink(parse_flagfile(recipe)[1])
    config = config.replace(semantic_scales=(1.0,), semantic_flip=False)  # tested with the recipe
    train_and_evaluate(config, tmp_path / "records")


def train_and_evaluate(config, records):
    config = config.replace(
        train_records=str(records / "train-*.tfrecord"),
        eval_records=str(records / "val-*.tfrecord"),
    )
    info = pipeline.load_info(config)
    strategy = strategies.build_strategy("cpu")
    built = trainer.build_trainer(config, info, strategy)
    built.set_dataset(trainer.distributed_dataset(config, info, strategy, 0))
    before = [v.numpy() for v in built.model.trainable_variables]
    batches = iter(built.train_dataset)
    for _ in range(2 if config.train.alternate_losses else 1):  # one step for each branch
        result = built.train_step(batches)
        assert result.healthy
    assert result.scalars["loss/total"] > 0 and result.scalars["gradient_norm"] > 0
    moved = [np.any(v.numpy() != old) for v, old in zip(built.model.trainable_variables, before)]
    assert np.mean(moved) > 0.9

    metrics = Evaluator(config, info, built.model, strategy).evaluate(save_predictions=False)
    assert metrics["num_images"] == 1
    expected = {
        "panoptic": {"panoptic", "semantic_branch", "bbox", "segm"},
        "instance": {"bbox", "segm"},
        "semantic": {"semantic_branch"},
    }
    assert expected[config.model.task] <= metrics.keys()
