"""An evaluation in TensorBoard."""

from typing import Any, Dict, Sequence

import numpy as np
import tensorflow as tf

from pfpn_tf.evaluation import report


def write_evaluation(
    directory: str,
    metrics: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    pictures: Dict[str, np.ndarray],
    step: int,
) -> None:
    """Writes an evaluation to TensorBoard: scalars, tables and pictures under eval/.

    Args:
      directory: for the events.
      metrics: of `Evaluator.evaluate`.
      categories: COCO categories.
      pictures: [h, w, 3] uint8 each.
      step: of the weights.
    """
    writer = tf.summary.create_file_writer(directory)
    with writer.as_default():
        for name, value in report.all_scalars(metrics, categories).items():
            tf.summary.scalar(name, value, step=step)
        write_report(metrics, categories, pictures, step)
    writer.close()


def write_report(
    metrics: Dict[str, Any],
    categories: Sequence[Dict[str, Any]],
    pictures: Dict[str, np.ndarray],
    step: int,
) -> None:
    """Writes tables and pictures under eval/ to TensorFlow's default summary writer."""
    class_table = report.class_table(metrics, categories)
    for name, text in (("table", report.table(metrics)), ("classes", class_table)):
        indented = "\n".join("    " + line for line in text.splitlines())  # Markdown for "as it is"
        tf.summary.text(f"eval/{name}", indented, step=step)
    for name, picture in pictures.items():
        tf.summary.image(f"eval/{name}", picture[np.newaxis], step=step)
