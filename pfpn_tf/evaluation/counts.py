"""What an evaluation counts: ground truth of an image against what the network says about it.

Shapes: h, w original size · C classes.
"""

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional

import cv2
import numpy as np

from pfpn_tf.data import coco_json, coco_masks, panoptic_png, predictions
from pfpn_tf.evaluation.average_precision import AveragePrecision
from pfpn_tf.evaluation.gallery import Gallery
from pfpn_tf.evaluation.inference import ImageOutputs
from pfpn_tf.evaluation.panoptic_quality import PanopticQuality
from pfpn_tf.evaluation.segment_pairs import segment_pairs
from pfpn_tf.evaluation.semantic_iou import THINGS, SemanticIoU
from pfpn_tf.postprocess.instances import full_masks, original_instances
from pfpn_tf.utils.errors import UserError

_OTHER_IDS = 2**62  # AP counts images whose ids are not numbers from here on, after all others


class ImageTruth(NamedTuple):
    """Ground truth of one image, as its record has it.

    Attributes:
      image_id: number or string, as in the dataset's JSON.
      hw: original (height, width).
      panoptic_ids: [h, w] uint32; None for an image without annotations.
      segments: COCO segments_info.
      annotations: COCO instance annotations, crowds included.
    """

    image_id: Any
    hw: tuple
    panoptic_ids: Optional[np.ndarray]
    segments: List[dict]
    annotations: List[dict]


def read_truth(example: Mapping[str, Any], string_ids: bool) -> ImageTruth:
    """The ground truth of one image.

    Args:
      example: numpy values of the evaluation keys of `pipeline`, without the batch axis.
      string_ids: whether the dataset's image ids are strings even where they look like numbers.
    """
    image_id = example["source_id"].decode()
    if not string_ids:
        image_id = coco_json.canonical_id(image_id)
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
        if mask is None:
            raise UserError(f"Image {image_id}: mask PNG {i} of the record is not readable.")
        y1, x1, y2, x2 = (_decimal(v) for v in example["instance_boxes"][i])
        annotations.append(
            {
                "id": int(example["instance_ids"][i]),
                "image_id": image_id,
                "category_id": int(example["instance_category_ids"][i]),
                "area": float(example["instance_areas"][i]),
                "bbox": [x1, y1, _decimal(x2 - x1), _decimal(y2 - y1)],
                "iscrowd": int(example["instance_iscrowd"][i]),
                "segmentation": coco_masks.encode_rle(mask > 0),
            }
        )
    panoptic_ids = None
    if example["panoptic_png"]:
        name = f"Image {image_id}: panoptic PNG of the record"
        panoptic_ids = panoptic_png.decode_ids(example["panoptic_png"], name)
    hw = tuple(int(side) for side in example["original_hw"])
    return ImageTruth(image_id, hw, panoptic_ids, segments, annotations)


class EvaluationMetrics:
    """The accumulators of one evaluation. Those of several workers add up.

    Attributes:
      num_scored, num_unannotated: images with and without ground truth.
      maps: `SemanticIoU` of the panoptic maps over the categories; None without them.
      gallery: the best and worst images; None without panoptic maps.
      image_ids: in the order of evaluation.
    """

    def __init__(self, model_config, info):
        self.num_scored = self.num_unannotated = 0
        self.image_ids: List[Any] = []
        self._info = info
        categories = info.coco_categories()
        task = model_config.task
        self._quality = self.maps = self._branch = self.gallery = None
        if task == "panoptic":
            self._quality = PanopticQuality(categories)
            self.maps = SemanticIoU.of_categories(categories)
            self.gallery = Gallery(info)
        if task in ("panoptic", "semantic"):
            self._branch = self._branch_accumulator(model_config.semantic_targets)
        things = [c for c in categories if c["isthing"]]
        kinds = ("bbox", "segm") if task in ("panoptic", "instance") else ()
        self._precision = {kind: AveragePrecision(things, kind) for kind in kinds}

    def _branch_accumulator(self, semantic_targets):
        """IoU over the branch's own classes; category_id of a segment -> class name."""
        names = self._info.semantic_category_ids(semantic_targets).tolist()
        things = self._info.thing_category_ids.tolist()
        if semantic_targets == "other":
            names[0], things = THINGS, []
        classes = self._info.semantic_lookup(semantic_targets)
        self._class_of = {c.id: names[classes[i]] for i, c in enumerate(self._info.categories)}
        self._branch_classes = names
        return SemanticIoU(names, things)

    def add(
        self,
        position: int,
        outputs: ImageOutputs,
        truth: ImageTruth,
        photo: Callable[[], np.ndarray],
        writer: Optional[predictions.PredictionWriter] = None,
    ) -> None:
        """Adds one image, and writes its predictions if there is a writer.

        Args:
          position: of the image in the split.
          outputs: what the network says about the image.
          truth: its ground truth.
          photo: gives the image for the gallery, [h, w, 3] uint8.
          writer: None: predictions are not written.
        """
        scored = truth.panoptic_ids is not None
        self.num_scored += scored
        self.num_unannotated += not scored
        self.image_ids.append(truth.image_id)
        if self._quality:
            self._add_panoptic(position, outputs, truth, photo, writer)
        if self._branch:
            self._add_labels(outputs, truth, writer)
        if self._precision:
            self._add_instances(position, outputs, truth, writer)

    def _add_panoptic(self, position, outputs, truth, photo, writer):
        height, width = truth.hw
        ids = outputs.panoptic.panoptic_ids[:height, :width].astype(np.uint32)
        segments = predictions.segments_info(outputs.panoptic._asdict())
        if writer:
            writer.add_panoptic(truth.image_id, ids, segments)
        if truth.panoptic_ids is None:
            return
        pairs, name = segment_pairs(truth.panoptic_ids, ids), f"Image {truth.image_id}"
        matches = self._quality.update(pairs, truth.segments, segments, name)
        self.maps.update(pairs, truth.segments, segments)
        gt = truth.panoptic_ids, truth.segments
        self.gallery.add(position, name, matches, lambda: (photo(), gt, (ids, segments)))

    def _add_labels(self, outputs, truth, writer):
        """The semantic branch's own labels."""
        height, width = truth.hw
        labels = outputs.labels[:height, :width]
        if writer:
            writer.add_semantic(truth.image_id, labels)
        if truth.panoptic_ids is None:
            return
        gt = [
            {"id": s["id"], "category_id": self._class_of[s["category_id"]]} for s in truth.segments
        ]
        pred = [{"id": i, "category_id": name} for i, name in enumerate(self._branch_classes, 1)]
        pred_ids = labels.astype(np.uint32) + 1  # 0 would be void.
        self._branch.update(segment_pairs(truth.panoptic_ids, pred_ids), gt, pred)

    def _add_instances(self, position, outputs, truth, writer):
        instances = original_instances(outputs.detections)
        results = predictions.instance_results(
            truth.image_id,
            instances.boxes,
            instances.scores,
            self._info.thing_category_ids[instances.class_ids],
            full_masks(instances, truth.hw),
        )
        if writer:
            writer.add_instances(results)
        if truth.panoptic_ids is None:
            return
        image = {"id": truth.image_id, "height": truth.hw[0], "width": truth.hw[1]}
        for precision in self._precision.values():
            precision.update({_place(truth.image_id, position): image}, truth.annotations, results)

    def merge(self, other: "EvaluationMetrics") -> None:
        """Adds another worker's images; their ids come after those of this one."""
        self.num_scored += other.num_scored
        self.num_unannotated += other.num_unannotated
        self.image_ids += other.image_ids
        for mine, its in zip(self._accumulators(), other._accumulators()):
            mine.merge(its)

    def _accumulators(self):
        found = [self._quality, self.maps, self._branch, self.gallery, *self._precision.values()]
        return [accumulator for accumulator in found if accumulator is not None]

    def result(self) -> Dict[str, Any]:
        """The metrics, as `Evaluator.evaluate` has them."""
        metrics: Dict[str, Any] = {"notes": []}
        if self.num_unannotated:
            metrics["notes"].append(
                f"{self.num_unannotated} images have no ground truth and were only predicted."
            )
            if not self.num_scored:
                return metrics
        if self._quality:
            metrics["panoptic"] = self._quality.result()
            metrics["semantic"] = self.maps.result()
            metrics["notes"] += self._quality.notes()
        if self._branch:
            metrics["semantic_branch"] = self._branch.result()
        for kind, precision in self._precision.items():
            metrics[kind] = precision.result()
        return metrics


def _decimal(value):
    """Undoes float32: COCO writes boxes with two decimals."""
    rounded = round(float(value), 2)
    return rounded if abs(rounded - value) < 1e-4 else float(value)


def _place(image_id, position):
    """The integer by which AP orders an image: pycocotools' order, that of the ids, where they
    are numbers. Other ids come after these, by their position.
    """
    if isinstance(image_id, int) and 0 <= image_id < _OTHER_IDS:
        return image_id
    return _OTHER_IDS + position
