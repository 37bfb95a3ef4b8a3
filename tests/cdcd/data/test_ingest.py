import json
import logging
import shutil
from pathlib import Path

import pytest

from cdcd.data.files import sha256_file
from cdcd.data.ingest import ingest, read_source
from cdcd.data.manifest import read_manifest
from tests.cdcd.data import tiny_aist


@pytest.fixture(scope="module")
def download():
    return tiny_aist.shared()


@pytest.fixture(scope="module")
def raw(download, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "raw" / "aist"
    ingest(tiny_aist.params(download), "aist", folder)
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_listed_sequence_has_a_record_with_its_reason(raw):
    records = read_manifest(raw / "manifest.jsonl")
    reasons = {record.key: record.reason for record in records if record.status == "skipped"}
    assert reasons == tiny_aist.BAD | {tiny_aist.DUPLICATE: "duplicate_key"}
    used = {record.key: record.split for record in records if record.status == "ok"}
    assert used == (
        dict.fromkeys(tiny_aist.GOOD_TRAIN, "train")
        | dict.fromkeys(tiny_aist.GOOD_VAL, "val")
        | dict.fromkeys(tiny_aist.GOOD_TEST, "test")
    )
    assert [record.key for record in records] == sorted(record.key for record in records)


def test_sources_are_named_below_their_roots_with_checksums(raw, download):
    records = {r.key: r for r in read_manifest(raw / "manifest.jsonl") if r.status == "ok"}
    name = "gBR_sBM_cAll_d04_mBR0_ch01"
    assert records[name].sources == {
        path: sha256_file(download / path)
        for path in (
            f"annotations/motions/{name}.pkl",
            "music/mBR0.wav",
            "videos/gBR_sBM_c01_d04_mBR0_ch01.mp4",
        )
    }
    assert (records[name].genre, records[name].song) == (0, "mBR0")
    assert records["gHO_sBM_cAll_d20_mHO5_ch01"].genre == 5


def test_the_summary_counts_what_the_manifest_says(raw):
    summary = json.loads((raw / "summary.json").read_text())
    assert summary["num_ok_by_split"] == {"train": 4, "val": 1, "test": 1}
    assert summary["num_listed"] == len(tiny_aist.GOOD) + len(tiny_aist.BAD) + 1
    assert summary["skipped"]["length_mismatch"] == 2
    assert sum(summary["skipped"].values()) == summary["num_skipped"]
    assert summary["audio_sources"] == {"other_camera": 1, "sequence_wav": 1, "song_wav": 4}
    assert "Terms of Use" in summary["licence"]


def test_folders_of_the_user_are_absolute(raw, download):
    source, roots = read_source(raw)
    assert source["embedded"] is False
    assert Path(source["roots"]["annotations"]).is_absolute()
    assert roots.roots["music"] == download / "music"


def test_the_download_is_not_written_to_and_workers_do_not_matter(raw, download, tmp_path):
    before = contents(download)
    again = tmp_path / "raw"
    ingest(tiny_aist.params(download, ingest__num_workers=2), "aist", again)
    assert contents(again) == contents(raw)
    assert contents(download) == before


def test_the_terms_are_told_once(download, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cdcd")
    ingest(tiny_aist.params(download), "aist", tmp_path / "raw")
    told = [record.message for record in caplog.records if "terms of aist" in record.message]
    assert len(told) == 1
    assert "CC BY 4.0" in told[0]


def test_too_many_bad_sequences_stop_the_stage_and_keep_the_earlier_output(download, tmp_path):
    out = tmp_path / "raw"
    ingest(tiny_aist.params(download), "aist", out)
    before = contents(out)
    with pytest.raises(
        ValueError,
        # 13 of 19: the ignored sequence is left out by choice and counts on neither side.
        match=r"ingest\.max_skipped_share .* 13 of 19 .*length_mismatch 2, .* limit is 0\.5",
    ):
        ingest(tiny_aist.params(download, ingest__max_skipped_share=0.5), "aist", out)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "raw.rejected.jsonl"]
    rejected = read_manifest(tmp_path / "raw.rejected.jsonl")
    skipped = [r for r in read_manifest(out / "manifest.jsonl") if r.status == "skipped"]
    assert rejected == skipped
    ingest(tiny_aist.params(download), "aist", out)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_the_ignore_list_can_be_left_out(download, tmp_path):
    params = tiny_aist.params(download, ingest__aist__apply_ignore_list=False)
    ingest(params, "aist", tmp_path / "raw")
    records = {r.key: r for r in read_manifest(tmp_path / "raw" / "manifest.jsonl")}
    # The file behind it is sound, so without the list it is one more training sequence.
    assert records["gBR_sBM_cAll_d06_mBR0_ch03"].status == "ok"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("annotations_dir", "/no/such/folder", "annotations_dir must be an existing folder: got"),
        ("music_dir", "/no/such/folder", "music_dir must be an existing folder: got '/no/such"),
        ("annotations_dir", None, "videos_dir must be null while annotations_dir is null"),
    ],
)
def test_wrong_paths_are_one_line_and_keep_the_earlier_output(
    download, tmp_path, key, value, words
):
    out = tmp_path / "raw"
    out.mkdir()
    (out / "kept").touch()
    params = tiny_aist.params(download, **{f"ingest__aist__{key}": value})
    with pytest.raises(ValueError, match=words) as info:
        ingest(params, "aist", out)
    assert "\n" not in str(info.value)
    assert [path.name for path in out.iterdir()] == ["kept"]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_songs_that_leak_are_told(download, tmp_path, caplog):
    leaky = tmp_path / "download"
    shutil.copytree(download, leaky)
    train = leaky / "annotations" / "splits" / "crossmodal_train.txt"
    train.write_text("gHO_sBM_cAll_d20_mHO5_ch01\n")
    (leaky / "annotations" / "splits" / "crossmodal_val.txt").write_text("")
    ingest(tiny_aist.params(leaky), "aist", tmp_path / "raw")
    assert "songs in train and in a held-out split: mHO5" in caplog.text
    assert "no usable" not in caplog.text


def test_the_embedded_data_can_be_moved(tmp_path, monkeypatch):
    # The generator has tests of its own; here the tiny download stands in for what it writes.
    from cdcd.data.embedded import aist as embedded

    def write_download(root, **arguments):
        assert arguments == {
            "seed": 0,
            "songs_per_genre": 6,
            "choreographies_per_song": 3,
            "video_height": 120,
            "num_workers": 1,
        }
        shutil.copytree(tiny_aist.shared(), root)

    monkeypatch.setattr(embedded, "write_download", write_download)
    params = tiny_aist.params(
        None,
        ingest__aist__embedded__songs_per_genre=6,
        ingest__aist__embedded__choreographies_per_song=3,
        ingest__aist__embedded__video_height=120,
    )
    summary = ingest(params, "aist", tmp_path / "raw")
    assert summary["embedded"]
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    source, roots = read_source(tmp_path / "elsewhere")
    assert source["roots"]["annotations"] == "download/annotations"
    assert roots.roots["annotations"].is_dir()
    assert str(tmp_path) not in (tmp_path / "elsewhere" / "manifest.jsonl").read_text()


def test_a_source_that_is_gone(raw, tmp_path):
    with pytest.raises(ValueError, match=r"source\.json must exist.*dvc repro ingest"):
        read_source(tmp_path)
    source = json.loads((raw / "source.json").read_text())
    (tmp_path / "source.json").write_text(
        json.dumps(source | {"roots": {"music": "/no/such/folder"}})
    )
    with pytest.raises(ValueError, match=r"'/no/such/folder' is gone"):
        read_source(tmp_path)
    (tmp_path / "source.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must say where the data are"):
        read_source(tmp_path)


def test_an_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="datasets must name a known dataset: got 'mnist'"):
        ingest(tiny_aist.params(None), "mnist", tmp_path / "raw")


@pytest.mark.parametrize("below", ["", "mine", "download"])
def test_a_download_inside_the_output_is_refused_and_kept(download, tmp_path, below):
    out = tmp_path / "raw" / "aist"
    shutil.copytree(download, out / below, dirs_exist_ok=True)
    before = contents(out)
    with pytest.raises(ValueError, match=r"must name folders outside .*raw/aist.*move the") as info:
        ingest(tiny_aist.params(out / below), "aist", out)
    assert "\n" not in str(info.value)
    assert contents(out) == before
