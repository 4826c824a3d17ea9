"""The seeded Detectron2 weights of the reference data, written once per session."""

import runpy
import tempfile

import pytest

from pfpn_tf import config
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.weights import convert, detectron2, safe_pickle


@pytest.fixture(scope="session")
def seeded_checkpoint(test_data):
    """Path of a Detectron2 checkpoint (.pkl) with seeded weights for Panoptic FPN R50 on COCO."""
    golden = test_data("golden/detectron2")
    script = runpy.run_path(str(golden / "make_seeded_checkpoint.py"))
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/seeded.pkl"
        script["main"](golden / "param_names.json", path)
        yield path


@pytest.fixture(scope="session")
def golden_config():
    """The settings of the reference: Detectron2's R50 with RoIAlign sampling ratio 2."""
    return config.Config().replace(roi_sampling_ratio=2)


@pytest.fixture(scope="session")
def golden_model(seeded_checkpoint, golden_config):
    """Panoptic FPN R50 in float32 with the seeded weights. Do not change its variables."""
    model = panoptic_fpn.build_model(golden_config.model, 80, 54)
    tensors, backbone_only = convert.to_detectron2_names(
        safe_pickle.read(seeded_checkpoint), golden_config.model
    )
    assert not backbone_only
    detectron2.load(model, tensors)
    return model
