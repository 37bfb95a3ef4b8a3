"""Maps the parts of a stage: over processes here, as Prefect tasks in a flow, or on a Dask cluster.

One function serves all three, because `cdcd` only ever asks for "this function over these items".
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cdcd.data.parallel import NUM_ATTEMPTS, RETRY_SECONDS, Mapper, ProcessMapper, is_transient

Item = TypeVar("Item")
Result = TypeVar("Result")
CLUSTER = "CDCD_CLUSTER"


@dataclass(frozen=True)
class PrefectMapper(Mapper):
    """Maps with Prefect tasks, one for each item; to be called inside a flow.

    Attributes:
        make_runner: gives the task runner, a process pool or a Dask cluster.
        window: tasks submitted at a time, so that memory does not grow with the items.
    """

    make_runner: Callable[[], Any]
    window: int

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """See `Mapper`; results come in the order of the items."""
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        name = getattr(function, "__name__", "item")
        one = task(
            _call,
            name=name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=NUM_ATTEMPTS - 1,
            retry_delay_seconds=[RETRY_SECONDS * n for n in range(1, NUM_ATTEMPTS)],
            retry_condition_fn=_failed_for_a_moment,
        )
        items, folder = iter(items), str(Path.cwd())
        with self.make_runner() as runner:

            def submit(item: Item) -> Any:
                # Items that have a name are found by it in Prefect's UI.
                named = one.with_options(task_run_name=str(getattr(item, "name", name)))
                content = {"function": function, "item": item, "folder": folder}
                return runner.submit(named, content)

            waiting = deque(submit(item) for item in islice(items, self.window))
            while waiting:
                result: Result = waiting.popleft().result()
                waiting.extend(submit(item) for item in islice(items, 1))
                yield result


def _call(function: Callable[[Any], Any], item: Any, folder: str) -> Any:
    # Paths are relative to the project, and a worker may have been started anywhere.
    if str(Path.cwd()) != folder:
        if not Path(folder).is_dir():
            raise ValueError(
                f"all workers must see the project's folder at the same path: {folder} is missing "
                f"on {platform.node()}; share the file system"
            )
        os.chdir(folder)
    return function(item)


def _failed_for_a_moment(_task: Any, _run: Any, state: Any) -> bool:
    """Retries are for the file system and the network; nothing else gets better by itself."""
    try:
        error = state.result(raise_on_failure=False)
    except Exception as raised:  # whatever the task raised
        error = raised
    return isinstance(error, BaseException) and is_transient(error)


def make_mapper(num_workers: int, cluster: str | None = None) -> Mapper:
    """Return what maps a stage's parts.

    Inside a flow run these are Prefect tasks: on the Dask cluster if one is configured, else in a
    pool of processes. Outside it is a pool of processes with the same retries.

    Args:
        num_workers: processes of this machine, or of a local cluster.
        cluster: None, `local`, or the address of a Dask scheduler.

    Raises:
        ValueError: a cluster is asked for outside a flow, or Dask is not installed.
    """
    if cluster is not None:
        return PrefectMapper(lambda: _dask_runner(num_workers, cluster), max(64, 4 * num_workers))
    if in_flow():
        return PrefectMapper(lambda: _pool_runner(num_workers), 4 * num_workers)
    return ProcessMapper(num_workers)


def in_flow() -> bool:
    """Whether this code runs inside a Prefect flow run; Prefect is not imported to find out."""
    if "prefect" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def cluster_of(configured: str | None) -> str | None:
    """Where a stage's parts run: `CDCD_CLUSTER` if it is set, else as params.yaml says.

    The setting of the machine makes nothing stale: the bytes are the same everywhere.

    Raises:
        ValueError: the setting is no cluster.
    """
    named = os.environ.get(CLUSTER)
    if not named:
        return configured
    if not re.fullmatch(r"local|(tcp|tls|ws|wss|ucx)://\S+", named):
        raise ValueError(
            f"{CLUSTER} must be local or the address of a Dask scheduler such as "
            f"tcp://127.0.0.1:8786: got {named!r}; mend or unset it"
        )
    return named


def check_cluster(cluster: str | None) -> None:
    """Refuse a cluster that this installation or configuration cannot reach.

    Raises:
        ValueError: one line with rule, value and remedy.
    """
    if cluster is None:
        return
    if importlib.util.find_spec("prefect_dask") is None:
        raise ValueError(
            f"shard.cluster (or {CLUSTER}) needs prefect-dask: it is {cluster!r} and prefect-dask "
            "is not installed; run pip install -c constraints.txt 'cdcd[dist]', or set cluster: "
            "null"
        )
    if cluster != "local" and not os.environ.get("PREFECT_API_URL"):
        raise ValueError(
            f"shard.cluster (or {CLUSTER}) at {cluster} needs a Prefect server that its workers "
            "reach: PREFECT_API_URL is not set; start one and set it, or use cluster: local"
        )
    if cluster != "local":
        _check_scheduler(cluster)


def _check_scheduler(address: str) -> None:
    # Dask itself would try for half a minute and then say so in a traceback.
    if address.startswith("ucx:"):
        return
    try:
        parts = urlsplit(address)
        default = 443 if parts.scheme == "wss" else 8786
        with socket.create_connection((parts.hostname or "", parts.port or default), timeout=5):
            pass
    except (OSError, ValueError) as error:
        raise ValueError(
            f"shard.cluster (or {CLUSTER}) must be the address of a running Dask scheduler: "
            f"{address} does not answer ({error}); start `dask scheduler`, or use local"
        ) from None


def _pool_runner(num_workers: int) -> Any:
    from prefect.task_runners import ProcessPoolTaskRunner

    return ProcessPoolTaskRunner(max_workers=num_workers)


def _dask_runner(num_workers: int, cluster: str) -> Any:
    from prefect_dask.task_runners import DaskTaskRunner

    if cluster != "local":
        return DaskTaskRunner(address=cluster)
    # One thread each: decoders and NumPy keep a core busy.
    size = {"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=size)
