import json
import pickle
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cdcd.data.adapters import clips, tiktok
from cdcd.data.adapters.base import Options
from cdcd.data.adapters.clips import Listed
from cdcd.data.manifest import SkipItem
from cdcd.data.samples import GENRES
from tests.cdcd.data import tiny_tiktok as tiny

OPTIONS = Options(segment_seconds=2, video_fps=30, video_height=36, image_size=96)
AIST = "gHO_sBM_c01_d20_mHO5_ch02_seg3"
AIST_TRAIN = "gBR_sBM_c01_d04_mBR1_ch01_seg1"
ONE, TWO, HELD_OUT = "000007_7_188_seg3", "000007_7_188_seg10", "000007_9_14_seg1"
SETTING = SimpleNamespace(root="x", clip_seconds=2, normalise_motion=False)


def shape(dataset, seconds):
    return (120 // 2 * seconds, 219) if dataset == "aist" else (30 * seconds, 75)


def motion(dataset, seconds, stem):
    rng = np.random.default_rng(len(stem) + ord(stem[-1]))
    return rng.standard_normal(shape(dataset, seconds))


def write(root: Path, dataset: str, stem: str, *, split: str = "", seconds: int = 2) -> None:
    """One clip; float64 motions and features, as NumPy makes them."""
    folder = {kind: root / f"{kind}_s{seconds}" / split for kind in clips.MODALITIES}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    tiny.write_wav(folder["audio"] / f"{stem}.wav", seconds, 22050, 1)
    np.save(folder["motion"] / f"{stem}.npy", motion(dataset, seconds, stem))
    np.save(folder["video"] / f"{stem}.npy", np.full((1, 2048), float(ord(stem[-1]))))


def listed(root: Path, dataset: str, names: dict[str, list[str]], ending: str = "") -> None:
    root.mkdir(exist_ok=True)
    for split, stems in names.items():
        for kind, suffix in clips.MODALITIES.items():
            order = stems if kind == "audio" else stems[::-1]
            lines = [f"/home/someone/{dataset}/{kind}_s2/{split}/{s}{suffix}" for s in order]
            path = root / f"{dataset}_{kind}_{split}_segment{ending}.txt"
            path.write_bytes("\r\n".join(lines).encode())


def build(root: Path, dataset: str = "tiktok", seconds: int = 2) -> Path:
    names = {"train": [ONE, TWO], "test": [HELD_OUT]}
    if dataset == "aist":
        names = {"train": [AIST_TRAIN], "val": [AIST[:-1] + "1"], "test": [AIST]}
    for split, stems in names.items():
        for stem in stems:
            write(root / dataset, dataset, stem, split=split, seconds=seconds)
    return root


def open_at(root, dataset="tiktok", seconds=2):
    return clips.open_clips(dataset, root, seconds, "ingest.tiktok.root")


def record_of(root, stem=ONE, split="train", **which):
    return open_at(root, **which).inspect(Listed(stem, split))


def load(source, stem, split="train", options=OPTIONS):
    record = source.inspect(Listed(stem, split))
    assert record.status == "ok", record
    ((_, sample),) = source.load(record, options)
    return sample


@pytest.fixture
def root(tmp_path):
    return build(tmp_path)


def test_folders_say_the_split_without_lists(root):
    source = open_at(root)
    assert [(item.name, item.split) for item in source.items()] == [
        (TWO, "train"),
        (ONE, "train"),
        (HELD_OUT, "test"),
    ]
    assert source.num_items() == 3
    assert all(source.inspect(item).status == "ok" for item in source.items())
    json.dumps(source.settings)
    assert pickle.loads(pickle.dumps(source)).names() == source.names()


@pytest.mark.parametrize("place", [".", "dataset", "data", "tiktok"])
def test_lists_say_the_split_of_flat_folders_and_may_be_shuffled(tmp_path, place):
    for stem in (ONE, TWO, HELD_OUT):
        write(tmp_path / "tiktok", "tiktok", stem)
    listed(tmp_path / place, "tiktok", {"train": [TWO, ONE], "test": [HELD_OUT]})
    source = open_at(tmp_path)
    found = {item.name: item.split for item in source.items()}
    assert found == {ONE: "train", TWO: "train", HELD_OUT: "test"}
    for stem in found:
        sample = load(source, stem)
        assert np.array_equal(sample.motion, motion("tiktok", 2, stem).astype("f4"))
        assert (sample.video_feature == ord(stem[-1])).all()


def test_lists_of_six_seconds_have_names_of_their_own(tmp_path):
    for stem in (ONE, HELD_OUT):
        write(tmp_path, "tiktok", stem, seconds=6)
    listed(tmp_path, "tiktok", {"train": [ONE, TWO], "test": [HELD_OUT]})
    with pytest.raises(ValueError, match=r"lacks tiktok_audio_train_segment_s6.txt"):
        open_at(tmp_path, seconds=6)
    listed(tmp_path, "tiktok", {"train": [ONE], "test": [HELD_OUT]}, "_s6")
    assert open_at(tmp_path, seconds=6).num_items() == 2


def test_a_sample_of_tiktok(root):
    source = open_at(root)
    sample = load(source, ONE)
    assert source.planned_keys(source.inspect(Listed(ONE, "train")), OPTIONS) == [sample.key]
    assert sample.key == ONE
    assert sample.motion.shape == (60, 75)
    assert sample.motion.dtype == sample.audio.dtype == sample.video_feature.dtype == np.float32
    assert sample.audio.shape == (44100,)
    assert np.abs(sample.audio).max() == pytest.approx(0.95, abs=1e-6)
    assert sample.video is None
    assert sample.video_feature.shape == (1, 2048)
    assert "genre" not in sample.meta
    assert (sample.meta["song"], sample.meta["sequence"], sample.meta["segment"]) == (
        "7",
        "000007_7_188",
        3,
    )
    assert (sample.meta["motion"], sample.meta["motion_rate_hz"]) == ("body_25", 30)
    assert sample.meta["bpm"] is None
    json.dumps(sample.meta, allow_nan=False)


@pytest.mark.parametrize("seconds", [2, 6])
def test_a_sample_of_aist(tmp_path, seconds):
    source = open_at(build(tmp_path, "aist", seconds), "aist", seconds)
    options = Options(segment_seconds=seconds, video_fps=30, video_height=36, image_size=96)
    source.check_options(options)
    record = source.inspect(Listed(AIST, "test"))
    ((listed_record, sample),) = source.load(record, options)
    assert record.genre == listed_record.genre == sample.meta["genre"] == GENRES.index("HO")
    assert record.song == "mHO5"
    assert sample.meta["sequence"] == "gHO_sBM_cAll_d20_mHO5_ch02"
    assert (sample.meta["bpm"], sample.meta["camera"]) == (135, "c01")
    assert sample.motion.shape == (60 * seconds, 219)
    assert (sample.meta["motion"], sample.meta["motion_rate_hz"]) == ("smpl_219", 60)
    assert sample.audio.shape == (22050 * seconds,)
    assert {item.split for item in source.items()} == {"train", "val", "test"}


@pytest.mark.parametrize("form", [(60, 25, 3), (4500,), (60, 75)])
def test_motions_may_be_flat_or_by_points(root, form):
    path = root / "tiktok/motion_s2/train" / f"{ONE}.npy"
    np.save(path, np.asfortranarray(np.load(path).reshape(form)))
    expected = motion("tiktok", 2, ONE).astype("f4")
    assert np.array_equal(load(open_at(root), ONE).motion, expected)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((60, 74)), "corrupt_motion"),
        (np.zeros((59, 75)), "corrupt_motion"),
        (np.zeros((75, 60)), "corrupt_motion"),
        (np.zeros((60, 75), bool), "corrupt_motion"),
        (np.full((60, 75), np.nan), "nonfinite_motion"),
        (np.full((60, 75), 1e200), "nonfinite_motion"),
        (np.full((60, 75), None), "unsafe_pickle"),
        (b"\x93NUMPY", "corrupt_motion"),
        (b"", "corrupt_motion"),
    ],
)
def test_motions_that_are_refused(root, array, reason):
    path = root / "tiktok/motion_s2/train" / f"{ONE}.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    record = record_of(root)
    assert (record.status, record.reason) == ("skipped", reason)
    assert str(root) not in record.detail


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros(2048), (1, 2048)),
        (np.zeros((4, 512), "f4"), (4, 512)),
        (np.zeros((1, 2, 2)), "unreadable_feature"),
        (np.zeros((0, 2048)), "unreadable_feature"),
        (np.full(2048, np.inf), "unreadable_feature"),
        (np.float64(3), "unreadable_feature"),
        (np.full(8, None), "unsafe_pickle"),
        (b"junk", "unreadable_feature"),
    ],
)
def test_video_features(root, array, expected):
    path = root / "tiktok/video_s2/train" / f"{ONE}.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    if isinstance(expected, str):
        assert record_of(root).reason == expected
    else:
        assert load(open_at(root), ONE).video_feature.shape == expected
        assert record_of(root).facts["video_feature_shape"] == list(expected)


def test_a_missing_feature_is_noted_and_nothing_more(root):
    (root / "tiktok/video_s2/train" / f"{ONE}.npy").unlink()
    source = open_at(root)
    record = source.inspect(Listed(ONE, "train"))
    assert record.facts["video_feature"] is None
    ((written, sample),) = source.load(record, OPTIONS)
    assert sample.video_feature is None
    assert written.facts["has_video_feature"] is False


@pytest.mark.parametrize("kind", ["audio", "motion"])
def test_sound_and_motion_must_be_there(root, kind):
    suffix = clips.MODALITIES[kind]
    (root / f"tiktok/{kind}_s2/train" / f"{ONE}{suffix}").unlink()
    source = open_at(root)
    assert ONE in {item.name for item in source.items()}
    assert source.inspect(Listed(ONE, "train")).reason == f"missing_{kind}"
    assert any(not finding.is_fine for finding in clips.check_clips("tiktok", root))


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(1.93, None), (2.07, None), (1.85, "length_mismatch"), (4, "length_mismatch")],
)
def test_sound_is_cut_or_filled_to_the_exact_number(root, seconds, reason):
    tiny.write_wav(root / "tiktok/audio_s2/train" / f"{ONE}.wav", seconds, 44100, 2)
    assert record_of(root).reason == reason
    if reason is None:
        sample = load(open_at(root), ONE)
        missing = max(0, 44100 - round(seconds * 22050))
        assert sample.audio.shape == (44100,)
        assert sample.meta["audio_pad_samples"] == pytest.approx(missing, abs=2)
        assert not sample.audio[44100 - missing + 2 :].any()


def test_sound_that_is_none_or_less_than_promised(root):
    path = root / "tiktok/audio_s2/train" / f"{ONE}.wav"
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 22050 * 2 * 9000)
    path.write_bytes(data)
    assert record_of(root).reason == "length_mismatch"
    path.write_bytes(b"junk")
    assert record_of(root).reason == "unreadable_audio"


@pytest.mark.parametrize(
    ("dataset", "stem", "reason"),
    [
        ("tiktok", "000007_7_188", "unsupported_name"),
        ("tiktok", "7_7_188_seg1", "unsupported_name"),
        ("aist", "gSS_sBM_c01_d04_mSS1_ch01_seg1", "unknown_genre"),
        ("aist", "gBR_sGR_c01_d04_mBR1_ch01_seg1", "unsupported_name"),
    ],
)
def test_other_names_are_recorded(tmp_path, dataset, stem, reason):
    record = record_of(build(tmp_path, dataset), stem, dataset=dataset)
    assert (record.status, record.reason) == ("skipped", reason)


def test_a_clip_of_two_splits_is_held_out(tmp_path):
    build(tmp_path, "aist")
    write(tmp_path / "aist", "aist", AIST, split="val")
    source = open_at(tmp_path, "aist")
    found = {(r.key, r.split): r.reason for r in map(source.inspect, source.items())}
    assert found[AIST, "test"] is None
    assert found[AIST, "val"] == "duplicate_key"


def test_a_song_in_train_and_held_out_is_told(root):
    assert clips.check_clips("tiktok", root)[-1].is_fine
    write(root / "tiktok", "tiktok", "000003_9_77_seg1", split="train")
    told = clips.check_clips("tiktok", root)[-1]
    assert not told.is_fine
    assert "1 in train and held out (9)" in told.text


def test_changed_files_are_noticed(root):
    source = open_at(root)
    record = source.inspect(Listed(ONE, "train"))
    np.save(root / "tiktok/motion_s2/train" / f"{ONE}.npy", np.zeros((60, 75)))
    with pytest.raises(SkipItem, match="changed_source"):
        list(source.load(record, OPTIONS))


def test_segments_must_be_as_long_as_the_clips(root):
    options = Options(segment_seconds=4, video_fps=30, video_height=36, image_size=96)
    with pytest.raises(
        ValueError, match=r"shard.segment_seconds must equal.*2 s: got 4; set it to 2"
    ):
        open_at(root).check_options(options)


def test_what_is_missing_is_said_in_one_line(root, tmp_path):
    with pytest.raises(ValueError, match=r"ingest.tiktok.clip_seconds must be.*got 6.*set it to 2"):
        open_at(root, seconds=6)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"ingest.tiktok.root must be a folder of pre-cut clips"):
        open_at(tmp_path / "none")
    (root / "tiktok/audio_s2/test").rename(root / "tiktok/audio_s2/other")
    with pytest.raises(ValueError, match=r"lacks tiktok_audio_train_segment.txt.*D2M-GAN"):
        open_at(root)
    (root / "tiktok/motion_s2").rename(root / "tiktok/moved")
    with pytest.raises(ValueError, match=r"has audio_s2/ and no motion_s2/; unpack"):
        open_at(root)


def test_tiktok_finds_clips_by_itself(root):
    source = tiktok.open_source(SETTING, root)
    assert isinstance(source, clips.TiktokClips)
    setting = SimpleNamespace(**{**vars(SETTING), "normalise_motion": True})
    with pytest.raises(ValueError, match=r"normalise_motion must be false for pre-cut clips"):
        tiktok.open_source(setting, root)
    (finding, other, songs) = tiktok.check(root)
    assert "train: 2 of 2,384 listed, 1 songs, 2 with sound, 2 with motion" in finding.text
    assert "test: 1 of 307 listed" in other.text
    assert finding.is_fine
    assert other.is_fine
    assert songs.is_fine


def test_no_clips_are_no_finding(tmp_path):
    assert clips.check_clips("aist", tmp_path) == []
    assert clips.check_clips("aist", tmp_path / "none") == []


def test_published_counts(tmp_path):
    source = open_at(build(tmp_path, "aist"), "aist")
    assert source.expected().samples == {"train": 6632, "val": 86, "test": 86}
    build(tmp_path, "aist", 6)
    source = open_at(tmp_path, "aist", 6)
    assert source.expected().samples == {"train": 2581, "val": 36, "test": 36}
