"""Evaluating runs for the benchmarks: Cityscapes by its own code, and COCO's split test-dev."""

import json
import zipfile

import pytest

from pfpn_tf.data import convert
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.data.coco_panoptic import CocoImages
from pfpn_tf.data.given import Given
from pfpn_tf.evaluation.evaluate_run import EvaluationOptions, evaluate_run
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.runs import checkpoints
from tests.data.tiny import open_panoptic


@pytest.fixture(scope="module")
def cityscapes(test_data, tmp_path_factory):
    """(Root of files in Cityscapes' layout, folder of records: val, and its first photos as
    test-dev).
    """
    root = test_data("data/cityscapes_like")
    folder = tmp_path_factory.mktemp("cityscapes")
    base = root / "gtFine/cityscapes_panoptic_val_trainId"
    val = open_panoptic(base.with_suffix(".json"), base, root / "leftImg8bit/val")
    convert.convert(val, str(folder), "val", num_workers=1)
    (folder / "image_info.json").write_text(json.dumps({"images": val.images[:2]}))
    given = Given(
        image_info_json=str(folder / "image_info.json"), image_dir=str(root / "leftImg8bit")
    )
    images = CocoImages(given, val.info)
    convert.convert(images, str(folder), "test-dev", num_workers=1)
    return root, folder


@pytest.fixture(scope="module")
def run_dir(cityscapes, tmp_path_factory):
    """A network that has learnt nothing."""
    from tests import tiny

    config = tiny.config(cityscapes[1]).replace(
        eval_records=str(cityscapes[1] / "val-*"), semantic_targets="all", score_threshold=0.01
    )
    info = DatasetInfo.load(cityscapes[1] / "dataset_info.json")
    model = panoptic_fpn.build_for_dataset(config.model, info)
    path = str(tmp_path_factory.mktemp("runs") / "untrained")
    checkpoints.save_weights(model, config, info, path)
    return path


def test_cityscapes_own_code_agrees(cityscapes, run_dir, tmp_path):
    """mIoU of the semantic branch counted by us from the records, and by cityscapesscripts from its
    own files.
    """
    pytest.importorskip("cityscapesscripts")
    gt_dir = str(cityscapes[0] / "gtFine/val")
    options = EvaluationOptions(output_dir=str(tmp_path), cityscapes_gt_dir=gt_dir)
    metrics = evaluate_run(run_dir, options)
    official = metrics["cityscapes"]
    assert official["num_images"] == 5 and len(official["per_class"]) == 19
    ours = metrics["semantic_branch"]
    assert (
        official["miou"] == pytest.approx(ours["miou_over_classes_in_gt_or_pred"], abs=1e-12)
        and official["miou"] > 0
    )
    assert official["AP"] is not None and official["iiou"] is not None
    assert json.loads((tmp_path / "metrics.json").read_text())["cityscapes"] == official
    assert len(list((tmp_path / "pixel_level").glob("*.png"))) == 5
    assert len(list((tmp_path / "instance_level").glob("*.txt"))) == 5


def test_test_dev_writes_what_the_server_takes(run_dir):
    metrics = evaluate_run(run_dir, EvaluationOptions(split="test-dev"))
    assert "panoptic" not in metrics and "2 images have no ground truth" in metrics["notes"][0]
    step = checkpoints.step_of(metrics["checkpoint"])
    for task, members in (("panoptic", 3), ("detections", 1)):
        name = f"{task}_test-dev2017_untrained_results"
        with zipfile.ZipFile(f"{run_dir}/eval/{step}_test-dev/{name}.zip") as archive:
            assert archive.namelist()[0] == f"{name}.json" and len(archive.namelist()) == members


def test_files_are_needed(run_dir):
    with pytest.raises(ValueError, match="leave out --nosave_predictions"):
        evaluate_run(run_dir, EvaluationOptions(split="test-dev", save_predictions=False))
    with pytest.raises(ValueError, match="no file matches .*nowhere-"):
        evaluate_run(run_dir, EvaluationOptions(split="nowhere"))
