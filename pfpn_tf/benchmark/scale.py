"""A rehearsal of a training on COCO: as many records, steps and images, but of a tiny network.

The records hold a few hundred drawn photos again and again, each time under an id of its own.
Index, order, training loop, checkpoints and evaluation are those of every run.
"""

import os
import tempfile
from typing import Any, Dict, Mapping

from absl import logging

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure
from pfpn_tf.benchmark.training import drawn_dataset
from pfpn_tf.utils.errors import UserError

TINY: Mapping[str, Any] = {
    "train_min_sides": (48, 64),
    "train_max_side": 96,
    "eval_min_side": 64,
    "eval_max_side": 96,
    "backbone": "resnet_tiny",
    "freeze_stages": 0,
    "fpn_channels": 32,
    "box_fc_channels": 16,
    "mask_channels": 16,
    "semantic_channels": 32,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "rpn_pre_nms_top_k_train": 50,
    "rpn_pre_nms_top_k_eval": 50,
    "rpn_post_nms_top_k": 20,
    "rpn_samples_per_image": 16,
    "roi_samples_per_image": 16,
    "max_detections": 20,
    "fusion_stuff_area_threshold_px": 16,
    "learning_rate": 0.01,
    "gradient_clip_norm": 10.0,
    "image_interval_steps": 0,
    "distribution": "cpu",
}
"""The full Panoptic FPN, but thin, on 64-pixel images.

Group norm is in the semantic branch only: everywhere it takes twice as long to trace.
"""

SETTINGS: Mapping[str, Any] = {**TINY, "train_steps": 2000, "max_images": 5000}
"""Of the rehearsal, unless flags say otherwise."""

_DISTINCT_PHOTOS = 300
_SIDES = (64, 96)
_RECORDS_PER_SHARD = 500  # As a conversion makes them.
_PLACE_OF_ID = "@image-id---"  # As long as the ids that take its place.


def benchmark_scale(
    config: config_lib.Config, num_records: int = 120_000, resume_step: int = 89_000
) -> Dict[str, Any]:
    """Writes the records to a temporary folder and rehearses, training and evaluation each in a
    process of its own as a user's commands are.

    Returns:
      num_records, records_mib, and what `rehearse_training` and `rehearse_evaluation` return.

    Raises:
      UserError: nothing to train on or to evaluate.
    """
    num_val = config.eval.max_images
    if num_records < 1 or num_val < 1:
        raise UserError(
            f"--num_records={num_records} and --max_images={num_val} must be at least 1."
        )
    with tempfile.TemporaryDirectory() as folder:
        measure.in_fresh_process(write_records, folder, num_records, num_val)
        config = config.replace(
            train_records=os.path.join(folder, "train-*.tfrecord"),
            eval_records=os.path.join(folder, "val-*.tfrecord"),
        )
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        return {
            "num_records": num_records,
            "records_mib": round(size / 2**20, 1),
            **measure.in_fresh_process(_aloud, rehearse_training, config, folder, resume_step),
            **measure.in_fresh_process(_aloud, rehearse_evaluation, config, folder),
        }


def write_records(folder: str, num_train: int, num_val: int) -> None:
    """Writes the splits train and val, and dataset_info.json."""
    import tensorflow as tf

    from pfpn_tf.data import categories, tfrecord

    with tempfile.TemporaryDirectory() as drawn:
        dataset = drawn_dataset(drawn, _DISTINCT_PHOTOS, _SIDES)
        records = [dataset.read(i)._replace(image_id=_PLACE_OF_ID) for i in range(len(dataset))]
    dataset.info.save(os.path.join(folder, categories.FILE_NAME))
    examples = [tfrecord.encode_example(record, dataset.info) for record in records]
    for split, count in (("train", num_train), ("val", num_val)):
        num_shards = -(-count // _RECORDS_PER_SHARD)
        for shard in range(num_shards):
            path = tfrecord.shard_path(os.path.join(folder, split), shard, num_shards)
            with tf.io.TFRecordWriter(path) as writer:
                for i in range(shard * count // num_shards, (shard + 1) * count // num_shards):
                    image_id = f"{i + 1:0{len(_PLACE_OF_ID)}}".encode()
                    example = examples[i % len(examples)]
                    writer.write(example.replace(_PLACE_OF_ID.encode(), image_id))


def rehearse_training(config: config_lib.Config, run_dir: str, resume_step: int) -> Dict[str, Any]:
    """Reads first batches, starts, resumes and trains, in this process.

    Args:
      config: all settings, those of the records included.
      run_dir: a folder for the runs.
      resume_step: the step at which a second run continues.

    Returns:
      What `measure.watched` says of each of them. start and resume are whole commands of one step,
      training continues the started run up to --train_steps.
    """
    from pfpn_tf.data import pipeline
    from pfpn_tf.distribution import strategies
    from pfpn_tf.training import train

    strategies.set_up_runtime(config)
    info = pipeline.load_info(config)
    resumed, run = os.path.join(run_dir, "resumed"), _run(run_dir)

    def read_first_batch(step):
        next(iter(pipeline.build_dataset(config, info, training=True, start_step=step)))

    def train_to(step, directory):
        train.train(config.replace(train_steps=step), directory)

    _put_checkpoint(config, info, resumed, resume_step)
    calls = {  # The first one also loads and sets up what the others find there.
        "first_batch_resumed": lambda: read_first_batch(resume_step),
        "first_batch": lambda: read_first_batch(0),
        "resume": lambda: train_to(resume_step + 1, resumed),
        "start": lambda: train_to(1, run),
        "training": lambda: train_to(config.train.train_steps, run),
    }
    result = {}
    for name, call in calls.items():
        result[name] = measure.watched(call)
        logging.info("%s: %s", name, result[name])
    return result


def rehearse_evaluation(config: config_lib.Config, run_dir: str) -> Dict[str, Any]:
    """Evaluates what `rehearse_training` has trained there: what `measure.watched` says of it."""
    from pfpn_tf.distribution import strategies
    from pfpn_tf.evaluation import evaluate_run

    strategies.set_up_runtime(config)
    return {"evaluation": measure.watched(lambda: evaluate_run.evaluate_run(_run(run_dir)))}


def _run(run_dir):
    return os.path.join(run_dir, "run")


def _aloud(function, *arguments):
    logging.set_verbosity(logging.INFO)  # of this process, which took no flags
    return function(*arguments)


def _put_checkpoint(config, info, run_dir, step):
    """Leaves in `run_dir` what a run that was stopped at a step leaves."""
    from pfpn_tf.distribution import strategies
    from pfpn_tf.runs import checkpoints, run_directory
    from pfpn_tf.training import trainer

    run_directory.prepare(run_dir, config, info)
    built = trainer.build_trainer(
        config, info, strategies.build_strategy(config.train.distribution)
    )
    built.global_step.assign(step)
    built.optimizer.iterations.assign(step)
    checkpoints.RunCheckpoints(run_dir, keep=1, **built.state).save(step)
