"""Trains, evaluates and exports a network of each kind, in a process of its own.

    TF_ENABLE_ONEDNN_OPTS=0 python -m tests.integration.processors RECORDS OUTPUT [KIND ...]

TensorFlow chooses its CPU kernels when it is loaded: oneDNN's by itself on processors with
AVX512_VNNI, AVX512_BF16, AVX_VNNI or AMX, Eigen's on all others; the variable decides for it.

RECORDS is a folder of `tiny.make_records`. In OUTPUT each kind gets KIND.npz, what was computed,
and KIND/1, the export.
"""

import gc
import os
import pathlib
import sys

import numpy as np

import pfpn_tf  # noqa: F401  (before TensorFlow)

# isort: split
import tensorflow as tf

from pfpn_tf.benchmark import inference
from pfpn_tf.benchmark.training import calm
from pfpn_tf.data import pipeline
from pfpn_tf.distribution import strategies
from pfpn_tf.evaluation import report
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.serving import exporter
from pfpn_tf.training import trainer
from tests import tiny

_SEMANTIC = {"task": "semantic", "semantic_targets": "all"}
KINDS = {
    "r50_frozen_bn": {"backbone": "resnet50", "backbone_norm": "frozen_bn", "head_norm": "none"},
    "r50_group_norm": {"backbone": "resnet50", "fpn_channels": 64},
    "resnext_frozen_bn": {"backbone": "resnext_tiny", "backbone_norm": "frozen_bn"},
    "resnext_sync_bn_symmetric_decoder": {
        **_SEMANTIC,
        "backbone": "resnext_tiny",
        "backbone_norm": "sync_bn",
        "decoder": "symmetric",
    },
    "deeplabv3_d8": {
        **_SEMANTIC,
        "decoder": "none",
        "output_stride": 8,
        "semantic_head": "deeplabv3",
    },
}
STEPS = 2
IMAGE_HW = (64, 88)


def image() -> np.ndarray:
    """[1, h, w, 3] uint8: what the exports are asked about."""
    return inference.photo(IMAGE_HW)[None]


def config_of(kind, records):
    """The settings of a kind of network, small in all that is no kind."""
    return tiny.config(records).replace(
        score_threshold=0.05, fusion_score_threshold=0.3, max_segments=40, **KINDS[kind]
    )


def main(records, output, kinds):
    gc.disable()  # tracing makes many objects, of which few are garbage
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for kind in kinds or KINDS:
        config = config_of(kind, records)
        found = {**train(config), **evaluate_and_export(config, output / kind / "1")}
        np.savez(output / f"{kind}.npz", **found)
        tf.keras.backend.clear_session()
        gc.collect()
        print(kind, flush=True)


def train(config):
    """Some training steps. Returns the values of each scalar, one a step."""
    strategy = strategies.build_strategy("cpu")
    info = pipeline.load_info(config)
    built = trainer.build_trainer(config, info, strategy)
    calm(built.model)
    built.set_dataset(trainer.distributed_dataset(config, info, strategy, 0))
    batches = iter(built.train_dataset)
    steps = [built.train_step(batches) for _ in range(STEPS)]
    assert all(result.healthy for result in steps)
    return {
        f"training/{name}": np.array([result.scalars[name] for result in steps])
        for name in steps[0].scalars
    }


def evaluate_and_export(config, export_dir):
    """Evaluates and exports a network with fresh weights, whose predictions are spread as if it had
    been trained: the same in every process, whatever its kernels make of a training step.
    """
    tf.keras.utils.set_random_seed(0)
    info = pipeline.load_info(config)
    network = exporter.build_network(config, info)
    calm(network)
    if network.has_instances:
        inference.spread_predictions(network, config, IMAGE_HW)
    metrics = Evaluator(config, info, network, strategies.build_strategy("cpu")).evaluate(
        save_predictions=False
    )
    metrics = report.flat_scalars(metrics)
    module = exporter.module_of(network, config, info)
    # The other signatures, which nothing here asks, run the same network.
    module.signatures = lambda: {"panoptic": module.panoptic.get_concrete_function()}
    exporter.export(module, str(export_dir))
    loaded = tf.saved_model.load(str(export_dir))
    reply = loaded.signatures["panoptic"](images=tf.constant(image()))
    return {
        **{f"metrics/{name}": value for name, value in metrics.items()},
        **{f"panoptic/{name}": value.numpy() for name, value in reply.items()},
    }


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
