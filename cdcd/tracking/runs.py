"""A stage's run in MLflow, in the spool where MLflow cannot take it, and the way from there.

`open_run` gives a `Tracker`, which buffers metrics and sends them in batches (a single
`log_metric` call costs tens of milliseconds). Everything uses explicit clients and ids, so two runs
in one process do not disturb each other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcd.tracking.base import NullTracker, flatten
from cdcd.tracking.spool import ENDED, Spool, spools
from cdcd.tracking.store import experiment_id, open_client, repository_root, tracking_uri

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 10.0
FLUSH_METRICS = 500
SILENT_SECONDS = 60.0
"""After a failure nothing is sent for so long: a store that is away must not slow the training."""
_MAX_METRICS = 1000  # per request, a limit of MLflow's
_MAX_PARAMS = 100
_MAX_PARAM_CHARS = 6000


def git_state() -> dict[str, str]:
    """Tags `git.commit` and `git.dirty` of the working tree, or nothing outside a repository."""

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", *command],
            cwd=repository_root(),
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        dirty = bool(ask("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {
        "git.commit": commit,
        "git.dirty": str(dirty).lower(),
        "mlflow.source.git.commit": commit,
    }


class MlflowTracker:
    """Records into one MLflow run, and into the spool what MLflow does not take.

    A failing store costs a warning and a later `cdcd sync`, never the stage's work.

    Args:
        client: MLflow's, or None where the store cannot be opened at all.
        run_id: of the run, or None with the client.
        make_spool: makes the run's spool when it is first needed.
    """

    def __init__(
        self, client: Any | None, run_id: str | None, make_spool: Callable[[], Spool]
    ) -> None:
        self.run_id: str | None = run_id
        self._client = client
        self._make_spool = make_spool
        self._spool: Spool | None = None
        self._metrics: list[tuple[str, float, int, int]] = []
        self._silent_until = 0.0
        self._flushed = time.monotonic()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; one that the run already has stays as it is."""
        self._send(_send_params, flatten(params), "params")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Buffer numbers; they are sent every 10 s, 500 numbers, or at the end of the run."""
        now = int(time.time() * 1000)
        self._metrics.extend(
            (key, float(value), now, step) for key, value in flatten(metrics).items()
        )
        waited = time.monotonic() - self._flushed
        if len(self._metrics) >= FLUSH_METRICS or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the buffered numbers."""
        self._flushed = time.monotonic()
        if self._metrics:
            rows, self._metrics = self._metrics, []
            self._send(_send_metrics, rows, "metrics")

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
        self._send(_send_tags, {key: str(value) for key, value in tags.items()}, "tags")

    def end(self, status: str) -> None:
        """Send what is left and say how the run ended: FINISHED, FAILED or KILLED."""
        self.flush()
        self._silent_until = 0.0  # the last chance is worth the wait
        self._send(_send_end, status, ENDED)
        if self._spool is None:
            return
        self._spooled(lambda spool: spool.add(ENDED, status))
        # A store that was away for a while gets at the end what it missed.
        if self._client is not None and self._taken(self._replay, "spool"):
            return
        logger.warning(
            "MLflow did not take all of the run: the rest is in %s; send it with `cdcd sync`",
            self._spool.folder,
        )

    def _replay(self) -> None:
        assert self._spool is not None
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

    def _send(self, send: Callable[[Any, str, Any], None], content: Any, kind: str) -> None:
        if not self._taken(lambda: send(self._client, str(self.run_id), content), kind):
            self._spooled(lambda spool: spool.add(kind, content))

    def _send_files(self, path: Path, folder: str | None) -> None:
        def send() -> None:
            assert self._client is not None
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(self.run_id, str(path), folder)

        if not self._taken(send, f"artifact {path}"):
            self._spooled(lambda spool: spool.add_artifact(path, folder))

    def _taken(self, send: Callable[[], None], what: str) -> bool:
        """Whether MLflow took something: hours of training must not die with its server."""
        if self._client is None or time.monotonic() < self._silent_until:
            return False
        try:
            send()
        except Exception as error:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            reason = " ".join(str(error).split())[:200]
            logger.warning("MLflow did not take the %s of run %s: %s", what, self.run_id, reason)
            return False
        return True

    def _spooled(self, keep: Callable[[Spool], None]) -> None:
        # A full disk may refuse the spool too; the stage's own outputs come first.
        try:
            if self._spool is None:
                self._spool = self._make_spool()
            keep(self._spool)
        except OSError as error:
            logger.warning("the spool did not take it either (%s); it is lost", error)


def _send_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [
        Param(key, str(value)[:_MAX_PARAM_CHARS])
        for key, value in params.items()
        if key not in known
    ]
    for start in range(0, len(new), _MAX_PARAMS):
        client.log_batch(run_id, params=new[start : start + _MAX_PARAMS])


def _send_metrics(client: Any, run_id: str, rows: Sequence[Sequence[Any]]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(*row) for row in rows]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])


def _send_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _send_end(client: Any, run_id: str, status: str) -> None:
    client.set_terminated(run_id, status)


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
) -> Iterator[MlflowTracker | NullTracker]:
    """A run of experiment `cdcd/<dataset>`, closed as finished, failed or killed.

    Where the store cannot be opened the run is spooled, with a warning.

    Args:
        stage: the stage's name; also the run's name together with the dataset.
        dataset: the experiment.
        params: the pydantic `Params` or a mapping; logged flattened.
        tags: further tags beside stage, dataset, commit and dirtiness.
        run_id: continue this run if the store still knows it, otherwise start a new one.
        needs_store: whether the run is worth nothing without a store, as a registration is.

    Raises:
        TrackingError: `needs_store`, and the store cannot be opened.
    """
    if os.environ.get("CDCD_TRACKING") == "off":
        yield NullTracker()
        return
    all_tags = {"stage": stage, "dataset": dataset, **git_state(), **(tags or {})}
    client = opened = None
    try:
        client = open_client()
        opened = _continued(client, run_id) or _started(client, stage, dataset, all_tags)
    except Exception as error:
        if needs_store:
            raise
        logger.warning("%s; the run is kept in %s", " ".join(str(error).split()), spool_root())
        client = None
    tracker = MlflowTracker(
        client, opened, lambda: Spool.new(spool_root(), stage, dataset, all_tags, opened)
    )
    if params is not None:
        tree = params if isinstance(params, Mapping) else params.model_dump(by_alias=True)
        tracker.log_params(tree)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


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
        logger.warning("run %s is gone from %s; starting another", run_id, tracking_uri())
    return None


def _started(client: Any, stage: str, dataset: str, tags: Mapping[str, str]) -> str:
    made = client.create_run(
        experiment_id(client, dataset), tags=dict(tags), run_name=f"{stage}@{dataset}"
    )
    return str(made.info.run_id)


def sync() -> list[str]:
    """Send every spooled run that is no longer at work, and remove what was taken.

    Sending twice what was taken once is harmless: MLflow keeps one of equal records.

    Returns:
        The ids of the runs.

    Raises:
        TrackingError: the store cannot be opened; the spool stays.
    """
    client = open_client()
    done = []
    for spool in spools(spool_root()):
        if spool.is_at_work():
            logger.info("%s is still at work", spool.folder.name)
            continue
        about = spool.about()
        run_id = about["run_id"]
        if run_id is None:
            run_id = _started(client, about["stage"], about["dataset"], about["tags"])
            spool.belongs_to(run_id)
        _replay(client, run_id, spool)
        done.append(run_id)
    return done


def _replay(client: Any, run_id: str, spool: Spool) -> None:
    """Send a spooled run and remove it; one that was killed ends as failed."""
    status = "FAILED"
    for record in spool.records():
        match record.kind:
            case "params":
                _send_params(client, run_id, record.content)
            case "metrics":
                _send_metrics(client, run_id, record.content)
            case "tags":
                _send_tags(client, run_id, record.content)
            case "artifact":
                name, folder = record.content
                client.log_artifacts(run_id, str(spool.folder / "artifacts" / name), folder)
            case "end":
                status = record.content
    _send_end(client, run_id, status)
    spool.remove()
