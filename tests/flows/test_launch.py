"""How many processes, what is said when one fails, and that none outlives what started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows import launch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("text", "num"), [(None, 1), ("", 1), ("1", 1), ("4", 4)])
def test_the_number_of_processes_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, text: str | None, num: int
) -> None:
    monkeypatch.delenv(launch.PROCESSES, raising=False)
    if text is not None:
        monkeypatch.setenv(launch.PROCESSES, text)
    assert launch.num_processes() == num


@pytest.mark.parametrize("text", ["0", "-1", "2.0", "two", "²"])
def test_any_other_number_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(launch.PROCESSES, text)
    with pytest.raises(ValueError, match=r"CDCD_TRAIN_PROCESSES must be .*; mend or unset it") as e:
        launch.num_processes()
    assert repr(text) in str(e.value)


def failure(code: int, timestamp: int, line: str | None = None) -> Any:
    told = {"message": line, "extraInfo": {"timestamp": str(timestamp)}}
    return SimpleNamespace(
        exitcode=code,
        timestamp=timestamp,
        error_file_data={"message": told if line else "<NONE>"},
        signal_name=lambda: "SIGKILL",
    )


CAUSES = {
    # What ended by a signal took the others along, whichever was seen first.
    "signal": ({0: failure(launch.LOST, 1, "lost"), 1: failure(-9, 2)}, "1 was ended by SIGKILL"),
    "error": ({0: failure(launch.LOST, 1, "lost"), 1: failure(1, 2, "full disk")}, "full disk"),
    "first": ({0: failure(1, 5, "later"), 1: failure(1, 2, "earlier")}, "earlier"),
    "crash": ({1: failure(1, 2)}, "process 1 of 2 ended with 1; what it wrote above says why"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_cause_is_told_and_not_its_consequences(case: str) -> None:
    failures, line = CAUSES[case]
    assert line in launch._first_cause(failures, 2)


def test_a_process_tells_why_it_ends_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    launch.tell("by hand")
    assert capsys.readouterr().err == "by hand\n"
    path = tmp_path / "0" / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    launch.tell("under torchrun")
    assert capsys.readouterr().err == ""
    found = json.loads(path.read_text())["message"]
    assert found["message"] == "under torchrun"
    assert abs(int(found["extraInfo"]["timestamp"]) - time.time()) < 60


CHILD = "from flows.launch import end_with_parent as e; import time; e(0.1); time.sleep(300)"
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(300)
"""


def test_a_process_ends_when_what_started_it_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(2)  # long enough to look at its parent a few times
        try:
            assert child.is_running()
            parent.kill()
            psutil.wait_procs([child], timeout=60)
            assert not child.is_running()
        finally:
            if child.is_running():
                child.kill()
