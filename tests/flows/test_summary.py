"""The closing words of `make run`."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from cdcd.data.samples import TASKS
from flows import summary
from flows.stage import STAGES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("data/runs", "data/reports/aist", "data/generated/aist/previews", "data/metrics"):
        Path(name).mkdir(parents=True)
    Path("data/registered").mkdir()
    Path("data/reports/aist/index.html").write_text("")
    Path("data/generated/aist/previews/a.mp4").write_bytes(b"")
    Path("data/metrics/aist.json").write_text("{}")
    registered = {"name": "cdcd-dance2music", "version": "3", "aliases": ["candidate", "champion"]}
    Path("data/registered/aist.json").write_text(json.dumps(registered))
    return tmp_path


def _ran(stage: str, finished: float) -> None:
    took = {"seconds": 65.2, "peak_memory_mb": 1536, "finished": finished}
    Path(f"data/runs/{stage}@aist.json").write_text(json.dumps(took))


def test_after_a_run_everything_is_pointed_at(here: Path) -> None:
    now = time.time()
    for stage in STAGES[:4]:
        _ran(stage, now - 1000)
    for stage in STAGES[4:]:
        _ran(stage, now)
    text = summary.closing(["aist"], now - 100)
    for words in (
        "data/metrics/aist.json",
        "data/metrics/aist.png",
        "data/generated/aist/previews/*.mp4 (1 files)",
        "data/reports/aist/index.html",
        "cdcd-dance2music version 3 (candidate, champion)",
        "make ui",
        "Done: 5 stages ran, 1 min 40 s in all.",
    ):
        assert words in text
    assert re.search(r"  ingest@aist +unchanged      65\.2 s    1\.5 GB\n", text)
    assert re.search(r"  train@aist +ran ", text)


def test_the_columns_of_every_stage_and_dataset_stay_apart(here: Path) -> None:
    took = {"seconds": 99999.9, "peak_memory_mb": 999_999, "finished": 0.0}
    for stage in STAGES:
        for dataset in TASKS:
            Path(f"data/runs/{stage}@{dataset}.json").write_text(json.dumps(took))
    lines = summary.closing(list(TASKS), -1.0).splitlines()
    rows = [line.split() for line in lines if line.startswith("  ") and "@" in line]
    assert len(rows) == len(STAGES) * len(TASKS)
    assert {tuple(row[1:]) for row in rows} == {("ran", "99999.9", "s", "976.6", "GB")}


def test_when_nothing_ran_it_says_so(here: Path) -> None:
    for stage in STAGES:
        _ran(stage, time.time() - 1000)
    text = summary.closing(["aist"], time.time())
    assert text.startswith("Nothing to do: every stage is up to date")
    assert "version 3" in text
    assert "Done" not in text


def test_it_works_where_nothing_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "make ui" in summary.closing(["aist"], time.time())
