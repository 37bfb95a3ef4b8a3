"""A failure reaches the webhook; a webhook that fails costs one line."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from flows import notify


class Hook:
    """A webhook on loopback that keeps what it is sent."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.status, self.delay = 200, 0.0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(hook.delay)
                hook.taken.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/secret"


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    hook = Hook()
    thread = threading.Thread(target=hook.server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("CDCD_WEBHOOK_URL", hook.url)
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


MESSAGE = notify.message("nightly", "train@aist", "the loss is no number", map(str, range(100)))


def test_stage_reason_and_log_tail_arrive(hook: Hook) -> None:
    assert notify.notify(MESSAGE)
    (taken,) = hook.taken
    assert taken["text"] == "CDCD: nightly, train@aist: the loss is no number"
    assert (taken["stage"], taken["reason"]) == ("train@aist", "the loss is no number")
    assert taken["log_tail"] == [str(n) for n in range(60, 100)]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("slow", "no answer within"),
        ("refused", "(status 500)"),
        ("nobody", "(Connection refused)"),
        ("wrong", "must begin with http"),
    ],
)
def test_a_webhook_in_trouble_costs_one_line(
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
    reason: str,
) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 0.3)
    match trouble:
        case "slow":
            hook.delay = 1.0
        case "refused":
            hook.status = 500
        case "nobody":
            monkeypatch.setenv("CDCD_WEBHOOK_URL", "http://127.0.0.1:9/secret")
        case "wrong":
            monkeypatch.setenv("CDCD_WEBHOOK_URL", "ftp://secret")
    with caplog.at_level(logging.WARNING):
        assert not notify.notify(MESSAGE)
    (record,) = caplog.records
    assert "CDCD_WEBHOOK_URL" in record.getMessage()
    assert reason in record.getMessage()
    assert "secret" not in record.getMessage()


def test_without_the_setting_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CDCD_WEBHOOK_URL", raising=False)
    assert not notify.notify(MESSAGE)
