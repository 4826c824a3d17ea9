"""Evaluates a network between two steps of its training."""

import os
from typing import Any, Dict

import tensorflow as tf

from pfpn_tf.config import Config
from pfpn_tf.data.categories import DatasetInfo
from pfpn_tf.distribution.workers import workers_of
from pfpn_tf.evaluation import evaluator
from pfpn_tf.training import logs
from pfpn_tf.training.averages import MovingAverages


class TrainingEvaluation:
    """Evaluates a network between two steps of its training, as often as asked; traced once."""

    def __init__(
        self,
        config: Config,
        info: DatasetInfo,
        run_dir: str,
        model: tf.keras.Model,
        strategy: tf.distribute.Strategy,
        averages: MovingAverages,
    ):
        """Takes the network.

        Args:
          config: settings of the run.
          info: the dataset.
          run_dir: results go to RUN_DIR/eval/STEP, those of the averages into the folder ema in it.
          model: built under `strategy`.
          strategy: of the training.
          averages: moving averages of `model`; there may be none.
        """
        self._run_dir = run_dir
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
        if self._averages.variables:
            with self._averages.in_place_of_weights():
                metrics["ema"] = self._evaluator.evaluate(
                    os.path.join(output_dir, "ema"), save_predictions=False
                )
        return metrics
