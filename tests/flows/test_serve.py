"""Schedules from params.yaml, and what `python -m flows.serve` says where it cannot start."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cdcd.config import ConfigError, Params
from flows import serve


@pytest.mark.parametrize(
    ("cron", "timezone", "told"),
    [
        ("0 25 * * *", "UTC", "schedules.nightly must be five fields of cron"),
        ("every night", "UTC", "got 'every night'; mend it or set it to null"),
        ("0 2 * * *", "Europe/Atlantis", "schedules.timezone must be an IANA name"),
    ],
)
def test_a_typo_in_a_schedule_is_one_line(cron: str, timezone: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        serve.schedule_of("nightly", cron, timezone)
    assert "\n" not in str(raised.value)


def test_params_decide_what_runs_when(make_params: Callable[..., Params]) -> None:
    given = {"schedules": {"timezone": "Europe/Vienna", "nightly": "5 3 * * *", "evaluate": None}}
    made = {one.flow_name: one for one in serve.deployments(make_params(given))}
    assert set(made) == {"nightly", "evaluate", "refresh-data"}
    [nightly] = made["nightly"].schedules
    assert (nightly.schedule.cron, nightly.schedule.timezone) == ("5 3 * * *", "Europe/Vienna")
    assert not made["evaluate"].schedules


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "serve: PREFECT_API_URL must name a Prefect server: it is not set"),
        ("http://127.0.0.1:9/api", "got http://127.0.0.1:9/api (<urlopen error"),
        ("htp:/typo", "got htp:/typo (<urlopen error unknown url type: htp>); start it with"),
    ],
)
def test_without_a_server_it_says_so_in_one_line(
    url: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(serve, "START_SECONDS", 0.0)
    if url:
        monkeypatch.setenv("PREFECT_API_URL", url)
    assert serve.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
