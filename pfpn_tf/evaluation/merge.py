"""Merges the predictions that several workers have written, each in a folder on the shared disk."""

import os
import shutil
from typing import Any, Iterator, Sequence

from pfpn_tf.data import predictions

_PARTS = ".parts"


def part_directory(output_dir: str, worker: int) -> str:
    """Where a worker keeps its predictions until the chief has merged them; emptied."""
    directory = _part(output_dir, worker)
    shutil.rmtree(directory, ignore_errors=True)
    return directory


def merge_predictions(
    output_dir: str,
    writer: predictions.PredictionWriter,
    owners: Iterator[int],
    image_ids: Sequence[Sequence[Any]],
) -> None:
    """Merges the workers' predictions into files that one worker alone would have written.

    Args:
      output_dir: holds the part of each worker; the parts are removed.
      writer: open, and made with the same arguments as those of the parts.
      owners: worker of image 0, 1, 2, ...
      image_ids: of each worker's images, in its order.
    """
    parts = [_part(output_dir, i) for i in range(len(image_ids))]
    panoptic = [predictions.read_entries(os.path.join(part, "panoptic.json")) for part in parts]
    instances = [
        _Peekable(predictions.read_entries(os.path.join(part, "instances.json"))) for part in parts
    ]
    ids = [iter(i) for i in image_ids]
    for worker in owners:
        image_id = next(ids[worker])
        if writer.panoptic_json:
            writer.move_panoptic(next(panoptic[worker]), os.path.join(parts[worker], "panoptic"))
        if writer.instances_json:
            writer.add_instances(list(instances[worker].while_image(image_id)))
    for part in parts if writer.writes_semantic else ():
        writer.move_semantic(os.path.join(part, "semantic"))
    for entries in panoptic:
        entries.close()
    for peekable in instances:
        peekable.close()
    shutil.rmtree(os.path.join(output_dir, _PARTS))


class _Peekable:
    """Reads a worker's instances image by image."""

    def __init__(self, entries):
        self._entries = entries
        self._ahead = None

    def while_image(self, image_id):
        entry = self._ahead or next(self._entries, None)
        while entry is not None and entry["image_id"] == image_id:
            yield entry
            entry = next(self._entries, None)
        self._ahead = entry

    def close(self):
        self._entries.close()


def _part(output_dir, worker):
    return os.path.join(output_dir, _PARTS, f"worker-{worker}")
