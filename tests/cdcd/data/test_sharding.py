import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest

from cdcd.data.files import StorageError
from cdcd.data.ingest import ingest
from cdcd.data.manifest import read_manifest
from cdcd.data.sharding import shard
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
    source |= {
        f"{n}_dir": str(tmp_path / "download" / n) for n in ("annotations", "music", "videos")
    }
    (tmp_path / "raw" / "source.json").write_text(json.dumps(source))
    for name in names:
        path = tmp_path / "download" / name
        path.write_bytes(path.read_bytes()[:2000])
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
    with pytest.raises(StorageError, match=r"shards must fit on its disk.*free some") as info:
        shard(tiny_aist.params(None), raw, out)
    assert "\n" not in str(info.value)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize("place", ["webdataset.TarWriter.close", "cdcd.data.shards.write_json"])
def test_a_disk_that_fills_up_at_the_very_end(raw, tmp_path, monkeypatch, place):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place, full)
    out = tmp_path / "shards"
    out.mkdir()
    (out / "kept").touch()
    with pytest.raises(StorageError, match="no space left"):
        shard(tiny_aist.params(None), raw, out)
    assert [path.name for path in out.iterdir()] == ["kept"]
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
