"""The evaluator on drawn scenes, with a network that knows the answers and makes mistakes."""

import json

import pytest
import tensorflow as tf

from pfpn_tf.evaluation import report
from pfpn_tf.evaluation.counts import read_truth
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.evaluation.gallery import Gallery
from pfpn_tf.evaluation.instance_files import InstanceFiles
from pfpn_tf.evaluation.score_files import PanopticFiles
from tests.evaluation.oracle import NUM_IMAGES, Oracle, config_of, info_of, make_scenes, run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Folder with annotations/ and records/ of a few drawn scenes of different sizes."""
    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder)
    return folder


@pytest.fixture(scope="module")
def evaluator(dataset):
    """A function from settings to an `Evaluator` of the oracle."""
    notes = Oracle.notes(config_of(dataset), info_of(dataset))

    def build(strategy=None, **settings):
        config, info = config_of(dataset, **settings), info_of(dataset)
        strategy = strategy or tf.distribute.get_strategy()
        with strategy.scope():
            model = Oracle(config, info, notes)
        return Evaluator(config, info, model, strategy)

    return build


@pytest.fixture(scope="module")
def single(evaluator):
    """One replica, default settings; its graph is traced once."""
    return evaluator()


@pytest.fixture(scope="module")
def evaluated(single, tmp_path_factory):
    """Metrics of one replica, and the folder of its predictions."""
    folder = tmp_path_factory.mktemp("predictions")
    return run(single, str(folder)), folder


def test_numbers_are_those_of_an_imperfect_network(evaluated):
    metrics, _ = evaluated
    assert 0.1 < metrics["panoptic"]["All"]["pq"] < 0.99
    assert 0.1 < metrics["semantic_branch"]["miou"] < 0.99
    assert 0.2 < metrics["bbox"]["AP"] < 0.99 and 0.2 < metrics["segm"]["AP"] < 0.99
    assert metrics["num_images"] == NUM_IMAGES


def test_two_replicas_give_the_same(evaluator, evaluated):
    """7 images in batches of 3 on 2 replicas: neither the last round nor its batch is full."""
    two = run(evaluator(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])))
    assert two == evaluated[0]


def test_written_files_score_to_the_same(dataset, evaluated):
    metrics, folder = evaluated
    annotations = dataset / "annotations"
    truth = str(annotations / "panoptic_val.json")
    files = PanopticFiles(truth, "", str(folder / "panoptic.json"), "").score()
    assert files["panoptic"] == metrics["panoptic"] and files["semantic"] == metrics["semantic"]
    truth = str(annotations / "instances_val.json")
    instances = InstanceFiles(truth, str(folder / "instances.json")).score()
    assert instances == {"bbox": metrics["bbox"], "segm": metrics["segm"]}
    written = json.loads((folder / "metrics.json").read_text())
    written.pop("seconds")
    assert written == metrics


def test_gallery_is_that_of_all_images(evaluated, single):
    """The images with the lowest and highest PQ of their own, whatever comes when."""
    info, gallery = single._info, single.found.gallery
    assert [p.score for p in gallery.worst] == sorted(p.score for p in gallery.worst)
    pictures = {p.position: p for p in gallery.worst + gallery.best}
    assert len(pictures) == NUM_IMAGES

    def merged(*parts):
        whole = Gallery(info, 2)
        for positions in parts:
            part = Gallery(info, 2)
            part._add(*(pictures[i] for i in positions))
            whole.merge(part)
        return [p.position for p in whole.worst], [p.position for p in whole.best]

    assert merged([0, 1, 2, 3, 4, 5, 6]) == merged([6, 2], [5, 1, 3], [0, 4])
    assert merged(range(7))[0] == [p.position for p in gallery.worst[:2]]


def test_subset_equals_files_of_the_subset(dataset, single, tmp_path):
    """Classes absent from the subset are left out of the averages; files of an earlier evaluation
    are gone, those of others stay.
    """
    old = ["metrics.json", "ema/metrics.json", "panoptic/old.png", "ema/semantic/old.png", "my.txt"]
    for name in old:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("{}")
    metrics = run(single, str(tmp_path / "out"), max_images=2)
    assert not list((tmp_path / "out").rglob("old.png")) and (tmp_path / "out/my.txt").exists()
    panoptic = json.loads((dataset / "annotations/panoptic_val.json").read_text())
    panoptic["annotations"] = panoptic["annotations"][:2]
    (tmp_path / "gt.json").write_text(json.dumps(panoptic))
    truth = tmp_path / "gt.json", dataset / "annotations/panoptic_val"
    files = PanopticFiles(*map(str, truth), str(tmp_path / "out/panoptic.json"), "").score()
    assert metrics["num_images"] == 2
    assert files["panoptic"] == metrics["panoptic"]


@pytest.mark.parametrize(
    "task, kinds", [("semantic", {"semantic_branch"}), ("instance", {"bbox", "segm"})]
)
def test_single_tasks(evaluator, evaluated, task, kinds):
    metrics = run(evaluator(task=task))
    assert set(metrics) == kinds | {"notes", "num_images"}
    assert {kind: evaluated[0][kind] for kind in kinds} == {kind: metrics[kind] for kind in kinds}


def test_all_semantic_targets(dataset, evaluator):
    metrics = run(evaluator(semantic_targets="all"), max_images=3)
    ids = {str(category.id) for category in info_of(dataset).categories}
    assert set(metrics["semantic_branch"]["iou"]) == ids
    assert metrics["semantic_branch"]["things_as_one"]["miou"] is not None


def test_class_table(evaluated, single):
    metrics, _ = evaluated
    lines = report.class_table(metrics, single.categories).splitlines()
    assert lines[0].split() == "Class PQ SQ RQ TP FP FN IoU Box AP Mask AP".split()
    crate = next(line.split() for line in lines if line.split()[0] == "crate")
    category = next(c for c in single._info.categories if c.name == "crate")
    row = metrics["panoptic"]["per_class"][str(category.id)]
    assert crate[1] == f"{100 * row['pq']:.2f}" and crate[4] == str(row["tp"])
    scalars = report.all_scalars(metrics, single.categories)
    assert scalars["eval_PQ/crate"] == pytest.approx(100 * row["pq"])
    assert {"eval/PQ", "eval_IoU/crate", "eval_mask_AP/crate"} <= scalars.keys()
    assert [line.split() for line in lines].count(["Things"]) == 1
    assert len([line for line in lines if line.startswith("  ")]) == len(single._info.categories)


AP_OF_TWO = {"per_class": {"1": {"AP": 0.5}, "3": {"AP": -1.0}}}


def test_report_of_averages(evaluated):
    metrics, _ = evaluated
    both = {**metrics, "ema": metrics}
    scalars = report.flat_scalars(both)
    assert scalars["eval_ema/PQ"] == scalars["eval/PQ"]
    twice = [{"id": 1, "name": "crate", "isthing": 1}, {"id": 3, "name": "crate", "isthing": 1}]
    by_class = report.class_scalars({"segm": AP_OF_TWO, "ema": {"segm": AP_OF_TWO}}, twice)
    assert by_class == {"eval_mask_AP/crate (1)": 50.0, "eval_ema_mask_AP/crate (1)": 50.0}
    assert report.table(both).count("Stuff") == 2


def test_report(evaluated):
    metrics, _ = evaluated
    scalars = report.flat_scalars(metrics)
    assert scalars["eval/PQ"] == pytest.approx(100 * metrics["panoptic"]["All"]["pq"])
    assert scalars["eval/mIoU"] == pytest.approx(100 * metrics["semantic_branch"]["miou"])
    assert scalars["eval/mask_AP50"] == pytest.approx(100 * metrics["segm"]["AP50"])
    table = report.table(metrics)
    for text in ("Things", "Semantic branch", "Mask", f"{scalars['eval/PQ_st']:.2f}"):
        assert text in table
    assert f"{scalars['eval/PQ']:.4f}" in report.copy_paste_line(metrics)


def test_damaged_mask_is_named():
    example = {f"segment_{name}": [] for name in ("ids", "category_ids", "areas", "iscrowd")}
    example |= {"source_id": b"7", "instance_mask_png": [b"", b"no PNG"]}
    with pytest.raises(ValueError, match="Image 7: mask PNG 1 of the record is not readable"):
        read_truth(example, string_ids=False)
