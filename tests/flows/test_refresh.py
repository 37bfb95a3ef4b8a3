"""A watched folder: new files are taken in once; too many broken ones stop, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdcd.config import Params, parse_params
from flows import pipeline
from flows.refresh import fingerprint, refresh, watched_folders

STAGES = """stages:
  ingest:
    matrix: {dataset: [tiktok]}
    cmd: ./take-in
    outs: [{data/raw/tiktok: {persist: true}}]
  shard:
    matrix: {dataset: [tiktok]}
    cmd: mkdir -p data/shards/tiktok && cp data/raw/tiktok/* data/shards/tiktok/
    deps: [data/raw/tiktok]
    outs: [{data/shards/tiktok: {persist: true}}]
"""
TAKE_IN = """#!/bin/sh
test ! -f incoming/broken || { echo "ingest@tiktok: too much is broken" >&2; exit 1; }
rm -rf data/raw/tiktok && mkdir -p data/raw/tiktok && cp incoming/* data/raw/tiktok/
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    Path("dvc.yaml").write_text(STAGES)
    Path("take-in").write_text(TAKE_IN)
    Path("take-in").chmod(0o755)
    Path("incoming").mkdir()
    Path("incoming/one").write_text("1")
    return tmp_path


@pytest.fixture
def params(make_params: Callable[..., Params]) -> Params:
    return make_params({"ingest": {"tiktok": {"root": "incoming"}}})


def _outcomes(params: Params) -> list[str]:
    return [done.outcome for done in refresh(params, "tiktok", lambda line: None)]


def test_what_is_new_is_taken_in_once(workspace: Path, params: Params) -> None:
    assert _outcomes(params) == ["ran", "ran"]
    assert _outcomes(params) == []
    Path("incoming/two").write_text("2")
    assert _outcomes(params) == ["ran", "ran"]
    assert sorted(path.name for path in Path("data/shards/tiktok").iterdir()) == ["one", "two"]
    shutil.rmtree("data/raw")
    assert _outcomes(params)[0] in ("ran", "restored"), "a lost output comes back"


def test_too_much_broken_stops_and_loses_nothing(workspace: Path, params: Params) -> None:
    _outcomes(params)
    Path("incoming/broken").write_text("")
    for _ in range(2):  # the second time it is still new
        with pytest.raises(pipeline.StageFailedError, match="too much is broken"):
            _outcomes(params)
    assert Path("data/raw/tiktok/one").read_text() == "1"
    assert Path("data/shards/tiktok/one").read_text() == "1"
    Path("incoming/broken").unlink()
    Path("incoming/two").write_text("2")
    assert _outcomes(params) == ["ran", "ran"]


def test_a_dataset_without_a_folder_is_one_line(
    workspace: Path, make_params: Callable[..., Params], params: Params
) -> None:
    with pytest.raises(ValueError, match="names none; name the download's folder"):
        refresh(make_params({"ingest": {"tiktok": {"root": None}}}), "tiktok")
    shutil.rmtree("incoming")
    with pytest.raises(ValueError, match="must name folders that exist: got incoming"):
        refresh(params, "tiktok")


def test_every_folder_of_params_is_watched_and_nothing_else(params_tree: dict[str, Any]) -> None:
    names = {"annotations_dir": "a", "videos_dir": "v", "music_dir": "m"}
    params_tree["ingest"]["aist"] |= names
    params_tree["ingest"]["imagenet"] |= {"root": "i"}
    params = parse_params(params_tree)
    assert watched_folders(params, "aist") == [Path("a"), Path("m"), Path("v")]
    assert watched_folders(params, "imagenet") == [Path("i")]
    assert watched_folders(params, "coco") == []


def test_a_fingerprint_sees_names_sizes_and_times(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b"
    file.parent.mkdir()
    file.write_text("x")
    before = fingerprint([tmp_path])
    assert fingerprint([tmp_path]) == before
    file.write_text("xy")
    assert fingerprint([tmp_path]) != before
    file.rename(file.with_name("c"))
    assert fingerprint([tmp_path]) != before
