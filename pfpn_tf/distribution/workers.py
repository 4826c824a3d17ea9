"""Several workers evaluate one split: which of them has which images, and how their findings meet.

Images are cut into batches of `eval_batch_size`, and the batches are dealt to the workers in turn.
What a worker has counted travels as bytes by `tf.distribute`'s own gather, so that nothing but the
strategy's cluster is needed; predictions, which are large, meet on the shared disk.
"""

import dataclasses
import os
import pickle
import shutil
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np
import tensorflow as tf

from pfpn_tf.data import coco_files

_CHUNK = 1 << 20  # int64 values gathered at a time: 8 MB from each worker
_PARTS = ".parts"


@dataclasses.dataclass(frozen=True)
class Workers:
    """This process among the workers of a strategy.

    Attributes:
      count: number of workers.
      index: of this one; 0 is the chief, which alone writes results.
    """

    count: int
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def batch(self, i: int) -> int:
        """Which batch of the split is this worker's i-th."""
        return i * self.count + self.index

    def owners(self, num_images: int, batch_size: int) -> Iterator[int]:
        """The worker that has image 0, 1, 2, ..."""
        return (i // batch_size % self.count for i in range(num_images))


def workers_of(strategy: tf.distribute.Strategy) -> Workers:
    """The workers of a strategy: one, unless it is of several machines or processes."""
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict() if resolver is not None else {}
    jobs = {name: len(jobs[name]) for name in ("chief", "worker") if name in jobs}
    count = sum(jobs.values())
    if count <= 1:
        return Workers(1, 0)
    before = jobs.get("chief", 0) if resolver.task_type == "worker" else 0
    return Workers(count, before + resolver.task_id)


def computes_on_gpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the replicas of a strategy are on GPUs, whatever else the machine has.

    TensorFlow's default strategy, which is none, computes on a GPU where there is one.
    """
    if strategy is tf.distribute.get_strategy() and not tf.distribute.has_strategy():
        return bool(tf.config.list_logical_devices("GPU"))
    return any("GPU" in device.upper() for device in strategy.extended.worker_devices)


class Gatherer:
    """Hands an object of each worker to all workers. All of them have to call it equally often."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self.workers = workers_of(strategy)
        self._strategy = strategy
        self._function = tf.function(self._gather, autograph=False, reduce_retracing=True)

    def __call__(self, value: Any) -> List[Any]:
        """[value of worker 0, value of worker 1, ...]; values have to be picklable."""
        if self.workers.count == 1:
            return [value]
        payload = pickle.dumps(value)
        # Collectives take no bytes. First a header from each worker: its index and the sizes.
        words = np.frombuffer(payload + b"\0" * (-len(payload) % 8), np.int64)
        header = np.array([self.workers.index, len(payload), len(words)], np.int64)
        headers = self._all(header).reshape(-1, 3).tolist()
        parts: Dict[int, List[bytes]] = {worker: [] for worker, _, _ in headers}
        for start in range(0, max(length for _, _, length in headers), _CHUNK):
            gathered = self._all(words[start : start + _CHUNK])
            for worker, _, length in headers:  # in the order of the gather
                size = min(max(length - start, 0), _CHUNK)
                parts[worker].append(gathered[:size].tobytes())
                gathered = gathered[size:]
        return [pickle.loads(b"".join(parts[w])[:size]) for w, size, _ in sorted(headers)]

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self(None)

    def _all(self, words):
        """The [n] int64 of all workers, one after the other; only the first replica of each
        speaks.
        """

        def value(context):
            is_first = context.replica_id_in_sync_group % self._replicas == 0
            return tf.constant(words if is_first else words[:0])

        values = self._strategy.experimental_distribute_values_from_function(value)
        gathered = self._function(values)
        return self._strategy.experimental_local_results(gathered)[0].numpy()

    @property
    def _replicas(self):
        return self._strategy.num_replicas_in_sync // self.workers.count

    def _gather(self, values):
        def replica_gather(value):
            # tf.identity: a collective wants to know the device of its operand, which arguments
            # lack.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self._strategy.run(replica_gather, args=(values,))


def part_directory(output_dir: str, worker: int) -> str:
    """Where a worker keeps its predictions until the chief has merged them; emptied."""
    directory = _part(output_dir, worker)
    shutil.rmtree(directory, ignore_errors=True)
    return directory


def merge_predictions(
    output_dir: str,
    writer: coco_files.PredictionWriter,
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
    panoptic = [coco_files.read_entries(os.path.join(part, "panoptic.json")) for part in parts]
    instances = [
        _Peekable(coco_files.read_entries(os.path.join(part, "instances.json"))) for part in parts
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
    """Takes the instances of one image at a time from all of them; opens nothing before that."""

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
