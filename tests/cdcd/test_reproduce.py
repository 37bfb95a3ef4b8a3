"""`cdcd reproduced`: what two locks say about the same stages."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdcd import cli
from cdcd.reproduce import compare, read_lock


def _stage(dataset: str, out: str = "1", code: str = "1", steps: int = 5) -> dict[str, Any]:
    return {
        "cmd": "python -m flows.train",
        "deps": [
            {"path": "cdcd/models", "md5": code},
            {"path": f"data/tokens/{dataset}", "md5": out},
        ],
        "params": {"params.yaml": {"train.num_steps": steps}},
        "outs": [
            {"path": f"data/models/{dataset}", "md5": f"{out}.dir"},
            {"path": f"data/run_ids/train/{dataset}.json", "md5": "never the same"},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A commit with a lock of two datasets, both of which ran here."""
    monkeypatch.chdir(tmp_path)
    _write({"train@aist": _stage("aist"), "train@coco": _stage("coco")})
    for dataset in ("aist", "coco"):
        note = tmp_path / "data" / "runs" / f"train@{dataset}.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text("{}")
    commit = ["commit", "-qm", "one"]
    names = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "dvc.lock"], [*names, *commit]):
        subprocess.run(["git", *command], check=True, cwd=tmp_path)
    return tmp_path


def _write(stages: dict[str, Any]) -> None:
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = cli.main(["reproduced", *arguments])
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).splitlines()


def test_equal_outputs_are_reproduced_whatever_their_runs_are_called(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = _stage("aist")
    mine["outs"][1]["md5"] = "another run"
    _write({"train@aist": mine, "train@coco": _stage("coco")})
    code, lines = _said(capsys)
    assert code == 0
    assert lines == [
        "train@aist: same",
        "train@coco: same",
        "reproduced: all 2 stages have the hashes of HEAD",
    ]


def test_other_outputs_from_equal_inputs_point_to_the_machine(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write({"train@aist": _stage("aist", out="2"), "train@coco": _stage("coco")})
    code, lines = _said(capsys)
    assert code == 1
    assert lines[0] == "train@aist: differs (data/models/aist)"
    assert lines[-1].startswith("not reproduced: 1 stages differ from HEAD; ")
    assert "another type of CPU" in lines[-1]


def test_other_outputs_from_other_inputs_point_to_these(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write({"train@aist": _stage("aist", "2", "2", 9), "train@coco": _stage("coco")})
    code, lines = _said(capsys, "--against", "HEAD", "--datasets", "aist")
    assert code == 1
    assert lines == [
        "train@aist: differs (data/models/aist); so do its inputs (cdcd/models, train.num_steps)",
        "not reproduced: 1 stages differ from HEAD; code or parameters are others",
    ]


def test_an_entry_that_only_came_with_the_clone_proves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "runs" / "train@coco.json").unlink()
    code, lines = _said(capsys)
    assert code == 1
    assert lines[:2] == ["train@aist: same", "train@coco: not run"]
    assert lines[-1] == "not reproduced: 1 stages were not run here; run `dvc repro`"
    assert _said(capsys, "--datasets", "aist")[0] == 0


def test_a_stage_without_an_entry_was_not_run() -> None:
    (one,) = compare({}, {"train@aist": _stage("aist")}, {"train@aist": True})
    assert one.verdict == "not run"


def test_what_cannot_be_compared_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (("--against", "nonsense"), "--against must name a commit with a dvc.lock: got nonsense"),
        (("--datasets", "tiktok"), "--datasets must name what HEAD:dvc.lock records: got tiktok"),
    ):
        code, lines = _said(capsys, *arguments)
        assert (code, len(lines)) == (1, 1)
        assert words in lines[0]
    Path("dvc.lock").unlink()
    code, (line,) = _said(capsys)
    assert code == 1
    assert "run `dvc repro` first" in line


@pytest.mark.parametrize("text", ["", "[", "stages: 3", "- a"])
def test_a_damaged_lock_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"HEAD:dvc\.lock must be a lock file of DVC") as caught:
        read_lock(text, "HEAD:dvc.lock")
    assert "\n" not in str(caught.value)
