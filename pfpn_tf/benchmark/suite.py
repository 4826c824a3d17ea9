"""All benchmarks by name."""

import os
from typing import Any, Callable, Dict, Mapping, NamedTuple

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import (
    components,
    evaluator,
    inference,
    measure,
    panoptic_quality,
    scale,
    serving_memory,
    training,
)
from pfpn_tf.utils.errors import UserError


class Options(NamedTuple):
    """What a benchmark can be told beside the settings.

    Attributes:
      repeats: timed calls.
      num_images: images, or requests; 0: as many as the benchmark takes by itself.
      num_processes: for scoring.
      num_instances: of a drawn training image.
      saved_model: directory of an export; may be empty.
      serving_batch_size: images of a request.
      num_records, resume_step: of the rehearsal.
      breakdown: whether inference and training steps also tell where their time goes.
    """

    repeats: int = 7
    num_images: int = 0
    num_processes: int = 1
    num_instances: int = 10
    saved_model: str = ""
    serving_batch_size: int = 1
    num_records: int = 120_000
    resume_step: int = 89_000
    breakdown: bool = False


def run(name: str, settings: Mapping[str, Any], options: Options) -> Dict[str, Any]:
    """Runs the benchmark `name`.

    Args:
      name: a key of `BENCHMARKS`.
      settings: by flag name; the others have their defaults. For inference, precision is that of
        the export.
      options: see there.

    Returns:
      what it is, on what machine, and the benchmark's own figures.

    Raises:
      UserError: there is no such benchmark, or it does not fit settings or options.
    """
    if name not in BENCHMARKS:
        raise UserError(f"--what={name} must be one of {', '.join(BENCHMARKS)}.")
    if options.breakdown and name not in ("inference", "train", "step"):
        raise UserError(f"--breakdown is for --what=inference, train or step, not {name}.")
    if options.repeats < 1:
        raise UserError(f"--repeats={options.repeats} must be at least 1; 7 is usual.")
    saved_model = options.saved_model
    if saved_model and not os.path.exists(os.path.join(saved_model, "saved_model.pb")):
        raise UserError(f"--saved_model={saved_model} holds no saved_model.pb; give MODEL/VERSION.")
    machine = measure.machine()
    figures = BENCHMARKS[name](dict(settings), options)
    return {"benchmark": name, "machine": machine, **figures}


def breakdown_table(figures: Mapping[str, Any]) -> str:
    """The breakdown in what `run` returned, as text."""
    from pfpn_tf.benchmark import breakdown

    return breakdown.table(figures.get("step", {}).get("breakdown") or figures["breakdown"])


def _inference(settings, options):
    precision = settings.pop("precision", "float32")
    config = config_lib.from_mapping(settings)
    figures = inference.benchmark_inference(
        config,
        options.repeats,
        options.saved_model,
        precision,
        options.serving_batch_size,
        with_breakdown=options.breakdown,
    )
    return {"precision": precision, **figures}


def _serving_memory(settings, options):
    if not options.saved_model:
        raise UserError("--saved_model is required: the export that answers the requests.")
    requests = {"num_requests": options.num_images} if options.num_images else {}
    return serving_memory.benchmark_serving_memory(options.saved_model, **requests)


def _step(settings, options):
    config = config_lib.from_mapping(settings)
    return training.benchmark_step(
        config, options.repeats, options.num_instances, options.breakdown
    )


def _input(settings, options):
    return training.benchmark_input(config_lib.from_mapping(settings), options.repeats)


def _train(settings, options):
    config = config_lib.from_mapping(settings)
    return training.benchmark_training(
        config, options.repeats, options.num_instances, options.breakdown
    )


def _panoptic_quality(settings, options):
    images = {"num_images": options.num_images} if options.num_images else {}
    return panoptic_quality.benchmark_panoptic_quality(
        processes=options.num_processes, repeats=options.repeats, **images
    )


def _evaluator_memory(settings, options):
    lengths = {"num_images": (options.num_images // 10, options.num_images)}
    return evaluator.benchmark_evaluator_memory(**(lengths if options.num_images else {}))


def _scale(settings, options):
    config = config_lib.from_mapping({**scale.SETTINGS, **settings})
    return scale.benchmark_scale(config, options.num_records, options.resume_step)


def _component(function):
    return lambda settings, options: measure.in_fresh_process(function, options.repeats)


BENCHMARKS: Dict[str, Callable[[Dict[str, Any], Options], Dict[str, Any]]] = {
    "inference": _inference,
    "serving_memory": _serving_memory,
    "train": _train,
    "step": _step,
    "input": _input,
    "pq": _panoptic_quality,
    "scale": _scale,
    "eval_memory": _evaluator_memory,
    "roi_align": _component(components.benchmark_roi_align),
    "group_norm": _component(components.benchmark_group_norm),
    "fusion": _component(components.benchmark_fusion),
}
"""Name of a benchmark to function of settings and options; the names are those of --what."""
