"""Tells a webhook that a run failed; a webhook that fails costs one line, never the run."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from cdcd.settings import SettingsError, webhook_url

TIMEOUT_SECONDS = 10.0
TAIL_LINES = 40
logger = logging.getLogger(__name__)


def message(flow: str, stage: str | None, reason: str, lines: Iterable[str]) -> dict[str, Any]:
    """What is sent: `text` for chat tools, the parts beside it for programs.

    Args:
        flow: name of the flow.
        stage: `name@dataset`, or None where no stage was at work.
        reason: one line.
        lines: the log; its last lines are sent.
    """
    where = f"{flow}, {stage}" if stage else flow
    return {
        "text": f"CDCD: {where}: {reason}",
        "flow": flow,
        "stage": stage,
        "reason": reason,
        "log_tail": list(lines)[-TAIL_LINES:],
    }


def notify(content: dict[str, Any]) -> bool:
    """POST a message as JSON to `CDCD_WEBHOOK_URL`; whether it was taken.

    Nothing is raised: without the setting, with a wrong address or without an answer in time the
    failure that is told about stays the failure that counts.
    """
    try:
        url = webhook_url()
        if url is None:
            return False
        request = urllib.request.Request(
            url,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "cdcd"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
            return True
    except SettingsError as error:
        logger.warning("no message was sent: %s", error)
    except (OSError, ValueError, urllib.error.URLError) as error:
        logger.warning(
            "the webhook did not take the message (%s); check CDCD_WEBHOOK_URL", _reason(error)
        )
    return False


def _reason(error: Exception) -> str:
    """Why, without the address: it may hold a secret, and some errors quote it."""
    if isinstance(error, urllib.error.HTTPError):
        return f"status {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_SECONDS:.0f} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__
