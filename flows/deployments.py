"""The flows that run by schedule or by `prefect deployment run`: nightly, evaluate, refresh-data.

`python -m flows.serve` serves them; prefect.yaml describes them for a work pool. DVC decides what
is stale and MLflow records; Prefect brings the schedule, the retries and the display.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from functools import partial
from typing import Any

os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "cdcd,flows")

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Cancelled, Failed

from cdcd.config import ConfigError, Dataset, Params, load_params
from flows.artifacts import show_results, show_stages
from flows.notify import message, notify
from flows.pipeline import (
    BusyError,
    Done,
    Patience,
    StageFailedError,
    patiently,
    push,
    run_as_tasks,
    run_pipeline,
)
from flows.refresh import refresh, watched_folders
from flows.rescore import rescore
from flows.stage import one_line, prepare_environment


def _crashed(flow: Any, run: Any, state: Any) -> None:
    """A killed flow cannot tell anything itself; the process that serves it does."""
    notify(message(flow.name, None, state.message or "the run's process ended", []))


def _failed(name: str, error: Exception) -> Any:
    """Tell the webhook; the state of the run where the error is one line, else the error again."""
    stage, lines = None, []
    if isinstance(error, StageFailedError):
        stage, lines = error.stage, error.lines
    notify(message(name, stage, one_line(error), lines))
    if isinstance(error, ValueError | OSError) and os.environ.get("CDCD_DEBUG") != "1":
        return Failed(message=one_line(error))
    raise error


def _chosen(params: Params, datasets: Iterable[str] | None) -> list[str]:
    chosen: list[str] = list(params.datasets if datasets is None else datasets)
    unknown = [name for name in chosen if name not in params.datasets]
    if unknown or not chosen:
        raise ConfigError(
            f"datasets must be some of params.yaml's: got {', '.join(unknown) or 'none'}; choose "
            f"from {', '.join(params.datasets)}"
        )
    return chosen


def _patience(params: Params) -> Patience:
    s = params.schedules
    return Patience(s.retries, s.retry_delay_seconds, s.busy_patience_seconds)


def _later(error: BusyError) -> Any:
    """The state of a run that found the folder busy for all its patience: not failed, not done."""
    return Cancelled(message=f"later: {error}", name="Later")


@flow(name="nightly", persist_result=False, on_crashed=[_crashed])
def nightly(datasets: list[Dataset] | None = None, changes: dict[str, Any] | None = None) -> Any:
    """Bring the whole pipeline up to date.

    Args:
        datasets: those of params.yaml if not given.
        changes: values by dotted key for this run alone, such as {"train.num_steps": 2000}.
    """
    prepare_environment()
    try:
        params = load_params()
        patience = _patience(params)
        chosen = _chosen(params, datasets)
        done = patiently(
            lambda: run_pipeline(chosen, changes, lambda steps: run_as_tasks(steps, patience)),
            patience.busy_seconds,
        )
        if params.schedules.push:
            patiently(lambda: push(get_run_logger().info), patience.busy_seconds)
    except BusyError as error:
        return _later(error)
    except Exception as error:
        return _failed("nightly", error)
    show_stages(done, get_run_logger().info)
    show_results(chosen)
    return None


@flow(name="evaluate", persist_result=False, on_crashed=[_crashed])
def evaluate(datasets: list[Dataset] | None = None, seeds: list[int] | None = None) -> Any:
    """Score the champion of each dataset again.

    Args:
        datasets: those of params.yaml if not given.
        seeds: of the generation; as many fresh ones as `generate.seeds` has if not given.
    """
    prepare_environment()
    lines = ["| model | version | score | then | now |", "|---|---:|---|---:|---:|"]
    try:
        params = load_params()
        for dataset in _chosen(params, datasets):
            own = params.of(dataset)
            drawn = seeds or [secrets.randbelow(2**31) for _ in own.generate.seeds]
            again = partial(rescore, own, dataset, drawn)
            found = patiently(again, _patience(params).busy_seconds)
            then, score = found["promoted_with"], found["score"]
            lines.append(
                f"| {found['model']} | {found['version']} | {score['name']} | "
                f"{'–' if then is None else f'{then:.3f}'} | {score['mean']:.3f} "
                f"[{score['low']:.3f}, {score['high']:.3f}] |"
            )
    except BusyError as error:
        return _later(error)
    except Exception as error:
        return _failed("evaluate", error)
    create_markdown_artifact("\n".join(lines), key="cdcd-champions", description="Scored again")
    return None


@flow(name="refresh-data", persist_result=False, on_crashed=[_crashed])
def refresh_data(datasets: list[Dataset] | None = None) -> Any:
    """Take in what is new in the datasets' folders; stop where too much of it is broken.

    Args:
        datasets: those of params.yaml with a folder if not given.
    """
    prepare_environment()
    done: list[Done] = []
    try:
        params = load_params()
        chosen = _chosen(params, datasets)
        if datasets is None:
            chosen = [name for name in chosen if watched_folders(params, name)]
        say = get_run_logger().info
        for dataset in chosen:
            again = partial(refresh, params, dataset, say)
            done += patiently(again, _patience(params).busy_seconds)
    except BusyError as error:
        return _later(error)
    except Exception as error:
        return _failed("refresh-data", error)
    show_stages(done, get_run_logger().info)
    return None
