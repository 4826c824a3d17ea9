"""Images without ground truth are predicted like any other; and the semantic maps that are written
are the branch's own.
"""

import json

import cv2
import numpy as np
import pytest

from pfpn_tf.data import convert, panoptic_png
from pfpn_tf.data.coco_panoptic import CocoImages
from pfpn_tf.data.given import Given
from pfpn_tf.evaluation import coco_submission, report
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.evaluation.segment_pairs import segment_pairs
from pfpn_tf.evaluation.semantic_iou import SemanticIoU
from pfpn_tf.training import pictures
from tests.evaluation import oracle

NUM_IMAGES = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Drawn scenes, and the first of them once more without annotations, as split test-dev."""
    folder = tmp_path_factory.mktemp("scenes")
    oracle.make_scenes(folder)
    images = json.loads((folder / "annotations/panoptic_val.json").read_text())["images"]
    (folder / "image_info.json").write_text(json.dumps({"images": images[:NUM_IMAGES]}))
    given = Given(image_info_json=str(folder / "image_info.json"), image_dir=str(folder / "val"))
    unannotated = CocoImages(given, oracle.info_of(folder))
    convert.convert(unannotated, str(folder / "records"), "test-dev", num_workers=1)
    return folder


def evaluate(dataset, output_dir, split="val", **settings):
    config, info = oracle.config_of(dataset, **settings), oracle.info_of(dataset)
    model = oracle.Oracle(config, info, oracle.Oracle.notes(config, info))
    config = config.replace(eval_records=str(dataset / f"records/{split}-*"))
    return Evaluator(config, info, model).evaluate(str(output_dir), max_images=NUM_IMAGES)


def test_predictions_do_not_depend_on_ground_truth(dataset, tmp_path):
    scored = evaluate(dataset, tmp_path / "val")
    metrics = evaluate(dataset, tmp_path / "test", "test-dev")
    assert set(metrics) == {"notes", "num_images", "seconds"}
    assert metrics["notes"] == ["3 images have no ground truth and were only predicted."]
    assert "only predicted" in report.table(metrics) and report.flat_scalars(metrics) == {}
    assert scored["notes"] == [] and "panoptic" in scored
    files = [p for p in (tmp_path / "test").rglob("*.*") if p.name != "metrics.json"]
    assert len([p for p in files if p.suffix == ".png"]) == 2 * NUM_IMAGES
    for path in files:
        scored = tmp_path / "val" / path.relative_to(tmp_path / "test")
        assert path.read_bytes() == scored.read_bytes()
    assert len(coco_submission.write(str(tmp_path / "test"), "test-dev", "oracle")) == 2


def read_semantic(folder, image_id):
    pixels = cv2.imread(str(folder / f"semantic/{image_id:012d}.png"), cv2.IMREAD_UNCHANGED)
    assert pixels.dtype == np.uint8 and pixels.ndim == 2
    return pixels.astype(np.uint32)


def test_semantic_maps_are_the_branch_s(dataset, tmp_path):
    """Their overlap with the ground truth gives the branch's IoU, class by class."""
    metrics = evaluate(dataset, tmp_path, task="semantic", semantic_targets="all")
    category_ids = [c.id for c in oracle.info_of(dataset).categories]
    iou = SemanticIoU(category_ids)
    annotations = json.loads((dataset / "annotations/panoptic_val.json").read_text())["annotations"]
    for annotation in annotations[:NUM_IMAGES]:
        name = annotation["file_name"]
        gt_ids = panoptic_png.read(str(dataset / "annotations/panoptic_val"), name, 0, "")
        found = segment_pairs(gt_ids, read_semantic(tmp_path, annotation["image_id"]))
        predicted = [{"id": i, "category_id": i} for i in category_ids]
        iou.update(found, annotation["segments_info"], predicted)
    assert iou.result()["iou"] == metrics["semantic_branch"]["iou"]


def test_things_as_one_class_have_no_category(dataset, tmp_path):
    evaluate(dataset, tmp_path)
    annotations = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    maps = [read_semantic(tmp_path, annotation["image_id"]) for annotation in annotations]
    found = set().union(*(np.unique(values).tolist() for values in maps))
    assert 255 in found and len(found) > 1
    assert found - {255} <= {c.id for c in oracle.info_of(dataset).stuff}


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_pictures_of_training_show_an_image_without_ground_truth(dataset, task):
    config, info = oracle.config_of(dataset, task=task), oracle.info_of(dataset)
    model = oracle.Oracle(config, info, oracle.Oracle.notes(config, info))

    def drawn(split):
        records = config.replace(eval_records=str(dataset / f"records/{split}-*"))
        return pictures.draw(Evaluator(records, info, model), config, info)

    without, scored = drawn("test-dev"), drawn("val")
    assert len(without) == NUM_IMAGES
    for name, picture in without.items():
        third = picture.shape[1] // 3
        np.testing.assert_array_equal(picture[:, :third], scored[name][:, :third])
        assert (picture[:, third : 2 * third] != scored[name][:, third : 2 * third]).any()
        np.testing.assert_array_equal(picture[:, 2 * third :], scored[name][:, 2 * third :])
