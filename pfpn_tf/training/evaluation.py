"""Evaluates a network between two steps of its training."""

import os
from typing import Any, Callable, Dict, Optional

from pfpn_tf.evaluation import output_folder, report
from pfpn_tf.evaluation.evaluator import Evaluator
from pfpn_tf.training import logs
from pfpn_tf.training.averages import MovingAverages


def evaluate(
    evaluator: Evaluator,
    averages: MovingAverages,
    run_dir: str,
    step: int,
    log: logs.RunLog,
    losses: Optional[Callable[[], Dict[str, float]]] = None,
) -> Dict[str, Any]:
    """Evaluates the weights, and their averages if there are any.

    Args:
      evaluator: of the network.
      averages: moving averages of its weights; there may be none.
      run_dir: results go to RUN_DIR/eval/STEP, those of the averages into the folder ema in it.
      step: of the weights.
      log: gets tables and pictures; the scalars are left to the caller.
      losses: `ValidationLosses` of the network; None: not asked for.

    Returns:
      See `Evaluator.evaluate`; `losses` by name, if asked for and if there is something to score;
      `ema`: the same of the averages.
    """

    def evaluated(output_dir):
        metrics = evaluator.evaluate(output_dir, save_predictions=False)
        if losses and report.flat_scalars(metrics):
            metrics["losses"] = losses()
        return metrics

    output_dir = os.path.join(run_dir, "eval", str(step))
    metrics = evaluated(output_dir)
    log.write_report(evaluator, metrics, step)
    if averages.variables:
        with averages.in_place_of_weights():
            metrics["ema"] = evaluated(os.path.join(output_dir, output_folder.AVERAGES))
    return metrics
