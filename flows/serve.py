"""Serves the deployments: `python -m flows.serve`, until SIGTERM.

Runs go one at a time: what a schedule asks for while another run is at work waits for its turn. On
SIGTERM the schedules pause and the run at work ends by itself. A run that died with its machine is
marked as crashed and begun again at the next start, where its stages go on from their checkpoints.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from cdcd.config import ConfigError, Params, load_params
from cdcd.settings import shown
from flows.notify import message, notify
from flows.pipeline import LOCK, BusyError, held, only_one
from flows.stage import guarded, why_silent, write

NAME = "cdcd"
"""Of the deployments: `nightly/cdcd` and so on."""
AGAIN = "again-"
"""Tag of a run that was begun again, with how often."""
SERVING = LOCK.with_name("cdcd-serve.lock")
START_SECONDS = 30.0
"""A server that was started at the same time takes a while."""
UNFINISHED = ("RUNNING", "PENDING", "CANCELLING")


def schedule_of(name: str, cron: str | None, timezone: str) -> Any:
    """A Prefect schedule, or None where the deployment runs by hand alone.

    Args:
        name: of the deployment, for the message.
        cron: five fields, as in crontab.
        timezone: an IANA name.

    Raises:
        ConfigError: cron or timezone is none.
    """
    if cron is None:
        return None
    from prefect.client.schemas.schedules import CronSchedule

    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        broken = {str(e["loc"][0]) for e in error.errors()} if hasattr(error, "errors") else set()
        if "timezone" in broken:
            raise ConfigError(
                f"schedules.timezone must be an IANA name such as Europe/Vienna: got {timezone}"
            ) from None
        raise ConfigError(
            f"schedules.{name} must be five fields of cron, such as '0 2 * * *' for two at night: "
            f"got {cron!r}; mend it or set it to null"
        ) from None


def deployments(params: Params) -> list[Any]:
    """The three deployments with their schedules.

    Raises:
        ConfigError: see `schedule_of`.
    """
    from flows import deployments as flows

    s = params.schedules
    made = []
    for flow, name, cron in (
        (flows.nightly, "nightly", s.nightly),
        (flows.evaluate, "evaluate", s.evaluate),
        (flows.refresh_data, "refresh-data", s.refresh_data),
    ):
        schedule = schedule_of(name.replace("-", "_"), cron, s.timezone)
        made.append(
            flow.to_deployment(
                name=NAME,
                schedule=schedule,
                concurrency_limit=1,
                description=(flow.__doc__ or "").strip().splitlines()[0],
            )
        )
    return made


def _wait_for(url: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (reason := why_silent(url)) is not None:
        if time.monotonic() > until:
            raise ConfigError(
                f"PREFECT_API_URL must name a server that answers: got {shown(url)} ({reason}); "
                "start it with `prefect server start`"
            )
        time.sleep(1)


def begin_again(retries: int) -> list[str]:
    """Mark the runs that died with their process as crashed, and begin them again.

    Nothing is done while a run is at work here: it may be one that outlived `flows.serve`.

    Args:
        retries: how often a run is begun again at most.

    Returns:
        A line for each run.
    """
    try:
        with only_one():
            return [_begin_again(client, run, retries) for client, run in _dead_runs()]
    except BusyError:
        return []


def _dead_runs() -> Iterator[tuple[Any, Any]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    with get_client(sync_client=True) as client:
        yield from (
            (client, run)
            for run in client.read_flow_runs(
                deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [NAME]}}),
                flow_run_filter=FlowRunFilter.model_validate(
                    {"state": {"type": {"any_": UNFINISHED}}}
                ),
            )
        )


def _begin_again(client: Any, run: Any, retries: int) -> str:
    from prefect.states import Crashed

    reason = "its process ended without a word"
    client.set_flow_run_state(run.id, Crashed(message=reason))
    notify(message(run.name, None, reason, []))
    times = max((int(t.removeprefix(AGAIN)) for t in run.tags if t.startswith(AGAIN)), default=0)
    if times >= retries:
        return f"{run.name}: {reason}; begun {times + 1} times, not again"
    again = client.create_flow_run_from_deployment(
        run.deployment_id, parameters=run.parameters, tags=[f"{AGAIN}{times + 1}"]
    )
    return f"{run.name}: {reason}; begun again as {again.name}"


def _serve(made: list[Any]) -> None:
    """Run what is due, one at a time, until SIGTERM; then the run at work ends first.

    Prefect's own `serve` ends at once on SIGTERM and leaves its run behind without a parent.
    """
    import asyncio

    from prefect.runner import Runner

    class PatientRunner(Runner):
        def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
            write("SIGTERM: the schedules pause; the run at work ends first.")
            self.stopping = True
            # The loop that asks for runs ends; leaving the runner waits for those it started.
            self._loops_task_group.cancel_scope.cancel()

    async def serve_all() -> None:
        runner = PatientRunner(limit=1, pause_on_shutdown=True)
        for one in made:
            await runner.aadd_deployment(one)
        await runner.start()

    asyncio.run(serve_all())


def main(arguments: Iterable[str] | None = None) -> int:
    """`python -m flows.serve`: 0 after SIGTERM, 1 with one line where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.parse_args(None if arguments is None else list(arguments))

    def call() -> None:
        url = os.environ.get("PREFECT_API_URL")
        if not url:
            raise ConfigError(
                "PREFECT_API_URL must name a Prefect server: it is not set; start one with "
                "`prefect server start` and put PREFECT_API_URL=http://127.0.0.1:4200/api into "
                ".env"
            )
        _wait_for(url, START_SECONDS)
        params = load_params()
        made = deployments(params)
        try:
            with held(SERVING, "flows.serve"):
                for line in begin_again(params.schedules.retries):
                    write(line)
                write("Serving nightly/cdcd, evaluate/cdcd, refresh-data/cdcd; SIGTERM stops.")
                _serve(made)
        except BusyError as error:
            raise ConfigError(f"{error}; it serves this folder already") from None

    return guarded(call, "serve")


if __name__ == "__main__":
    sys.exit(main())
