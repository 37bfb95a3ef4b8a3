"""A stage's run in MLflow, in the spool where MLflow cannot take it, and the way from there.

`open_run` gives a `Tracker`, which buffers metrics and sends them in batches (a single
`log_metric` call costs tens of milliseconds). Everything uses explicit clients and ids, so two runs
in one process do not disturb each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcd.data.files import StorageError
from cdcd.settings import shown
from cdcd.tracking.base import DataInput, NullTracker, flatten
from cdcd.tracking.identity import data_hash, identify
from cdcd.tracking.records import PARENT, now_ms, send
from cdcd.tracking.spool import ENDED, Spool, spools
from cdcd.tracking.store import (
    TrackingError,
    experiment_id,
    open_client,
    repository_root,
    sqlite_path,
    tracking_uri,
)
from cdcd.tracking.system import SystemMetrics

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
FLUSH_METRICS = 500
SILENT_SECONDS = 60.0
"""After a failure nothing is sent for so long: a store that is away must not slow the training."""
SILENT_FACTOR = 50.0
"""... and for so many times what the failure took: waiting costs at most 2 % of the time."""
_NOTE = "mlflow.note.content"  # a run's description
MAX_KEPT = 10_000
"""Records kept in memory at most while neither MLflow nor the spool takes them."""


class MlflowTracker:
    """Records into one MLflow run, and into the spool what MLflow does not take.

    A failing store costs a warning and a later `cdcd sync`, never the stage's work.

    Args:
        client: MLflow's, or None where the store cannot be opened at all.
        run_id: of the run, or None with the client.
        make_spool: makes the run's spool when it is first needed.
        system: sampled where numbers are logged; None: not at all.
    """

    def __init__(
        self,
        client: Any | None,
        run_id: str | None,
        make_spool: Callable[[], Spool],
        system: SystemMetrics | None = None,
    ) -> None:
        self.run_id: str | None = run_id
        self._client = client
        self._make_spool = make_spool
        self._system = system
        self._spool: Spool | None = None
        self._kept: list[tuple[str, Any]] = []
        self._num_lost = 0
        self._metrics: list[tuple[str, float, int, int]] = []
        self._silent_until = 0.0
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; one that the run already has stays as it is."""
        plain = {key: str(value) for key, value in flatten(params).items()}
        self._send("params", plain)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Buffer numbers; they are sent every 10 s, 500 numbers, or at the end of the run."""
        now, found = now_ms(), flatten(metrics)
        if self._system is not None:
            found |= self._system.sample()
        self._metrics.extend((key, float(value), now, step) for key, value in found.items())
        waited = time.monotonic() - self._flushed
        if len(self._metrics) >= FLUSH_METRICS or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered numbers."""
        self._flushed = time.monotonic()
        if self._metrics:
            rows, self._metrics = self._metrics, []
            self._send("metrics", rows)

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run."""
        self._send_files(Path(path), folder)

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a folder's content into the run."""
        self._send_files(Path(path), folder)

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Keep mono float sound `[n]` in [-1, 1] as `<name>.wav`."""
        import soundfile

        with self._temporary(name, ".wav") as (path, folder):
            soundfile.write(path, audio, sample_rate_hz, subtype="PCM_16")
            self.log_artifact(path, folder)

    def log_figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure as `<name>.png`."""
        with self._temporary(name, ".png") as (path, folder):
            figure.savefig(path, dpi=100, bbox_inches="tight")
            self.log_artifact(path, folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags of the run."""
        self._send("tags", {key: str(value) for key, value in tags.items()})

    def log_inputs(self, inputs: Sequence[DataInput]) -> None:
        """Name the data that the run read, for its page in the UI."""
        if inputs:
            self._send("inputs", [dataclasses.asdict(one) for one in inputs])

    def log_child(
        self, name: str, metrics: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Record numbers of a part of the run as a finished run of its own below it.

        Args:
            name: of the child; the same name again adds to the same child.
            metrics: numbers by name.
            tags: beside the dataset.
        """
        plain = {key: float(value) for key, value in flatten(metrics).items()}
        child = {"name": name, "metrics": plain, "tags": dict(tags or {}), "milliseconds": now_ms()}
        self._send("child", child)

    def end(self, status: str) -> None:
        """Send what is left and say how the run ended: FINISHED, FAILED or KILLED."""
        self.flush()
        self._silent_until = 0.0  # the last chance is worth the wait
        ended = [status, now_ms()]
        if self._spool is None and not self._kept and self._taken_record(ENDED, ended):
            return
        self._spooled(ENDED, ended)
        # A store that was away for a while gets at the end what it missed.
        if self._spool is not None:
            if self._client is not None and self._taken(self._replay, "spool"):
                return
            logger.warning(
                "MLflow did not take all of the run: the rest is in %s; send it with `cdcd sync`",
                self._spool.folder,
            )
        if self._kept or self._num_lost:
            logger.warning(
                "neither MLflow nor the spool took %d records of the run; they are lost",
                len(self._kept) + self._num_lost,
            )

    def _replay(self) -> None:
        assert self._spool is not None
        if self._kept:
            raise OSError("the spool is not complete")
        _replay(self._client, str(self.run_id), self._spool)

    @staticmethod
    @contextlib.contextmanager
    def _temporary(name: str, suffix: str) -> Iterator[tuple[Path, str | None]]:
        inside = Path(name.removesuffix(suffix) + suffix)
        with tempfile.TemporaryDirectory() as folder:
            yield (
                Path(folder) / inside.name,
                str(inside.parent) if inside.parent.name else None,
            )

    def _send(self, kind: str, content: Any) -> None:
        if not self._taken_record(kind, content):
            self._spooled(kind, content)

    def _taken_record(self, kind: str, content: Any) -> bool:
        return self._taken(lambda: send(self._client, str(self.run_id), kind, content), kind)

    def _send_files(self, path: Path, folder: str | None) -> None:
        def copy() -> None:
            assert self._client is not None
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(self.run_id, str(path), folder)

        if self._taken(copy, f"artifact {path}"):
            return
        try:
            self._open_spool().add_artifact(path, folder)
        except (OSError, StorageError) as error:
            self._num_lost += 1
            logger.warning("the spool did not take %s either (%s); it is lost", path, error)

    def _taken(self, send: Callable[[], None], what: str) -> bool:
        """Whether MLflow took something: hours of training must not die with its server."""
        if self._client is None or time.monotonic() < self._silent_until:
            return False
        started = time.monotonic()
        try:
            send()
        except Exception as error:
            waited = time.monotonic() - started
            silent = max(SILENT_SECONDS, SILENT_FACTOR * waited)
            self._silent_until = time.monotonic() + silent
            logger.warning(
                "MLflow did not take the %s of run %s (%s); it is spooled, next try in %.0f s",
                what,
                self.run_id,
                brief(error),
                silent,
            )
            return False
        return True

    def _spooled(self, kind: str, content: Any) -> None:
        """Keep a record on disk; where that is full too, in memory until it is not."""
        self._kept.append((kind, content))
        try:
            spool = self._open_spool()
            while self._kept:
                spool.add(*self._kept[0])
                del self._kept[0]
        except (OSError, StorageError) as error:
            if len(self._kept) == 1:
                logger.warning("the spool did not take it either (%s); tried again later", error)
            if len(self._kept) > MAX_KEPT:
                del self._kept[0]
                self._num_lost += 1

    def _open_spool(self) -> Spool:
        if self._spool is None:
            self._spool = self._make_spool()
        return self._spool


def brief(error: BaseException) -> str:
    """The reason on one short line, without the statement that a database was asked."""
    return " ".join(str(error).partition("[SQL:")[0].split())[:200] or type(error).__name__


def spool_root() -> Path:
    """Where runs wait that MLflow did not take: data/spool of the repository."""
    return repository_root() / "data" / "spool"


@contextlib.contextmanager
def open_run(
    stage: str,
    dataset: str,
    params: Any = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    *,
    needs_store: bool = False,
    paths: Iterable[str] | None = None,
    has_system_metrics: bool = False,
) -> Iterator[MlflowTracker | NullTracker]:
    """A run of experiment `cdcd/<dataset>`, closed as finished, failed or killed.

    It is tagged with the commit and the hashes of the stage's dependencies, and names the data that
    it reads. An experiment of DVC goes below a run that stands for its sweep. Where the store
    cannot be opened the run is spooled, with a warning.

    Args:
        stage: the stage's name; also the run's name together with the dataset.
        dataset: the experiment.
        params: the pydantic `Params` or a mapping; logged flattened.
        tags: further tags beside stage, dataset and those of `identify`.
        run_id: continue this run if the store still knows it, otherwise start a new one.
        needs_store: whether the run is worth nothing without a store, as a registration is.
        paths: what it depends on, relative to the repository's root; None: what dvc.yaml says.
        has_system_metrics: whether to sample CPU, memory, disk, network and GPU as it logs.

    Raises:
        TrackingError: `needs_store`, and the store cannot be opened or takes no run.
    """
    if os.environ.get("CDCD_TRACKING") == "off":
        yield NullTracker()
        return
    identity, started = identify(stage, dataset, paths), now_ms()
    all_tags = {"stage": stage, "dataset": dataset, **identity.tags, **(tags or {})}
    client = opened = None
    try:
        client = open_client()
        opened = _continued(client, run_id) or _started(client, stage, dataset, all_tags, started)
    except Exception as error:
        if needs_store:
            raise TrackingError(_one_line(error)) from error
        logger.warning("%s; the run is kept in %s", _one_line(error), spool_root())
        client = None
    tracker = MlflowTracker(
        client,
        opened,
        lambda: Spool.new(spool_root(), stage, dataset, all_tags, opened, started),
        SystemMetrics() if has_system_metrics else None,
    )
    if params is not None:
        tree = params if isinstance(params, Mapping) else params.model_dump(by_alias=True)
        tracker.log_params(tree)
    tracker.log_inputs(identity.inputs)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


def _one_line(error: BaseException) -> str:
    """What is wrong with the store: our own words, or the reason that MLflow gives."""
    if isinstance(error, TrackingError):
        return " ".join(str(error).split())
    return f"MLflow at {shown(tracking_uri())} does not take a run ({brief(error)})"


def _continued(client: Any, run_id: str | None) -> str | None:
    """The run again at work, or None where there is none or the store has lost it."""
    from mlflow.entities import RunStatus
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))
            return run_id
    except MlflowException:
        logger.warning("run %s is gone from %s; starting another", run_id, shown(tracking_uri()))
    return None


def _started(
    client: Any, stage: str, dataset: str, tags: Mapping[str, str], started: int | None = None
) -> str:
    experiment = experiment_id(client, dataset)
    tags, name = dict(tags), f"{stage}@{dataset}"
    if "sweep" in tags:
        tags[PARENT] = sweep_run(client, experiment, tags["sweep"])
        name += f" {tags.get('experiment', '')}".rstrip()
    made = client.create_run(experiment, start_time=started, tags=tags, run_name=name)
    return str(made.info.run_id)


def sweep_run(client: Any, experiment: str, revision: str) -> str:
    """The run that stands for all experiments from a revision; made by whoever comes first.

    Processes on one machine take turns. On several machines with one server there may be two, if
    they start within the same moment.

    Args:
        client: MLflow's.
        experiment: the id of the dataset's experiment.
        revision: what the experiments start from.
    """
    with _in_turn():
        found = client.search_runs(
            [experiment],
            f"tags.stage = 'sweep' and tags.sweep = '{revision}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        if found:
            return str(found[0].info.run_id)
        tags = {
            "stage": "sweep",
            "sweep": revision,
            _NOTE: f"Experiments that `dvc exp run` started from {revision}.",
        }
        made = client.create_run(experiment, tags=tags, run_name=f"sweep {revision[:7]}")
        client.set_terminated(made.info.run_id)
        return str(made.info.run_id)


@contextlib.contextmanager
def _in_turn() -> Iterator[None]:
    path = sqlite_path(tracking_uri())
    folder = spool_root().parent if path is None else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def link_version(name: str, version: str, dataset: str, run_ids: Iterable[str | None]) -> None:
    """Let a registered version and the runs that it comes from lead to each other.

    The runs get tags `registered.model` and `registered.version` and a link in their description,
    the version links to them in its own and a tag `evaluate_run_id`. To the runs given come the
    evaluations of the same weights, by the hash of data/models in dvc.lock. A run that is gone is
    left out.

    Args:
        name: of the registered model.
        version: its number.
        dataset: whose model it is.
        run_ids: of training, registration and others; None is left out.

    Raises:
        TrackingError: the store cannot be opened.
    """
    from mlflow.exceptions import MlflowException

    client = open_client()
    line = f"Registered as [{name} version {version}](#/models/{name}/versions/{version})."
    links = []
    evaluations = _evaluations(client, dataset)
    for run_id in dict.fromkeys([*(one for one in run_ids if one is not None), *evaluations]):
        try:
            run = client.get_run(run_id)
            tags = {"registered.model": name, "registered.version": version}
            tags |= _with_line(run.data.tags.get(_NOTE, ""), line)
            send(client, run_id, "tags", tags)
        except MlflowException as error:
            logger.warning("run %s gets no link to %s: %s", run_id, name, brief(error))
            continue
        info = run.info
        links.append(f"[{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id})")
    if evaluations:
        client.set_model_version_tag(name, version, "evaluate_run_id", evaluations[0])
    if links:
        told = client.get_model_version(name, version).description or ""
        made_by = _with_line(told, f"Runs: {', '.join(links)}.")[_NOTE]
        client.update_model_version(name, version, description=made_by)


def _with_line(note: str, line: str) -> dict[str, str]:
    return {_NOTE: note if line in note else f"{note}\n\n{line}".strip()}


def _evaluations(client: Any, dataset: str) -> list[str]:
    """Finished evaluations of the weights that now lie in data/models."""
    path = f"data/models/{dataset}"
    found, experiment = data_hash(path, dataset), client.get_experiment_by_name(f"cdcd/{dataset}")
    if found is None or experiment is None:
        return []
    runs = client.search_runs(
        [experiment.experiment_id],
        f"tags.stage = 'evaluate' and tags.`dep.{path}` = '{found}' "
        "and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    return [run.info.run_id for run in runs]


def sync() -> list[str]:
    """Send every spooled run that is no longer at work, and remove what was taken.

    Sending twice what was taken once is harmless: MLflow keeps one of equal records.

    Returns:
        The ids of the runs.

    Raises:
        TrackingError: the store cannot be opened or does not take a run; the spool stays.
    """
    from mlflow.exceptions import MlflowException

    client = open_client()
    done = []
    for spool in spools(spool_root()):
        if spool.is_at_work():
            logger.info("%s is still at work", spool.folder.name)
            continue
        about = spool.about()
        run_id = about["run_id"]
        try:
            if run_id is None:
                run_id = _started(
                    client, about["stage"], about["dataset"], about["tags"], about.get("started")
                )
                spool.belongs_to(run_id)
            _replay(client, run_id, spool)
        except MlflowException as error:
            raise TrackingError(
                f"MLflow must take {spool.folder}: {shown(tracking_uri())} did not "
                f"({brief(error)}); mend the store and run `cdcd sync` again"
            ) from error
        done.append(run_id)
    return done


def _replay(client: Any, run_id: str, spool: Spool) -> None:
    """Send a spooled run and remove it; one that was killed ends as failed."""
    end: Any = "FAILED"
    for record in spool.records():
        if record.kind == "artifact":
            name, folder = record.content
            client.log_artifacts(run_id, str(spool.folder / "artifacts" / name), folder)
        elif record.kind == ENDED:
            end = record.content
        else:
            send(client, run_id, record.kind, record.content)
    send(client, run_id, ENDED, end)
    spool.remove()
