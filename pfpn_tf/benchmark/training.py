"""Speed and memory of training: the step alone, the input alone, and both together.

Whichever is slower alone is what a user waits for: with both together at the pace of the step, the
input keeps up.

Shapes: B images of a batch · M instances of an image.
"""

import contextlib
import os
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, Tuple

import numpy as np

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import measure
from pfpn_tf.benchmark.inference import coco_like_info
from pfpn_tf.model import norms
from pfpn_tf.utils.errors import UserError

_DRAWN_IMAGES = 64
_DRAWN_SIDES = (480, 640)  # About the size of COCO's photos.


def benchmark_step(
    config: config_lib.Config, repeats: int, num_instances: int, with_breakdown: bool = False
) -> Dict[str, Any]:
    """Times the training step on one batch that is in memory.

    Args:
      config: all settings; the images have --crop_size, else the largest training size.
      repeats: timed steps.
      num_instances: M.
      with_breakdown: also tell where the time goes.

    Returns:
      "step" as `measure.timed`; first_step_ms; compile_ms, what the first step takes longer than a
      later one, for tracing and the graph optimiser; images_per_second;
      peak_memory_mib, of the host, and peak_gpu_memory_mib, None without one; losses of the last
      step; image_hw; replicas; precision; "breakdown" as `breakdown.measured`, if asked for.
    """
    return measure.in_fresh_process(_steps, config, repeats, num_instances, with_breakdown)


def benchmark_input(config: config_lib.Config, repeats: int) -> Dict[str, Any]:
    """Times the input pipeline with nobody computing beside it.

    Args:
      config: all settings; without --train_records scenes are drawn, of the size of COCO's photos.
      repeats: a quarter of the timed batches.

    Returns:
      "batch" as `measure.timed`; over all timed batches images_per_second and
      images_per_cpu_second, which is that of one core; peak_memory_mib.
    """
    with _records(config) as with_records:
        return measure.in_fresh_process(_batches, with_records, repeats)


def benchmark_training(
    config: config_lib.Config, repeats: int, num_instances: int, with_breakdown: bool = False
) -> Dict[str, Any]:
    """The step alone, the input alone, and both together.

    Returns:
      "step" and "input" as above; "together" as `measure.timed` with images_per_second and
      input_wait, the share of the time that steps waited for their batch; "waits_for", "input" or
      "step".
    """
    result: Dict[str, Any] = {
        "step": benchmark_step(config, repeats, num_instances, with_breakdown)
    }
    with _records(config) as with_records:
        result["input"] = measure.in_fresh_process(_batches, with_records, repeats)
        result["together"] = measure.in_fresh_process(_steps_on_records, with_records, repeats)
    step, batches = (result[name]["images_per_second"] for name in ("step", "input"))
    result["waits_for"] = "input" if batches < step else "step"
    return result


def _steps(config, repeats, num_instances, with_breakdown):
    import tensorflow as tf

    strategy, trainer = _trainer(config, coco_like_info())
    calm(trainer.model)
    hw = _image_hw(config.data)
    batch = drawn_batch(config.train.global_batch_size, hw, num_instances)
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    trainer.set_dataset(strategy.experimental_distribute_dataset(dataset))
    batches = iter(trainer.train_dataset)

    def step():
        return {n: float(value) for n, value in trainer.train_step(batches).scalars.items()}

    first = measure.seconds(step)
    timed = measure.timed(step, repeats)
    losses = step()
    if not np.all(np.isfinite(list(losses.values()))):
        raise UserError(f"The drawn training diverged: {losses}; lower --learning_rate.")
    result = {
        "step": timed,
        "first_step_ms": round(1e3 * first, 1),
        "compile_ms": round(1e3 * first - timed["median_ms"], 1),
        "images_per_second": _rate(config, timed),
        "peak_memory_mib": measure.peak_memory_mib(),
        "peak_gpu_memory_mib": measure.peak_gpu_memory_mib(),
        "losses": {name: round(value, 4) for name, value in losses.items()},
        "image_hw": list(hw),
        "replicas": strategy.num_replicas_in_sync,
        "precision": config.train.precision,
    }
    if with_breakdown:
        from pfpn_tf.benchmark import breakdown

        tensors = tf.nest.map_structure(tf.constant, batch)

        def gradients():
            with tf.GradientTape() as tape:
                _, losses = trainer.forward(tensors, trainer.global_step)
            return tape.gradient(losses["total"], trainer.model.trainable_variables)

        dtype = tf.keras.mixed_precision.Policy(config.train.precision).compute_dtype
        counts = breakdown.multiply_adds(gradients)
        result["breakdown"] = breakdown.measured(step, repeats, timed, counts, dtype)
    return result


def _steps_on_records(config, repeats):
    from pfpn_tf.data import pipeline
    from pfpn_tf.training.trainer import distributed_dataset

    info = pipeline.load_info(config)
    strategy, trainer = _trainer(config, info)
    trainer.set_dataset(distributed_dataset(config, info, strategy, 0))
    batches = iter(trainer.train_dataset)

    def step():
        return trainer.train_step(batches).scalars["loss/total"].numpy()

    calm(trainer.model)
    step()
    trainer.rate.restart()
    timed = measure.timed(step, repeats)
    return {
        **timed,
        "images_per_second": _rate(config, timed),
        "input_wait": round(trainer.rate.wait_share(), 4),
    }


def _batches(config, repeats):
    from pfpn_tf.data import pipeline
    from pfpn_tf.distribution import strategies

    strategies.set_up_runtime(config)
    dataset = pipeline.build_dataset(config, pipeline.load_info(config), training=True)
    batches = iter(dataset)
    # Some batches are there at once, having been prepared while others were awaited: the pace is
    # that of all of them.
    warmup, repeats = 2 * pipeline.PREFETCHED_BATCHES, 4 * repeats
    for _ in range(warmup):
        next(batches)
    cpu_start = time.process_time()
    times = [measure.seconds(lambda: next(batches)) for _ in range(repeats)]
    cpu_seconds = time.process_time() - cpu_start
    images = config.train.global_batch_size * repeats
    return {
        "batch": measure.summary(times, warmup),
        "images_per_second": round(images / sum(times), 2),
        "images_per_cpu_second": round(images / cpu_seconds, 2),
        "peak_memory_mib": measure.peak_memory_mib(),
    }


def _trainer(config, info):
    from pfpn_tf.distribution import strategies
    from pfpn_tf.training import trainer

    strategies.set_up_runtime(config)
    strategy = strategies.build_strategy(config.train.distribution)
    return strategy, trainer.build_trainer(config, info, strategy)


def calm(model):
    """Keeps a random network finite, which trained frozen norms would do."""
    for norm in model.backbone.submodules:
        if isinstance(norm, norms.FrozenBatchNorm):
            norm.gamma.assign(0.3 * norm.gamma)


def _rate(config, timed):
    return round(1e3 * config.train.global_batch_size / timed["median_ms"], 2)


def _image_hw(data):
    sides = data.crop_size or (max(data.train_min_sides), data.train_max_side)
    return tuple(-(-side // data.size_divisor) * data.size_divisor for side in sides)


def drawn_batch(
    batch_size: int,
    hw: Tuple[int, int],
    num_instances: int,
    num_thing_classes: int = 80,
    num_semantic_classes: int = 54,
) -> Dict[str, np.ndarray]:
    """A drawn batch with the keys of `pipeline.build_dataset`; boxes of COCO-like sizes."""
    rng = np.random.default_rng(0)
    boxes = np.stack([_boxes(rng, num_instances, hw) for _ in range(batch_size)])
    masks = np.zeros((batch_size, num_instances, *hw), np.uint8)
    for b, m in np.ndindex(batch_size, num_instances):
        y1, x1, y2, x2 = boxes[b, m].round().astype(int)
        masks[b, m, y1:y2, x1:x2] = 1
    return {
        "images": rng.normal(0.0, 50.0, (batch_size, *hw, 3)).astype(np.float32),
        "image_hw": np.tile(np.array(hw, np.int32), (batch_size, 1)),
        "original_hw": np.tile(np.array(hw, np.int32), (batch_size, 1)),
        "source_id_bytes": np.zeros((batch_size, 64), np.uint8),
        "seed": rng.integers(0, 2**31, (batch_size, 2)).astype(np.int32),
        "gt_boxes": boxes,
        "gt_class_ids": rng.integers(0, num_thing_classes, (batch_size, num_instances)).astype(
            np.int32
        ),
        "gt_masks": masks,
        "gt_semantic": rng.integers(0, num_semantic_classes, (batch_size, *hw)).astype(np.uint8),
    }


def _boxes(rng, count, hw):
    """Boxes of 16 to 512 pixels, small ones more often: [count, 4] yxyx."""
    sides = 2.0 ** rng.uniform(4.0, 9.0, (count, 1)) * 2.0 ** rng.uniform(-0.5, 0.5, (count, 2))
    sides = np.minimum(sides, hw)
    start = rng.uniform(0.0, 1.0, (count, 2)) * (np.array(hw) - sides)
    return np.concatenate([start, start + sides], axis=1).astype(np.float32)


@contextlib.contextmanager
def _records(config: config_lib.Config) -> Iterator[config_lib.Config]:
    """`config` with records: those it has, or drawn ones in a temporary folder."""
    if config.data.train_records:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        measure.in_fresh_process(_draw_records, folder)
        yield config.replace(train_records=os.path.join(folder, "train-*.tfrecord"))


def _draw_records(folder):
    from pfpn_tf.data import convert

    dataset = drawn_dataset(os.path.join(folder, "drawn"), _DRAWN_IMAGES, _DRAWN_SIDES)
    with contextlib.redirect_stdout(sys.stderr):  # the progress; stdout is for the figures
        convert.convert(dataset, folder, "train")


def drawn_dataset(folder: str, num_images: int, sides: Tuple[int, int]):
    """Draws scenes into a folder; returns them as a `CocoPanoptic` dataset."""
    from pfpn_tf.data import coco_panoptic, given, synthetic

    synthetic.make_dataset(folder, num_images, 1, seed=0, sides=sides)
    annotations = os.path.join(folder, "annotations")
    files = given.Given(
        panoptic_json=os.path.join(annotations, "panoptic_train.json"),
        image_dir=os.path.join(folder, "train"),
        instances_json=os.path.join(annotations, "instances_train.json"),
    )
    return coco_panoptic.CocoPanoptic(files)
