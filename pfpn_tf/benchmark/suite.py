"""All benchmarks by name."""

import os
from typing import Any, Callable, Dict, Mapping, NamedTuple

from pfpn_tf import config as config_lib
from pfpn_tf.benchmark import (
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
      num_instances: of a drawn training image.
      saved_model: directory of an export; may be empty.
      serving_batch_size: images of a request.
      num_records, resume_step: of the rehearsal.
      breakdown: whether inference and training steps also tell where their time goes.
    """

    repeats: int = 7
    num_images: int = 0
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
    figures = inference.benchmark_inference(
        _config(settings),
        options.repeats,
        options.saved_model,
        precision,
        options.serving_batch_size,
        with_breakdown=options.breakdown,
    )
    return {"precision": precision, **figures}


_config = config_lib.from_mapping
BENCHMARKS: Dict[str, Callable[[Dict[str, Any], Options], Dict[str, Any]]] = {
    "inference": _inference,
    "serving_memory": lambda settings, o: serving_memory.benchmark_serving_memory(
        o.saved_model, o.num_images or 500
    ),
    "train": lambda settings, o: training.benchmark_training(
        _config(settings), o.repeats, o.num_instances, o.breakdown
    ),
    "step": lambda settings, o: training.benchmark_step(
        _config(settings), o.repeats, o.num_instances, o.breakdown
    ),
    "input": lambda settings, o: training.benchmark_input(_config(settings), o.repeats),
    "pq": lambda settings, o: panoptic_quality.benchmark_panoptic_quality(
        o.num_images or 1000, o.repeats
    ),
    "scale": lambda settings, o: scale.benchmark_scale(
        _config({**scale.SETTINGS, **settings}), o.num_records, o.resume_step
    ),
}
"""Name of a benchmark to function of settings and options; the names are those of --what."""
