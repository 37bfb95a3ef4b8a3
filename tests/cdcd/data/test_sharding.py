import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from cdcd.data.files import StorageError, sha256_file
from cdcd.data.ingest import ingest
from cdcd.data.manifest import read_manifest, write_manifest
from cdcd.data.sharding import plan_shards, shard
from cdcd.data.shards import iterate_shards, read_shards_index
from tests.cdcd.data import tiny_aist

NUM_SAMPLES = {"train": 15, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def download():
    return tiny_aist.shared()


@pytest.fixture(scope="module")
def raw(download, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "raw"
    ingest(tiny_aist.params(download), "aist", folder)
    return folder


@pytest.fixture(scope="module")
def shards(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    shard(tiny_aist.params(None), raw, folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_split_holds_its_samples_in_order(shards):
    for split, count in NUM_SAMPLES.items():
        samples = list(iterate_shards(shards, split))
        assert len(samples) == count
        assert [s.key for s in samples] == sorted(s.key for s in samples)
        for sample in samples:
            assert sample.audio.shape == (44100,)
            assert sample.motion.shape == (120, 219)
            assert 0 < np.abs(sample.audio).max() <= 0.951
            assert sample.meta["segment_seconds"] == 2
            assert sample.meta["decoders"]["av"]
    with_video = [s.key for s in iterate_shards(shards, "train") if s.video is not None]
    assert with_video == [f"gBR_sBM_c01_d04_mBR0_ch01_seg{k}" for k in range(1, 7)]


def test_the_manifest_and_the_summary_say_the_same(shards):
    records = read_manifest(shards / "manifest.jsonl")
    summary = json.loads((shards / "summary.json").read_text())
    stored = [s for split in NUM_SAMPLES for s in iterate_shards(shards, split)]
    assert {r.key: r.sources for r in records} == {s.key: s.meta["sources"] for s in stored}
    assert summary["num_samples_by_split"] == NUM_SAMPLES
    index = read_shards_index(shards)
    assert sum(item["count"] for item in index) == summary["num_samples"] == 21
    assert summary["bytes"] == sum((shards / item["name"]).stat().st_size for item in index)
    assert {item["name"] for item in index} == {path.name for path in shards.glob("*.tar")}


def test_bytes_do_not_depend_on_workers_memory_or_what_was_there(
    raw, shards, tmp_path, monkeypatch
):
    # Worker processes start with every allocation filled: whoever reads memory that was never
    # written shows it (glibc; elsewhere the variable does nothing).
    monkeypatch.setenv("MALLOC_PERTURB_", "85")
    out = tmp_path / "shards"
    out.mkdir()
    (out / "train-000099.tar").touch()
    shard(tiny_aist.params(None, shard__num_workers=2), raw, out)
    assert contents(out) == contents(shards)


def broken_copy(raw, download, tmp_path, names):
    """Data that were sound when they were ingested and no longer are."""
    shutil.copytree(download, tmp_path / "download")
    shutil.copytree(raw, tmp_path / "raw")
    source = json.loads((raw / "source.json").read_text())
    source["roots"] = {
        n: str(tmp_path / "download" / n) for n in ("annotations", "music", "videos")
    }
    (tmp_path / "raw" / "source.json").write_text(json.dumps(source))
    for name in names:
        path = tmp_path / "download" / name
        path.write_bytes(path.read_bytes()[:2000])
    # As if they had been broken all along, in a way that only decoding shows.
    records = []
    for record in read_manifest(raw / "manifest.jsonl"):
        sums = {p: sha256_file(tmp_path / "download" / p) for p in record.sources}
        records.append(replace(record, sources=sums))
    write_manifest(tmp_path / "raw" / "manifest.jsonl", records)
    return tmp_path / "raw"


def test_bad_samples_among_good_ones_are_left_out_with_their_reason(raw, download, tmp_path):
    broken = broken_copy(
        raw,
        download,
        tmp_path,
        [
            "music/gPO_sBM_cAll_d11_mPO5_ch02.wav",
            "annotations/motions/gBR_sBM_cAll_d05_mBR5_ch02.pkl",
            "videos/gBR_sBM_c01_d04_mBR0_ch01.mp4",
        ],
    )
    out = tmp_path / "shards"
    summary = shard(tiny_aist.params(None, shard__max_skipped_share=0.6), broken, out)
    assert summary["skipped"] == {
        "corrupt_motion": 3,
        "unreadable_audio": 3,
        "unreadable_video": 6,
    }
    assert len(list(iterate_shards(out, "train"))) == 3
    records = read_manifest(out / "manifest.jsonl")
    assert len(records) == 21
    skipped = {r.sequence: r.reason for r in records if r.status == "skipped"}
    assert skipped["gBR_sBM_cAll_d04_mBR0_ch01"] == "unreadable_video"
    assert str(tmp_path) not in (out / "manifest.jsonl").read_text()

    before = contents(out)
    with pytest.raises(
        ValueError,
        match=r"shard\.max_skipped_share .* 12 of 21 .*unreadable_video 6, .*the limit is 0\.5",
    ):
        shard(tiny_aist.params(None, shard__max_skipped_share=0.5), broken, out)
    assert contents(out) == before


def only_finished_work(folder):
    """Besides the earlier output there is the work folder, with whole files alone."""
    names = {path.name for path in folder.iterdir()}
    partial = [path for path in folder.rglob("*") if "partial" in path.name]
    return names == {"shards", ".shards.work"} and not partial


@pytest.fixture
def small_files():
    """A disk that refuses files above 300 kB: the second shard does not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_leaves_the_earlier_shards(raw, shards, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    for name, data in contents(shards).items():
        if len(data) < 300_000:
            (out / name).write_bytes(data)
    before = contents(out)
    with pytest.raises(
        StorageError, match=r"train-000000\.tar must fit on its disk.*free some"
    ) as info:
        shard(tiny_aist.params(None), raw, out)
    assert "\n" not in str(info.value)
    assert contents(out) == before
    assert only_finished_work(tmp_path)


@pytest.mark.parametrize("place", ["webdataset.TarWriter.close", "cdcd.data.shards.write_json"])
def test_a_disk_that_fills_up_at_the_very_end(raw, shards, tmp_path, monkeypatch, place):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    out = tmp_path / "shards"
    out.mkdir()
    (out / "kept").touch()
    with pytest.raises(StorageError, match="no space left"):
        shard(tiny_aist.params(None), raw, out)
    assert [path.name for path in out.iterdir()] == ["kept"]
    assert only_finished_work(tmp_path)
    monkeypatch.undo()
    shard(tiny_aist.params(None), raw, out)
    assert contents(out) == contents(shards)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_without_raw_data_the_remedy_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"source\.json must exist.*dvc repro ingest"):
        shard(tiny_aist.params(None), tmp_path, tmp_path / "shards")


def test_six_second_segments(raw, tmp_path):
    params = tiny_aist.params(None, shard__segment_seconds=6)
    summary = shard(params, raw, tmp_path / "shards")
    assert summary["num_samples_by_split"] == {"train": 5, "val": 1, "test": 1}
    samples = list(iterate_shards(tmp_path / "shards", "train"))
    assert {s.audio.shape for s in samples} == {(132300,)}
    assert {s.motion.shape for s in samples} == {(360, 219)}
    assert {s.meta["valid_seconds"] for s in samples} == {6.0}


# Interrupted and continued


def test_bytes_are_the_same_with_eight_workers(raw, shards, tmp_path):
    shard(tiny_aist.params(None, shard__num_workers=8), raw, tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(shards)


RUN = """
import sys
from pathlib import Path
from cdcd.data.sharding import shard
from tests.cdcd.data import tiny_aist

if __name__ == "__main__":
    shard(tiny_aist.params(None, shard__num_workers=2), Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("num_finished", [0, 2])
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(
    raw, shards, tmp_path, num_finished
):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    out, work = tmp_path / "data" / "shards", tmp_path / "data" / ".shards.work"
    process = subprocess.Popen(
        [sys.executable, script, raw, out],
        env=os.environ | {"PYTHONPATH": str(tiny_aist.ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not out.exists():
        if len(list(work.glob(".parts/*.tar.jsonl"))) >= num_finished and work.exists():
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.tar")}
    noted = {path.name[:-6] for path in work.glob(".parts/*.tar.jsonl")}
    shard(tiny_aist.params(None), raw, out)
    assert contents(out) == contents(shards)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shards"]
    for name in noted & set(kept):  # not written a second time
        assert (out / name).stat().st_mtime_ns == kept[name]


@pytest.fixture
def stopped(raw, tmp_path, monkeypatch):
    """A run that was stopped after all tars, before the manifest."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cdcd.data.sharding._write_manifest", stop)
    with pytest.raises(KeyboardInterrupt):
        shard(tiny_aist.params(None), raw, tmp_path / "shards")
    monkeypatch.undo()
    work = tmp_path / ".shards.work"
    assert len(list(work.glob("*.tar"))) == 5
    return work


def test_a_finished_tar_that_was_damaged_is_written_again(raw, shards, stopped, tmp_path, caplog):
    caplog.set_level("INFO", "cdcd")
    path = stopped / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    (stopped / ".parts" / "val-000000.tar.jsonl").write_text("{")
    (stopped / "train-000002.tar").unlink()
    shard(tiny_aist.params(None), raw, tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(shards)
    assert "2 shards were finished by an earlier run and kept" in caplog.text


def test_work_for_other_parameters_is_not_continued(raw, shards, stopped, tmp_path, caplog):
    caplog.set_level("INFO", "cdcd")
    shard(tiny_aist.params(None, shard__video_height=40), raw, tmp_path / "shards")
    assert "finished by an earlier run" not in caplog.text
    assert contents(tmp_path / "shards") != contents(shards)


def test_killed_after_the_last_rename(raw, shards, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "cdcd")
    out = tmp_path / "shards"

    def stop(path, **_):
        if path == out / ".parts":
            raise KeyboardInterrupt

    monkeypatch.setattr("cdcd.data.sharding.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        shard(tiny_aist.params(None), raw, out)
    monkeypatch.undo()
    shard(tiny_aist.params(None), raw, out)
    assert "5 shards were finished by an earlier run and kept" in caplog.text
    assert contents(out) == contents(shards)


def test_a_source_that_changed_since_it_was_ingested(raw, download, tmp_path):
    moved = broken_copy(raw, download, tmp_path, [])
    wav = tmp_path / "download" / "music" / "mBR0.wav"
    data = bytearray(wav.read_bytes())
    data[-1] ^= 1
    wav.write_bytes(data)
    params = tiny_aist.params(None, shard__max_skipped_share=0.9)
    summary = shard(params, moved, tmp_path / "shards")
    assert summary["skipped"] == {"changed_source": 6}


def test_the_mapper_of_the_caller_runs_the_tasks_in_any_order(raw, shards, tmp_path):
    def backwards(function, items):
        yield from map(function, reversed(list(items)))

    shard(tiny_aist.params(None), raw, tmp_path / "shards", backwards)
    assert contents(tmp_path / "shards") == contents(shards)


def test_plans_hold_whole_items_and_do_not_depend_on_decoding(raw, tmp_path):
    from cdcd.data.adapters.base import Options
    from cdcd.data.ingest import read_source

    _, source = read_source(raw)
    tasks = list(plan_shards(source, Options(2, 30, 36, 96), raw, tmp_path, 8))
    assert [(task.name, task.num_planned) for task in tasks] == [
        ("train-000000.tar", 6),
        ("train-000001.tar", 6),
        ("train-000002.tar", 3),
        ("val-000000.tar", 3),
        ("test-000000.tar", 3),
    ]
