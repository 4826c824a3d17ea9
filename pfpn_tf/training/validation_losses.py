"""The losses of the training on the validation data (--eval_losses)."""

from typing import Dict, List

import numpy as np
import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf import losses
from pfpn_tf.data import pipeline, tfrecord
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution.workers import Gatherer
from pfpn_tf.training import trainer


class ValidationLosses:
    """Computes the losses on --eval_records, as often as asked; the graph is traced once.

    The images are not augmented and the samples of anchors and RoIs are the same every time. The
    network stays as it is: norms use the statistics that they have gathered. A loss is the sum over
    all images, divided by its count over all images. Sums are kept by image and added in file
    order, so that they do not depend on the number of replicas and workers. Of several workers,
    each has to make the same calls.
    """

    def __init__(
        self,
        config: config_lib.Config,
        info: DatasetInfo,
        model: tf.keras.Model,
        strategy: tf.distribute.Strategy,
    ):
        """Finds the records; `model` is built under `strategy`.

        Raises:
          UserError: there are no records.
        """
        self._config = config
        self._info = info
        self._model = model
        self._strategy = strategy
        self._gather = Gatherer(strategy)
        self._num_images = len(tfrecord.read_index(config.data.eval_records, "eval_records"))
        if config.eval.max_images:
            self._num_images = min(self._num_images, config.eval.max_images)
        self._dataset = strategy.distribute_datasets_from_function(self._images)
        self._function = tf.function(
            lambda batch: strategy.run(self._terms, args=(batch,)),
            input_signature=[self._dataset.element_spec],
            autograph=False,
        )

    def __call__(self) -> Dict[str, float]:
        """Name -> loss of the weights as they are; names, weights and the sum, total, are those of
        `panoptic_fpn_losses`.
        """
        workers, local = self._gather.workers, self._strategy.experimental_local_results
        num_mine = len(range(workers.index, self._num_images, workers.count))
        iterator = iter(self._dataset)
        rows: List[Dict[str, np.ndarray]] = []
        while len(rows) < num_mine:
            terms = self._function(next(iterator))
            by_replica = zip(*(local(value) for value in terms.values()))
            rows += [{n: v.numpy() for n, v in zip(terms, values)} for values in by_replica]
        parts = self._gather(rows[:num_mine])
        in_order = [parts[i % workers.count][i // workers.count] for i in range(self._num_images)]
        totals = {name: np.sum([row[name] for row in in_order], axis=0) for name in in_order[0]}
        sums = {name: total[0] for name, total in totals.items()}
        counts = {name: total[1] for name, total in totals.items()}
        # With --alternate_losses logged losses are means over both kinds of step; so are these.
        both = [losses.weighted_means(sums, counts, self._config.train, step) for step in (0, 1)]
        return {name: (float(both[0][name]) + float(both[1][name])) / 2 for name in both[0]}

    def _images(self, context):
        """This worker's images in turn, then one again and again: no replica is left without."""
        own = pipeline.validation_dataset(self._config, self._info, context)
        filler = pipeline.validation_dataset(self._config.replace(max_images=1), self._info)
        return own.concatenate(filler.cache().repeat())

    def _terms(self, batch):
        """Name -> [2] float64, sum and count of one image."""
        truth = trainer.ground_truth(batch)
        outputs = self._model(
            batch["images"], batch["image_hw"], ground_truth=truth, seed=batch["seed"]
        )
        terms = losses.sums_and_counts(outputs, truth, self._config.model)
        sums, counts = (
            {name: tf.cast(value, tf.float64) for name, value in part.items()} for part in terms
        )
        return {name: tf.stack([sums[name], counts[name]]) for name in sums}
