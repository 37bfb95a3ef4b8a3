"""Runs, artifacts, model versions and aliases: the only package that imports MLflow."""

from cdcd.tracking.base import DataInput, NullTracker, Tracker, flatten, is_number, read_run_id
from cdcd.tracking.identity import git_state
from cdcd.tracking.registry import (
    ModelVersion,
    download_model,
    log_model_version,
    run_settings,
    set_alias,
    set_version_tags,
    version_by_alias,
    version_by_number,
)
from cdcd.tracking.runs import MlflowTracker, link_version, open_run, spool_root, sync
from cdcd.tracking.store import (
    TELEMETRY_OFF,
    TrackingError,
    ensure_store,
    repository_root,
    tracking_uri,
)

__all__ = [
    "TELEMETRY_OFF",
    "DataInput",
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
    "link_version",
    "log_model_version",
    "open_run",
    "read_run_id",
    "repository_root",
    "run_settings",
    "set_alias",
    "set_version_tags",
    "spool_root",
    "sync",
    "tracking_uri",
    "version_by_alias",
    "version_by_number",
]
