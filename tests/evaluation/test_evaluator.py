"""The evaluator on drawn scenes, with a network that knows the answers and makes mistakes."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import coco_panoptic, convert, pipeline, synthetic
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import report
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.evaluation.score_files import score_instances, score_panoptic
from pfpn_tf.structures import Detections, InferenceOutputs

NUM_IMAGES = 7
MASK_SIZE = 28
MAX_DETECTIONS = 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Folder with annotations/ and records/ of a few drawn scenes of different sizes."""
    folder = tmp_path_factory.mktemp("scenes")
    synthetic.make_dataset(folder, num_train=1, num_val=NUM_IMAGES, sides=(70, 120))
    annotations = folder / "annotations"
    scenes = coco_panoptic.CocoPanoptic(
        annotations / "panoptic_val.json", annotations / "panoptic_val", folder / "val", annotations / "instances_val.json"
    )
    convert.convert(scenes, str(folder / "records"), "val", num_shards=2, num_workers=1)
    return folder


def config_of(dataset, **settings):
    return config_lib.Config().replace(
        eval_records=str(dataset / "records" / "val-*"),
        eval_min_side=96,
        eval_max_side=160,
        eval_batch_size=3,
        fusion_stuff_area_threshold_px=64,
        **settings,
    )


def info_of(dataset):
    return DatasetInfo.load(dataset / "records" / "dataset_info.json")


class Oracle(tf.keras.Model):
    """Recognises an image by the sum of its pixels and gives what it has noted for it."""

    def __init__(self, config, info, notes):
        super().__init__()
        self._num_classes = info.num_semantic_classes(config.model.semantic_targets)
        colors = info.semantic_colors(config.model.semantic_targets).astype(np.float32)
        self._colors = tf.constant(colors - np.array(config.data.pixel_mean, np.float32))
        self._task = config.model.task
        keys, rows = notes
        self._keys = tf.constant(keys)
        self._rows = [tf.constant(np.stack(column)) for column in zip(*rows)]

    @classmethod
    def notes(cls, config, info):
        """What to note for the images of the split: the sums of their pixels, and rows of outputs."""
        rng = np.random.default_rng(0)
        keys, rows = [], []
        for batch in pipeline.build_dataset(config.replace(eval_batch_size=1), info, training=False):
            keys.append(float(tf.reduce_sum(batch["images"])))
            rows.append(cls._noted(batch, info, rng))
        assert len(keys) == NUM_IMAGES and len(set(keys)) == NUM_IMAGES
        return keys, rows

    @staticmethod
    def _noted(batch, info, rng):
        """Boxes a little off, class ids now and then wrong, scores falling, oval masks."""
        scale = batch["image_hw"][0].numpy() / batch["original_hw"][0].numpy()
        boxes = np.zeros((MAX_DETECTIONS, 4), np.float32)
        class_ids = np.full(MAX_DETECTIONS, -1, np.int32)
        gt = batch["instance_boxes"][0].numpy()[: MAX_DETECTIONS - 2]
        boxes[: len(gt)] = gt * np.tile(scale, 2) + rng.uniform(-1.5, 1.5, gt.shape)
        boxes[len(gt)] = [5, 5, 40, 30]
        count = len(gt) + 1
        boxes[:, :2] = np.maximum(boxes[:, :2], 0)
        boxes[:, 2:] = np.minimum(boxes[:, 2:], np.tile(batch["image_hw"][0].numpy(), 1))
        category_ids = batch["instance_category_ids"][0].numpy()[: len(gt)]
        class_ids[: len(gt)] = [info.category_to_class_id[int(c)] for c in category_ids]
        class_ids[len(gt)] = 0
        scores = np.where(np.arange(MAX_DETECTIONS) < count, np.linspace(0.99, 0.3, MAX_DETECTIONS), 0)
        y, x = np.mgrid[:MASK_SIZE, :MASK_SIZE] / (MASK_SIZE - 1) * 2 - 1
        masks = np.broadcast_to(4 * (1.1 - y**2 - x**2), (MAX_DETECTIONS, MASK_SIZE, MASK_SIZE))
        return boxes, scores.astype(np.float32), class_ids, np.int32(count), masks.astype(np.float32)

    def call(self, images, image_hw, training=False):
        del training
        sums = tf.reduce_sum(images, [1, 2, 3])
        index = tf.argmin(tf.abs(sums[:, None] - self._keys[None, :]), axis=1)
        boxes, scores, class_ids, count, masks = (tf.gather(column, index) for column in self._rows)
        detections = Detections(boxes, scores, class_ids, count, masks)
        small = tf.nn.avg_pool2d(images, 4, 4, "VALID")  # [B, H / 4, W / 4, 3]
        logits = -tf.norm(small[..., None, :] - self._colors, axis=-1)  # [B, H / 4, W / 4, S]
        return InferenceOutputs(
            detections if self._task != "semantic" else None, logits if self._task != "instance" else None
        )


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


def run(evaluator, output_dir=None, max_images=0):
    metrics = evaluator.evaluate(output_dir, max_images)
    metrics.pop("seconds")
    return metrics


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
    files = score_panoptic(
        str(annotations / "panoptic_val.json"), "", str(folder / "panoptic.json"), "", semantic=True
    )
    assert files["panoptic"] == metrics["panoptic"] and files["semantic"] == metrics["semantic"]
    instances = score_instances(str(annotations / "instances_val.json"), str(folder / "instances.json"))
    assert instances == {"bbox": metrics["bbox"], "segm": metrics["segm"]}
    written = json.loads((folder / "metrics.json").read_text())
    written.pop("seconds")
    assert written == metrics


def test_html_report(evaluated):
    metrics, folder = evaluated
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 10  # five worst, five best
    assert "src='http" not in page
    for text in ("Worst images", "crate", f"{100 * metrics['panoptic']['All']['pq']:.2f}"):
        assert text in page


def test_subset_equals_files_of_the_subset(dataset, single, tmp_path):
    """Classes absent from the subset are left out of the averages."""
    metrics = run(single, str(tmp_path / "out"), max_images=2)
    panoptic = json.loads((dataset / "annotations/panoptic_val.json").read_text())
    panoptic["annotations"] = panoptic["annotations"][:2]
    (tmp_path / "gt.json").write_text(json.dumps(panoptic))
    files = score_panoptic(
        str(tmp_path / "gt.json"),
        str(dataset / "annotations/panoptic_val"),
        str(tmp_path / "out/panoptic.json"),
        str(tmp_path / "out/panoptic"),
    )
    assert metrics["num_images"] == 2
    assert files["panoptic"] == metrics["panoptic"]


@pytest.mark.parametrize("task, kinds", [("semantic", {"semantic_branch"}), ("instance", {"bbox", "segm"})])
def test_single_tasks(evaluator, evaluated, task, kinds):
    metrics = run(evaluator(task=task))
    assert set(metrics) == kinds | {"notes", "num_images"}
    assert {kind: evaluated[0][kind] for kind in kinds} == {kind: metrics[kind] for kind in kinds}


def test_all_semantic_targets(dataset, evaluator):
    metrics = run(evaluator(semantic_targets="all"), max_images=3)
    assert set(metrics["semantic_branch"]["iou"]) == {str(c.id) for c in info_of(dataset).categories}
    assert metrics["semantic_branch"]["things_as_one"]["miou"] is not None


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


def test_missing_records_are_named(dataset):
    config = config_of(dataset).replace(eval_records="nowhere/*.tfrecord")
    with pytest.raises(ValueError, match="eval_records=nowhere"):
        Evaluator(config, info_of(dataset), None)
