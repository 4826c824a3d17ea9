"""A tiny network with random weights, once as run directory and once exported."""

import pytest
import tensorflow as tf

from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints
from pfpn_tf.serving import exporter
from tests import tiny


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run directory with untrained weights that nevertheless give confident segments."""
    config = tiny.config("").replace(
        eval_max_side=128,
        max_detections=12,
        score_threshold=0.05,
        fusion_score_threshold=0.05,
        max_segments=40,
        max_image_pixels=3_000_000,
        allowed_batch_sizes=(1, 2),
    )
    info = DatasetInfo.from_coco_categories(
        [{"id": 3 * i + 2, "name": f"class {i}", "isthing": int(i < 4)} for i in range(7)]
    )
    tf.keras.utils.set_random_seed(0)
    network = panoptic_fpn.build_for_dataset(config.model, info)
    for variable in network.variables:
        # wider heads than the initialisation's, so that scores and labels differ by place
        if variable.name.endswith("kernel:0") and "backbone" not in variable.name:
            variable.assign(variable * 4.0)
    path = str(tmp_path_factory.mktemp("serving") / "run")
    checkpoints.save_weights(network, config, info, path)
    return path


@pytest.fixture(scope="session")
def in_process(run_dir):
    """The module that the export was made of."""
    return exporter.load_module(run_dir)


@pytest.fixture(scope="session")
def saved_model(in_process, tmp_path_factory):
    """Directory of the exported model."""
    path = str(tmp_path_factory.mktemp("exported") / "panoptic" / "1")
    exporter.export(in_process, path)
    return path


@pytest.fixture(scope="session")
def loaded(saved_model):
    """The exported model, loaded again."""
    return tf.saved_model.load(saved_model)
