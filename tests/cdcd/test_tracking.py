"""Runs: batched metrics, resuming, endings, and a store that fails without hurting the stage."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdcd import tracking
from cdcd.cli import main
from cdcd.tracking import DataInput, MlflowTracker, NullTracker, identity, open_run, runs
from cdcd.tracking.records import PARENT
from cdcd.tracking.spool import Spool, spools
from cdcd.tracking.store import repository_root, tracking_uri, workspace_root
from cdcd.tracking.system import SystemMetrics


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

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
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


def test_waiting_for_a_store_costs_at_most_two_percent(
    moody: tuple[Moody, MlflowTracker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, tracker = moody
    clock = [1000.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    log_batch = client.log_batch

    def slow(run_id: str, metrics: list[Any]) -> None:
        clock[0] += 20  # as long as MLflow waits for a locked database
        log_batch(run_id, metrics)

    monkeypatch.setattr(client, "log_batch", slow)
    begun = clock[0]
    for step in range(5000):
        clock[0] += 1
        tracker.log_metrics({"a": 1.0}, step)
    waited = clock[0] - begun - 5000
    assert 0 < waited <= 0.02 * 5000 + 20
    assert "next try in 1000 s" in caplog.text


def test_what_a_full_disk_refuses_is_kept_until_it_takes_it(
    moody: tuple[Moody, MlflowTracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, tracker = moody
    synced, is_full = os.fsync, [True]

    def fsync(file: int) -> None:
        if is_full[0]:
            raise OSError(28, "No space left on device")
        synced(file)

    def log(step: int) -> None:
        tracker.log_metrics({"a": float(step)}, step)
        tracker.flush()

    with monkeypatch.context() as patch:
        patch.setattr("cdcd.tracking.spool.os.fsync", fsync)
        log(0)
        assert not list((tmp_path / "spool").iterdir()), "no half of a spool stays"
        is_full[0] = False
        log(1)
        is_full[0] = True
        log(2)
        (spool,) = spools(tmp_path / "spool")
        assert len(list(spool.records())) == 2, "no half of a record stays"
        is_full[0] = False
        log(3)
    assert [record.content[0][3] for record in spool.records()] == [0, 1, 2, 3]
    assert "No space left on device" in caplog.text
    client.up = True
    tracker.end("FINISHED")
    assert sorted(client.metrics) == [("a", float(step), step) for step in range(4)]
    assert "lost" not in caplog.text


def test_a_run_that_nothing_takes_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    tracker = MlflowTracker(
        Moody(), "r", lambda: Spool.new(tmp_path / "file", "train", "toy", {}, "r")
    )
    tracker.log_metrics({"a": 0.0}, 0)
    tracker.end("FINISHED")
    assert "neither MLflow nor the spool took 2 records" in caplog.text


@pytest.mark.parametrize(
    "uri", ["htp://localhost:5000", "sqlite:/a.db", "http:/localhost", "http://127.0.0.1:9", "dir"]
)
def test_a_wrong_address_costs_one_line_and_no_time(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}" if uri == "dir" else uri)
    begun = time.monotonic()
    with open_run("train", "toy") as tracker:
        tracker.log_metrics({"a": 1.0})
    assert time.monotonic() - begun < 60, "MLflow alone tries a folder for 100 s"
    first = caplog.records[0].getMessage()
    assert first.startswith("MLFLOW_TRACKING_URI must name a store that can be opened: got ")
    assert f"the run is kept in {tmp_path}" in first
    assert "\n" not in first
    assert [record.kind for record in spools(tracking.spool_root())[0].records()] == [
        "metrics",
        "end",
    ]


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
        tracker.log_inputs([DataInput("toy/tokens", "0" * 36, "data/tokens/toy", {"num_rows": 3})])
        tracker.log_child("seed 1", {"model.score": 0.5}, {"seed": "1"})
    ended = time.time()
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
    assert run.info.end_time / 1000 <= ended, "it ended when it ended, not when it was sent"
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("toy/tokens", "0" * 36)
    (child,) = _children(run)
    assert child.data.metrics == {"model.score": 0.5}
    assert child.data.tags["seed"] == "1"
    assert run.data.params == {"a": "1"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "notes")] == ["notes/file"]


def _children(run: Any) -> list[Any]:
    return list(
        _client().search_runs(
            [run.info.experiment_id], filter_string=f"tags.`{PARENT}` = '{run.info.run_id}'"
        )
    )


def test_parts_of_a_run_are_runs_below_it(store: str) -> None:
    with open_run("evaluate", "toy") as tracker:
        for seed in (0, 1):
            tracker.log_child(f"seed {seed}", {"model": {"score": seed / 2}})
        tracker.log_child("seed 1", {"model.other": 3.0})
    children = {run.info.run_name: run for run in _children(_client().get_run(tracker.run_id))}
    assert {name: run.data.metrics for name, run in children.items()} == {
        "seed 0": {"model.score": 0.0},
        "seed 1": {"model.score": 0.5, "model.other": 3.0},
    }
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_experiments_of_a_sweep_share_a_parent(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789" * 4)
    for name in ("brave-lamb", "calm-fish"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with open_run("train", "sweeps"):
            pass
    client = _client()
    experiment = client.get_experiment_by_name("cdcd/sweeps").experiment_id
    (parent,) = client.search_runs([experiment], filter_string="tags.stage = 'sweep'")
    assert parent.info.run_name == "sweep 0123456"
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["experiment"] for run in _children(parent)} == {"brave-lamb", "calm-fish"}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "' or 1 = 1")  # it goes into a query
    with open_run("train", "sweeps") as tracker:
        pass
    assert PARENT not in client.get_run(tracker.run_id).data.tags


def test_the_machine_is_watched_where_it_is_asked_for(store: str) -> None:
    with open_run("train", "toy", has_system_metrics=True) as tracker:
        for step in (7, 8):
            tracker.log_metrics({"loss": 1.0}, step)
    run = _client().get_run(tracker.run_id)
    names = {name for name in run.data.metrics if name.startswith("system/")}
    assert names >= {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/disk_available_megabytes",
        "system/network_receive_megabytes",
        "system/process_memory_megabytes",
    }
    history = _client().get_metric_history(tracker.run_id, "system/process_memory_megabytes")
    assert [metric.step for metric in history] == [7], "one in ten seconds"
    assert history[0].value > 10
    with open_run("train", "toy") as other:
        other.log_metrics({"loss": 1.0})
    assert set(_client().get_run(other.run_id).data.metrics) == {"loss"}


def test_a_machine_that_cannot_be_watched_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Any]:
        raise OSError("hidden")

    monkeypatch.setattr("cdcd.tracking.system._make_probes", refuse)
    system = SystemMetrics(0)
    assert system.sample() == {}
    monkeypatch.undo()
    assert system.sample() == {}, "it does not ask again"


LOCK = """schema: '2.0'
stages:
  encode@toy:
    cmd: x
    deps:
    - path: data/shards/toy
      md5: ffffffffffffffffffffffffffffffff.dir
    outs:
    - path: data/tokens/toy
      hash: md5
      md5: 0123456789abcdef0123456789abcdef.dir
      size: 480
      nfiles: 2
  encode@other:
    cmd: x
    outs:
    - path: data/tokens/other
      md5: eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.dir
  codec@toy:
    cmd: x
    outs:
    - path: data/codecs/toy
      md5: dddddddddddddddddddddddddddddddd.dir
"""
STAGES = """stages:
  train:
    matrix: {dataset: [toy, other]}
    cmd: x
    deps: [cdcd/data, 'data/tokens/${item.dataset}', 'data/codecs/${item.dataset}', data/gone]
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a dvc.lock and a split of tokens in which DVC runs a stage."""
    from cdcd.data.cache import write_split

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train@toy")
    write_split(
        tmp_path / "data" / "tokens" / "toy",
        "train",
        {"tokens": np.zeros((5, 7), np.int32)},
        {"keys": list("abcde")},
    )
    (tmp_path / "cdcd" / "data").mkdir(parents=True)
    (tmp_path / "cdcd" / "data" / "a.py").write_text("1")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "dvc.lock").write_text(LOCK)
    for command in (
        ["init", "-q"],
        ["add", "cdcd", "dvc.yaml"],
        ["-c", "user.email=a@b.c", "-c", "user.name=a", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_a_run_is_told_by_commit_and_dependencies(workspace: Path, store: str) -> None:
    def tags() -> dict[str, str]:
        return identity.identify("train", "toy").tags

    clean = tags()
    tree = subprocess.run(
        ["git", "rev-parse", "HEAD", "HEAD:cdcd/data"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert clean == {
        "git.commit": tree[0],
        "git.dirty": "false",
        "mlflow.source.git.commit": tree[0],
        "dep.cdcd/data": tree[1],
        "dep.data/tokens/toy": "0123456789abcdef0123456789abcdef.dir",
        "dep.data/codecs/toy": "d" * 32 + ".dir",
    }
    (workspace / "cdcd" / "data" / "a.py").write_text("2")
    assert tags()["dep.cdcd/data"] == f"{tree[1]}+dirty"
    assert tags()["git.dirty"] == "true"
    with open_run("train", "toy") as tracker:
        pass
    run = _client().get_run(tracker.run_id)
    assert run.data.tags.items() >= tags().items()
    (given,) = run.inputs.dataset_inputs  # a codec is no data
    assert given.dataset.name == "toy/tokens"
    assert given.dataset.digest == tags()["dep.data/tokens/toy"]
    assert json.loads(given.dataset.source) == {"uri": "data/tokens/toy"}
    profile = json.loads(given.dataset.profile)
    assert profile == {
        "bytes": 480,
        "files": 2,
        "items": {"train": 5},
        "num_rows": 5,
        "tokens": 35,
    }
    assert [tag.value for tag in given.tags] == ["training"]


def test_what_dvc_did_not_make_has_no_hash(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_STAGE")
    lock, tokens = workspace / "dvc.lock", workspace / "data" / "tokens" / "toy"
    os.utime(tokens, (1000, 1000))
    assert identity.data_hash("data/tokens/toy", "toy")
    os.utime(lock, (999, 999))
    assert identity.data_hash("data/tokens/toy", "toy") is None


@pytest.mark.parametrize("text", ["", "<<<<<<< ours\n", "stages:\n  encode@toy: 3\n", "\0"])
def test_a_lock_that_cannot_be_read_costs_the_hashes_alone(workspace: Path, text: str) -> None:
    (workspace / "dvc.lock").write_text(text)
    found = identity.identify("train", "toy")
    assert found.tags["git.commit"]
    assert not found.inputs
    (workspace / "dvc.lock").unlink()
    assert identity.identify("train", "toy").tags["dep.cdcd/data"]
    (workspace / "dvc.yaml").write_text(text)
    identity.identify("train", "toy")


def test_without_git_there_are_fewer_tags(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert set(identity.identify("train", "toy").tags) == {
        "dep.data/tokens/toy",
        "dep.data/codecs/toy",
    }


def test_a_version_and_its_runs_lead_to_each_other(workspace: Path, store: str) -> None:
    lock = LOCK.replace("codecs", "models")
    (workspace / "dvc.lock").write_text(lock)
    with open_run("train", "toy") as trained:
        pass
    paths = ["data/models/toy"]
    with open_run("evaluate", "toy", paths=paths) as scored:
        pass
    (workspace / "dvc.lock").write_text(lock.replace("dddd", "cccc"))
    with open_run("evaluate", "toy", paths=paths) as other:
        pass
    (workspace / "dvc.lock").write_text(lock)
    client = _client()
    client.create_registered_model("toy-model")
    client.create_model_version("toy-model", "/nowhere", description="A card.")
    for _ in range(2):
        tracking.link_version("toy-model", "1", "toy", [trained.run_id, None, "0" * 32])
    for run_id in (trained.run_id, scored.run_id):
        tags = client.get_run(run_id).data.tags
        assert tags["registered.model"] == "toy-model"
        assert tags["registered.version"] == "1"
        assert tags["mlflow.note.content"].count("(#/models/toy-model/versions/1)") == 1
    assert "registered.model" not in client.get_run(other.run_id).data.tags, "of other weights"
    version = client.get_model_version("toy-model", "1")
    assert version.tags["evaluate_run_id"] == scored.run_id
    assert version.description.startswith("A card.")
    assert version.description.count(f"/runs/{trained.run_id})") == 1


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


def test_a_store_that_takes_no_run_is_told_in_one_line_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("attempt to write a readonly database\n[SQL: INSERT INTO runs]\n[and more]")

    monkeypatch.setattr("mlflow.MlflowClient.create_run", refuse)
    with (
        pytest.raises(tracking.TrackingError, match=r"does not take a run .attempt to") as caught,
        open_run("register", "toy", needs_store=True),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_a_locked_store_and_a_broken_one_have_other_remedies_than_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    monkeypatch.setattr("cdcd.tracking.store.LOCKED_SECONDS", 0.01)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(tracking.TrackingError, match="; mend the file or its rights, bring back"):
        tracking.ensure_store()
    path.unlink()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE a (b)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(tracking.TrackingError, match="another process holds it: wait for it"):
            tracking.ensure_store()


def test_a_new_store_is_told_because_an_old_one_may_have_been_moved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="cdcd"):
        tracking.ensure_store()
        tracking.ensure_store()
    assert [r.getMessage().partition(" at ")[0] for r in caplog.records] == [
        "a new MLflow store begins"
    ]


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


def test_what_outlives_an_experiment_lies_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        (folder / "dvc.yaml").touch()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # as DVC tells the stages of an experiment
    assert repository_root() == tmp_path
    assert workspace_root() == copy
    assert tracking_uri() == f"sqlite:///{tmp_path / 'data' / 'mlflow' / 'mlflow.db'}"
    # What a stage starts elsewhere inherits the variable and belongs elsewhere.
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "another"))
    assert repository_root() == copy
