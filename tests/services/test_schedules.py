"""Schedules, by hand and overlapping, on a Prefect server that is really started on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from flows.stage import STAGES
from tests.browser import Browser
from tests.waiting import wait_for

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
SLOW_STAGE = "train"
"""Waits while a file `slow` is there."""


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A Prefect server on loopback."""

    url: str
    env: dict[str, str]

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        return json.loads(self._send(path, data=data) or "null")

    def delete(self, path: str) -> None:
        self._send(path, method="DELETE")

    def _send(self, path: str, **options: Any) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", headers=headers, **options)
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                if error.code != 503:  # its sqlite file is locked for a moment
                    raise
                time.sleep(1)
        raise AssertionError(f"{path}: the server stays busy")

    def is_up(self) -> bool:
        try:
            return bool(self.ask("health"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home, port = tmp_path_factory.mktemp("prefect"), _free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (home / "log").open("w") as log:
        child = subprocess.Popen(
            [*command, "--port", str(port)], cwd=home, env=env, stdout=log, stderr=log
        )
    made = Server(url, env)
    try:
        wait_for(made.is_up, "the server's start", 120)
        yield made
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()


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


@dataclass
class Workspace:
    """A folder of nine stages that copy a file, served by the module's Prefect server."""

    folder: Path
    server: Server
    env: dict[str, str]
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def runs(self, flow: str = "nightly") -> list[dict[str, Any]]:
        """Runs of a deployment that have started, oldest first."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_ASC"}
        found: list[dict[str, Any]] = self.server.ask("flow_runs/filter", wanted)
        return [run for run in found if run["start_time"]]

    def done(self, flow: str = "nightly") -> list[dict[str, Any]]:
        return [run for run in self.runs(flow) if run["state_type"] == "COMPLETED"]

    def deployments(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.ask("deployments/filter", {})
        return found

    def serve(self, **changes: Any) -> subprocess.Popen[str]:
        """Start `python -m flows.serve` with changes to the section `schedules`."""
        tree = yaml.safe_load((ROOT / "params.yaml").read_text())
        tree["datasets"] = ["aist"]
        tree["ingest"]["aist"]["videos_dir"] = "incoming"
        tree["schedules"] |= {"nightly": None, "evaluate": None, "refresh_data": None} | changes
        (self.folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        child = self.start(sys.executable, "-m", "flows.serve")
        wait_for(lambda: "Serving" in self.logs() or child.poll() is not None, "its start", 90)
        return child

    def start(self, *command: str) -> subprocess.Popen[str]:
        with (self.folder / f"log-{len(self.children)}").open("w") as log:
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # so that a test can kill all of it at once
            )
        self.children.append(child)
        return child

    def logs(self) -> str:
        """What the child that was started last has written."""
        return (self.folder / f"log-{len(self.children) - 1}").read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def ask_for(self, deployment: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`prefect deployment run`."""
        return self.run("prefect", "deployment", "run", deployment, *arguments)

    def wait_for_stage(self, stage: str, times: int = 1) -> None:
        """Wait until a stage has begun so many times, with none of them ended but the last."""
        path = self.folder / f"{stage}.times"
        lines = 2 * times - 1
        wait_for(lambda: path.exists() and path.read_text().count("\n") >= lines, stage, 120)

    def spans(self) -> list[tuple[float, float]]:
        """Begin and end of every execution of a stage that ended."""
        spans = []
        for path in self.folder.glob("*.times"):
            times = [float(line) for line in path.read_text().split()]
            spans += list(zip(times[::2], times[1::2], strict=False))
        return sorted(spans)


@pytest.fixture
def workspace(server: Server, tmp_path: Path) -> Iterator[Workspace]:
    folder = tmp_path / "workspace"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("flows", "cdcd", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    config = "[core]\n    analytics = false\n    check_update = false\n"
    (folder / ".dvc" / "config").write_text(config)
    (folder / "dvc.yaml").write_text(_dvc_yaml())
    (folder / "source.txt").write_text("one")
    (folder / "incoming").mkdir()
    env = server.env | {"CDCD_TRACKING": "off", "PYTHONPATH": str(folder), "NO_COLOR": "1"}
    env.pop("CDCD_WEBHOOK_URL", None)
    made = Workspace(folder, server, env)
    try:
        yield made
    finally:
        for child in made.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(timeout=20)
        for kind in ("deployments", "flows"):  # of a flow its runs go too
            for found in server.ask(f"{kind}/filter", {}):
                server.delete(f"{kind}/{found['id']}")


def _alive(folder: Path) -> list[str]:
    """Commands of the processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def test_schedules_and_runs_by_hand_take_turns(workspace: Workspace) -> None:
    folder = workspace.folder
    serving = workspace.serve(nightly="* * * * *", refresh_data="* * * * *")
    first = wait_for(workspace.done, "a scheduled run", 150)[0]
    assert first["auto_scheduled"]
    assert (folder / "register.txt").read_text() == "one"

    # One by hand with a stage that takes its time, while both schedules go on asking.
    (folder / "source.txt").write_text("two")
    (folder / "slow").touch()
    said = workspace.ask_for("nightly/cdcd")
    assert said.returncode == 0, said.stderr
    workspace.wait_for_stage(SLOW_STAGE, 2)
    second = workspace.run("flows.serve")
    assert second.returncode == 1
    assert "one flows.serve at a time" in second.stderr
    # SIGTERM meanwhile: the stage at work ends, and with it the run.
    serving.send_signal(signal.SIGTERM)
    time.sleep(3)
    assert serving.poll() is None, "it waits for the run"
    (folder / "slow").unlink()
    assert serving.wait(timeout=120) == 0, workspace.logs()
    assert (folder / "register.txt").read_text() == "two"
    assert not _alive(folder)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(workspace.spans()))
    for flow in ("nightly", "refresh-data"):
        states = {run["state_type"] for run in workspace.runs(flow)}
        assert states <= {"COMPLETED"}, (flow, states)
    assert all(d["paused"] for d in workspace.deployments()), "nothing piles up meanwhile"

    workspace.serve(nightly="* * * * *")
    wait_for(lambda: not any(d["paused"] for d in workspace.deployments()), "schedules", 60)


def test_a_killed_runner_begins_again_and_a_cancelled_one_does_not(workspace: Workspace) -> None:
    folder = workspace.folder
    (folder / "slow").touch()
    serving = workspace.serve()
    assert workspace.ask_for("nightly/cdcd").returncode == 0
    workspace.wait_for_stage(SLOW_STAGE)
    os.killpg(serving.pid, signal.SIGKILL)  # as when the machine goes
    serving.wait(timeout=20)
    wait_for(lambda: not _alive(folder), "the end of all of it", 20)
    (folder / f"{SLOW_STAGE}.times").unlink()

    workspace.serve()
    assert "begun again as" in workspace.logs()
    workspace.wait_for_stage(SLOW_STAGE)
    assert [run["state_type"] for run in workspace.runs()] == ["CRASHED", "RUNNING"]
    assert (
        workspace.run("prefect", "flow-run", "cancel", workspace.runs()[-1]["id"]).returncode == 0
    )
    wait_for(lambda: workspace.runs()[-1]["state_type"] == "CANCELLED", "the cancellation", 60)
    wait_for(lambda: not any("repro" in command for command in _alive(folder)), "its end", 30)
    assert not (folder / f"{SLOW_STAGE}.txt").exists()

    (folder / "slow").unlink()
    assert workspace.ask_for("nightly/cdcd").returncode == 0
    wait_for(workspace.done, "the run", 120)
    assert (folder / "register.txt").read_text() == "one"
    clean = workspace.run("dvc", "status", "--json")
    assert json.loads(clean.stdout) == {}, clean.stdout


def test_a_failed_stage_is_tried_again(workspace: Workspace) -> None:
    folder = workspace.folder
    (folder / "broken").touch()
    workspace.serve(retries=2, retry_delay_seconds=1)
    before = (folder / "params.yaml").read_bytes()
    for wrong in (("--param", "data=1"), ("--param", "datasets=3")):
        assert workspace.ask_for("nightly/cdcd", *wrong).returncode != 0
    unknown = ("--param", 'changes={"train.no_such": 1}')
    assert workspace.ask_for("nightly/cdcd", *unknown).returncode == 0
    failed = wait_for(
        lambda: [r for r in workspace.runs() if r["state_type"] == "FAILED"], "it", 60
    )
    assert "train.no_such" in failed[0]["state"]["message"]
    assert "Traceback" not in workspace.logs()
    assert (folder / "params.yaml").read_bytes() == before

    assert workspace.ask_for("nightly/cdcd").returncode == 0
    workspace.wait_for_stage("ingest", 2)
    (folder / "broken").unlink()
    wait_for(workspace.done, "the run", 120)
    assert (folder / "register.txt").read_text() == "one"


def test_the_ui_shows_what_ran(workspace: Workspace, browser: Browser) -> None:
    previews = workspace.folder / "data" / "generated" / "aist" / "previews"
    previews.mkdir(parents=True)
    Image.new("RGB", (64, 32), "teal").save(previews / "samples.png")
    workspace.serve()
    for _ in range(2):
        (workspace.folder / "register.txt").unlink(missing_ok=True)
        done = len(workspace.done())
        assert workspace.ask_for("nightly/cdcd").returncode == 0
        wait_for(lambda done=done: len(workspace.done()) > done, "a run", 120)
    run = workspace.runs()[-1]
    ui = workspace.server.url.removesuffix("/api")
    browser.open(f"{ui}/runs/flow-run/{run['id']}")
    browser.wait_for(run["name"], "Completed", "train@aist", "register@aist")
    browser.wait_for("| train@aist | unchanged |", "| register@aist | restored |")
    browser.shoot("prefect-run")
    kept = {a["key"]: a["latest_id"] for a in workspace.server.ask("artifacts/latest/filter", {})}
    browser.open(f"{ui}/artifacts/artifact/{kept['cdcd-stages']}")
    browser.wait_for("register@aist", "restored")
    browser.open(f"{ui}/artifacts/artifact/{kept['cdcd-pictures-aist']}")
    browser.ask("[...document.images].some(image => image.naturalWidth === 64)")


def test_the_work_pools_deployments_are_those_that_are_served(workspace: Workspace) -> None:
    (workspace.folder / "prefect.yaml").symlink_to(ROOT / "prefect.yaml")
    assert (
        workspace.run("prefect", "work-pool", "create", "cdcd", "--type", "process").returncode == 0
    )
    said = workspace.run("prefect", "--no-prompt", "deploy", "--all")
    assert said.returncode == 0, said.stdout + said.stderr
    params = yaml.safe_load((ROOT / "params.yaml").read_text())["schedules"]
    flows = {flow["id"]: flow["name"] for flow in workspace.server.ask("flows/filter", {})}
    found = {flows[d["flow_id"]]: d for d in workspace.deployments()}
    assert set(found) == {"nightly", "evaluate", "refresh-data"}
    for name, deployment in found.items():
        cron = params[name.replace("-", "_")]
        crons = [entry["schedule"]["cron"] for entry in deployment["schedules"]]
        assert crons == ([] if cron is None else [cron]), name
        assert deployment["global_concurrency_limit"]["limit"] == 1
