"""What a training would do, without doing it."""

from typing import List

from pfpn_tf import config as config_lib
from pfpn_tf.data import pipeline
from pfpn_tf.training import checks, distribution, run_directory, schedule, summaries, trainer


def describe(config: config_lib.Config) -> str:
    """Checks all that `run.train` checks, builds the network, reads one batch; trains nothing.

    Returns:
      Settings that differ from their defaults, devices, parameters by component, shapes of the
      first batch, memory of the weights and the learning rate over the run, as text.

    Raises:
      ValueError: what would stop the training before its first step.
    """
    strategy = distribution.build_strategy(config.train.distribution)
    checks.check(config, strategy.num_replicas_in_sync)
    info = pipeline.load_info(config)
    built = trainer.build_trainer(config, info, strategy)
    replicas = strategy.num_replicas_in_sync
    parts = {
        "Settings (those not named have their default)": _settings(config),
        "Devices": [f"{replicas} replica(s): {', '.join(strategy.extended.worker_devices)}"],
        "Dataset": [
            f"{info.num_thing_classes} thing classes, "
            f"{info.num_semantic_classes(config.model.semantic_targets)} semantic classes"
        ],
        "Network": summaries.parameter_counts(built.model),
        "Memory a replica holds besides activations": [_memory(built)],
        f"First batch (of {config.train.global_batch_size} images over {replicas} replica(s))": _batch(config, info),
        "Learning rate": _schedule(config),
    }
    return "\n\n".join(f"{title}:\n" + "\n".join(f"  {line}" for line in lines) for title, lines in parts.items())


def _settings(config):
    default = config_lib.Config().flat()
    lines = run_directory.recipe_text(config).splitlines()
    return [line for line, (name, value) in zip(lines, config.flat().items()) if value != default[name]]


def _memory(built) -> str:
    def size(variables):
        return sum(v.shape.num_elements() * v.dtype.size for v in variables)

    weights, slots = size(built.model.variables), size(built.optimizer.variables)
    gradients = size(built.model.trainable_variables)
    return (
        f"{(weights + slots + gradients) / 2**20:,.0f} MiB: weights {weights / 2**20:,.0f}, "
        f"optimizer {slots / 2**20:,.0f}, gradients {gradients / 2**20:,.0f}"
    )


def _batch(config, info) -> List[str]:
    batch = next(iter(pipeline.build_dataset(config, info, training=True)))
    return [f"{name:<16}{str(tuple(value.shape)):<24}{value.dtype.name}" for name, value in sorted(batch.items())]


def _schedule(config) -> List[str]:
    train, rate = config.train, schedule.build_schedule(config.train)
    steps = {0, train.train_steps - 1}
    for step in (train.warmup_steps, *train.lr_decay_steps):
        steps |= {s for s in (step - 1, step) if 0 <= s < train.train_steps}
    lines = []
    for step in sorted(steps):
        lines.append(f"step {step:>9,}: {float(rate(step)):.6g}")
    return lines


