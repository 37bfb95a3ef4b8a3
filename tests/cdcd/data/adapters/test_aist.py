import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcd.data.adapters import aist, dance
from cdcd.data.adapters.base import Options
from cdcd.data.manifest import SkipItem
from cdcd.features.pose import motion_219
from tests.cdcd.data import tiny_aist

OPTIONS = Options(segment_seconds=2, video_fps=30, video_height=36, image_size=96)


@pytest.fixture(scope="module")
def download():
    return tiny_aist.shared()


@pytest.fixture(scope="module")
def roots(download):
    return aist.Roots(download / "annotations", download / "videos", download / "music")


def inspect(roots, name, split="train", camera="c01"):
    return aist.inspect_sequence(
        aist.Inspection(aist.Listed(name, split, False, None), roots, camera)
    )


# Names


def test_fields_of_a_name():
    name = aist.parse_name("/home/someone/gHO_sFM_c09_d21_mHO5_ch13.mp4")
    assert name == aist.Name("HO", "sFM", "c09", "d21", "mHO5", "ch13")
    assert name.sequence == "gHO_sFM_cAll_d21_mHO5_ch13"
    assert name.with_camera("c01") == "gHO_sFM_c01_d21_mHO5_ch13"


@pytest.mark.parametrize(
    ("name", "bpm", "frames"),
    [
        ("gBR_sBM_cAll_d04_mBR0_ch01", 80, 720),
        ("gBR_sFM_cAll_d04_mBR5_ch01", 130, 1772.31),
        ("gHO_sBM_cAll_d19_mHO0_ch01", 110, 523.64),
        ("gHO_sBM_cAll_d19_mHO5_ch01", 135, 426.67),
        ("gJS_sFM_cAll_d02_mJS4_ch09", 120, 1920),
    ],
)
def test_tempo_rule_and_nominal_length(name, bpm, frames):
    parsed = aist.parse_name(name)
    assert parsed.bpm == bpm
    assert parsed.nominal_frames == pytest.approx(frames, abs=0.01)


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("gBR_sGR_c01_d04_d05_d06_mBR0_ch01", "unsupported_name", "got sGR"),
        ("sSH_c01_v0", "unsupported_name", "got sSH"),
        ("gBR_sCY_c01_d04_mBR0_ch01", "unsupported_name", "got sCY"),
        ("gBR_sBT_c01_d04_mBR0_ch01", "unsupported_name", "got sBT"),
        ("gBR_sBM_c10_d04_mBR0_ch01", "unsupported_name", "must look like"),
        ("gBR_sBM_cAll_d04_mBR6_ch01", "unsupported_name", "0 to 5: got 6"),
        ("gXX_sBM_cAll_d04_mBR0_ch01", "unknown_genre", "got XX"),
        ("gBR_sBM_cAll_d04_mXX0_ch01", "unknown_genre", "got XX"),
    ],
)
def test_names_of_the_larger_database_are_refused(name, reason, words):
    with pytest.raises(aist.AistNameError, match=words) as info:
        aist.parse_name(name)
    assert info.value.reason == reason


# Segments


def test_published_segment_counts_follow_the_nominal_length():
    # The split's totals in 2-s and 6-s segments: val and test have these 20 sequences each.
    songs = ["BR0", "HO5", "JB5", "JS3", "KR2", "LH4", "LO2", "MH3", "PO1", "WA0"]
    frames = [
        round(aist.parse_name(f"g{s[:2]}_sBM_cAll_d01_m{s}_ch02").nominal_frames) for s in songs
    ]
    assert 2 * sum(len(aist.plan_windows(n, 2)) for n in frames) == 86
    assert 2 * sum(len(aist.plan_windows(n, 6)) for n in frames) == 36


@pytest.mark.parametrize(
    ("num_frames", "count"),
    [(113, 0), (114, 1), (120, 1), (233, 1), (234, 2), (1919, 16), (2878, 24), (2880, 24)],
)
def test_six_missing_frames_are_forgiven(num_frames, count):
    assert len(aist.plan_windows(num_frames, 2)) == count


@pytest.mark.parametrize("seconds", [2, 4, 6])
@pytest.mark.parametrize("num_frames", [119, 240, 427, 443, 576, 719, 720, 1919])
def test_windows_tile_the_dance(num_frames, seconds):
    windows = aist.plan_windows(num_frames, seconds)
    units = (num_frames + 6) // 120
    assert len(windows) == -(-units // (seconds // 2))
    assert [w.number for w in windows] == list(range(1, len(windows) + 1))
    assert [w.start_seconds for w in windows] == list(range(0, seconds * len(windows), seconds))
    assert all(w.valid_seconds == seconds for w in windows[:-1])
    assert 2 <= windows[-1].valid_seconds <= seconds


# Files of a download


@pytest.mark.parametrize(("name", "units"), tiny_aist.GOOD.items())
def test_usable_sequences(roots, name, units):
    record = inspect(roots, name)
    assert (record.status, record.reason) == ("ok", None)
    assert len(aist.planned_segments(record, OPTIONS)) == units
    assert len(record.sources) >= 2
    assert all(len(checksum) == 64 for checksum in record.sources.values())


@pytest.mark.parametrize(
    ("name", "reason"), [(k, v) for k, v in tiny_aist.BAD.items() if v != "ignored_sequence"]
)
def test_every_defect_has_its_reason(roots, name, reason, capfd):
    record = inspect(roots, name)
    assert (record.status, record.reason) == ("skipped", reason)
    assert record.detail
    assert str(roots.annotations.parent) not in record.detail
    assert "must never run" not in capfd.readouterr().out


def test_the_order_of_audio_sources(roots, tmp_path):
    name = "gPO_sBM_cAll_d10_mPO5_ch01"
    sound = roots.music / "gPO_sBM_cAll_d11_mPO5_ch02.wav"
    video = roots.videos / "gPO_sBM_c03_d10_mPO5_ch01.mp4"
    for folder in ("videos", "music"):
        (tmp_path / folder).mkdir()
    tiny = aist.Roots(roots.annotations, tmp_path / "videos", tmp_path / "music")
    steps = [
        (video, tiny.videos / "gPO_sBM_c07_d10_mPO5_ch01.mp4", "other_camera"),
        (video, tiny.videos / "gPO_sBM_c03_d10_mPO5_ch01.mp4", "other_camera"),
        (video, tiny.videos / "gPO_sBM_c01_d10_mPO5_ch01.mp4", "camera"),
        (sound, tiny.music / "gPO_sBM_c01_d10_mPO5_ch01.wav", "sequence_wav"),
        (sound, tiny.music / "gPO_sBM_cAll_d10_mPO5_ch01.wav", "sequence_wav"),
        (sound, tiny.music / "mPO5.wav", "song_wav"),
    ]
    assert inspect(tiny, name).reason == "missing_audio"
    for source, target, kind in steps:  # each one goes before those that are already there
        shutil.copy(source, target)
        facts = inspect(tiny, name).facts
        assert (Path(facts["audio"]).name, facts["audio_source"]) == (target.name, kind)


def test_the_view_with_another_clock_is_not_used(roots, tmp_path):
    name = "gBR_sBM_cAll_d04_mBR0_ch01"
    videos = tmp_path / "videos"
    videos.mkdir()
    source = roots.videos / "gBR_sBM_c01_d04_mBR0_ch01.mp4"
    shutil.copy(source, videos / "gBR_sBM_c05_d04_mBR0_ch01.mp4")
    only_that = aist.Roots(roots.annotations, videos, None)
    assert inspect(only_that, name, camera="c05").reason == "missing_audio"
    shutil.copy(source, videos / "gBR_sBM_c06_d04_mBR0_ch01.mp4")
    record = inspect(only_that, name, camera="c05")
    assert record.facts["video"] is None
    assert record.facts["audio"] == "videos/gBR_sBM_c06_d04_mBR0_ch01.mp4"


def test_a_recording_that_was_not_trimmed_to_the_dance(roots, tmp_path):
    name = "gBR_sBM_cAll_d04_mBR0_ch01"
    videos = tmp_path / "videos"
    videos.mkdir()
    tiny_aist.write_video(videos / "gBR_sBM_c01_d04_mBR0_ch01.mp4", 13.0, has_sound=False)
    record = inspect(aist.Roots(roots.annotations, videos, roots.music), name)
    assert record.reason == "length_mismatch"
    assert "12.000 s" in record.detail


def test_a_name_in_two_lists_stays_held_out(roots):
    listed = aist.list_sequences(roots.annotations, apply_ignore_list=True)
    both = [item for item in listed if item.name == tiny_aist.DUPLICATE]
    assert [(item.split, item.duplicate_of) for item in both] == [("test", None), ("train", "test")]
    assert [item.name for item in listed if item.is_ignored] == ["gBR_sBM_cAll_d06_mBR0_ch03"]
    assert [item.name for item in listed] == sorted(item.name for item in listed)
    off = aist.list_sequences(roots.annotations, apply_ignore_list=False)
    assert not any(item.is_ignored for item in off)
    assert len(off) == len(listed)


def test_poses_may_be_joints_or_numbers(roots):
    joints = aist.load_motion(roots.annotations / "motions/gBR_sBM_cAll_d04_mBR0_ch01.pkl")
    assert joints.poses.shape == (720, 72)
    with pytest.raises(SkipItem, match=r"nonfinite_motion: .* 1 of 524 frames"):
        aist.load_motion(roots.annotations / "motions/gHO_sBM_cAll_d19_mHO0_ch01.pkl")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("smpl_trans"), "corrupt_motion"),
        (lambda t: t.update(smpl_poses=t["smpl_poses"][:, :70]), "corrupt_motion"),
        (lambda t: t.update(smpl_poses=np.zeros((0, 72), "f4")), "corrupt_motion"),
        (lambda t: t.update(smpl_trans=t["smpl_trans"][1:]), "corrupt_motion"),
        (lambda t: t.update(smpl_scaling="a"), "corrupt_motion"),
        (lambda t: t.update(smpl_scaling=np.zeros(2, "f4")), "corrupt_motion"),
        (lambda t: t.update(smpl_scaling=np.zeros(1, "f4")), "nonfinite_motion"),
        (lambda t: t["smpl_poses"].__setitem__((3, 3), np.inf), "nonfinite_motion"),
    ],
)
def test_motions_that_cannot_be_used(tmp_path, change, reason):
    import pickle

    tree = tiny_aist.motion(150, seed=1)
    change(tree)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(SkipItem) as info:
        aist.load_motion(path)
    assert info.value.reason == reason


# Samples


def test_segments_put_together_are_the_sequence(roots):
    from cdcd import media

    record = inspect(roots, "gBR_sBM_cAll_d04_mBR0_ch01")
    loaded = list(aist.load_samples(record, roots, OPTIONS))
    assert [r.key for r, _ in loaded] == [f"gBR_sBM_c01_d04_mBR0_ch01_seg{k}" for k in range(1, 7)]
    samples = [sample for _, sample in loaded]

    motion = aist.load_motion(roots.resolve(record.facts["motion"]))
    whole = motion_219(motion.poses, motion.trans, motion.scaling)
    np.testing.assert_array_equal(np.concatenate([s.motion for s in samples]), whole[:720])

    song = media.decode_audio(roots.music / "mBR0.wav")
    assert {len(s.audio) for s in samples} == {44100}
    sound = np.concatenate([s.audio for s in samples])
    np.testing.assert_allclose(sound, song[: len(sound)] * (0.95 / np.abs(song).max()), atol=1e-6)
    # The song is scaled as a whole: it grows louder, and so do the segments.
    peaks = [float(np.abs(s.audio).max()) for s in samples]
    assert peaks == sorted(peaks)
    assert peaks[-1] < 0.95

    for k, sample in enumerate(samples):
        frames = list(media.iterate_clip(sample.video))
        assert len(frames) == 60
        assert frames[0].shape == (36, 64, 3)
        grey = np.array([frame.mean() for frame in frames])
        expected = 20 + 16 * (2 * k + np.arange(60) / 30)
        assert np.abs(grey - expected).max() < 3  # a quarter of a second is 4 levels
    assert samples[0].meta["bpm"] == 80
    assert samples[0].meta["genre"] == 0
    assert samples[0].meta["sources"] == record.sources


def test_one_missing_frame_is_repeated_and_counted(roots):
    record = inspect(roots, "gBR_sBM_cAll_d04_mBR0_ch01")
    short = replace(record, facts={**record.facts, "num_frames": 716, "video": None})
    path = roots.resolve(record.facts["motion"])
    full = aist.load_motion(path)
    windows = aist.plan_windows(716, 2)
    assert len(windows) == 6
    vectors = motion_219(full.poses, full.trans, full.scaling)[:716]
    cut, missing = dance.cut(vectors, windows[-1], 2, 60)
    assert missing == 4
    np.testing.assert_array_equal(cut[:116], vectors[600:])
    np.testing.assert_array_equal(cut[116:], np.repeat(vectors[-1:], 4, axis=0))
    cut, missing = dance.cut(np.ones(44100 * 6 - 50, np.float32), windows[-1], 2, 22050)
    assert missing == 50
    assert cut[:-50].all()
    assert not cut[-50:].any()
    assert len(aist.planned_segments(short, OPTIONS)) == 6


def test_a_partial_six_second_window_holds_the_rest_of_the_dance(roots):
    # 427 frames at 60 Hz: 3 units of 2 s, so windows of 4 s are 0-4 and 4-7.117.
    record = inspect(roots, "gHO_sBM_cAll_d20_mHO5_ch01")
    options = replace(OPTIONS, segment_seconds=4)
    (_, _), (last, sample) = aist.load_samples(record, roots, options)
    assert sample.motion.shape == (240, 219)
    assert sample.audio.shape == (88200,)
    assert last.facts["valid_seconds"] == pytest.approx(427 / 60 - 4)
    assert last.facts["motion_pad_frames"] == 480 - 427
    # The song goes on after the dance, but the sample must not.
    assert last.facts["audio_pad_samples"] == 88200 - round((427 / 60 - 4) * 22050)
    assert not sample.audio[-last.facts["audio_pad_samples"] :].any()
    assert (sample.motion[187:] == sample.motion[186]).all()

    dropped = list(aist.load_samples(record, roots, options, drop_partial=True))
    assert [(r.status, r.reason, s is None) for r, s in dropped] == [
        ("ok", None, False),
        ("skipped", "partial_segment", True),
    ]


# Layout


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: shutil.rmtree(f / "annotations"), "annotations_dir must be an existing folder"),
        (lambda f: shutil.rmtree(f / "videos"), "videos_dir must be an existing folder"),
        (lambda f: shutil.rmtree(f / "music"), "music_dir must be an existing folder"),
        (lambda f: shutil.rmtree(f / "annotations/motions"), "has no motions/; unzip motions.zip"),
        (lambda f: shutil.rmtree(f / "annotations/splits"), "has no splits/; unzip splits.zip"),
        (
            lambda f: (f / "annotations/splits/crossmodal_val.txt").unlink(),
            r"has no splits/crossmodal_val\.txt; unzip",
        ),
        (
            lambda f: (f / "annotations/ignore_list.txt").unlink(),
            "set apply_ignore_list: false",
        ),
    ],
)
def test_a_folder_in_another_layout_is_one_line(tmp_path, break_it, words):
    for name in ("annotations/motions", "annotations/splits", "videos", "music"):
        (tmp_path / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        (tmp_path / f"annotations/splits/crossmodal_{split}.txt").touch()
    (tmp_path / "annotations/ignore_list.txt").touch()
    roots = aist.Roots(tmp_path / "annotations", tmp_path / "videos", tmp_path / "music")
    aist.check_layout(roots, apply_ignore_list=True)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=words) as info:
        aist.check_layout(roots, apply_ignore_list=True)
    assert "\n" not in str(info.value)
    assert "ingest.aist." in str(info.value)


def test_a_folder_one_level_too_high_is_recognised(download):
    for given in (download, download / "annotations", download / "annotations" / "motions"):
        assert aist.find_annotations(given) == download / "annotations"


def test_music_has_to_come_from_somewhere(roots):
    with pytest.raises(ValueError, match="got null for both"):
        aist.check_layout(aist.Roots(roots.annotations, None, None), True)


# Real files

REAL = os.environ.get("CDCD_REAL_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="CDCD_REAL_DATA is not set")


@needs_real
def test_vectors_of_real_sequences(golden_motion):
    name, length = golden_motion.name, golden_motion.num_frames
    annotations = Path(REAL) / "aist_real" / "annotations"
    motion = aist.load_motion(annotations / "motions" / f"{name}.pkl")
    vectors = motion_219(motion.poses, motion.trans, motion.scaling)
    assert vectors.shape == (length, 219)
    np.testing.assert_allclose(vectors[0, :6], golden_motion.first, atol=1e-5)
    np.testing.assert_allclose(vectors[119, :6], golden_motion.later, atol=1e-5)
    aist._check_frames(aist.parse_name(name), length)


@needs_real
def test_real_lists_have_the_documented_counts():
    annotations = Path(REAL) / "aist_real" / "annotations"
    train = aist.read_names(annotations / "splits" / "crossmodal_train.txt")
    test = aist.read_names(annotations / "splits" / "crossmodal_test.txt")
    ignored = set(aist.read_names(annotations / "ignore_list.txt"))
    assert (len(train), len(test), len(ignored)) == (980, 20, 45)
    assert len(ignored & set(train)) == 28
    assert not ignored & set(test)
    segments = {}
    for label, names in {
        "off": train,
        "on": [name for name in train if name not in ignored],
        "test": test,
    }.items():
        frames = [round(aist.parse_name(name).nominal_frames) for name in names]
        segments[label] = tuple(
            sum(len(aist.plan_windows(n, seconds)) for n in frames) for seconds in (2, 6)
        )
    assert segments == {"off": (6632, 2581), "on": (6349, 2475), "test": (86, 36)}


@needs_real
def test_every_real_name_is_understood():
    annotations = Path(REAL) / "aist_real" / "annotations"
    lines = aist.read_names(annotations / "cameras" / "mapping.txt")
    names = [aist.parse_name(line.split()[0]) for line in lines]
    assert len({name.sequence for name in names}) == 1408
    assert len({name.song for name in names}) == 60
