"""Runs: batched metrics, resuming, endings, and a store that fails without hurting the stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcd import tracking
from cdcd.cli import main
from cdcd.tracking import MlflowTracker, NullTracker, open_run
from cdcd.tracking.spool import Spool, spools


def _client() -> Any:
    import mlflow  # noqa: TID251 (the store is looked at from outside)

    return mlflow.MlflowClient(tracking.tracking_uri())


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    # Creating the tables takes seconds, so the tests of this module share one store.
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def store(shared_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store)
    return shared_store


def test_importing_the_module_imports_no_mlflow() -> None:
    code = "import sys, cdcd.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_keeps_params_metrics_files_sound_and_tags(store: str, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with open_run("train", "toy", {"train": {"num_steps": 3, "betas": [0.9, 0.96]}}) as tracker:
        for step in range(5):
            tracker.log_metrics({"loss": 1.0 / (step + 1), "terms": {"bound": 2.0}}, step)
        tracker.log_artifact(note, "notes")
        tracker.log_audio("previews/step5", np.zeros(100, np.float32), 22050)
        run_id = tracker.run_id
    client = _client()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.num_steps": "3", "train.betas": "[0.9, 0.96]"}
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [
        1.0,
        1 / 2,
        1 / 3,
        1 / 4,
        1 / 5,
    ]
    assert run.data.metrics["terms.bound"] == 2.0
    assert run.data.tags["stage"] == "train"
    assert run.data.tags["dataset"] == "toy"
    assert [f.path for f in client.list_artifacts(run_id, "notes")] == ["notes/note.txt"]
    assert [f.path for f in client.list_artifacts(run_id, "previews")] == ["previews/step5.wav"]
    assert client.get_experiment(run.info.experiment_id).name == "cdcd/toy"
    # Beside the store, so that moving the project's folder needs one setting only.
    folder = Path(store.removeprefix("sqlite:///")).parent
    assert run.info.artifact_uri.startswith((folder / "artifacts" / "toy").as_uri())


def test_metrics_are_sent_in_batches() -> None:
    class Counting:
        calls = 0
        received = 0

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            self.calls += 1
            self.received += len(metrics)
            assert len(metrics) <= 1000

    client = Counting()
    tracker = MlflowTracker(client, "r", _no_spool)
    for step in range(1200):
        tracker.log_metrics({"a": 1.0, "b": 2.0}, step)
    tracker.flush()
    assert client.received == 2400
    assert client.calls <= 6


def _no_spool() -> Spool:
    raise AssertionError("nothing had to be spooled")


class Moody:
    """A client that may be down; keeps what it takes."""

    def __init__(self) -> None:
        self.up = False
        self.asked = 0
        self.metrics: list[tuple[str, float, int]] = []
        self.ended: list[str] = []

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.asked += 1
        if not self.up:
            raise RuntimeError("database is locked")
        self.metrics += [(m.key, m.value, m.step) for m in metrics]

    def set_terminated(self, run_id: str, status: str) -> None:
        if not self.up:
            raise RuntimeError("database is locked")
        self.ended.append(status)


@pytest.fixture
def moody(tmp_path: Path) -> tuple[Moody, MlflowTracker]:
    client = Moody()
    return client, MlflowTracker(
        client, "r", lambda: Spool.new(tmp_path / "spool", "train", "toy", {}, "r")
    )


def test_a_store_that_comes_back_has_missed_nothing(
    moody: tuple[Moody, MlflowTracker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, tracker = moody
    for step in range(3):
        tracker.log_metrics({"a": 1.0}, step)
        tracker.flush()
    assert client.asked == 1, "a store that is away is left alone for a while"
    assert "database is locked" in caplog.text
    client.up = True
    tracker.log_metrics({"a": 2.0}, 3)
    tracker.end("FINISHED")
    assert sorted(client.metrics) == [("a", 1.0, 0), ("a", 1.0, 1), ("a", 1.0, 2), ("a", 2.0, 3)]
    assert set(client.ended) == {"FINISHED"}
    assert not spools(tmp_path / "spool")


def test_a_store_that_stays_away_leaves_the_run_in_the_spool(
    moody: tuple[Moody, MlflowTracker], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, tracker = moody
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.end("KILLED")
    (spool,) = spools(tmp_path / "spool")
    kinds = [record.kind for record in spool.records()]
    assert kinds[0] == "metrics"
    assert not spool.is_at_work()
    assert "send it with `cdcd sync`" in caplog.text


def test_a_run_without_a_store_is_sent_later(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("hello")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with open_run("train", "toy", {"a": 1}, tags={"b": "c"}) as tracker:
        assert tracker.run_id is None
        tracker.log_metrics({"loss": float("nan")}, 1)
        tracker.log_metrics({"loss": 2.0}, 2)
        tracker.log_artifact(tmp_path / "file", "notes")
    assert main(["sync"]) == 1, "the store is still away"
    assert len(spools(tracking.spool_root())) == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert main(["sync"]) == 0
    assert "sent 1 runs" in capsys.readouterr().out
    assert not spools(tracking.spool_root())
    client = _client()
    experiment = client.get_experiment_by_name("cdcd/toy")
    (run,) = client.search_runs([experiment.experiment_id], filter_string="tags.b = 'c'")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "notes")] == ["notes/file"]


def test_a_run_goes_on_under_its_id(store: str) -> None:
    params = {"a": 1}
    with open_run("train", "toy", params) as first:
        first.log_metrics({"loss": 3.0}, 1)
    with open_run("train", "toy", {"a": 2, "b": 3}, run_id=first.run_id) as second:
        second.log_metrics({"loss": 2.0}, 2)
        assert _client().get_run(first.run_id).info.status == "RUNNING"
    assert second.run_id == first.run_id
    history = _client().get_metric_history(first.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0)]
    assert _client().get_run(first.run_id).data.params == {"a": "1", "b": "3"}


def test_a_lost_run_is_replaced(store: str) -> None:
    with open_run("train", "toy", run_id="0" * 32) as tracker:
        assert tracker.run_id != "0" * 32


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_says_how_it_ended(store: str, error: BaseException, status: str) -> None:
    seen: list[str | None] = []

    def fail() -> None:
        with open_run("train", "toy") as tracker:
            seen.append(tracker.run_id)
            tracker.log_metrics({"loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        fail()
    run = _client().get_run(seen[0])
    assert run.info.status == status
    assert run.data.metrics == {"loss": 1.0}


def test_tracking_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDCD_TRACKING", "off")
    with open_run("train", "toy", {"a": 1}) as tracker:
        assert isinstance(tracker, NullTracker)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.log_audio("a", np.zeros(3, np.float32), 22050)


def test_the_null_tracker_has_every_method_of_the_other() -> None:
    for name in vars(MlflowTracker):
        if not name.startswith("_") and name != "end":  # open_run ends runs
            assert hasattr(NullTracker, name), name


def test_what_needs_the_store_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with (
        pytest.raises(tracking.TrackingError, match="MLFLOW_TRACKING_URI must name") as caught,
        open_run("register", "toy", needs_store=True),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_the_default_store_is_absolute_and_at_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path.resolve()}/data/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///here.db")
    assert tracking.tracking_uri() == f"sqlite:///{(tmp_path / 'docs').resolve()}/here.db"


def test_processes_that_meet_no_store_all_succeed(tmp_path: Path) -> None:
    # MLflow alone loses most of them: they create the same tables at once.
    code = (
        "from cdcd.tracking import open_run\n"
        "with open_run('train', 'toy') as t: t.log_metrics({'a': 1.0})\n"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'new' / 'm.db'}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_read_run_id(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert tracking.read_run_id(path) is None
    path.write_text("{")
    assert tracking.read_run_id(path) is None
    path.write_text(json.dumps({"run_id": None}))
    assert tracking.read_run_id(path) is None
    path.write_text(json.dumps({"run_id": "abc"}))
    assert tracking.read_run_id(path) == "abc"
