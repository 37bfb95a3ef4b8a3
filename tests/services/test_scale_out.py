"""Two processes of torchrun train, two workers of Dask shard: started, killed, gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cdcd.training.state import read_checkpoint
from flows import mapping
from tests.cdcd.training import tiny
from tests.flows.sharding import assert_the_same_bytes
from tests.waiting import wait_for

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS, SAVE_EVERY = 240, 20
ENV = {
    **{k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "CDCD_DEBUG")},
    "PYTHONPATH": str(ROOT),
    "CDCD_TRACKING": "off",
    "OMP_NUM_THREADS": "1",
}


def own_lines(text: str) -> list[str]:
    """What was written, without progress bars."""
    lines = [part for line in text.splitlines() for part in line.split("\r")]
    return [line for line in lines if line.strip() and not line.startswith("train: ")]


class Training:
    """A training that was started, and the processes it started."""

    def __init__(self, folder: Path, *command: str, **settings: str) -> None:
        self.folder = folder
        self.log = (folder / "log").open("w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", *command, "--dataset", "aist"],
            cwd=folder,
            env=ENV | settings,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    @property
    def step(self) -> int:
        """Of the checkpoint; 0 where there is none."""
        found = read_checkpoint(self.folder / "data" / "checkpoints" / "aist")
        return 0 if found is None else found[1]

    def ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.Process(self.child.pid).children(recursive=True):
            with suppress(psutil.Error, KeyError):
                found[int(process.environ()["RANK"])] = process
        return found

    def after(self, step: int) -> dict[int, psutil.Process]:
        """The processes, once a checkpoint after the step is there."""
        wait_for(lambda: self.step > step or self.child.poll() is not None, "a checkpoint")
        assert self.child.poll() is None, self.text()
        return self.ranks()

    def end(self) -> int:
        return self.child.wait(timeout=180)

    def text(self) -> str:
        self.log.seek(0)
        return self.log.read()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tokens, features and parameters."""
    monkeypatch.chdir(ROOT)
    params = tiny.make_params(num_steps=NUM_STEPS, save_every=SAVE_EVERY, validate_every=NUM_STEPS)
    tiny.write_caches(tmp_path / "caches")
    for kind in ("tokens", "features"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        (tmp_path / "caches" / kind).rename(tmp_path / "data" / kind / "aist")
    text = yaml.safe_dump(params.model_dump(mode="json", by_alias=True), sort_keys=False)
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def test_two_processes_are_killed_interrupted_and_finish_what_they_began(workspace: Path) -> None:
    # One process is killed: all end, with one line; what was saved is whole.
    training = Training(workspace, "flows.train", CDCD_TRAIN_PROCESSES="2")
    ranks = training.after(0)
    assert sorted(ranks) == [0, 1]
    ranks[1].kill()
    assert training.end() == 1
    assert own_lines(training.text()) == [
        "train@aist: all 2 processes must stay alive: process 1 was ended by SIGKILL; run again to "
        "go on from the last checkpoint"
    ]
    assert not any(process.is_running() for process in ranks.values())
    assert not (workspace / "data" / "models").exists()

    # The next ones go on from there; an interruption of the launcher reaches both.
    began = training.step
    training = Training(workspace, "flows.train", CDCD_TRAIN_PROCESSES="2")
    ranks = training.after(began)
    training.child.send_signal(signal.SIGTERM)
    assert training.end() == 130
    lines = own_lines(training.text())
    assert lines[0] == f"continuing from step {began} of {NUM_STEPS}"
    assert lines[-1] == "train@aist: interrupted; earlier outputs are intact"
    assert not any(process.is_running() for process in ranks.values())

    # Started by hand they join each other; the first one alone writes.
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    training = Training(workspace, *torchrun, "-m", "flows.train")
    assert training.end() == 0, training.text()
    assert sum(line.startswith("train@aist: ") for line in own_lines(training.text())) == 1
    model = workspace / "data" / "models" / "aist"
    assert json.loads((model / "summary.json").read_text())["num_steps"] == NUM_STEPS
    with (model / "curves" / "train.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(4, NUM_STEPS + 1, 4))
    assert not list(workspace.rglob(".*"))  # nothing half-written is left


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield str(PREFECT_API_URL.value())


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers, each in a folder of its own."""
    from distributed import Client, LocalCluster

    started = []
    with LocalCluster(n_workers=0, dashboard_address=None, protocol="tcp://") as cluster:
        address = cluster.scheduler_address
        for number in range(2):
            folder = tmp_path / f"worker-{number}"
            folder.mkdir()
            command = [sys.executable, "-m", "distributed.cli.dask_worker", address]
            options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
            started.append(subprocess.Popen([*command, *options], cwd=folder, env=ENV))
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=120)
        try:
            yield address, started
        finally:
            for worker in started:
                worker.kill()
                worker.wait()


def die_once(path: str) -> int:
    """Take the worker along at the first attempt."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os._exit(9)
    return os.getpid()


def test_two_workers_give_the_same_bytes_and_one_goes_on_without_the_other(
    server: str,
    workers: tuple[str, list[subprocess.Popen[bytes]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect import flow

    address, processes = workers
    monkeypatch.setenv("CDCD_CLUSTER", address)
    assert_the_same_bytes(tmp_path, monkeypatch, server)

    @flow
    def mapped() -> list[int]:
        return list(mapping.make_mapper(2, address)(die_once, [str(tmp_path / "died")]))

    (survivor,) = mapped()
    wait_for(lambda: any(process.poll() is not None for process in processes), "an end")
    assert [process.pid for process in processes if process.poll() is None] == [survivor]
