"""Schedules, by hand and overlapping, on a Prefect server that is really started on loopback."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.stage import STAGES

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
SLOW_STAGE = "train"
"""Waits while a file `slow` is there."""


def _dvc_yaml() -> str:
    stages: dict[str, Any] = {}
    before = "source.txt"
    for stage in STAGES:
        wait = "while test -f slow; do sleep 0.1; done; " if stage == SLOW_STAGE else ""
        stages[stage] = {
            "matrix": {"dataset": ["aist"]},
            "cmd": f"date +%s.%N >> {stage}.times; {wait}test ! -f broken && cp {before} "
            f"{stage}.txt; code=$?; date +%s.%N >> {stage}.times; exit $code",
            "deps": [before],
            "outs": [f"{stage}.txt"],
        }
        before = f"{stage}.txt"
    return yaml.safe_dump({"stages": stages}, sort_keys=False)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@dataclass
class Server:
    """A Prefect server and a workspace of nine stages that copy a file."""

    folder: Path
    url: str
    env: dict[str, str]
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}",
            data=None if content is None else json.dumps(content).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            return bool(self.ask("health"))
        except OSError:
            return False

    def runs(self, flow: str = "nightly") -> list[dict[str, Any]]:
        """Runs of a deployment that have started, oldest first."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        )
        return [run for run in found if run["start_time"]]

    def done(self, flow: str = "nightly") -> list[dict[str, Any]]:
        return [run for run in self.runs(flow) if run["state_type"] == "COMPLETED"]

    def serve(self, **changes: Any) -> subprocess.Popen[str]:
        """Start `python -m flows.serve` with changes to the section `schedules`."""
        tree = yaml.safe_load((ROOT / "params.yaml").read_text())
        tree["datasets"] = ["aist"]
        tree["schedules"] |= {"nightly": None, "evaluate": None, "refresh_data": None} | changes
        (self.folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return self.start(sys.executable, "-m", "flows.serve")

    def start(self, *command: str) -> subprocess.Popen[str]:
        log = (self.folder / f"log-{len(self.children)}").open("w")
        child = subprocess.Popen(
            command, cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        self.children.append(child)
        return child

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("log-*")))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def stop(self, child: subprocess.Popen[str], seconds: float = 60) -> int:
        child.send_signal(signal.SIGTERM)
        return child.wait(timeout=seconds)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("flows", "cdcd", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    (folder / ".dvc").mkdir()
    config = "[core]\n    analytics = false\n    check_update = false\n"
    (folder / ".dvc" / "config").write_text(config)
    (folder / "dvc.yaml").write_text(_dvc_yaml())
    (folder / "source.txt").write_text("one")
    port = _free_port()
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "CDCD_TRACKING": "off",
        "PYTHONPATH": str(folder),
        "NO_COLOR": "1",
    }
    env.pop("CDCD_WEBHOOK_URL", None)
    made = Server(folder, f"http://127.0.0.1:{port}/api", env)
    made.start(sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
               "--port", str(port))  # fmt: skip
    try:
        wait_for(made.is_up, 120, "the server's start")
        yield made
    finally:
        for child in reversed(made.children):
            if child.poll() is None:
                child.terminate()
        for child in made.children:
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                child.kill()


def _spans(folder: Path) -> list[tuple[float, float]]:
    """Begin and end of every execution of a stage."""
    spans = []
    for path in folder.glob("*.times"):
        times = [float(line) for line in path.read_text().split()]
        spans += list(zip(times[::2], times[1::2], strict=False))
    return sorted(spans)


def test_schedules_and_runs_by_hand_take_turns(server: Server) -> None:
    folder = server.folder
    serving = server.serve(nightly="* * * * *")
    first = wait_for(server.done, 150, "a scheduled run")[0]
    assert first["auto_scheduled"]
    assert (folder / "register.txt").read_text() == "one"
    assert len(_spans(folder)) == len(STAGES)

    # One by hand with a stage that takes its time, while the schedule goes on asking.
    (folder / "source.txt").write_text("two")
    (folder / "slow").touch()
    said = server.run("deployment", "run", "nightly/cdcd")
    assert said.returncode == 0, said.stderr
    wait_for(lambda: (folder / f"{SLOW_STAGE}.times").read_text().count("\n") == 3, 120, "train")
    # SIGTERM meanwhile: the stage at work ends, and with it the run.
    serving.send_signal(signal.SIGTERM)
    time.sleep(3)
    assert serving.poll() is None, "it waits for the run"
    (folder / "slow").unlink()
    assert serving.wait(timeout=120) == 0, server.logs()
    assert (folder / "register.txt").read_text() == "two"
    spans = _spans(folder)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    states = {run["state_type"] for run in server.runs()}
    assert states == {"COMPLETED"}, states
    deployments = server.ask("deployments/filter", {})
    assert {d["name"] for d in deployments} == {"cdcd"}
    assert all(d["paused"] for d in deployments), "nothing piles up while nobody serves"

    server.serve(nightly="* * * * *")
    wait_for(
        lambda: not any(d["paused"] for d in server.ask("deployments/filter", {})),
        60,
        "the schedules' coming back",
    )


def test_a_failed_stage_is_tried_again_and_told(server: Server) -> None:
    folder = server.folder
    (folder / "broken").touch()
    serving = server.serve(retries=2, retry_delay_seconds=1)
    wait_for(lambda: len(server.ask("deployments/filter", {})) == 3, 60, "the deployments")
    for wrong in (("--param", "data=1"), ("--param", "datasets=3")):
        said = server.run("deployment", "run", "nightly/cdcd", *wrong)
        assert said.returncode != 0
    said = server.run("deployment", "run", "nightly/cdcd")
    assert said.returncode == 0, said.stderr
    wait_for(lambda: (folder / "ingest.times").exists(), 60, "the first try")
    wait_for(lambda: (folder / "ingest.times").read_text().count("\n") >= 4, 60, "a second try")
    (folder / "broken").unlink()
    wait_for(server.done, 120, "the run")
    assert (folder / "register.txt").read_text() == "one"
    assert server.stop(serving) == 0
