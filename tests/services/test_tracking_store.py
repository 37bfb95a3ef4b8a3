"""Runs in MLflow's store by several processes at once, and while the store is broken in many ways.

Whatever happens to the store, what was recorded is in it in the end, and training never waits long.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdcd import tracking
from cdcd.cli import main
from cdcd.tracking import DataInput, open_run
from cdcd.tracking.records import PARENT
from cdcd.tracking.spool import spools

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
NUM_WRITERS = 4
NUM_STEPS = 300
WRITER = """
import sys
from pathlib import Path

from cdcd import tracking

number, code = int(sys.argv[1]), Path(sys.argv[2])
with tracking.open_run("train", "toy", {"number": number}, tags={"writer": str(number)}) as run:
    for step in range(300):
        run.log_metrics({"loss": step + number / 10}, step)
    run.log_artifact(code, "code")
    run.log_child("seed 0", {"score": number})
made = tracking.log_model_version(
    "toy-model", dataset="toy", task="class2image", python_model=code, artifacts={},
    code_paths=[], requirements=["numpy"], tags={"writer": str(number)}, description="A card.",
    metadata={},
)
tracking.set_alias("toy-model", "candidate", made.version)
tracking.link_version("toy-model", made.version, "toy", [run.run_id])
"""
MODEL = """
import mlflow


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input


mlflow.models.set_model(Model())
"""


def _client(uri: str | None = None) -> Any:
    import mlflow

    return mlflow.MlflowClient(uri or tracking.tracking_uri())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store that four processes met missing, made and wrote into."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "model.py").write_text(MODEL)
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'new' / 'mlflow.db'}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DVC_EXP_NAME": "brave-lamb",
        "DVC_EXP_BASELINE_REV": "0123456789" * 4,
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(number), str(folder / "model.py")],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(NUM_WRITERS)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-4000:]
    assert not spools(folder / "data" / "spool")
    return folder / "new"


def test_four_writers_make_one_store_and_lose_nothing(written: Path) -> None:
    client = _client(f"sqlite:///{written / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cdcd/toy").experiment_id

    def find(condition: str) -> list[Any]:
        return list(client.search_runs([experiment], condition))

    runs = find("tags.stage = 'train'")
    assert sorted(run.data.tags["writer"] for run in runs) == ["0", "1", "2", "3"]
    (sweep,) = find("tags.stage = 'sweep'")
    assert {run.data.tags[PARENT] for run in runs} == {sweep.info.run_id}
    for run in runs:
        number, run_id = int(run.data.tags["writer"]), run.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.params == {"number": str(number)}
        history = client.get_metric_history(run_id, "loss")
        assert [m.value for m in history] == [step + number / 10 for step in range(NUM_STEPS)]
        assert [file.path for file in client.list_artifacts(run_id, "code")] == ["code/model.py"]
        (child,) = find(f"tags.`{PARENT}` = '{run_id}'")
        assert child.data.metrics == {"score": number}
        assert run.data.tags["registered.model"] == "toy-model"
    versions = client.search_model_versions("name = 'toy-model'")
    assert sorted(int(one.version) for one in versions) == [1, 2, 3, 4]
    assert sorted(one.tags["writer"] for one in versions) == ["0", "1", "2", "3"]
    by_writer = {run.data.tags["writer"]: run.data.tags["registered.version"] for run in runs}
    assert {one.tags["writer"]: str(one.version) for one in versions} == by_writer
    assert client.get_model_version_by_alias("toy-model", "candidate").version in {
        one.version for one in versions
    }


@dataclass
class Workspace:
    """A folder with a store of its own, which tests break."""

    folder: Path
    database: Path

    def found(self) -> Any:
        """The one run of `experiment` cdcd/mine."""
        client = _client(f"sqlite:///{self.database}")
        experiment = client.get_experiment_by_name("cdcd/mine").experiment_id
        (run,) = client.search_runs([experiment], "tags.stage = 'train'")
        return run

    def check_complete(self, num_steps: int) -> None:
        """Check that everything of `record_all` has arrived, once, and the spool is empty."""
        client, run = _client(f"sqlite:///{self.database}"), self.found()
        assert run.info.status == "FINISHED"
        assert run.data.params == {"a": "1"}
        history = client.get_metric_history(run.info.run_id, "loss")
        assert [(m.step, m.value) for m in history] == [(s, float(s)) for s in range(num_steps)]
        assert run.data.tags["late"] == "yes"
        assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["mine/tokens"]
        files = client.list_artifacts(run.info.run_id, "notes")
        assert [file.path for file in files] == ["notes/dvc.yaml"]
        children = client.search_runs(
            [run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'"
        )
        assert [child.data.metrics for child in children] == [{"score": 0.5}]
        assert not spools(tracking.spool_root())


@pytest.fixture
def workspace(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    database = tmp_path / "store" / "mlflow.db"
    database.parent.mkdir()
    shutil.copy(written / "mlflow.db", database)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return Workspace(tmp_path, database)


def record_all(tracker: Any, steps: range) -> None:
    """One of each kind, and numbers that are sent at every step."""
    tracker.log_inputs([DataInput("mine/tokens", "0" * 36, "data/tokens/mine", {"num_rows": 3})])
    for step in steps:
        tracker.log_metrics({"loss": float(step)}, step)
        tracker.flush()
    tracker.set_tags({"late": "yes"})
    tracker.log_artifact("dvc.yaml", "notes")
    tracker.log_child("seed 0", {"score": 0.5})


def test_a_locked_store_is_waited_for_once(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    other = sqlite3.connect(workspace.database, isolation_level=None)
    with open_run("train", "mine", {"a": 1}) as tracker:
        other.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        tracker.log_metrics({"loss": 0.0}, 0)
        tracker.flush()
        waited = time.monotonic() - begun
        begun = time.monotonic()
        record_all(tracker, range(1, 20))
        assert time.monotonic() - begun < waited / 2, "it waits once, not twenty times"
        assert len(caplog.messages) == 1
        assert "database is locked" in caplog.messages[0]
        other.execute("COMMIT")
    other.close()
    workspace.check_complete(20)


def test_a_read_only_store_gets_the_run_when_it_is_mended(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    def set_format(number: int) -> None:
        # SQLite only reads a file that a later format has written; this binds even root.
        with workspace.database.open("r+b") as file:
            file.seek(18)
            file.write(bytes([number]))

    set_format(3)
    with open_run("train", "mine", {"a": 1}) as tracker:
        record_all(tracker, range(5))
    assert "does not take a run" in caplog.messages[0]
    assert "readonly database" in caplog.messages[0]
    assert "\n" not in "".join(caplog.messages)
    assert main(["sync"]) == 1
    assert len(spools(tracking.spool_root())) == 1, "what was not taken stays"
    set_format(1)
    # In a process of its own: connections of this one remember the file as it was.
    done = subprocess.run(
        [sys.executable, "-m", "cdcd.cli", "sync"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    workspace.check_complete(5)


def test_a_file_in_place_of_the_stores_folder(workspace: Workspace) -> None:
    kept = workspace.database.rename(workspace.folder / "kept.db")
    workspace.database.parent.rmdir()
    workspace.database.parent.touch()
    with open_run("train", "mine", {"a": 1}) as tracker:
        record_all(tracker, range(5))
    workspace.database.parent.unlink()
    workspace.database.parent.mkdir()
    kept.rename(workspace.database)
    assert main(["sync"]) == 0
    workspace.check_complete(5)


FULL = """
import resource, sys
from cdcd.tracking import open_run
sys.path.insert(0, sys.argv[2])
from test_tracking_store import record_all

with open_run("train", "mine", {"a": 1}) as tracker:
    size = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    tracker.log_metrics({f"filler/{i}": 1.0 for i in range(1000)})
    record_all(tracker, range(50))
"""


def test_a_store_that_can_grow_no_more(workspace: Workspace) -> None:
    # As on a full disk, every write that would make the file longer fails.
    done = subprocess.run(
        [
            *(sys.executable, "-c", FULL),
            str(workspace.database.stat().st_size + 2**16),
            str(Path(__file__).parent),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "MLflow did not take the metrics" in done.stderr
    assert "send it with `cdcd sync`" in done.stderr
    assert main(["sync"]) == 0
    workspace.check_complete(50)
    assert len(workspace.found().data.metrics) == 1001


def test_a_server_that_hears_but_does_not_answer(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
            with open_run("train", "mine", {"a": 1}) as tracker:
                record_all(tracker, range(5))
    assert caplog.messages[0].startswith("MLFLOW_TRACKING_URI must name a store")
    assert main(["sync"]) == 0
    workspace.check_complete(5)


@contextlib.contextmanager
def _server(workspace: Workspace) -> Iterator[tuple[str, Callable[[], None]]]:
    """MLflow's server on the workspace's store: its address, and what kills it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{workspace.database}", "--workers", "1"),
        *("--no-serve-artifacts", "--default-artifact-root", str(workspace.folder / "artifacts")),
    )
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (workspace.folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=workspace.folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 9)
            server.wait(timeout=30)

        try:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < until, (workspace.folder / "server.log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", kill
        finally:
            kill()


def test_a_server_that_dies_while_a_run_is_at_work(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, _server(workspace) as (address, kill):
        patch.setenv("MLFLOW_TRACKING_URI", address)
        with open_run("train", "mine", {"a": 1}) as tracker:
            tracker.log_metrics({"loss": 0.0}, 0)
            tracker.flush()
            assert tracker.run_id is not None
            assert not caplog.messages
            kill()
            record_all(tracker, range(1, 20))
        assert "it is spooled" in caplog.messages[0]
    assert workspace.found().info.status == "RUNNING"
    assert main(["sync"]) == 0
    workspace.check_complete(20)
