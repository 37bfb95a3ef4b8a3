"""Serves the deployments: `python -m flows.serve`, until SIGTERM.

Runs go one at a time: what a schedule asks for while another run is at work waits for its turn. On
SIGTERM the schedules pause and the run at work ends by itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import Any

from cdcd.config import ConfigError, Params, load_params
from cdcd.settings import load_env
from flows.stage import guarded, prefect_url, prepare_environment, write


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
                name="cdcd",
                schedule=schedule,
                concurrency_limit=1,
                description=(flow.__doc__ or "").strip().splitlines()[0],
            )
        )
    return made


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
    prepare_environment()

    def call() -> None:
        load_env()
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError(
                "PREFECT_API_URL must name a Prefect server: it is not set; start one with "
                "`prefect server start` and put PREFECT_API_URL=http://127.0.0.1:4200/api into "
                ".env"
            )
        if prefect_url() is None:
            raise ConfigError(
                f"PREFECT_API_URL must name a server that answers: got "
                f"{os.environ['PREFECT_API_URL']}; start it with `prefect server start`"
            )
        made = deployments(load_params())
        write("Serving nightly/cdcd, evaluate/cdcd and refresh-data/cdcd; SIGTERM stops.")
        _serve(made)

    return guarded(call, "serve")


if __name__ == "__main__":
    sys.exit(main())
