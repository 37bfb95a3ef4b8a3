"""Addresses of what MLflow's UI shows, for people who come from elsewhere."""

from __future__ import annotations

import os
from typing import Any

from cdcd.tracking.store import open_client, tracking_uri

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui` listens."""


def ui_address() -> str:
    """`CDCD_MLFLOW_UI`, else the tracking server itself, else where `make ui` listens."""
    uri = tracking_uri()
    own = uri if uri.startswith(("http://", "https://")) else LOCAL_UI
    return (os.environ.get("CDCD_MLFLOW_UI") or own).rstrip("/")


def run_link(run: Any) -> str:
    """Address of a run's page.

    Args:
        run: MLflow's.
    """
    return f"{ui_address()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def version_link(name: str, version: str) -> str:
    """Address of a registered version's page."""
    return f"{ui_address()}/#/models/{name}/versions/{version}"


def latest_run_link(dataset: str, stage: str) -> str | None:
    """Address of the newest run of a stage, None where there is none.

    Raises:
        TrackingError: the store cannot be opened.
    """
    client = open_client()
    experiment = client.get_experiment_by_name(f"cdcd/{dataset}")
    if experiment is None:
        return None
    found = client.search_runs(
        [experiment.experiment_id],
        filter_string=f"tags.stage = '{stage}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return run_link(found[0]) if found else None
