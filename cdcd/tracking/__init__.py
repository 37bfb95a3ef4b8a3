"""Runs, artifacts, model versions and aliases: the only package that imports MLflow."""

from cdcd.tracking.base import NullTracker, Tracker, flatten, is_number, read_run_id
from cdcd.tracking.registry import (
    ModelVersion,
    download_model,
    log_model_version,
    set_alias,
    set_version_tags,
    version_by_alias,
    version_by_number,
)
from cdcd.tracking.runs import MlflowTracker, git_state, open_run, spool_root, sync
from cdcd.tracking.store import (
    TELEMETRY_OFF,
    TrackingError,
    ensure_store,
    repository_root,
    tracking_uri,
)

__all__ = [
    "TELEMETRY_OFF",
    "MlflowTracker",
    "ModelVersion",
    "NullTracker",
    "Tracker",
    "TrackingError",
    "download_model",
    "ensure_store",
    "flatten",
    "git_state",
    "is_number",
    "log_model_version",
    "open_run",
    "read_run_id",
    "repository_root",
    "set_alias",
    "set_version_tags",
    "spool_root",
    "sync",
    "tracking_uri",
    "version_by_alias",
    "version_by_number",
]
