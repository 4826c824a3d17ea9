"""Evaluates a network between two steps of its training."""

import contextlib
import os
from typing import Any, Dict, Mapping

import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution.workers import workers_of
from pfpn_tf.evaluation import evaluator
from pfpn_tf.runs import restore
from pfpn_tf.training import logs


class TrainingEvaluation:
    """Evaluates a network between two steps of its training, as often as asked; traced once."""

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        run_dir: str,
        model: tf.keras.Model,
        strategy: tf.distribute.Strategy,
        averages: Mapping[str, tf.Variable],
    ):
        """Takes the network.

        Args:
          config: settings of the run.
          info: the dataset.
          run_dir: results go to RUN_DIR/eval/STEP, those of the averages into the folder ema in it.
          model: built under `strategy`.
          strategy: of the training.
          averages: moving averages by the paths of `restore.model_variables`; may be empty.
        """
        self._run_dir = run_dir
        self._model = model
        self._averages = averages
        self._is_chief = workers_of(strategy).is_chief
        self._evaluator = evaluator.Evaluator(config, info, model, strategy)

    def evaluate(self, step: int, log: logs.RunLog) -> Dict[str, Any]:
        """Evaluates the weights, and their averages if there are any.

        Args:
          step: of the weights.
          log: gets tables and pictures; the scalars are left to the caller.

        Returns:
          See `Evaluator.evaluate`; `ema`: the same of the averages.
        """
        output_dir = os.path.join(self._run_dir, "eval", str(step))
        metrics = self._evaluator.evaluate(output_dir, save_predictions=False)
        if self._is_chief:
            log.write_report(
                metrics, self._evaluator.class_table(metrics), self._evaluator.pictures(), step
            )
        if self._averages:
            with _in_place(self._averages, self._model):
                metrics["ema"] = self._evaluator.evaluate(
                    os.path.join(output_dir, "ema"), save_predictions=False
                )
        return metrics


@contextlib.contextmanager
def _in_place(averages, model):
    """Gives the model its averages, and then its own weights back."""
    variables = restore.model_variables(model)
    weights = {path: tf.convert_to_tensor(variables[path]) for path in averages}
    try:
        for path, average in averages.items():
            variables[path].assign(tf.convert_to_tensor(average))
        yield
    finally:
        for path, weight in weights.items():
            variables[path].assign(weight)
