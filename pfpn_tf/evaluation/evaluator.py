"""Evaluates a network on a split of TFRecords, image by image.

Inference and fusion run in graph on all replicas; what follows is counted on the host while the next
batch is computed. Kept of an image are its counts and the scores and match flags of its
detections, so memory does not depend on the size of the split.

Results do not depend on the number of replicas: each replica gets batches of `eval_batch_size`
consecutive images, padded among themselves, and all sums are exact.

Shapes: B images per replica · H, W padded size · h, w original size · D detections · S semantic
classes · N rows of the segment table.
"""

import concurrent.futures
import json
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional

import cv2
import numpy as np
from pycocotools import mask as mask_utils
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf import structures
from pfpn_tf.data import pipeline, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.evaluation import coco_format, html_report, report, score_files
from pfpn_tf.evaluation.average_precision import AveragePrecision
from pfpn_tf.evaluation.panoptic_quality import overlaps
from pfpn_tf.evaluation.semantic_iou import THINGS, SemanticIoU
from pfpn_tf.postprocess import fusion
from pfpn_tf.postprocess.instances import instances_at_original_size
from pfpn_tf.utils.files import atomic_write

METRICS = "metrics.json"
REPORT = "report.html"
_MAX_WAITING = 2  # Batches computed but not yet counted; bounds memory.


class ImageOutputs(NamedTuple):
    """What the network says about one image, or a batch of them.

    Attributes:
      panoptic: `PanopticResult`; None without both branches.
      labels: [h, w] semantic class per pixel, S where undefined; None without a semantic branch.
      detections: `Detections` in the frame of the network input; None without an instance branch.
    """

    panoptic: Optional[structures.PanopticResult] = None
    labels: Optional[tf.Tensor] = None
    detections: Optional[structures.Detections] = None


class ImageTruth(NamedTuple):
    """Ground truth of one image, as its record has it.

    Attributes:
      image_id: number or string, as in the dataset's JSON.
      hw: original (height, width).
      panoptic_ids: [h, w] uint32.
      segments: COCO segments_info.
      annotations: COCO instance annotations, crowds included.
    """

    image_id: Any
    hw: tuple
    panoptic_ids: np.ndarray
    segments: List[dict]
    annotations: List[dict]


class Evaluator:
    """Runs one network on a split, as often as asked; the graph is traced once."""

    def __init__(
        self,
        config: config_lib.Config,
        info: DatasetInfo,
        model: tf.keras.Model,
        strategy: Optional[tf.distribute.Strategy] = None,
    ):
        """Finds the records.

        Args:
          config: settings; `eval_records` names the split.
          info: the dataset the network was trained on.
          model: `PanopticFPN`, built under `strategy`.
          strategy: None: TensorFlow's current one.

        Raises:
          ValueError: there are no records.
        """
        self._config = config
        self._info = info
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._tables = fusion.fusion_tables(info, config.model.semantic_targets)
        self._num_images = len(tfrecord.read_index(config.data.eval_records, "eval_records"))
        self._string_ids = any(split.get("string_ids") for split in info.splits.values())
        self._function = None

    def evaluate(
        self, output_dir: Optional[str] = None, max_images: int = 0, save_predictions: bool = True
    ) -> Dict[str, Any]:
        """Evaluates the split.

        Args:
          output_dir: where metrics.json and the predictions go; None: nothing is written.
          max_images: only the first images; 0: `--max_images`, or all.
          save_predictions: whether `output_dir` also gets the predictions in COCO format and, of a panoptic network,
            report.html.

        Returns:
          Fractions at full precision: `panoptic` (see `PanopticQuality.result`), `semantic` (IoU of the panoptic maps) and
          `semantic_branch` (of the branch's own argmax, the paper's mIoU; see `SemanticIoU.result`), `bbox` and `segm` (see
          `average_precision`), as far as the network has them; `num_images`, `seconds`, `notes`.

        Raises:
          ValueError: records and network do not fit.
        """
        max_images = max_images or self._config.eval.max_images
        num_images = min(self._num_images, max_images) if max_images else self._num_images
        counts = _Counts(self._config.model, self._info)
        save_predictions = save_predictions and output_dir is not None
        with_report = save_predictions and self._config.model.task == "panoptic"
        gallery = html_report.Gallery(self._info) if with_report else None
        started = time.monotonic()
        with _writer(output_dir if save_predictions else None, self._config.model, self._info) as writer:

            def consume(outputs, truth, example):
                image_counts, segments = counts.add(outputs, truth, example["image_hw"], writer)
                if gallery:
                    ids = outputs.panoptic.panoptic_ids[: truth.hw[0], : truth.hw[1]]
                    gt, pred = (truth.panoptic_ids, truth.segments), (ids, segments)
                    gallery.add(truth.image_id, image_counts, self._photo(example), gt, pred)

            self._run(num_images, consume, keep_images=with_report)
        metrics = counts.result()
        metrics["num_images"] = num_images
        metrics["seconds"] = round(time.monotonic() - started, 3)
        if output_dir:
            with atomic_write(os.path.join(output_dir, METRICS)) as f:
                json.dump(metrics, f, indent=2)
                f.write("\n")
        if gallery:
            path = os.path.join(output_dir, REPORT)
            html_report.write(path, metrics, self._info, gallery, counts.confusion)
        return metrics

    def _photo(self, example):
        """The image as the network saw it, at original size: [h, w, 3] uint8."""
        height, width = example["image_hw"]
        data = self._config.data
        photo = example["images"][:height, :width] * np.float32(data.pixel_std) + np.float32(data.pixel_mean)
        photo = np.clip(np.rint(photo), 0, 255).astype(np.uint8)
        return cv2.resize(photo, tuple(int(side) for side in example["original_hw"][::-1]), interpolation=cv2.INTER_AREA)

    def _run(self, num_images, consume, keep_images):
        """Calls consume(ImageOutputs, ImageTruth, example) for each image in order."""
        dataset = self._distributed_dataset(num_images)
        if self._function is None:
            spec = dataset.element_spec
            signature = [spec["images"], spec["image_hw"], spec["original_hw"]]
            self._function = tf.function(self._step, input_signature=signature, autograph=False)
        local = self._strategy.experimental_local_results
        progress = report.Progress(num_images)
        waiting = []
        done = 0
        with concurrent.futures.ThreadPoolExecutor(1) as host:
            for batch in dataset:
                outputs = local(self._function(batch["images"], batch["image_hw"], batch["original_hw"]))
                truths = local({key: value for key, value in batch.items() if key != "images" or keep_images})
                for replica_outputs, replica_truths in zip(outputs, truths):
                    count = min(self._config.eval.eval_batch_size, num_images - done)
                    done += count
                    job = (replica_outputs, replica_truths, count, consume, progress)
                    waiting.append(host.submit(self._consume_batch, *job))
                while len(waiting) > (_MAX_WAITING if done < num_images else 0):
                    waiting.pop(0).result()
                if done == num_images:
                    break
        progress.close()

    def _consume_batch(self, outputs, truths, count, consume, progress):
        """Hands over the first `count` images of a replica's batch; the rest only fills it up."""
        outputs = tf.nest.map_structure(lambda t: None if t is None else t.numpy(), outputs)
        truths = {key: value.numpy() for key, value in truths.items()}
        for i in range(count):
            one = tf.nest.map_structure(lambda a: None if a is None else a[i], outputs)
            example = {key: value[i] for key, value in truths.items()}
            consume(one, read_truth(example, self._string_ids), example)
            progress.advance()

    def _distributed_dataset(self, num_images):
        """Batches of `eval_batch_size` images for each replica in turn; endless, filled up at the end."""
        config = self._config.replace(max_images=num_images)

        def make(context):
            del context
            dataset = pipeline.build_dataset(config, self._info, training=False)
            dataset = dataset.map(lambda batch: _fill(batch, config.eval.eval_batch_size))
            return dataset.concatenate(dataset.take(1).repeat())

        # Strings have no place on a GPU: batches stay with the host until the step takes them.
        options = tf.distribute.InputOptions(experimental_fetch_to_device=False)
        return self._strategy.distribute_datasets_from_function(make, options)

    def _step(self, images, image_hw, original_hw):
        return self._strategy.run(self._replica_step, args=(images, image_hw, original_hw))

    def _replica_step(self, images, image_hw, original_hw):
        """Inference and fusion of one replica's batch.

        Args:
          images: [B, H, W, 3]. image_hw: [B, 2]. original_hw: [B, 2].

        Returns:
          Batched `ImageOutputs`; maps are padded with 0 to the largest original size.
        """
        outputs = self._model(images, image_hw, training=False)
        return batch_outputs(outputs, image_hw, original_hw, self._config.model, self._tables)


def evaluate(
    model: tf.keras.Model,
    config: config_lib.Config,
    info: DatasetInfo,
    strategy: Optional[tf.distribute.Strategy] = None,
    output_dir: Optional[str] = None,
    max_images: int = 0,
) -> Dict[str, Any]:
    """`Evaluator(...).evaluate(...)` once. To evaluate repeatedly, keep the `Evaluator`: it traces only once."""
    return Evaluator(config, info, model, strategy).evaluate(output_dir, max_images)


def batch_outputs(
    outputs: structures.InferenceOutputs,
    image_hw: tf.Tensor,
    original_hw: tf.Tensor,
    model_config: config_lib.Model,
    tables: fusion.FusionTables,
) -> ImageOutputs:
    """Labels and panoptic maps at original size, in graph.

    Args:
      outputs: of the network, batched.
      image_hw: [B, 2] int32. original_hw: [B, 2] int32.
      model_config: fusion settings.
      tables: from `fusion.fusion_tables`.

    Returns:
      Batched `ImageOutputs`; maps are padded with 0 to the largest original size.
    """
    if outputs.semantic_logits is None:
        return ImageOutputs(detections=outputs.detections)
    has_panoptic = outputs.detections is not None
    padded_hw = tf.reduce_max(original_hw, 0)

    def one_image(image_outputs, hw, full_hw):
        rest = padded_hw - full_hw
        padding = [[0, rest[0]], [0, rest[1]]]
        labels = fusion.semantic_labels(image_outputs.semantic_logits, hw, full_hw)
        maps = {"labels": tf.pad(tf.cast(labels, tf.int32), padding)}
        if has_panoptic:
            result = fusion.fuse_image(
                image_outputs,
                hw,
                full_hw,
                tables,
                model_config.fusion_score_threshold,
                model_config.fusion_overlap_threshold,
                model_config.fusion_stuff_area_threshold_px,
                labels=labels,
            )
            maps["panoptic"] = result._replace(panoptic_ids=tf.pad(result.panoptic_ids, padding))
        return maps

    signature = {"labels": tf.TensorSpec([None, None], tf.int32)}
    if has_panoptic:
        signature["panoptic"] = fusion.result_signature(outputs)
    maps = fusion.map_images(one_image, outputs, image_hw, original_hw, signature)
    return ImageOutputs(detections=outputs.detections, **maps)


def read_truth(example: Dict[str, np.ndarray], string_ids: bool) -> ImageTruth:
    """The ground truth of one image.

    Args:
      example: numpy values of the evaluation keys of `pipeline`, without the batch axis.
      string_ids: whether the dataset's image ids are strings even where they look like numbers.
    """
    image_id = example["source_id"].decode()
    if not string_ids and image_id.isdigit() and str(int(image_id)) == image_id:
        image_id = int(image_id)
    segments = [
        {"id": int(i), "category_id": int(category_id), "area": int(area), "iscrowd": int(iscrowd)}
        for i, category_id, area, iscrowd in zip(
            example["segment_ids"],
            example["segment_category_ids"],
            example["segment_areas"],
            example["segment_iscrowd"],
        )
        if i != 0
    ]
    annotations = []
    for i, png in enumerate(example["instance_mask_png"]):
        if not png:  # Padding.
            continue
        mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
        y1, x1, y2, x2 = (_decimal(v) for v in example["instance_boxes"][i])
        annotations.append(
            {
                "id": int(example["instance_ids"][i]),
                "image_id": image_id,
                "category_id": int(example["instance_category_ids"][i]),
                "area": float(example["instance_areas"][i]),
                "bbox": [x1, y1, _decimal(x2 - x1), _decimal(y2 - y1)],
                "iscrowd": int(example["instance_iscrowd"][i]),
                "segmentation": mask_utils.encode(np.asfortranarray(mask > 0, np.uint8)),
            }
        )
    name = f"Image {image_id}: panoptic PNG of the record"
    return ImageTruth(
        image_id,
        tuple(int(side) for side in example["original_hw"]),
        coco_format.decode_panoptic_png(example["panoptic_png"], name),
        segments,
        annotations,
    )


class _Counts:
    """The accumulators of one evaluation."""

    def __init__(self, model_config, info):
        self._info = info
        self._categories = info.coco_categories()
        has_semantics = model_config.task in ("panoptic", "semantic")
        has_instances = model_config.task in ("panoptic", "instance")
        self._quality = self._maps = self._branch = None
        if model_config.task == "panoptic":
            self._quality, self._maps = score_files.accumulators(self._categories, semantic=True)
        if has_semantics:
            self._branch = self._branch_accumulator(model_config.semantic_targets)
        things = [c for c in self._categories if c["isthing"]]
        self._precision = {
            kind: AveragePrecision(things, kind) for kind in (("bbox", "segm") if has_instances else ())
        }

    def _branch_accumulator(self, semantic_targets):
        """IoU over the branch's own classes; category_id of a segment -> class name."""
        things = {c.id for c in self._info.things}
        if semantic_targets == "other":
            stuff = [c.id for c in self._info.stuff]
            self._class_of = {c.id: THINGS if c.id in things else c.id for c in self._info.categories}
            self._branch_classes = [THINGS] + stuff
            return SemanticIoU(self._branch_classes)
        self._branch_classes = [c.id for c in self._info.categories]
        self._class_of = {c: c for c in self._branch_classes}
        return SemanticIoU(self._branch_classes, sorted(things))

    @property
    def confusion(self):
        """[C, C + 1] pixels of the panoptic maps over the categories, void last."""
        return self._maps.confusion

    def add(self, outputs: ImageOutputs, truth: ImageTruth, image_hw, writer):
        """Adds one image, and writes its predictions if there is a writer.

        Returns:
          (`ImageCounts`, predicted segments_info), or (None, None) without panoptic maps.
        """
        height, width = truth.hw
        image_counts = segments = None
        if self._quality:
            ids = outputs.panoptic.panoptic_ids[:height, :width].astype(np.uint32)
            segments = segments_info(outputs.panoptic)
            found = overlaps(truth.panoptic_ids, ids)
            image_counts = self._quality.update(found, truth.segments, segments, f"Image {truth.image_id}")
            self._maps.update(found, truth.segments, segments)
            if writer:
                writer.add_panoptic(truth.image_id, ids, segments)
        if self._branch:
            labels = outputs.labels[:height, :width].astype(np.uint32) + 1  # 0 would be void
            gt = [{"id": s["id"], "category_id": self._class_of[s["category_id"]]} for s in truth.segments]
            pred = [{"id": i + 1, "category_id": name} for i, name in enumerate(self._branch_classes)]
            self._branch.update(overlaps(truth.panoptic_ids, labels), gt, pred)
        if self._precision:
            found = instances_at_original_size(outputs.detections, image_hw, truth.hw)
            results = coco_format.instance_results(
                truth.image_id,
                found.boxes,
                found.scores,
                self._info.thing_category_ids[found.class_ids],
                found.masks,
            )
            image = {"id": truth.image_id, "height": height, "width": width}
            for precision in self._precision.values():
                precision.update(image, truth.annotations, results)
            if writer:
                writer.add_instances(results)
        return image_counts, segments

    def result(self) -> Dict[str, Any]:
        metrics = {"notes": []}
        if self._quality:
            metrics["panoptic"] = self._quality.result()
            metrics["semantic"] = self._maps.result()
            metrics["notes"] = score_files.notes(metrics["panoptic"])
        if self._branch:
            metrics["semantic_branch"] = self._branch.result()
        for kind, precision in self._precision.items():
            metrics[kind] = precision.result()
        return metrics


def segments_info(result: structures.PanopticResult) -> List[dict]:
    """COCO segments_info of one image's `PanopticResult` (numpy)."""
    segments = []
    for i in range(int(result.num_segments)):
        y1, x1, y2, x2 = (int(v) for v in result.boxes[i])
        segment = {
            "id": int(result.segment_ids[i]),
            "category_id": int(result.category_ids[i]),
            "isthing": bool(result.is_thing[i]),
            "iscrowd": 0,
            "area": int(result.areas[i]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        if segment["isthing"]:
            segment["score"] = float(result.scores[i])
        segments.append(segment)
    return segments


def _writer(directory, model_config, info):
    if directory is None:
        return _NoWriter()
    return coco_format.PredictionWriter(
        directory,
        info.coco_categories(),
        panoptic=model_config.task == "panoptic",
        instances=model_config.task in ("panoptic", "instance"),
    )


class _NoWriter:
    """Stands where a `PredictionWriter` would; false."""

    def __enter__(self):
        return None

    def __exit__(self, *args):
        return None


def _fill(batch, size):
    """Repeats the last image of a batch up to `size` images."""
    count = tf.shape(batch["image_hw"])[0]
    index = tf.minimum(tf.range(size), count - 1)
    return {
        key: tf.ensure_shape(tf.gather(value, index), [size, *value.shape[1:]]) for key, value in batch.items()
    }


def _decimal(value):
    """Undoes float32: COCO writes boxes with two decimals."""
    rounded = round(float(value), 2)
    return rounded if abs(rounded - value) < 1e-4 else float(value)
