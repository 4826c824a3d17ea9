"""Evaluates a network between two steps of its training."""

import os
from typing import Any, Dict

from pfpn_tf.evaluation import output_folder
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.training import logs
from pfpn_tf.training.averages import MovingAverages


def evaluate(
    evaluator: Evaluator, averages: MovingAverages, run_dir: str, step: int, log: logs.RunLog
) -> Dict[str, Any]:
    """Evaluates the weights, and their averages if there are any.

    Args:
      evaluator: of the network.
      averages: moving averages of its weights; there may be none.
      run_dir: results go to RUN_DIR/eval/STEP, those of the averages into the folder ema in it.
      step: of the weights.
      log: gets tables and pictures; the scalars are left to the caller.

    Returns:
      See `Evaluator.evaluate`; `ema`: the same of the averages.
    """
    output_dir = os.path.join(run_dir, "eval", str(step))
    metrics = evaluator.evaluate(output_dir, save_predictions=False)
    log.write_report(metrics, evaluator.class_table(metrics), evaluator.pictures(), step)
    if averages.variables:
        with averages.in_place_of_weights():
            metrics["ema"] = evaluator.evaluate(
                os.path.join(output_dir, output_folder.AVERAGES), save_predictions=False
            )
    return metrics
