"""The workers of a strategy, and how they tell each other things.

`tf.distribute`'s own gather carries what a worker has counted to the others, as bytes.
"""

import dataclasses
import pickle
from typing import Any, Dict, List

import numpy as np
import tensorflow as tf

_CHUNK = 1 << 20  # int64 values gathered at a time: 8 MB from each worker


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

        replicas = self._strategy.num_replicas_in_sync // self.workers.count

        def value(context):
            is_first = context.replica_id_in_sync_group % replicas == 0
            return tf.constant(words if is_first else words[:0])

        values = self._strategy.experimental_distribute_values_from_function(value)
        gathered = self._function(values)
        return self._strategy.experimental_local_results(gathered)[0].numpy()

    def _gather(self, values):
        def replica_gather(value):
            # tf.identity: a collective wants to know the device of its operand, which arguments
            # lack.
            return tf.distribute.get_replica_context().all_gather(tf.identity(value), axis=0)

        return self._strategy.run(replica_gather, args=(values,))
