"""One of several workers that evaluate the drawn scenes; TF_CONFIG says which.

python -m tests.evaluation.worker SCENES OUTPUT_DIR METRICS_JSON
"""

import json
import pathlib
import sys

import pfpn_tf  # noqa: F401  (before TensorFlow)

# isort: split
import tensorflow as tf

from pfpn_tf.evaluation.evaluator import Evaluator
from tests.evaluation.oracle import Oracle, config_of, info_of, run


def main(scenes, output_dir, metrics_json):
    scenes = pathlib.Path(scenes)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any operation
    config, info = config_of(scenes), info_of(scenes)
    notes = Oracle.notes(config, info)
    with strategy.scope():
        model = Oracle(config, info, notes)
    evaluator = Evaluator(config, info, model, strategy)
    metrics = {"all": run(evaluator, output_dir)}
    metrics["one"] = run(evaluator, None, max_images=1)  # nothing for the second worker
    pathlib.Path(metrics_json).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
