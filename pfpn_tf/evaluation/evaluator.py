"""Evaluates a network on a split of TFRecords, image by image.

Inference and fusion run in graph on all replicas; what follows is counted on the host while the
next batch is computed. Of an image the evaluation keeps counts and its detections' scores and match
flags, and no maps or masks.

Results do not depend on the number of replicas and workers: each replica gets batches of
`eval_batch_size` consecutive images, padded among themselves, and all sums are exact.

Shapes: B images per replica · H, W padded size · h, w original size.
"""

import concurrent.futures
import contextlib
import os
import shutil
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

import cv2
import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline, predictions, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution import workers as workers_lib
from pfpn_tf.evaluation import confusion, html_report, output_folder, report
from pfpn_tf.evaluation.counts import EvaluationMetrics, read_truth
from pfpn_tf.evaluation.inference import ImageOutputs, Inference, Network
from pfpn_tf.utils import progress
from pfpn_tf.utils.errors import UserError

_PARTS = ".parts"
_MAX_WAITING = 2  # Batches computed but not yet counted; bounds memory.


class Evaluator:
    """Runs one network on a split, as often as asked; the graph is traced once.

    Under a strategy of several workers, each of them has to make the same calls. All get the same
    results; the chief alone writes files, for which the workers share a disk.

    Attributes:
      categories: COCO categories of the dataset.
      found: of the last evaluation, over all workers.
    """

    def __init__(
        self,
        config: config_lib.Config,
        info: DatasetInfo,
        model: tf.keras.Model,
        strategy: Optional[tf.distribute.Strategy] = None,
        semantic: Optional[Network] = None,
    ):
        """Finds the records.

        Args:
          config: settings; `eval_records` names the split.
          info: the dataset the network was trained on.
          model: `PanopticFPN`, built under `strategy`.
          strategy: None: TensorFlow's current one.
          semantic: a second network for the semantic branch; that of `model` does not count then.

        Raises:
          UserError: there are no records.
        """
        self._config = config
        self._info = info
        self.categories = info.coco_categories()
        self._strategy = strategy or tf.distribute.get_strategy()
        self._inference = Inference(config, info, model, semantic)
        self._gather = workers_lib.Gatherer(self._strategy)
        self._workers = self._gather.workers
        self._num_images = len(tfrecord.read_index(config.data.eval_records, "eval_records"))
        self._string_ids = any(split.get("string_ids") for split in info.splits.values())
        self._function = None
        # Each of them is made once: TensorFlow keeps some MB of every pipeline it has made.
        self._datasets: Dict[int, Any] = {}
        self.found: EvaluationMetrics

    def evaluate(
        self, output_dir: Optional[str] = None, max_images: int = 0, save_predictions: bool = True
    ) -> Dict[str, Any]:
        """Evaluates the split.

        Args:
          output_dir: where metrics.json, the predictions and, of a panoptic network, report.html
            and confusion.png go; None: nothing is written.
          max_images: only the first images; 0: `--max_images`, or all.
          save_predictions: whether `output_dir` also gets the predictions in COCO format.

        Returns:
          Fractions at full precision, as far as the network has them: `panoptic` (see
          `PanopticQuality.result`), `semantic` (IoU of the panoptic maps, see
          `SemanticIoU.result`), `semantic_branch` (that of the branch's own argmax, the paper's
          mIoU), `bbox` and `segm` (see `AveragePrecision.result`); `num_images`, `seconds` and
          `notes`.

        Raises:
          UserError: records and network do not fit.
        """
        max_images = max_images or self._config.eval.max_images
        num_images = min(self._num_images, max_images) if max_images else self._num_images
        predictions_dir = output_dir if save_predictions else None
        if output_dir and self._workers.is_chief:
            output_folder.clear(output_dir)
        started = time.monotonic()
        parts = self._gather(self._evaluate_share(num_images, predictions_dir))
        failures = [part for part in parts if isinstance(part, str)]
        if failures:
            raise UserError(failures[0])
        if predictions_dir and self._workers.count > 1:
            self._merge_predictions(predictions_dir)
        self.found = parts[0]
        for part in parts[1:]:
            self.found.merge(part)
        seconds = self._gather(time.monotonic() - started)
        metrics = {
            **self.found.result(),
            "num_images": num_images,
            "seconds": round(max(seconds), 3),
        }
        if output_dir and self._workers.is_chief:
            self._write(output_dir, metrics)
        return metrics

    def first_images(self, count: int) -> Iterator[Tuple[ImageOutputs, Dict[str, Any], np.ndarray]]:
        """Outputs, entries of the batch and photo ([h, w, 3] uint8) of the split's first images.

        Each of several workers has its share, and gets `count` images if there are as many.
        """
        found: List[Tuple[ImageOutputs, Dict[str, Any]]] = []
        self._run(
            min(self._num_images, count * self._workers.count),
            lambda position, outputs, example: found.append((outputs, example)),
            keep_images=True,
        )
        for outputs, example in found[:count]:
            yield outputs, example, self._photo(example)

    def pictures(self) -> Dict[str, np.ndarray]:
        """Of the last evaluation: confusion, worst/0, ..., best/0, ..., [h, w, 3] uint8; none
        without panoptic maps.
        """
        gallery = self._gallery
        if gallery is None:
            return {}
        names = [category.name for category in self._info.categories]
        return {
            "confusion": confusion.draw(self.found.maps.confusion, names),
            **gallery.pictures(),
        }

    @property
    def _gallery(self):
        """That of the last evaluation; None without panoptic maps or ground truth."""
        return self.found.gallery if self.found.num_scored else None

    def _evaluate_share(self, num_images, predictions_dir):
        """This worker's `EvaluationMetrics`; of several workers, one that fails returns the message
        for all.
        """
        found = EvaluationMetrics(self._config.model, self._info)
        if predictions_dir and self._workers.count > 1:
            predictions_dir = _part(predictions_dir, self._workers.index)
            shutil.rmtree(predictions_dir, ignore_errors=True)  # of an evaluation that was stopped
        try:
            with self._writer(predictions_dir) as writer:

                def consume(position, outputs, example):
                    truth = read_truth(example, self._string_ids)
                    found.add(position, outputs, truth, lambda: self._photo(example), writer)

                self._run(num_images, consume, keep_images=found.gallery is not None)
        except UserError as error:
            if self._workers.count == 1:
                raise
            return str(error)
        return found

    def _writer(self, directory):
        if directory is None:
            return contextlib.nullcontext()
        task, targets = self._config.model.task, self._config.model.semantic_targets
        category_ids = self._info.semantic_category_ids(targets).tolist()
        if targets == "other":
            category_ids[0] = None  # Any thing.
        return predictions.PredictionWriter(
            directory,
            self.categories,
            panoptic=task == "panoptic",
            instances=task in ("panoptic", "instance"),
            semantic_category_ids=category_ids if task in ("panoptic", "semantic") else None,
        )

    def _merge_predictions(self, output_dir):
        """Joins what the workers have written, each in a folder of its own on the shared disk."""
        if self._workers.is_chief:
            with self._writer(output_dir) as writer:
                for worker in range(self._workers.count):
                    writer.take_over(_part(output_dir, worker))
            shutil.rmtree(os.path.join(output_dir, _PARTS))
        self._gather.wait()

    def _write(self, output_dir, metrics):
        report.write_metrics(os.path.join(output_dir, output_folder.METRICS), metrics)
        if self._gallery is not None:
            pixels = self.found.maps.confusion
            html_report.write(output_dir, metrics, self._info, self._gallery, pixels)

    def _photo(self, example):
        """The image as the network saw it, at original size: [h, w, 3] uint8."""
        height, width = example["image_hw"]
        data = self._config.data
        photo = example["images"][:height, :width] * np.float32(data.pixel_std) + np.float32(
            data.pixel_mean
        )
        photo = np.clip(np.rint(photo), 0, 255).astype(np.uint8)
        return cv2.resize(
            photo,
            tuple(int(side) for side in example["original_hw"][::-1]),
            interpolation=cv2.INTER_AREA,
        )

    def _run(self, num_images, consume, keep_images):
        """Calls consume(position, ImageOutputs, example) for each image of this worker in order."""
        if num_images not in self._datasets:
            self._datasets[num_images] = self._distributed_dataset(num_images)
        dataset = self._datasets[num_images]
        if self._function is None:
            spec = dataset.element_spec
            signature = (_inputs(spec), spec[0]["original_hw"])
            self._function = tf.function(self._step, input_signature=signature, autograph=False)
        local = self._strategy.experimental_local_results
        size = self._config.eval.eval_batch_size
        # This worker's batches: (position of the first image, number of images).
        batches = [
            (start, min(size, num_images - start))
            for start in range(self._workers.index * size, num_images, self._workers.count * size)
        ]
        bar = progress.Bar("Evaluating", sum(count for _, count in batches), "image")
        waiting = []
        iterator = iter(dataset)
        with concurrent.futures.ThreadPoolExecutor(1) as host:
            while batches:
                batch = next(iterator)
                outputs = local(self._function(_inputs(batch), batch[0]["original_hw"]))
                examples = local(
                    {k: v for k, v in batch[0].items() if k != "images" or keep_images}
                )
                for replica_outputs, replica_examples in zip(outputs, examples):
                    job = (
                        replica_outputs,
                        replica_examples,
                        *(batches.pop(0) if batches else (0, 0)),
                    )
                    waiting.append(host.submit(self._consume_batch, *job, consume, bar))
                while len(waiting) > (_MAX_WAITING if batches else 0):
                    waiting.pop(0).result()
        bar.close()

    def _consume_batch(self, outputs, examples, start, count, consume, bar):
        """Hands over the first `count` images of a replica's batch; the rest only fills it up."""
        outputs = tf.nest.map_structure(lambda t: None if t is None else t.numpy(), outputs)
        examples = {key: value.numpy() for key, value in examples.items()}
        for i in range(count):
            one = tf.nest.map_structure(lambda a: None if a is None else a[i], outputs)
            consume(start + i, one, {key: value[i] for key, value in examples.items()})
            bar.update()

    def _distributed_dataset(self, num_images):
        """Batches of `eval_batch_size` images for each replica in turn; endless, filled up at the
        end. A batch has a part for each of the inputs, of which the first has all entries.
        """
        size = self._config.eval.eval_batch_size

        def batches(count, context=None):
            datasets = [
                pipeline.build_dataset(
                    settings.replace(max_images=count), self._info, False, context
                )
                for settings in self._inference.settings
            ]
            fill = tf.autograph.experimental.do_not_convert(lambda *parts: _fill(parts, size))
            return tf.data.Dataset.zip(tuple(datasets)).map(fill)

        def make(context):
            # A worker may run out of batches, or have none, where others have one more.
            return batches(num_images, context).concatenate(
                batches(min(size, num_images)).cache().repeat()
            )

        # A GPU holds no strings, so batches stay on the host until the step takes them.
        options = tf.distribute.InputOptions(experimental_fetch_to_device=False)
        return self._strategy.distribute_datasets_from_function(make, options)

    def _step(self, inputs, original_hw):
        return self._strategy.run(self._inference, args=(inputs, original_hw))


def _part(output_dir, worker):
    return os.path.join(output_dir, _PARTS, f"worker-{worker}")


def _inputs(parts):
    """The networks' inputs of a batch, or of its spec."""
    return [(part["images"], part["image_hw"]) for part in parts]


def _fill(parts, size):
    """Repeats the last image of a batch up to `size` images."""
    first, *others = parts
    index = tf.minimum(tf.range(size), tf.shape(first["image_hw"])[0] - 1)
    return tf.nest.map_structure(
        lambda value: tf.ensure_shape(tf.gather(value, index), [size, *value.shape[1:]]),
        (first, *({name: part[name] for name in ("images", "image_hw")} for part in others)),
    )
