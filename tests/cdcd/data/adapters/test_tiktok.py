import json
import pickle
import shutil
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cdcd import media
from cdcd.data.adapters import tiktok
from cdcd.data.adapters.base import Options
from cdcd.data.adapters.clips import Listed
from cdcd.data.files import sha256_file
from cdcd.data.manifest import SkipItem
from tests.cdcd.data import tiny_tiktok as tiny

OPTIONS = Options(segment_seconds=2, video_fps=30, video_height=36, image_size=96)
ONE = "000001_4_10"


def setting(**changes):
    return SimpleNamespace(**{"root": "x", "clip_seconds": 2, "normalise_motion": False} | changes)


def open_at(root, **changes):
    return tiktok.open_source(setting(**changes), root)


def record_of(root, stem, **changes):
    return open_at(root, **changes).inspect(Listed(stem, "train"))


def samples_of(root, stem, options=OPTIONS, **changes):
    source = open_at(root, **changes)
    record = source.inspect(Listed(stem, "train"))
    assert record.status == "ok", record
    return [sample for _, sample in source.load(record, options)]


@pytest.fixture(scope="module")
def download():
    return tiny.shared()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One video, to be copied and broken."""
    root = tmp_path_factory.mktemp("small")
    tiny.add(root, ONE, Fraction(24), 2.5)
    (root / "train.txt").write_text(f"{ONE}\n")
    (root / "test.txt").write_text("000001_9_14\n")
    return root


@pytest.fixture
def broken(small, tmp_path):
    return Path(shutil.copytree(small, tmp_path / "root"))


@pytest.fixture(scope="module")
def loaded(download):
    source = open_at(download)
    return {
        stem: [s for _, s in source.load(source.inspect(Listed(stem, "train")), OPTIONS)]
        for stem in tiny.RATES
        if stem != tiny.OLD
    }


# The whole download


def test_every_listed_video_becomes_a_record_and_its_segments(download):
    source = open_at(download)
    records = [source.inspect(item) for item in source.items()]
    assert source.num_items() == len(records) == 6
    assert {r.key: r.reason for r in records} == dict.fromkeys(tiny.RATES) | {
        tiny.OLD: "unsupported_motion"
    }
    assert {r.key for r in records if r.split == "test"} == set(tiny.TEST)
    for record in records:
        assert record.genre is None
        if record.status == "ok":
            assert source.planned_keys(record, OPTIONS) == [f"{record.key}_seg{k}" for k in (1, 2)]


def test_songs_are_the_second_field_and_disjoint_though_groups_are_not(download):
    source = open_at(download)
    records = [source.inspect(item) for item in source.items()]
    songs, groups = (
        {split: {pick(r) for r in records if r.split == split} for split in ("train", "test")}
        for pick in (lambda r: r.song, lambda r: r.key.split("_")[0])
    )
    assert songs == {"train": {"4", "5"}, "test": {"9"}}
    assert groups["train"] & groups["test"]


@pytest.mark.parametrize("stem", [stem for stem in tiny.RATES if stem != tiny.OLD])
def test_a_key_point_is_found_at_its_time_whatever_the_rate(loaded, stem):
    motion = np.concatenate([sample.motion for sample in loaded[stem]])
    stamps = np.arange(round(tiny.SECONDS * tiny.RATES[stem])) / float(tiny.RATES[stem])
    for j, row in enumerate(motion):
        nearest = stamps[np.argmin(np.abs(stamps - j / 30) - 1e-9 * (stamps < j / 30))]
        if stem == tiny.EMPTY and j == tiny.EMPTY_FRAME:
            nearest -= 1 / 30
        assert row[0] == pytest.approx(tiny.nose_x(nearest), abs=1e-4)


def test_samples_are_what_the_contract_says(loaded):
    for stem, samples in loaded.items():
        assert [sample.key for sample in samples] == [f"{stem}_seg1", f"{stem}_seg2"]
        for number, sample in enumerate(samples, start=1):
            assert sample.motion.shape == (60, 75)
            assert sample.motion.dtype == sample.audio.dtype == np.float32
            assert sample.audio.shape == (44100,)
            assert len(list(media.iterate_clip(sample.video))) == 60
            assert "genre" not in sample.meta
            assert sample.meta["bpm"] is None
            assert sample.meta["song"] == stem.split("_")[1]
            assert sample.meta["sequence"] == stem
            assert sample.meta["segment"] == number
            assert (sample.meta["motion"], sample.meta["motion_rate_hz"]) == ("body_25", 30)
            assert sample.meta["valid_seconds"] == 2.0
            pads = ("motion_pad_frames", "audio_pad_samples", "video_pad_frames")
            assert [sample.meta[pad] for pad in pads] == [0, 0, 0]
            json.dumps(sample.meta, allow_nan=False)


def test_sound_comes_from_the_wav_or_the_video_and_starts_with_the_pictures(loaded):
    for stem, samples in loaded.items():
        kind = "wav" if stem in (tiny.EMPTY, "000001_9_14") else "video"
        assert samples[0].meta["audio_source"] == kind
        audio = np.concatenate([sample.audio for sample in samples])
        first = np.flatnonzero(np.abs(audio) > 0.5)[0] / 22050
        assert first == pytest.approx(tiny.CLICK_SECONDS, abs=0.003)
        assert np.abs(audio).max() == pytest.approx(0.95, abs=0.01)


def test_the_most_confident_person_is_kept(loaded, download):
    motion = loaded[tiny.TWO_PEOPLE][0].motion.reshape(60, 25, 3)
    assert np.allclose(motion[:, :, 2], 0.8)
    assert motion[0, 0, 0] == tiny.nose_x(0)
    assert record_of(download, tiny.TWO_PEOPLE).facts["most_people"] == 3


def test_an_empty_frame_is_the_one_before_with_confidence_zero(loaded, download):
    motion = loaded[tiny.EMPTY][0].motion.reshape(60, 25, 3)
    frame = tiny.EMPTY_FRAME
    assert np.array_equal(motion[frame, :, :2], motion[frame - 1, :, :2])
    assert (motion[frame, :, 2] == 0).all()
    assert (motion[frame - 1, :, 2] > 0).all()
    assert record_of(download, tiny.EMPTY).facts["empty_frames"] == 1


@pytest.mark.parametrize(("seconds", "valid"), [(4, 4.0), (6, 4.2)])
def test_longer_segments_are_padded_and_say_so(download, seconds, valid):
    options = Options(segment_seconds=seconds, video_fps=30, video_height=36, image_size=96)
    (sample,) = samples_of(download, "000002_5_12", options)
    assert sample.meta["valid_seconds"] == pytest.approx(valid)
    assert sample.motion.shape == (30 * seconds, 75)
    assert sample.audio.shape == (22050 * seconds,)
    missing = seconds - valid
    assert sample.meta["motion_pad_frames"] == round(30 * missing)
    assert sample.meta["audio_pad_samples"] == round(22050 * missing)
    assert sample.meta["video_pad_frames"] == round(30 * missing)
    assert np.array_equal(
        sample.motion[126:], sample.motion[125:126].repeat(len(sample.motion[126:]), 0)
    )
    assert not sample.audio[round(22050 * valid) :].any()


def test_the_source_can_be_sent_to_workers_and_leaves_the_download_alone(download):
    before = {path: path.stat().st_mtime_ns for path in download.rglob("*")}
    source = pickle.loads(pickle.dumps(open_at(download)))
    list(source.load(source.inspect(Listed(ONE, "train")), OPTIONS))
    assert {path: path.stat().st_mtime_ns for path in download.rglob("*")} == before
    json.dumps(source.settings)


def test_sources_are_hashed_and_changes_are_noticed(broken):
    source = open_at(broken)
    record = source.inspect(Listed(ONE, "train"))
    assert set(record.sources) == {f"videos/{ONE}.mp4", f"openpose/{ONE}"}
    video = broken / "videos" / f"{ONE}.mp4"
    assert record.sources[f"videos/{ONE}.mp4"] == sha256_file(video)
    assert source.inspect(Listed(ONE, "train")).sources == record.sources
    tiny.edit(broken, ONE, 3, tiny.tree(tiny.pose(0.0)))
    with pytest.raises(SkipItem, match="changed_source"):
        list(source.load(record, OPTIONS))


def test_a_changed_video_is_noticed(broken):
    source = open_at(broken)
    record = source.inspect(Listed(ONE, "train"))
    tiny.write_video(broken / "videos" / f"{ONE}.mp4", Fraction(24), 2.5, has_sound=False)
    with pytest.raises(SkipItem, match="changed_source"):
        list(source.load(record, OPTIONS))


# Key points


def test_nearest_stamp_is_exact_on_irregular_clocks():
    rng = np.random.default_rng(0)
    stamps = np.concatenate([[0.0], np.cumsum(rng.uniform(0.01, 0.09, 200))])
    times = np.arange(300) / 30
    expected = [int(np.argmin(np.abs(stamps - time))) for time in times]
    assert tiktok.nearest_frames(stamps, times).tolist() == expected
    halves = tiktok.nearest_frames(np.arange(10) / 15, np.arange(20) / 30)
    assert halves.tolist() == [i // 2 for i in range(20)]


def test_stamps_are_presentation_times_of_variable_rates(tmp_path):
    import av

    ticks = [0, 40, 70, 150, 160, 300]
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 36, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 36, 3), "u1"), format="rgb24")
            frame.pts, frame.time_base = tick + 500, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    stamps = media.frame_times(tmp_path / "v.mp4")
    assert stamps == pytest.approx(np.array(ticks) / 1000, abs=1e-6)


def test_leading_empty_frames_take_the_next_known_one():
    points = np.ones((25, 3), "f4")
    filled = tiktok.fill_empty([None, points, 2 * points, None])
    assert (filled[0, :, :2] == 1).all()
    assert (filled[3, :, :2] == 2).all()
    assert (filled[[0, 3], :, 2] == 0).all()
    assert (filled[[1, 2], :, 2] > 0).all()


def test_nobody_in_more_than_half_of_the_frames_is_no_motion():
    points = np.ones((25, 3), "f4")
    assert len(tiktok.fill_empty([points, None])) == 2
    with pytest.raises(SkipItem, match=r"nonfinite_motion.*2 of 3"):
        tiktok.fill_empty([points, None, None])
    with pytest.raises(SkipItem, match="nonfinite_motion"):
        tiktok.fill_empty([None])


def test_people_without_confidence_are_nobody():
    assert tiktok.best_person(np.zeros((0, 25, 3), "f4")) is None
    assert tiktok.best_person(np.zeros((2, 25, 3), "f4")) is None


def body(pose):
    return json.dumps({"people": [{"pose_keypoints_2d": pose}]}).encode()


GOOD = tiny.pose(0.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (body(GOOD[:54]), "unsupported_motion"),
        (b'{"people": [{"pose_keypoints": []}]}', "unsupported_motion"),
        (body([float("nan"), *GOOD[1:]]), "corrupt_motion"),
        (body([float("inf"), *GOOD[1:]]), "corrupt_motion"),
        (body([1e300, *GOOD[1:]]), "corrupt_motion"),
        (body([10**400, *GOOD[1:]]), "corrupt_motion"),
        (body(["1.0", *GOOD[1:]]), "corrupt_motion"),
        (body([True, *GOOD[1:]]), "corrupt_motion"),
        (body([[1.0], *GOOD[1:]]), "corrupt_motion"),
        (body(GOOD[:74]), "corrupt_motion"),
        (body(GOOD)[:100], "corrupt_motion"),
        (b"", "corrupt_motion"),
        (b"\xff\xfe\x00", "corrupt_motion"),
        (b"[" * 100_000, "corrupt_motion"),
        (b"[]", "corrupt_motion"),
        (b"{}", "corrupt_motion"),
        (b'{"people": {"a": 1}}', "corrupt_motion"),
        (b'{"people": [3]}', "corrupt_motion"),
        (b'{"people": [{}]}', "corrupt_motion"),
    ],
)
def test_what_is_no_body_25_is_refused(data, reason):
    with pytest.raises(SkipItem) as caught:
        tiktok.read_people(data, "a.json")
    assert caught.value.reason == reason
    assert "\n" not in caught.value.detail
    assert "a.json" in caught.value.detail


def test_old_poses_are_refused_with_a_remedy(download):
    record = record_of(download, tiny.OLD)
    assert record.reason == "unsupported_motion"
    assert "18 (COCO); run OpenPose again with --model_pose BODY_25" in record.detail


def test_frames_are_ordered_by_their_numbers(tmp_path):
    for number in (9, 10, 11, 100, 8):
        (tmp_path / f"clip7_{number}_keypoints.json").write_text("")
    (tmp_path / "._clip7_9_keypoints.json").write_text("")
    (tmp_path / "clip7_100_keypoints.json").unlink()
    (tmp_path / "clip7_10_keypoints.json").unlink()
    found = tiktok.frame_files(tmp_path)
    assert [path and path.name.split("_")[1] for path in found] == ["8", "9", None, "11"]


def test_two_runs_in_one_folder_and_wild_numbers_are_refused(tmp_path):
    (tmp_path / "a_1_keypoints.json").write_text("")
    (tmp_path / "b_1_keypoints.json").write_text("")
    with pytest.raises(SkipItem, match=r"corrupt_motion.*keep one run"):
        tiktok.frame_files(tmp_path)
    (tmp_path / "b_1_keypoints.json").rename(tmp_path / "b_999999999999_keypoints.json")
    with pytest.raises(SkipItem, match="length_mismatch"):
        tiktok.frame_files(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"), [(-4, None), (-5, "length_mismatch"), (4, None), (5, "length_mismatch")]
)
def test_as_many_files_as_frames_within_a_fifth_of_a_second(broken, change, reason):
    paths = tiny.files(broken, ONE)  # 60 frames at 24 per second: 4.8 of tolerance
    for path in paths[change:] if change < 0 else []:
        path.unlink()
    for extra in range(change):
        name = f"{ONE}_{len(paths) + extra:012d}_keypoints.json"
        (broken / "openpose" / ONE / name).write_text(paths[0].read_text())
    record = record_of(broken, ONE)
    assert record.reason == reason
    if reason is None:
        assert record.facts["num_frames"] == (75 if change > 0 else 70)


def test_normalised_points_are_around_the_hips(broken):
    for i in range(60):
        pose = np.array(tiny.pose(i / 24)).reshape(25, 3)
        pose[4] = 0  # a wrist that is not detected
        if i < 3 or i == 30:
            pose[8] = 0
        tiny.edit(broken, ONE, i, tiny.tree(pose.ravel().tolist()))
    (raw,) = samples_of(broken, ONE)
    (sample,) = samples_of(broken, ONE, normalise_motion=True)
    assert not raw.meta["motion_is_normalised"]
    assert sample.meta["motion_is_normalised"]
    points, pixels = (s.motion.reshape(60, 25, 3) for s in (sample, raw))
    assert np.array_equal(points[..., 2], pixels[..., 2])
    assert (points[:, 4] == 0).all()
    has_hip = pixels[:, 8, 0] != 0
    assert (points[has_hip, 8, :2] == 0).all()
    assert points[has_hip, 0] == pytest.approx(
        np.broadcast_to([-8 * 0.25 / 36, -8 / 64, 0.8], (has_hip.sum(), 3)), abs=1e-6
    )
    first = int(np.flatnonzero(has_hip)[0])
    expected = (pixels[0, 0, :2] - pixels[first, 8, :2]) / (36, 64)
    assert points[0, 0, :2] == pytest.approx(expected, abs=1e-6)
    nobody = np.zeros((2, 25, 3), "f4")
    assert not tiktok.normalise(nobody, 36, 64).any()


# Broken and missing files


def break_video(root, stem):
    path = root / "videos" / f"{stem}.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def lose(*parts):
    def change(root):
        path = root.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lose("videos", f"{ONE}.mp4"), "missing_video"),
        (lose("openpose", ONE), "missing_motion"),
        (lambda root: [p.unlink() for p in tiny.files(root, ONE)], "missing_motion"),
        (lambda root: break_video(root, ONE), "unreadable_video"),
        (lambda root: (root / "videos" / f"{ONE}.mp4").write_bytes(b""), "unreadable_video"),
        (lambda root: tiny.edit(root, ONE, 5, "{"), "corrupt_motion"),
        (
            lambda root: [tiny.edit(root, ONE, i, tiny.tree()) for i in range(31)],
            "nonfinite_motion",
        ),
    ],
)
def test_what_is_broken_is_recorded(broken, change, reason):
    change(broken)
    record = record_of(broken, ONE)
    assert (record.status, record.reason) == ("skipped", reason)
    assert str(broken) not in record.detail


def test_a_video_of_sound_only_or_without_sound(broken):
    tiny.write_video(broken / "videos" / f"{ONE}.mp4", Fraction(24), 2.5, has_sound=False)
    assert record_of(broken, ONE).reason == "no_audio_stream"
    tiny.write_wav(broken / "audio" / f"{ONE}.wav", 2.5, 22050, 1)
    assert record_of(broken, ONE).facts["audio_source"] == "wav"
    shutil.copy(broken / "audio" / f"{ONE}.wav", broken / "videos" / f"{ONE}.mp4")
    assert record_of(broken, ONE).reason == "unreadable_video"


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(2.35, None), (2.2, "length_mismatch"), (3.4, None), (5.0, "length_mismatch")],
)
def test_sound_must_be_as_long_as_the_motion(broken, seconds, reason):
    tiny.write_wav(broken / "audio" / f"{ONE}.wav", seconds, 22050, 1)
    assert record_of(broken, ONE).reason == reason


def test_short_sound_of_the_video_is_found_when_it_is_decoded(broken, monkeypatch):
    source = open_at(broken)
    record = source.inspect(Listed(ONE, "train"))
    monkeypatch.setattr(media, "decode_audio", lambda *_, **__: np.zeros(40000, "f4"))
    with pytest.raises(SkipItem, match="length_mismatch"):
        list(source.load(record, OPTIONS))


@pytest.mark.parametrize("seconds", [3600 * 5, 10])
def test_a_header_that_promises_more_than_the_file_has_is_refused(broken, seconds):
    path = broken / "audio" / f"{ONE}.wav"
    tiny.write_wav(path, 2.5, 22050, 1)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 22050 * 2 * seconds)
    path.write_bytes(data)
    record = record_of(broken, ONE)
    assert record.reason == "length_mismatch"
    assert "as its header says" in record.detail
    data[40:44] = b"\xff" * 4  # written into a pipe
    path.write_bytes(data)
    assert record_of(broken, ONE).reason is None


def test_hours_are_refused_before_anything_is_decoded(broken, monkeypatch):
    monkeypatch.setattr(tiktok, "MAX_SECONDS", 2.4)
    monkeypatch.setattr(media, "decode_audio", None)
    record = record_of(broken, ONE)
    assert record.reason == "length_mismatch"
    assert "must last at most" in record.detail


@pytest.mark.parametrize(("seconds", "pad"), [(1.9, 3), (1.875, None)])
def test_a_tenth_of_a_second_may_be_missing(tmp_path, seconds, pad):
    rate = Fraction(40)
    count = tiny.add(tmp_path, ONE, rate, seconds)
    assert count == seconds * rate
    (tmp_path / "train.txt").write_text(ONE)
    (tmp_path / "test.txt").write_text("000001_9_14")
    record = record_of(tmp_path, ONE)
    if pad is None:
        assert record.reason == "too_short"
        return
    (sample,) = samples_of(tmp_path, ONE)
    assert sample.meta["motion_pad_frames"] == pad
    assert np.array_equal(sample.motion[-4:], sample.motion[-4:-3].repeat(4, 0))
    assert sample.meta["audio_pad_samples"] == pytest.approx(2205, abs=3)
    assert sample.meta["video_pad_frames"] == 3


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".MP4"])
def test_other_containers(broken, suffix):
    import av

    old, new = (broken / "videos" / f"{ONE}{end}" for end in (".mp4", suffix))
    if suffix == ".mkv":
        with av.open(str(old)) as source, av.open(str(new), "w", format="matroska") as out:
            streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream_index]
                    out.mux(packet)
        old.unlink()
    else:
        old.rename(new)
    record = record_of(broken, ONE)
    assert (record.reason, record.facts["video"]) == (None, f"videos/{ONE}{suffix}")


# Lists and folders


def relist(root, train, test, folder="."):
    (root / "train.txt").unlink(missing_ok=True)
    (root / "test.txt").unlink(missing_ok=True)
    (root / folder).mkdir(exist_ok=True)
    for name, lines in {**train, **test}.items():
        (root / folder / name).write_text("\r\n".join(lines) + "\r\n")


@pytest.mark.parametrize("folder", [".", "dataset", "data"])
def test_lists_of_d2m_gan(broken, folder):
    kinds = ("audio", "motion", "video")
    train = {
        f"tiktok_{kind}_train_segment.txt": [
            rf"D:\tiktok\{kind}_s2\{ONE}_seg{k}.npy" if k % 2 else f"/x/{ONE}_seg{k}.wav"
            for k in (3, 1, 2)
        ]
        for kind in kinds
    }
    test = {f"tiktok_{kind}_test_segment.txt": ["/x/000001_9_14_seg1.npy"] for kind in kinds}
    relist(broken, train, test, folder)
    source = open_at(broken)
    assert [(item.name, item.split) for item in source.items()] == [
        (ONE, "train"),
        ("000001_9_14", "test"),
    ]


def test_lists_of_a_prefix_and_malformed_names(broken):
    names = [ONE, "7_7_188", "000007_x_1", "../../etc/passwd", "000007_7_188.2"]
    relist(broken, {"tiktok_train.txt": names}, {"tiktok_test.txt": ["000001_9_14"]})
    source = open_at(broken)
    records = {item.name: source.inspect(item) for item in source.items()}
    assert records[ONE].status == "ok"
    for name in ("7_7_188", "000007_x_1", "passwd", "000007_7_188.2"):
        assert records[name].reason == "unsupported_name"
    assert records["000007_7_188.2"].key == "000007_7_188~2"


def test_a_video_of_both_splits_is_held_out(broken):
    relist(broken, {"train.txt": [ONE, "000001_7_3"]}, {"test.txt": [ONE]})
    source = open_at(broken)
    found = {(r.key, r.split): r.reason for r in map(source.inspect, source.items())}
    assert found[ONE, "test"] is None
    assert found[ONE, "train"] == "duplicate_key"


def test_a_song_of_both_splits_is_told(broken):
    relist(broken, {"train.txt": [ONE, "000009_07_3"]}, {"test.txt": ["000002_7_4"]})
    assert "7" in open_at(broken).songs()["train"] & open_at(broken).songs()["test"]
    told = tiktok.check(broken)[-1]
    assert not told.is_fine
    assert "1 in train and held out (7)" in told.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose("openpose"), r"has no openpose/; run OpenPose with --model_pose BODY_25"),
        (lose("videos"), r"has no videos/; fetch the videos.*L-YeZhu/D2M-GAN"),
        (lose("test.txt"), r"has no test.txt, tiktok_test.txt.*L-YeZhu/D2M-GAN"),
    ],
)
def test_what_is_missing_is_said_in_one_line(broken, change, message):
    change(broken)
    with pytest.raises(ValueError, match=f"ingest.tiktok.root must hold .*{message}") as caught:
        open_at(broken)
    assert "\n" not in str(caught.value)
    assert any(not finding.is_fine for finding in tiktok.check(broken))


def test_other_folders_are_refused(tmp_path, broken):
    with pytest.raises(ValueError, match=r"must be an existing folder: got '.*none'"):
        open_at(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has neither; the lists and archives are linked"):
        open_at(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"has neither; give '.*root' instead"):
        open_at(tmp_path)


def test_a_folder_named_after_the_dataset_is_looked_into(broken, tmp_path):
    (tmp_path / "outer").mkdir()
    broken.rename(tmp_path / "outer" / "tiktok")
    assert open_at(tmp_path / "outer").inspect(Listed(ONE, "train")).status == "ok"


def test_check_counts_against_what_was_published(download):
    findings = tiktok.check(download)
    text = "\n".join(finding.text for finding in findings)
    assert all(finding.is_fine for finding in findings)
    assert "train: 4 of 392 videos listed (train.txt), 2 of 43 songs, 4 with a file" in text
    assert "test: 2 of 53 videos listed" in text
    assert "train: 8 of 2,384 segments of 2 s" in text
    assert "test: 4 of 307 segments" in text


def test_check_never_raises(tmp_path, broken):
    assert not tiktok.check(tmp_path / "none")[0].is_fine
    (tmp_path / "file").write_text("")
    assert not tiktok.check(tmp_path / "file")[0].is_fine
    (broken / "train.txt").unlink()
    (broken / "train.txt").write_bytes(b"\xff\x00" * 1000)
    break_video(broken, ONE)
    assert any(not finding.is_fine for finding in tiktok.check(broken))


def test_published_counts(download):
    expected = open_at(download).expected()
    assert expected.items == {"train": 392, "test": 53}
    assert expected.samples == {"train": 2384, "test": 307}
