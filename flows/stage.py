"""Runs one stage: parameters in, one summary line out; an error becomes one line and exit code 1.

The same function runs plainly or, where `PREFECT_API_URL` names a server that answers, as a
Prefect flow. Nothing is cached or persisted by Prefect: DVC owns what is stale.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from cdcd.config import Params, Shard, load_params
from cdcd.data.files import is_disk_full, write_json
from cdcd.settings import load_env, prefect_login, shown
from cdcd.tracking import TELEMETRY_OFF, Tracker
from flows.mapping import check_cluster, cluster_of

DATA = Path("data")
STAGES = (
    "ingest",
    "shard",
    "codec",
    "encode",
    "featurize",
    "train",
    "generate",
    "evaluate",
    "register",
)
PIPELINE_RUN = "CDCD_PIPELINE_RUN"
"""Names the pipeline's flow run to the stages that it starts in processes of their own."""
SERVER_START_SECONDS = 120  # a busy machine takes much longer than the usual ten
SERVER_ANSWER_SECONDS = 10  # a busy server is better waited for than left out
StageFunction = Callable[[Params, str], Mapping[str, Any]]
logger = logging.getLogger(__name__)


def folder(kind: str, dataset: str) -> Path:
    """`data/<kind>/<dataset>`, relative to the repository's root where every stage runs."""
    return DATA / kind / dataset


def write(line: str) -> None:
    """One line for the person at the terminal."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def one_line(error: BaseException) -> str:
    """The message of an error on a single line, with a remedy where the system gives none."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and is_disk_full(error):
        return f"the disk must have room for the outputs: got {text}; free some space and run again"
    return text


def describe(summary: Mapping[str, Any]) -> str:
    """The plain values of a summary as `key value, key value`."""
    parts = []
    for key, value in summary.items():
        if isinstance(value, Mapping) and value:
            inner = [v for v in value.values() if isinstance(v, int | float | str)]
            if len(inner) == len(value) <= 6:
                parts.append(f"{key.replace('_', ' ')} ({describe(value)})")
        elif isinstance(value, float):
            parts.append(f"{key.replace('_', ' ')} {value:.4g}")
        elif isinstance(value, int | str) and len(str(value)) <= 60:
            parts.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(parts)


class PeakMemory:
    """The largest resident memory of this process and its children, sampled twice a second."""

    def __init__(self, interval_seconds: float = 0.5) -> None:
        self.peak_bytes = 0
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _watch(self, psutil: ModuleType) -> None:
        me = psutil.Process()
        while True:
            total = 0
            with suppress(psutil.Error):
                for process in (me, *me.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, total)
            if self._stop.wait(self._interval):
                return

    def __enter__(self) -> PeakMemory:
        # Imported here: an import in the thread could be cut short while it holds a lock that the
        # interpreter needs at its end.
        with suppress(ModuleNotFoundError):
            import psutil  # type: ignore[import-untyped]

            self._thread = threading.Thread(target=self._watch, args=(psutil,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)


def run_id_path(stage: str, dataset: str) -> Path:
    """Where the id of a stage's run lies: an output of its own, for no two runs have the same."""
    return DATA / "run_ids" / stage / f"{dataset}.json"


def remember_run(path: Path, tracker: Tracker) -> None:
    """Leave the run's id as one of a stage's outputs, so that DVC restores all together."""
    write_json(path, {"run_id": tracker.run_id})


def prefect_url() -> str | None:
    """`PREFECT_API_URL` if it is set and its server answers, else None.

    Prefect would otherwise start a server of its own for every stage, at about ten seconds each.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return None
    reason = why_silent(url)
    if reason is None:
        return url
    logger.warning(
        "PREFECT_API_URL %s does not answer (%s); running without it", shown(url), reason
    )
    return None


def why_silent(url: str) -> str | None:
    """Why Prefect's API at an address does not answer, or None where it does."""
    try:
        for path in ("health", "admin/version"):  # only the second one wants the login, if any
            asked = urllib.request.Request(f"{url.rstrip('/')}/{path}", headers=prefect_login())
            with urllib.request.urlopen(asked, timeout=SERVER_ANSWER_SECONDS):
                pass
    except (OSError, ValueError, urllib.error.URLError) as error:
        return str(error)
    return None


def _as_flow(name: str, call: Callable[[], Mapping[str, Any]], run_name: str) -> Mapping[str, Any]:
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "cdcd,flows")
    from prefect import flow, tags

    def body() -> None:
        results.append(call())

    results: list[Mapping[str, Any]] = []
    pipeline = os.environ.get(PIPELINE_RUN)
    with tags("dvc-stage", name, *([pipeline] if pipeline else [])):
        flow(name=f"cdcd-{name}", flow_run_name=run_name, persist_result=False)(body)()
    return results[0]


@contextmanager
def _server_of_our_own() -> Iterator[None]:
    """A Prefect server for the time of one stage, where a Dask cluster needs one and none is set.

    Without it every worker would start its own.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    server = SubprocessASGIServer()
    server.start(timeout=SERVER_START_SECONDS)
    os.environ["PREFECT_API_URL"] = server.api_url
    try:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield
    finally:
        del os.environ["PREFECT_API_URL"]
        server.stop()


def params_of(dataset: str) -> Params:
    """The parameters of a dataset, as its stages see them.

    Raises:
        ConfigError: params.yaml breaks a rule.
        ValueError: it does not list the dataset.
    """
    params = load_params()
    if dataset not in params.datasets:
        raise ValueError(
            f"--dataset must be one of datasets in params.yaml: got {dataset}; "
            f"use {' or '.join(params.datasets)}"
        )
    return params.of(dataset)


def run_stage(name: str, function: StageFunction, dataset: str) -> Mapping[str, Any]:
    """Load the parameters, run the stage's function and note what it took in data/runs.

    Raises:
        ConfigError: params.yaml breaks a rule.
    """
    params = params_of(dataset)
    # Sections without the setting never leave this machine.
    section = getattr(params, name, None)
    cluster = cluster_of(section.cluster) if isinstance(section, Shard) else None
    check_cluster(cluster)
    started = time.monotonic()
    label = f"{name}@{dataset}"
    with PeakMemory() as memory:
        if cluster is not None:
            with _server_of_our_own():
                summary = _as_flow(name, lambda: function(params, dataset), label)
        elif prefect_url():
            summary = _as_flow(name, lambda: function(params, dataset), label)
        else:
            summary = function(params, dataset)
    seconds = time.monotonic() - started
    write_json(
        DATA / "runs" / f"{label}.json",
        {
            "seconds": round(seconds, 1),
            "peak_memory_mb": round(memory.peak_bytes / 2**20),
            "finished": time.time(),
        },
    )
    write(f"{label}: {describe(summary)} [{seconds:.1f} s, {memory.peak_bytes / 2**30:.1f} GB]")
    return summary


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def guarded(
    call: Callable[[], int | None], label: str, tell: Callable[[str], None] = _to_stderr
) -> int:
    """Run `call` in a prepared environment; errors of use and the system become one line.

    Args:
        call: what to run.
        label: what the line begins with.
        tell: receives the line.

    Returns:
        Its exit code, 1 after such an error, 130 after an interruption (Ctrl-C or SIGTERM). With
        `CDCD_DEBUG=1` the traceback is shown as well.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
        # What a shell puts into the background inherits that Ctrl-C is ignored; the pipeline's
        # runner ends its stages by it.
        signal.signal(signal.SIGINT, interrupt)
    try:
        prepare_environment()
        return call() or 0
    except KeyboardInterrupt:
        tell(f"{label}: interrupted; earlier outputs are intact")
        return 130
    except (ValueError, OSError) as error:
        if os.environ.get("CDCD_DEBUG") == "1":
            traceback.print_exc()
        tell(f"{label}: {one_line(error)}")
        return 1


def prepare_environment() -> None:
    """Settings of `.env`, telemetry off, warnings of libraries quiet, messages of ours shown.

    Raises:
        SettingsError: `.env` cannot be used.
    """
    os.environ.update(TELEMETRY_OFF)
    load_env()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("cdcd", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)


def parse_dataset(name: str, function: StageFunction, arguments: Iterable[str] | None) -> str:
    """The dataset that a stage's command line names."""
    parser = argparse.ArgumentParser(prog=f"python -m flows.{name}", description=function.__doc__)
    parser.add_argument("--dataset", required=True, help="one of `datasets` in params.yaml")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    return str(chosen.dataset)


def stage_main(name: str, function: StageFunction, arguments: Iterable[str] | None = None) -> int:
    """The command line of a stage: `python -m flows.<name> --dataset aist`."""
    dataset = parse_dataset(name, function, arguments)

    def call() -> None:
        run_stage(name, function, dataset)

    return guarded(call, f"{name}@{dataset}")
