"""Map a function over items with processes; what the file system interrupts is tried again."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


NUM_ATTEMPTS = 3
RETRY_SECONDS = 1.0

_TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ENFILE,
        errno.EMFILE,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EREMOTEIO,
    }
)


def is_transient(error: BaseException) -> bool:
    """Tell whether an error is one of the file system or network that may pass by itself.

    A full disk, a missing file, missing rights or damaged data are not: trying again changes
    nothing.
    """
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def with_retries(function: Callable[[Item], Result], item: Item) -> Result:
    """Return `function(item)`, tried up to three times while the error is transient."""
    for attempt in range(1, NUM_ATTEMPTS):
        try:
            return function(item)
        except OSError as error:
            if not is_transient(error):
                raise
            _log.warning("attempt %d of %d failed: %s; trying again", attempt, NUM_ATTEMPTS, error)
            time.sleep(RETRY_SECONDS * attempt)
    return function(item)


class Mapper(Protocol):
    """Maps a picklable function over picklable items, in whatever order results come."""

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield `function(item)` for every item; transient errors are tried again."""
        ...


@dataclass(frozen=True)
class ProcessMapper(Mapper):
    """Maps with processes of this machine, at least one; with one everything runs in this one."""

    num_workers: int

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """See `Mapper`; at most four items per worker are under way."""
        return _unordered_map(partial(with_retries, function), items, self.num_workers)


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
    waiting: deque[Future[Result]] = deque()
    items = iter(items)
    if num_workers == 1:
        yield from map(function, items)
        return
    with _Pool(num_workers) as pool:
        for item in islice(items, 4 * num_workers):
            waiting.append(pool.executor.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in islice(items, 1):
                waiting.append(pool.executor.submit(function, item))
            yield result


def _unordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    items = iter(items)
    if num_workers == 1:
        yield from map(function, items)
        return
    with _Pool(num_workers) as pool:
        running = {pool.executor.submit(function, item) for item in islice(items, 4 * num_workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for item in islice(items, len(done)):
                running.add(pool.executor.submit(function, item))
            for future in done:
                yield future.result()


class _Pool:
    """Spawned processes that end with the block; what has not begun by then never does."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def __enter__(self) -> _Pool:
        # Spawned, not forked: the parent may have decoder or thread-pool threads running.
        context = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(self.num_workers, context, initializer=_single_threaded)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f"{self.num_workers} worker processes must stay alive: one died, usually for lack "
                "of memory; lower num_workers in params.yaml"
            ) from error
