"""Map a function over items with processes, giving results in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def _single_threaded() -> None:
    # One worker per core already; nested thread pools would only fight over them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, from `num_workers` processes.

    At most four results per worker wait to be taken, so memory does not grow with the number of
    items. With one worker everything runs in this process.

    Args:
        function: a picklable function.
        items: picklable arguments.
        num_workers: processes, at least 1.

    Raises:
        ChildProcessError: a worker process died (usually: killed for memory).
        Exception: whatever the function raises, at the place of its item.
    """
    items = iter(items)
    if num_workers == 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the parent may have decoder or thread-pool threads running.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_workers, context, initializer=_single_threaded)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in islice(items, 4 * num_workers):
            waiting.append(executor.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(items, 1):
                waiting.append(executor.submit(function, item))
            yield result
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"{num_workers} worker processes must stay alive: one died, usually for lack of "
            "memory; lower num_workers in params.yaml"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
