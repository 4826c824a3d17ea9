"""Steps of different items that run at the same time, in threads."""

import collections
import itertools
from concurrent import futures
from typing import Any, Callable, Deque, Iterable, Iterator, Tuple, Type, Union

_AHEAD = 4  # items read, and results written, while the step between is at work


def overlapped(
    items: Iterable[Any],
    load: Callable[[Any], Any],
    work: Callable[[Any], Any],
    write: Callable[[Any, Any], Any],
    workers: int = 1,
    expected: Union[Type[Exception], Tuple[Type[Exception], ...]] = (),
) -> Iterator[Any]:
    """Runs `write(item, work(load(item)))` for each item; steps of different items overlap.

    Args:
      items: read as they are needed.
      load, write: run in a thread each, one item after the other, in order.
      work: runs in `workers` threads.
      expected: errors that stand in place of their item's result, and end nothing.

    Yields:
      What `write` returns, in the order of the items.

    Raises:
      What else a step raises, in place of its item's result; what has not begun then never does.
    """
    loader, writer = futures.ThreadPoolExecutor(1), futures.ThreadPoolExecutor(1)
    worker = futures.ThreadPoolExecutor(workers)
    waiting: Deque[futures.Future] = collections.deque()

    def submit(item):
        loaded = loader.submit(load, item)
        worked = worker.submit(lambda: work(loaded.result()))
        waiting.append(writer.submit(lambda: write(item, worked.result())))

    try:
        items = iter(items)
        for item in itertools.islice(items, _AHEAD + workers):
            submit(item)
        while waiting:
            try:
                result = waiting.popleft().result()
            except expected as error:
                result = error
            yield result
            for item in itertools.islice(items, 1):
                submit(item)
    finally:
        for pool in (loader, worker, writer):
            pool.shutdown(wait=True, cancel_futures=True)
