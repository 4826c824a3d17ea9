"""An evaluation in TensorBoard."""

from typing import Any, Dict

import numpy as np
import tensorflow as tf

from pfpn_tf.evaluation import report
from pfpn_tf.evaluation.evaluator import Evaluator


def write_evaluation(
    directory: str, evaluator: Evaluator, metrics: Dict[str, Any], step: int
) -> None:
    """Writes the last evaluation to TensorBoard: scalars, tables and pictures under eval/.

    Args:
      directory: for the events.
      evaluator: has evaluated the network.
      metrics: what it found.
      step: of the weights.
    """
    writer = tf.summary.create_file_writer(directory)
    with writer.as_default():
        for name, value in report.all_scalars(metrics, evaluator.categories).items():
            tf.summary.scalar(name, value, step=step)
        write_report(evaluator, metrics, step)
    writer.close()


def write_report(evaluator: Evaluator, metrics: Dict[str, Any], step: int) -> None:
    """Writes tables and pictures under eval/ to TensorFlow's default summary writer."""
    class_table = report.class_table(metrics, evaluator.categories)
    for name, text in (("table", report.table(metrics)), ("classes", class_table)):
        indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for "as it is"
        tf.summary.text(f"eval/{name}", indented, step=step)
    for name, picture in evaluator.pictures().items():
        tf.summary.image(f"eval/{name}", picture[np.newaxis], step=step)
