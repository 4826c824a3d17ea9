"""Evaluates the network of a run directory."""

import os
from typing import Any, Dict, Mapping, Optional

from absl import logging

from pfpn_tf.evaluation import evaluator
from pfpn_tf.model import panoptic_fpn
from pfpn_tf.training import checkpoints, distribution


def evaluate_run(
    run_dir: str,
    checkpoint: str = "",
    settings: Optional[Mapping[str, Any]] = None,
    output_dir: str = "",
    save_predictions: bool = True,
) -> Dict[str, Any]:
    """Restores a network and evaluates it on `eval_records`.

    Args:
      run_dir: directory of a training run, or of converted weights.
      checkpoint: empty for the newest intact one, "best", a step, or a checkpoint prefix.
      settings: settings that replace those of the run, by flag name.
      output_dir: where metrics.json and predictions go; empty: RUN_DIR/eval/STEP.
      save_predictions: whether to write predictions in COCO format.

    Returns:
      See `Evaluator.evaluate`; `checkpoint` is added.

    Raises:
      ValueError: the directory, the checkpoint, the records or a setting is not usable.
    """
    config, info = checkpoints.load_run(run_dir)
    config = config.replace(**dict(settings or {}))
    if not config.data.eval_records:
        raise ValueError("The run has no evaluation records; give --eval_records.")
    distribution.set_up_runtime(config)
    strategy = distribution.build_strategy(config.train.distribution)
    with strategy.scope():
        model = panoptic_fpn.build_model(
            config.model, info.num_thing_classes, info.num_semantic_classes(config.model.semantic_targets)
        )
    prefix = checkpoints.restore_for_inference(model, run_dir, checkpoint or None)
    logging.info("Evaluating %s on %s.", prefix, config.data.eval_records)
    output_dir = output_dir or os.path.join(run_dir, "eval", str(checkpoints.step_of(prefix)))
    runner = evaluator.Evaluator(config, info, model, strategy)
    metrics = {"checkpoint": prefix, **runner.evaluate(output_dir, save_predictions=save_predictions)}
    logging.info("Metrics%s are in %s.", " and predictions" if save_predictions else "", output_dir)
    return metrics
