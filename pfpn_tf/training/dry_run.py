"""What a training would do, without doing it."""

import os
from typing import List

import tensorflow as tf

from pfpn_tf import config as config_lib
from pfpn_tf.data import order, pipeline, tfrecord
from pfpn_tf.distribution import strategies
from pfpn_tf.runs import run_directory
from pfpn_tf.training import checks, logs, memory, schedule, trainer
from pfpn_tf.weights import initialise


def describe(config: config_lib.Config, run_dir: str = "") -> str:
    """Checks all that `train.train` checks, builds and traces the network, reads one batch.

    Trains and writes nothing. Of several workers each can be asked; none waits for the others.

    Args:
      config: all settings.
      run_dir: the run directory to check, if there is one.

    Returns:
      Settings that differ from their defaults, devices, parameters by component, shapes of the
      first and the largest batch, memory and the learning rate over the run, as text.

    Raises:
      UserError: what would stop the training before its first step.
    """
    workers = 1
    if config.train.distribution == "multi_worker":
        workers = len(strategies.parse_tf_config(os.environ.get("TF_CONFIG", ""))[0])
    strategy = strategies.local_strategy(config.train.distribution)
    replicas = workers * strategy.num_replicas_in_sync
    checks.check(config, replicas)
    info = pipeline.load_info(config)
    if run_dir:
        run_directory.check(run_dir, config, info)
    built = trainer.build_trainer(config, info, strategy)
    start = ["random"]
    if config.train.init_weights:
        start = initialise.initialise(built.model, config, info).report
    dataset = pipeline.build_dataset(config, info, training=True)
    largest = _largest_batch(
        config, dataset.element_spec, config.train.global_batch_size // replicas
    )
    parts = {
        "Settings (those not named have their default)": _settings(config),
        "Devices": [
            f"{replicas} replica(s){f' at {workers} workers, here' if workers > 1 else ':'} "
            + ", ".join(strategy.extended.worker_devices)
        ],
        "Dataset": [
            f"{info.num_thing_classes} thing classes, "
            f"{info.num_semantic_classes(config.model.semantic_targets)} semantic classes"
        ],
        "Network": logs.parameter_counts(built.model),
        "Weights at the start": start,
        f"First batch (of {config.train.global_batch_size} images over {replicas} replica(s))": (
            _shapes(next(iter(dataset)))
        ),
        "Largest batch of a replica": _shapes(largest),
        "Memory of a replica for it, estimated": _memory(built, largest),
        "Learning rate": _schedule(config),
    }
    return "\n\n".join(
        f"{title}:\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts.items()
    )


def _settings(config):
    default = config_lib.Config().flat()
    lines = run_directory.recipe_text(config).splitlines()
    return [
        line for line, (name, value) in zip(lines, config.flat().items()) if value != default[name]
    ]


def _largest_batch(config, spec, batch_size):
    """Name -> spec of the largest batch that a replica may get."""
    index = tfrecord.read_index(config.data.train_records, "train_records")
    height, width = order.largest_padded_hw(config, index.hw)
    sizes = {  # by name: what the unknown axes have in turn
        "images": [height, width],
        "gt_boxes": [config.data.max_instances],
        "gt_class_ids": [config.data.max_instances],
        "gt_masks": [config.data.max_instances, height, width],
        "gt_semantic": [height, width],
    }
    specs = {}
    for name, s in spec.items():
        known = s.shape[1 + len(sizes.get(name, [])) :]
        specs[name] = tf.TensorSpec([batch_size, *sizes.get(name, []), *known], s.dtype)
    return specs


def _memory(built, batch_spec) -> List[str]:
    parts = built.config.train.gradient_accumulation_steps
    part_spec = {
        n: tf.TensorSpec([s.shape[0] // parts, *s.shape[1:]], s.dtype)
        for n, s in batch_spec.items()
    }
    variables = built.model.trainable_variables
    sizes = {
        "weights": memory.size_of(built.model.variables)
        + memory.size_of(built.averages.variables.values()),
        "optimizer": memory.size_of(built.optimizer.variables),
        "gradients": memory.size_of(variables) * (1 if parts == 1 else 2),
        "batch": sum(s.shape.num_elements() * s.dtype.size for s in batch_spec.values()),
        "activations": memory.kept_for_gradients(
            lambda batch: built.forward(batch, built.global_step)[1]["total"], variables, part_spec
        ),
    }
    lines = [f"{name:<16}{num_bytes / 2**20:>10,.0f} MiB" for name, num_bytes in sizes.items()]
    total = sum(sizes.values()) / 2**30
    return lines + [f"{'together':<16}{total:>10.1f} GiB, and what operations need while they run"]


def _shapes(batch) -> List[str]:
    return [
        f"{name:<16}{str(tuple(value.shape)):<24}{value.dtype.name}"
        for name, value in sorted(batch.items())
    ]


def _schedule(config) -> List[str]:
    train, rate = config.train, schedule.Schedule(config.train)
    steps = {0, train.train_steps - 1}
    for step in (train.warmup_steps, *train.lr_decay_steps):
        steps |= {s for s in (step - 1, step) if 0 <= s < train.train_steps}
    return [f"step {step:>9,}: {float(rate(step)):.6g}" for step in sorted(steps)]
