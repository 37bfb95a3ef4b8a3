"""Where runs and models are kept: the URI, a client on it, the experiment of a dataset."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

from cdcd.settings import shown

# MLflow honours only the word `true`.
TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}
# MLflow's own defaults wait for minutes.
_HTTP = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}

logger = logging.getLogger(__name__)

LOCKED_SECONDS = 20.0
"""How long a store may be locked by another process, as MLflow itself waits for sqlite."""


class TrackingError(OSError):
    """The tracking store cannot be opened; the message says where it is and what to do."""


def workspace_root(start: Path | None = None) -> Path:
    """The nearest folder at or above `start` (default: here) with a dvc.yaml, else `start`."""
    start = (start or Path.cwd()).resolve()
    return next((p for p in (start, *start.parents) if (p / "dvc.yaml").is_file()), start)


def repository_root(start: Path | None = None) -> Path:
    """The `workspace_root`, or the repository whose experiment DVC runs there.

    DVC runs queued experiments in copies below `.dvc/tmp` that it throws away, and tells their
    stages by `DVC_ROOT` where the repository is: what outlives an experiment belongs there.
    """
    found = workspace_root(start)
    told = os.environ.get("DVC_ROOT")
    if told and found.is_relative_to(Path(told).resolve() / ".dvc" / "tmp"):
        return Path(told).resolve()
    return found


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else sqlite at data/mlflow/mlflow.db; sqlite paths are absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{repository_root() / 'data' / 'mlflow' / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{Path(uri.removeprefix(prefix)).resolve()}"
    return uri


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI, None for another store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def open_client() -> Any:
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
    # It prints a traceback of pages for what its exception says too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    uri = tracking_uri()
    path = sqlite_path(uri)
    try:
        if path is None:
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_opens(path)
        # Processes that meet a missing file would all create its tables, and most would crash.
        with (path.parent / ".create.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():  # also where a folder was moved or a disk is not mounted
                logger.info(
                    "a new MLflow store begins at %s: no earlier run or model is in it", path
                )
            client = mlflow.MlflowClient(uri)
            client.search_experiments(max_results=1)
            return client
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        told = str(error).partition("[SQL:")[0].replace(uri, shown(uri))
        reason = " ".join(told.split())[:200]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI must name a store that can be opened: got {shown(uri)} "
            f"({reason}); {_remedy(path, reason)}"
        ) from error


def _remedy(path: Path | None, reason: str) -> str:
    if path is None:
        return "start its server, mend the URI or unset it to use data/mlflow"
    if "locked" in reason:
        return "another process holds it: wait for it or end it"
    return "mend the file or its rights, bring back a copy, or name another store"


def _check_opens(path: Path) -> None:
    """Fail at once on a file that is no database; MLflow would try for more than a minute."""
    if path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=LOCKED_SECONDS)) as connection:
            connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()


def ensure_store() -> str:
    """Create the store if it is missing and return its URI."""
    open_client()
    return tracking_uri()


def experiment_id(client: Any, dataset: str) -> str:
    """The experiment `cdcd/<dataset>`, made where it is missing."""
    from mlflow.exceptions import MlflowException

    name = f"cdcd/{dataset}"
    found = client.get_experiment_by_name(name)
    if found is None:
        path = sqlite_path(tracking_uri())
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
