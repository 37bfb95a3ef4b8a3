"""The pipeline's runner on a two-stage repository: classification, lock, failure, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdcd.config import ConfigError
from flows import pipeline
from tests.waiting import wait_for

CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
TWO_STAGES = """stages:
  ingest:
    matrix: {dataset: [aist]}
    cmd: cp source.txt a.txt
    deps: [source.txt]
    outs: [a.txt]
  shard:
    matrix: {dataset: [aist]}
    cmd: test ! -f broken && cp a.txt b.txt
    deps: [a.txt]
    outs: [b.txt]
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "STAGES", ("ingest", "shard"))
    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(CONFIG)
    Path("dvc.yaml").write_text(TWO_STAGES)
    Path("source.txt").write_text("one")
    return tmp_path


def _outcomes() -> dict[str, str]:
    return {done.stage: done.outcome for done in pipeline.run_pipeline(["aist"])}


def test_ran_unchanged_restored_and_nothing_to_do(clone: Path) -> None:
    assert _outcomes() == {"ingest@aist": "ran", "shard@aist": "ran"}
    assert Path("b.txt").read_text() == "one"
    assert _outcomes() == {}

    Path("b.txt").unlink()
    assert _outcomes() == {"ingest@aist": "unchanged", "shard@aist": "restored"}

    Path("source.txt").write_text("two")
    assert _outcomes() == {"ingest@aist": "ran", "shard@aist": "ran"}
    Path("source.txt").write_text("one")
    assert set(_outcomes().values()) == {"restored"}
    assert Path("b.txt").read_text() == "one"


def test_a_failed_stage_stops_the_row_and_is_one_line(
    clone: Path, capsys: pytest.CaptureFixture[str], params_file: Path
) -> None:
    Path("broken").write_text("")
    assert pipeline.main([]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("pipeline: shard@aist: DVC ended")
    assert Path("a.txt").is_file()
    assert not Path("b.txt").exists()


@pytest.fixture
def params_file(root: Path, clone: Path) -> Path:
    path = clone / "params.yaml"
    tree = yaml.safe_load((root / "params.yaml").read_text()) | {"datasets": ["aist"]}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_second_pipeline_is_told_to_come_later(
    clone: Path, params_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline.only_one():
        assert pipeline.main([]) == pipeline.BUSY
    assert "try again later" in capsys.readouterr().err
    assert pipeline.main([]) == 0
    out = capsys.readouterr().out
    assert "| ingest@aist | ran |" in out
    assert pipeline.main([]) == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("Running stage 'a@b':", "ran"),
        ("Stage 'a@b' is cached - skipping run, checking out outputs", "restored"),
        ("Stage 'a@b' didn't change, skipping", "unchanged"),
    ],
)
def test_classification(line: str, outcome: str) -> None:
    assert pipeline.classify(["", line, "Use `dvc push`"]) == outcome


@pytest.mark.parametrize("deaf", ["", "import signal; signal.signal(2, signal.SIG_IGN); "])
def test_termination_reaches_the_stage_and_leaves_no_orphan(
    clone: Path, root: Path, deaf: str
) -> None:
    script = deaf + "import time, os; open('pid', 'w').write(str(os.getpid())); time.sleep(100)"
    Path("wait.py").write_text(script)
    text = TWO_STAGES.replace("cp source.txt a.txt", f"{sys.executable} wait.py")
    Path("dvc.yaml").write_text(text)
    code = (
        "import sys; from flows import pipeline; pipeline.STAGES = ('ingest', 'shard');"
        "sys.exit(pipeline.main(['--datasets', 'aist']))"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: Path("pid").is_file() and Path("pid").read_text() != "", "the stage's start")
    stage = int(Path("pid").read_text())
    runner.send_signal(signal.SIGTERM)
    output, _ = runner.communicate(timeout=60)
    assert runner.returncode == 130, output
    wait_for(lambda: not Path(f"/proc/{stage}").exists(), "the stage's end")
    assert not Path("a.txt").exists()


# Runs with other parameters


@pytest.fixture
def reads_params(clone: Path, params_file: Path) -> Path:
    text = TWO_STAGES.replace(
        "cmd: cp source.txt a.txt", "cmd: grep -A2 'datasets' params.yaml > a.txt"
    ).replace("deps: [source.txt]", "params: [train.num_steps]")
    Path("dvc.yaml").write_text(text)
    return params_file


def test_changes_hold_for_one_run_and_the_file_comes_back(reads_params: Path) -> None:
    before = reads_params.read_bytes()
    steps = yaml.safe_load(before)["train"]["num_steps"]
    seen: list[int] = []

    def run(todo: list[pipeline.Step]) -> list[pipeline.Done]:
        seen.append(yaml.safe_load(reads_params.read_text())["train"]["num_steps"])
        return [step.take() for step in todo]

    def outcomes(changes: dict[str, Any] | None = None) -> set[str]:
        return {done.outcome for done in pipeline.run_pipeline(["aist"], changes, run)}

    assert outcomes() == {"ran"}
    assert outcomes({"train.num_steps": steps + 1}) >= {"ran"}
    assert reads_params.read_bytes() == before
    assert "ran" not in outcomes(), "the former outputs are restored"
    assert seen == [steps, steps + 1, steps]
    assert not pipeline.BEFORE.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.num_stepz": 3}, r"train\.num_stepz"),
        ({"train.num_steps": -3}, r"train\.num_steps"),
        ({"train.num_steps": "many"}, r"train\.num_steps"),
        ({"train": 3}, "train"),
        ({"": 3}, "the run's changes"),
    ],
)
def test_a_wrong_change_is_one_line_and_changes_nothing(
    reads_params: Path, changes: dict[str, Any], words: str
) -> None:
    before = reads_params.read_bytes()
    with pytest.raises(ConfigError, match=words) as caught:
        pipeline.run_pipeline(["aist"], changes)
    assert "\n" not in str(caught.value)
    assert reads_params.read_bytes() == before
    assert not Path("a.txt").exists()


def test_a_killed_run_with_changes_leaves_the_former_file_to_the_next(reads_params: Path) -> None:
    before = reads_params.read_bytes()
    code = (
        "import os, signal; from flows import pipeline\n"
        "with pipeline.only_one(), pipeline.changed_params({'train.num_steps': 3}):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = str(Path(pipeline.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": root}
    killed = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert reads_params.read_bytes() != before
    with pipeline.only_one():
        assert reads_params.read_bytes() == before


def test_what_a_person_edits_meanwhile_stays(
    reads_params: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pipeline.changed_params({"train.num_steps": 3}):
        reads_params.write_text("# mine\n")
    assert reads_params.read_text() == "# mine\n"
    assert "was edited" in caplog.text
    assert not pipeline.BEFORE.exists()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BUSY_POLL_SECONDS", 0.01)
    calls: list[int] = []

    def busy_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise pipeline.BusyError("busy")
        return "done"

    assert pipeline.patiently(busy_twice, 60.0) == "done"
    calls.clear()
    with pytest.raises(pipeline.BusyError):
        pipeline.patiently(busy_twice, 0.0)
    assert len(calls) == 1


def test_a_failure_carries_its_stage_and_log(clone: Path) -> None:
    Path("broken").write_text("")
    with pytest.raises(pipeline.StageFailedError) as caught:
        pipeline.run_pipeline(["aist"])
    assert caught.value.stage == "shard@aist"
    assert any("Running stage" in line for line in caught.value.lines)


@pytest.mark.parametrize(
    ("stale", "settled"),
    [
        ({"ingest@aist"}, []),
        ({"shard@aist"}, ["ingest@aist"]),
        ({"shard@aist", "ingest@tiktok"}, ["ingest@aist"]),
        ({"ingest@tiktok"}, ["ingest@aist", "shard@aist"]),
        ({"shard@other"}, None),
        (set(), None),
    ],
)
def test_only_what_comes_before_the_first_change_is_settled(
    monkeypatch: pytest.MonkeyPatch, stale: set[str], settled: list[str] | None
) -> None:
    monkeypatch.setattr(pipeline, "STAGES", ("ingest", "shard"))
    steps = pipeline.plan(["aist", "tiktok"], stale)
    if settled is None:
        assert not steps
        return
    stages = ["ingest@aist", "ingest@tiktok", "shard@aist", "shard@tiktok"]
    assert [step.stage for step in steps] == stages
    mine = [step.stage for step in steps if step.is_settled and step.stage.endswith("aist")]
    assert mine == settled


def test_outputs_are_pushed_where_there_is_a_remote(clone: Path) -> None:
    _outcomes()
    said: list[str] = []
    assert not pipeline.push(said.append)
    add = [*pipeline.DVC, "remote", "add", "--local", "--default", "store"]
    subprocess.run([*add, str(clone / "store")], check=True)
    assert pipeline.push(said.append)
    assert said == ["pushed to the remote store"]
    kept = [path.read_text() for path in (clone / "store").rglob("*") if path.is_file()]
    assert kept == ["one"], "both outputs have the same content"
    Path("source.txt").write_text("two")
    _outcomes()
    Path("file").write_text("")
    subprocess.run([*add, "--force", str(clone / "file" / "store")], check=True)
    with pytest.raises(pipeline.StageFailedError, match="push: DVC ended with"):
        pipeline.push(said.append)


@pytest.mark.parametrize(
    "lines",
    [
        ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
        ["ERROR: 'a' is busy, it is being blocked by:", *["  (PID 7): dvc repro"] * 9, "", "If"],
    ],
)
def test_busy_is_no_failure_however_many_are_in_the_way(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    said = subprocess.CompletedProcess((), 1, "", "\n".join(lines))
    monkeypatch.setattr(pipeline.subprocess, "run", lambda *_, **__: said)
    with pytest.raises(pipeline.BusyError, match="status: DVC is busy here; try again later"):
        pipeline.stale_stages()
    said.stderr = "ERROR: something else is busy"
    with pytest.raises(pipeline.StageFailedError):
        pipeline.stale_stages()


def test_a_progress_bar_does_not_fill_the_log(clone: Path) -> None:
    Path("bars.sh").write_text(
        "for i in $(seq 200); do printf 'train %s%%|##| 1/2\\r' $i; done; echo end\n"
    )
    stages = TWO_STAGES.replace("cp source.txt a.txt", "sh bars.sh; cp source.txt a.txt")
    Path("dvc.yaml").write_text(stages)
    said: list[str] = []
    pipeline.run_one("ingest@aist", said.append)
    assert sum("%|##|" in line for line in said) == 1
    assert "end" in said
