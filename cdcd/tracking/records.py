"""Each kind of record and how it is sent to MLflow, at once or later from the spool.

Contents are JSON-able, and sending one twice changes nothing: MLflow keeps one of equal records,
and a child is looked up by its name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MAX_METRICS = 1000  # per request, a limit of MLflow's
_MAX_PARAMS = 100
_MAX_TAGS = 100
_MAX_PARAM_CHARS = 6000
PARENT = "mlflow.parentRunId"


def send(client: Any, run_id: str, kind: str, content: Any) -> None:
    """Send one record of a run.

    Args:
        client: MLflow's.
        run_id: of the run.
        kind: one of `KINDS`.
        content: what belongs to it.
    """
    KINDS[kind](client, run_id, content)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)


def _send_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Parameters by name; one that the run already has stays as it is."""
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
    """Rows of key, value, milliseconds since the epoch, step."""
    from mlflow.entities import Metric

    metrics = [Metric(*row) for row in rows]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])


def _send_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Tags by name."""
    from mlflow.entities import RunTag

    rows = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(rows), _MAX_TAGS):
        client.log_batch(run_id, tags=rows[start : start + _MAX_TAGS])


def _send_inputs(client: Any, run_id: str, inputs: Sequence[Mapping[str, Any]]) -> None:
    """The fields of each `DataInput`."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = [
        DatasetInput(
            Dataset(
                one["name"],
                one["digest"],
                source_type="local",
                source=json.dumps({"uri": one["source"]}),
                profile=json.dumps(one["profile"]),
            ),
            [InputTag("mlflow.data.context", one["context"])],
        )
        for one in inputs
    ]
    client.log_inputs(run_id, found)


def _send_child(client: Any, run_id: str, child: Mapping[str, Any]) -> None:
    """A run with name, tags, metrics by name, and the milliseconds at which it is over."""
    from mlflow.entities import Metric

    parent = client.get_run(run_id)
    experiment, at = parent.info.experiment_id, child["milliseconds"]
    found = next(
        (
            run.info.run_id
            for run in client.search_runs([experiment], f"tags.`{PARENT}` = '{run_id}'")
            if run.info.run_name == child["name"]
        ),
        None,
    )
    if found is None:
        tags = {PARENT: run_id, "dataset": parent.data.tags.get("dataset", ""), **child["tags"]}
        made = client.create_run(experiment, start_time=at, tags=tags, run_name=child["name"])
        found = made.info.run_id
    metrics = [Metric(key, value, at, 0) for key, value in child["metrics"].items()]
    for start in range(0, len(metrics), _MAX_METRICS):
        client.log_batch(found, metrics=metrics[start : start + _MAX_METRICS])
    client.set_terminated(found, "FINISHED", at)


def _send_end(client: Any, run_id: str, end: Sequence[Any] | str) -> None:
    """Status and milliseconds; runs spooled by version 0.1.0 tell the status alone."""
    if isinstance(end, str):
        client.set_terminated(run_id, end)
    else:
        client.set_terminated(run_id, end[0], end[1])


KINDS: Mapping[str, Callable[[Any, str, Any], None]] = {
    "params": _send_params,
    "metrics": _send_metrics,
    "tags": _send_tags,
    "inputs": _send_inputs,
    "child": _send_child,
    "end": _send_end,
}
