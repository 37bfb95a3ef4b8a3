"""Runs, artifacts, model versions and aliases: the only file that imports MLflow.

`open_run` gives a `Tracker`, which buffers metrics and sends them in batches (a single
`log_metric` call costs tens of milliseconds). Everything uses explicit clients and ids, so two runs
in one process do not disturb each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard

from cdcd.spool import ENDED, Spool, spools

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

# MLflow honours only the word `true`.
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}
# MLflow's own defaults wait for minutes.
_HTTP = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
FLUSH_SECONDS = 10.0
FLUSH_METRICS = 500
SILENT_SECONDS = 60.0
"""After a failure nothing is sent for so long: a store that is away must not slow the training."""
_MAX_METRICS = 1000  # per request, a limit of MLflow's
_MAX_PARAMS = 100
_MAX_PARAM_CHARS = 6000


class TrackingError(OSError):
    """The tracking store cannot be opened; the message says where it is and what to do."""


def repository_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: here) with a dvc.yaml, else `start`."""
    start = (start or Path.cwd()).resolve()
    return next((p for p in (start, *start.parents) if (p / "dvc.yaml").is_file()), start)


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else sqlite at data/mlflow/mlflow.db; sqlite paths are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{repository_root() / 'data' / 'mlflow' / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return uri


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _client() -> Any:
    """A client on a store that exists.

    Raises:
        TrackingError: the store cannot be opened or created.
    """
    os.environ.update(TELEMETRY_OFF)
    for name, value in _HTTP.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = tracking_uri()
    path = _sqlite_path(uri)
    try:
        if path is None:
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes that meet a missing file would all create its tables, and most would crash.
        with (path.parent / ".create.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI must name a store that can be opened: got {uri} ({reason}); "
            "start its server, mend the URI or unset it to use data/mlflow"
        ) from error


def ensure_store() -> str:
    """Create the store if it is missing and return its URI."""
    _client()
    return tracking_uri()


def _experiment_id(client: Any, dataset: str) -> str:
    from mlflow.exceptions import MlflowException

    name = f"cdcd/{dataset}"
    found = client.get_experiment_by_name(name)
    if found is None:
        path = _sqlite_path(tracking_uri())
        location = None  # a server decides itself
        if path is not None:
            location = (path.parent / "artifacts" / dataset).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


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


class Tracker(Protocol):
    """What a stage may record. `NullTracker` records nothing."""

    run_id: str | None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings become dotted names."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at a step; buffered, so cheap enough for every step."""
        ...

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a file into the run."""
        ...

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Copy a folder's content into the run."""
        ...

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Keep mono float sound `[n]` in [-1, 1] as `<name>.wav`, which MLflow's UI plays."""
        ...

    def log_figure(self, name: str, figure: Any) -> None:
        """Keep a matplotlib figure as `<name>.png`."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags of the run."""
        ...

    def flush(self) -> None:
        """Send what is buffered."""
        ...


class NullTracker:
    """A tracker that records nothing, for tests and runs without MLflow."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_audio(self, name: str, audio: np.ndarray, sample_rate_hz: int) -> None:
        """Do nothing."""

    def log_figure(self, name: str, figure: Any) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


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
        client = _client()
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
        _experiment_id(client, dataset), tags=dict(tags), run_name=f"{stage}@{dataset}"
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
    client = _client()
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


@dataclass(frozen=True)
class ModelVersion:
    """One registered version: its name, number, tags and the run and URI it came from."""

    name: str
    version: str
    tags: dict[str, str]
    run_id: str | None = None

    @property
    def uri(self) -> str:
        """`models:/<name>/<version>`."""
        return f"models:/{self.name}/{self.version}"

    @classmethod
    def _of(cls, found: Any) -> Self:
        return cls(found.name, str(found.version), dict(found.tags), found.run_id)


def log_model_version(
    name: str,
    *,
    dataset: str,
    task: str,
    python_model: Path,
    artifacts: Mapping[str, Path],
    code_paths: list[Path],
    requirements: list[str],
    tags: Mapping[str, str],
    description: str,
    metadata: Mapping[str, Any],
) -> ModelVersion:
    """Log a models-from-code pyfunc (a video, a text or a class in, files out) and register it.

    The model holds the code, the artifacts' files and the requirements: nothing is pickled, and a
    clean environment loads it with `MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`.

    Args:
        name: of the registered model.
        dataset: its experiment holds the run.
        task: decides the columns that go in and come out.
        python_model: the file that calls `mlflow.models.set_model`.
        artifacts: folders copied into the model, by the names that `context.artifacts` uses.
        code_paths: packages copied into the model.
        requirements: pip requirements, pinned.
        tags: of the version.
        description: of the version, shown in the UI.
        metadata: of the model, JSON-able.
    """
    with open_run("register", dataset, tags=tags, needs_store=True) as tracker:
        if tracker.run_id is None:
            raise TrackingError(
                "register needs the tracking store: got CDCD_TRACKING=off; unset it"
            )
        import mlflow

        mlflow.set_tracking_uri(tracking_uri())
        with mlflow.start_run(run_id=tracker.run_id):
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(python_model),
                artifacts={key: str(path) for key, path in artifacts.items()},
                code_paths=[str(path) for path in code_paths],
                pip_requirements=requirements,
                signature=_signature(task),
                metadata=dict(metadata),
                registered_model_name=name,
            )
        client, version = _client(), str(logged.registered_model_version)
        made = ModelVersion._of(client.get_model_version(name, version))
        set_version_tags(made, tags)
        client.update_model_version(name, version, description=description)
        return ModelVersion._of(client.get_model_version(name, version))


def _signature(task: str) -> Any:
    """What `cdcd.serving` reads and returns, for MLflow."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    def optional(**kinds: DataType) -> list[ColSpec]:
        return [ColSpec(kind, label, required=False) for label, kind in kinds.items()]

    text, number, whole = DataType.string, DataType.double, DataType.long
    settings = optional(out=text, seed=whole, guidance=number, truncation=number)
    if task == "dance2music":
        given = [ColSpec(text, "video")]
        made = [
            ColSpec(text, "audio_path"),
            ColSpec(whole, "sample_rate_hz"),
            ColSpec(number, "duration_seconds"),
        ]
    else:
        # A class is a number or a name.
        asked = ColSpec(text, "text") if task == "text2image" else ColSpec(AnyType(), "class")
        given = [asked, *optional(num=whole)]
        made = [
            ColSpec(Array(text), "image_paths"),
            ColSpec(whole, "width"),
            ColSpec(whole, "height"),
            ColSpec(whole, "num_tokens_dropped"),
        ]
    return ModelSignature(inputs=Schema([*given, *settings]), outputs=Schema(made))


def version_by_alias(name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, or None."""
    client = _client()
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion._of(client.get_model_version_by_alias(name, alias))
    except MlflowException:
        return None


def version_by_number(name: str, version: str) -> ModelVersion | None:
    """The version with this number, or None."""
    client = _client()
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion._of(client.get_model_version(name, version))
    except MlflowException:
        return None


def set_version_tags(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Add or replace tags of a registered version."""
    client = _client()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, str(value))


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; it leaves the one it pointed at."""
    _client().set_registered_model_alias(name, alias, version)


def download_model(uri: str) -> dict[str, Path]:
    """Fetch a `models:/…` URI and return the folders of its artifacts by name.

    Raises:
        TrackingError: no such model, version or alias, or a model of another kind.
    """
    _client()
    import mlflow
    import yaml
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        artifacts = described["flavors"]["python_function"]["artifacts"]
        return {name: folder / entry["path"] for name, entry in artifacts.items()}
    except (MlflowException, OSError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"--model must name a registered version or alias: got {uri} ({reason}); "
            "see `make ui` for those that exist"
        ) from error


def read_run_id(path: Path) -> str | None:
    """The `run_id` in a run.json, or None where the file is missing or unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
