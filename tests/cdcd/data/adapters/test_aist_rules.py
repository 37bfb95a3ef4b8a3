"""Rules and traps of AIST++ that test_aist.py leaves open, and what `cdcd ingest --check` finds."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdcd.data import pickles
from cdcd.data.adapters import aist
from cdcd.data.adapters.base import Options
from cdcd.data.samples import GENRES
from cdcd.features.pose import motion_219
from tests.cdcd.data import tiny_aist

OPTIONS = Options(segment_seconds=2, video_fps=30, video_height=36, image_size=96)
REAL = os.environ.get("CDCD_REAL_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="CDCD_REAL_DATA is not set")
EIGHTY, HOUSE = "gBR_sBM_cAll_d04_mBR0_ch01", "gHO_sBM_cAll_d20_mHO5_ch02"
IGNORED = "gBR_sBM_cAll_d06_mBR0_ch03"


def annotations() -> Path:
    return Path(REAL) / "aist_real" / "annotations"


def roots_of(folder):
    return aist.Roots(folder / "annotations", folder / "videos", folder / "music")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_aist.shared(), tmp_path / "download")


def listed(folder, *, apply_ignore_list=True):
    return aist.list_sequences(folder / "annotations", apply_ignore_list)


def inspect(folder, name, split="train", camera="c01", **roots):
    item = aist.Listed(name, split, False, None)
    return aist.inspect_sequence(aist.Inspection(item, replace(roots_of(folder), **roots), camera))


def write_motion(folder, name, num_frames):
    import pickle

    path = folder / "annotations" / "motions" / f"{name}.pkl"
    path.write_bytes(pickle.dumps(tiny_aist.motion(num_frames, seed=3)))


def write_list(folder, split, *lines):
    path = folder / "annotations" / "splits" / f"crossmodal_{split}.txt"
    path.write_text("\n".join(lines))


# 1.4 and traps 1, 4, 9, 10, 11: which sequences are listed


def test_sequences_that_no_list_names_are_not_added(folder):
    write_list(folder, "train", EIGHTY)
    write_list(folder, "val")
    write_list(folder, "test", HOUSE)
    assert len(list((folder / "annotations" / "motions").iterdir())) > 10
    assert [(item.name, item.split) for item in listed(folder)] == [
        (EIGHTY, "train"),
        (HOUSE, "test"),
    ]


def test_the_pose_lists_are_never_read(folder):
    splits = folder / "annotations" / "splits"
    before = listed(folder)
    (splits / "pose_train.txt").write_text(f"{HOUSE}\ngWA_sBM_cAll_d25_mWA0_ch02\n")
    (splits / "pose_test.txt").write_text(f"{EIGHTY}\n")
    (splits / "pose_val.txt").write_bytes(b"\xff\x00")
    assert listed(folder) == before
    for split in ("train", "val", "test"):
        (splits / f"crossmodal_{split}.txt").rename(splits / f"pose_{split}.txt")
    with pytest.raises(ValueError, match=r"pose_\*\.txt are another division and would leak"):
        aist.check_layout(roots_of(folder), apply_ignore_list=True)


def test_only_the_stem_of_a_listed_path_counts(folder):
    write_list(folder, "train", f"/data/zhu/gWA_sFM/{EIGHTY}.pkl", f"../x/{IGNORED}.npy ")
    found = {item.name: item for item in listed(folder)}
    assert {EIGHTY, IGNORED} < set(found)
    assert found[IGNORED].is_ignored
    assert inspect(folder, EIGHTY).sources


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", "\t\r\n"])
def test_blanks_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path, end):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf" + end.join([" a", "", "b", "c"]).encode())
    assert aist.read_names(path) == ["a", "b", "c"]


def test_a_camera_in_a_listed_name_evades_no_rule(folder):
    write_list(folder, "train", IGNORED.replace("cAll", "c01"), HOUSE.replace("cAll", "c01"))
    train = [item for item in listed(folder) if item.split == "train"]
    assert [item.is_ignored or item.duplicate_of is not None for item in train] == [True, True]


def test_a_name_of_no_sequence_gets_a_key_without_dots_and_slashes(folder):
    write_list(folder, "train", "weird.name/with.more dots.mp4")
    item = next(item for item in listed(folder) if item.split == "train")
    record = aist.inspect_sequence(aist.Inspection(item, roots_of(folder), "c01"))
    assert record.reason == "unsupported_name"
    assert not set("./ ") & set(record.key)


def test_published_counts():
    for apply, sequences, two, six in ((False, 980, 6632, 2581), (True, 952, 6349, 2475)):
        for seconds, train, held_out in ((2, two, 86), (6, six, 36)):
            expected = aist.expected_counts(apply, seconds)
            assert expected.items == {"train": sequences, "val": 20, "test": 20}
            assert expected.samples == {"train": train, "val": held_out, "test": held_out}


@needs_real
def test_the_real_test_list_has_the_published_segments_per_genre():
    names = aist.read_names(annotations() / "splits" / "crossmodal_test.txt")
    counts: Counter[str] = Counter()
    for name in map(aist.parse_name, names):
        counts[name.genre] += len(aist.plan_windows(round(name.nominal_frames), 2))
        assert name.situation == "sBM"
    assert [counts[genre] for genre in GENRES] == [12, 10, 8, 8, 8, 6, 12, 8, 8, 6]


@needs_real
def test_real_train_and_test_share_no_song():
    songs = [
        {aist.parse_name(name).song for name in aist.read_names(annotations() / "splits" / file)}
        for file in ("crossmodal_train.txt", "crossmodal_test.txt")
    ]
    assert [len(part) for part in songs] == [50, 10]
    assert not songs[0] & songs[1]


# 1.5 and traps 2, 8: lengths


@pytest.mark.parametrize(
    ("num_frames", "reason", "count"),
    [(720, None, 6), (719, None, 6), (714, None, 6), (713, "length_mismatch", 0)],
)
def test_up_to_six_frames_may_be_missing(folder, num_frames, reason, count):
    write_motion(folder, EIGHTY, num_frames)
    record = inspect(folder, EIGHTY, videos=None)
    assert record.reason == reason
    if reason is None:
        assert len(aist.planned_segments(record, OPTIONS)) == count


def test_missing_frames_and_sound_are_filled_and_counted(folder):
    write_motion(folder, EIGHTY, 715)
    tiny_aist.write_wav(folder / "music" / "mBR0.wav", 715 / 60)
    record = inspect(folder, EIGHTY, videos=None)
    loaded = list(aist.load_samples(record, roots_of(folder), OPTIONS))
    facts = [listed.facts for listed, _ in loaded]
    assert [f["motion_pad_frames"] for f in facts] == [0] * 5 + [5]
    pad = 12 * 22050 - round(715 / 60 * 22050)
    assert [f["audio_pad_samples"] for f in facts] == [0] * 5 + [pytest.approx(pad, abs=1)]
    assert [f["valid_seconds"] for f in facts] == [2] * 6
    sample = loaded[-1][1]
    assert (sample.motion[115:] == sample.motion[114]).all()
    assert not sample.audio[-pad + 1 :].any()
    assert sample.audio[: -pad - 100].any()
    assert (len(sample.audio), len(sample.motion)) == (44100, 120)


def test_segments_cover_consecutive_stretches_from_the_first_frame_on(folder):
    record = inspect(folder, HOUSE, videos=None)
    motion = aist.load_motion(roots_of(folder).resolve(record.facts["motion"]))
    whole = motion_219(motion.poses, motion.trans, motion.scaling)
    for listed_as, sample in aist.load_samples(record, roots_of(folder), OPTIONS):
        k = listed_as.facts["segment"]
        np.testing.assert_array_equal(sample.motion, whole[120 * (k - 1) : 120 * k])
        assert sample.key.endswith(f"_c01_d20_mHO5_ch02_seg{k}")


def test_six_seconds_keep_what_is_left(folder):
    options = replace(OPTIONS, segment_seconds=6)
    record = inspect(folder, HOUSE, videos=None)  # 7.117 s: 3 units, one window
    ((listed_as, sample),) = aist.load_samples(record, roots_of(folder), options)
    assert (sample.audio.shape, sample.motion.shape) == ((132300,), (360, 219))
    assert listed_as.facts["valid_seconds"] == 6
    windows = aist.plan_windows(480, 6)  # 4 units: the second window has one of its three
    assert [window.valid_seconds for window in windows] == [6, 2]


@pytest.mark.parametrize(
    ("difference", "reason"),
    [(0.0, None), (0.19, None), (0.21, "length_mismatch"), (7.383, "length_mismatch")],
)
def test_sound_of_its_own_must_be_as_long_as_the_motion(folder, difference, reason):
    name = "gPO_sBM_cAll_d11_mPO5_ch02"
    tiny_aist.write_wav(folder / "music" / f"{name}.wav", 443 / 60 + difference)
    assert inspect(folder, name).reason == reason


def test_sound_of_a_video_must_be_as_long_as_the_motion(folder):
    # As converters make it: the track is there twice (aistplusplus_api issue 23).
    name = "gPO_sBM_cAll_d10_mPO5_ch01"
    path = folder / "videos" / "gPO_sBM_c03_d10_mPO5_ch01.mp4"
    assert inspect(folder, name).facts["audio_source"] == "other_camera"
    tiny_aist.write_video(path, 2 * 443 / 60, has_sound=True)
    assert inspect(folder, name).reason == "length_mismatch"


def test_a_song_goes_on_after_the_dance_but_not_before_its_end(folder):
    for seconds, reason in ((40.0, None), (11.7, "length_mismatch"), (700.0, "length_mismatch")):
        path = folder / "music" / "mBR0.wav"
        if seconds > 100:
            import soundfile

            soundfile.write(path, np.full(round(8000 * seconds), 0.1, "f4"), 8000)
        else:
            tiny_aist.write_wav(path, seconds)
        assert inspect(folder, EIGHTY, videos=None).reason == reason, seconds


# 1.6: what a sample is


@pytest.mark.parametrize("name", [EIGHTY, HOUSE])
def test_held_out_sound_gets_no_random_gain(folder, name):
    from cdcd import media

    split = "test" if name == HOUSE else "train"
    record = inspect(folder, name, split, videos=None)
    song = media.decode_audio(roots_of(folder).resolve(record.facts["audio"]))
    gain = 0.95 / float(np.abs(song).max())
    for listed_as, sample in aist.load_samples(record, roots_of(folder), OPTIONS):
        assert listed_as.facts["audio_gain"] == pytest.approx(gain)
        k = listed_as.facts["segment"] - 1
        part = song[44100 * k : 44100 * (k + 1)]
        np.testing.assert_allclose(sample.audio[: len(part)], gain * part, atol=1e-6)


def test_sound_of_a_late_video_begins_with_its_first_frame(folder):
    import av

    name = "gPO_sBM_cAll_d10_mPO5_ch01"
    path = folder / "videos" / "gPO_sBM_c03_d10_mPO5_ch01.mp4"
    late_by = 0.098  # a third of a period of the tone: unaligned sound does not match
    late = folder / "videos" / "gPO_sBM_c02_d10_mPO5_ch01.mp4"
    with av.open(str(path)) as source, av.open(str(late), "w") as out:
        pairs = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.pts += round(late_by / packet.time_base)
                packet.dts += round(late_by / packet.time_base)
            packet.stream = pairs[packet.stream.index]
            out.mux(packet)
    heard = {}
    for camera in ("c03", "c02"):
        record = inspect(folder, name, camera=camera)
        assert record.facts["audio_source"] == "camera"
        samples = [s for _, s in aist.load_samples(record, roots_of(folder), OPTIONS)]
        heard[camera] = np.concatenate([sample.audio for sample in samples])
    skipped = round(late_by * 22050)
    one, other = heard["c03"][skipped:40000], heard["c02"][: 40000 - skipped]
    assert np.corrcoef(one, other)[0, 1] > 0.99


def test_a_view_of_another_size_is_scaled_like_the_others(folder):
    # c07 of gJB_sBM_cAll_d07_mJB3_ch05 has 640 x 480 pixels.
    from cdcd import media

    path = folder / "videos" / "gBR_sBM_c01_d04_mBR0_ch01.mp4"
    frames = (np.full((96, 128, 3), 20 + i % 200, "u1") for i in range(720))
    path.write_bytes(media.encode_clip(frames, 60, preset="ultrafast"))
    record = inspect(folder, EIGHTY)
    _, sample = next(iter(aist.load_samples(record, roots_of(folder), OPTIONS)))
    shapes = {frame.shape for frame in media.iterate_clip(sample.video)}
    assert shapes == {(36, 48, 3)}


def test_key_points_and_cameras_are_not_needed(folder):
    # They hold NaN in real files (trap 5): nothing is taken from them.
    for name in ("keypoints2d", "keypoints3d", "cameras"):
        (folder / "annotations" / name).mkdir()
    (folder / "annotations" / "keypoints3d" / f"{EIGHTY}.pkl").write_bytes(b"damaged")
    (folder / "annotations" / "cameras" / "mapping.txt").write_text("damaged")
    record = inspect(folder, EIGHTY)
    assert record.status == "ok"
    assert not any("keypoints" in path or "cameras" in path for path in record.sources)


@needs_real
def test_real_key_points_can_be_read_and_hold_gaps():
    name = "gBR_sBM_cAll_d06_mBR2_ch06"
    tree = pickles.load(annotations() / "keypoints3d" / f"{name}.pkl")
    assert tree["keypoints3d"].shape == tree["keypoints3d_optim"].shape == (576, 17, 3)
    assert np.isfinite(tree["keypoints3d_optim"]).all()


@needs_real
def test_real_motions_are_poses_of_72_numbers():
    for path in sorted((annotations() / "motions").glob("*.pkl")):
        tree = pickles.load(path)
        assert tree["smpl_poses"].shape[1:] == (72,)
        assert {tree[key].dtype for key in ("smpl_poses", "smpl_trans")} == {np.dtype("f4")}


# What is there


def complete(root):
    """A small download in which nothing is missing."""
    motions, splits = root / "annotations" / "motions", root / "annotations" / "splits"
    for path in (motions, splits, root / "videos", root / "music"):
        path.mkdir(parents=True)
    names = {"train": EIGHTY, "val": HOUSE.replace("ch02", "ch01"), "test": HOUSE}
    for split, name in names.items():
        (motions / f"{name}.pkl").write_bytes(b"a motion")
        (splits / f"crossmodal_{split}.txt").write_text(f"{name} \r\n")
    (root / "annotations" / "ignore_list.txt").write_text(f"{IGNORED} \n")
    for song in ("mBR0", "mHO5"):
        (root / "music" / f"{song}.wav").write_bytes(b"a wav")
    (root / "videos" / "gBR_sBM_c01_d04_mBR0_ch01.mp4").write_bytes(b"a video")
    return root


def told(root):
    findings = aist.check(root)
    assert findings
    assert all("\n" not in finding.text for finding in findings)
    return {finding.text: finding.is_fine for finding in findings}


def test_check_counts_every_part(tmp_path):
    assert told(complete(tmp_path)) == {
        "motions: 3 of 1,408 files": True,
        "splits/crossmodal_train.txt: 1 of 980 names": True,
        "splits/crossmodal_val.txt: 1 of 20 names": True,
        "splits/crossmodal_test.txt: 1 of 20 names": True,
        "ignore_list.txt: 1 of 45 names": True,
        "videos: 1 of 1,408 x 9 views": True,
        "music: 2 of 60 pieces, 0 tracks of single sequences": True,
    }


WEB = "google.github.io/aistplusplus_dataset/download.html"
DATABASE = "AIST Dance Video Database (aistdancedb.ongaaccel.jp, after accepting its terms)"


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (
            "annotations/motions",
            f"motions: 0 of 1,408 files; missing: unzip motions.zip from {WEB}",
        ),
        (
            f"annotations/motions/{EIGHTY}.pkl",
            "crossmodal_train.txt: 1 of 980 names, 1 of them without a motion file; unzip motions",
        ),
        (
            "annotations/splits/crossmodal_val.txt",
            f"splits/crossmodal_val.txt: missing; unzip splits.zip from {WEB}",
        ),
        ("annotations/ignore_list.txt", f"ignore_list.txt: missing; get it from {WEB}, or set"),
        ("videos", f"videos: 0 of 1,408 x 9 views; none: videos come from the {DATABASE}"),
    ],
)
def test_check_says_what_is_missing_and_where_to_get_it(tmp_path, gone, words):
    root = complete(tmp_path)
    path = root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    bad = [text for text, is_fine in told(root).items() if not is_fine]
    assert any(words in text for text in bad), bad


def test_check_wants_music_or_videos(tmp_path):
    root = complete(tmp_path)
    shutil.rmtree(root / "music")
    # Videos have sound of their own.
    text = next(text for text in told(root) if text.startswith("music"))
    assert told(root)[text]
    assert "music come from" in text
    shutil.rmtree(root / "videos")
    bad = [text for text, is_fine in told(root).items() if not is_fine]
    assert [text.partition(":")[0] for text in bad] == ["videos", "music", "no sound at all"]


@pytest.mark.parametrize("given", [".", "annotations", "annotations/motions", ".."])
def test_check_finds_the_annotations_from_near_by(tmp_path, given):
    root = complete(tmp_path / "aist_plusplus_final")
    findings = aist.check((root / given).resolve())
    motions = [finding.text for finding in findings if finding.text.startswith("motions")]
    expected = "motions: 0 of" if given == ".." else "motions: 3 of"
    assert motions[0].startswith(expected)


def test_check_of_an_empty_folder(tmp_path):
    found = told(tmp_path)
    assert not any(found.values())
    assert all("http" not in text for text in found)
    assert sum(WEB in text for text in found) >= 5
    assert sum("aistdancedb.ongaaccel.jp" in text for text in found) == 2


def test_check_writes_nothing(tmp_path):
    root = complete(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    told(root)
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def replace_by_file(path):
    shutil.rmtree(path)
    path.write_text("")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


HARM = {
    "motions is a file": lambda root: replace_by_file(root / "annotations/motions"),
    "splits is a file": lambda root: replace_by_file(root / "annotations/splits"),
    "a list is a folder": lambda root: replace_by_folder(
        root / "annotations/splits/crossmodal_train.txt"
    ),
    "the ignore list is a folder": lambda root: replace_by_folder(
        root / "annotations/ignore_list.txt"
    ),
    "a list of bytes": lambda root: (root / "annotations/splits/crossmodal_train.txt").write_bytes(
        b"\x00\xff\n" * 100
    ),
    "an empty list": lambda root: (root / "annotations/splits/crossmodal_test.txt").write_text(
        " \n"
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_check_goes_on_behind_damage(tmp_path, harm):
    root = complete(tmp_path)
    HARM[harm](root)
    found = told(root)
    assert not all(found.values())
    assert len(found) >= 7
    assert any(text.startswith("music: 2 of 60") for text in found)


def refuse_to_list(root, monkeypatch):
    listed, scan = os.listdir, os.scandir

    def refuse(function):
        def call(path="."):
            if Path(path) == root:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    monkeypatch.setattr(os, "listdir", refuse(listed))
    monkeypatch.setattr(os, "scandir", refuse(scan))


@pytest.mark.parametrize("kind", ["none", "file", "long line", "no rights"])
def test_check_never_raises(tmp_path, kind, monkeypatch):
    root = complete(tmp_path / "download")
    match kind:
        case "none":
            root = tmp_path / "none"
        case "file":
            root = tmp_path / "file"
            root.write_text("")
        case "long line":
            (root / "annotations/splits/crossmodal_train.txt").write_text("g" * 5000)
        case "no rights":
            refuse_to_list(root, monkeypatch)
    assert not all(finding.is_fine for finding in aist.check(root))


@needs_real
def test_check_of_the_real_lists(tmp_path):
    found = told(annotations())
    texts = list(found)
    assert texts[0] == "motions: 3 of 1,408 files"
    # Stand-ins for the motions: only their names are looked at.
    root = tmp_path / "annotations"
    shutil.copytree(annotations() / "splits", root / "splits")
    shutil.copy(annotations() / "ignore_list.txt", root)
    (root / "motions").mkdir()
    names = [
        name
        for split in ("train", "test")
        for name in aist.read_names(root / "splits" / f"crossmodal_{split}.txt")
    ]
    for name in names[:-1]:
        (root / "motions" / f"{name}.pkl").touch()
    found = told(tmp_path)
    assert found["motions: 999 of 1,408 files"]
    assert found["splits/crossmodal_train.txt: 980 of 980 names"]
    assert found["ignore_list.txt: 45 of 45 names"]
    last = [text for text in found if "crossmodal_test.txt: 20 of 20 names, 1 of them" in text]
    assert [found[text] for text in last] == [False]
    (root / "motions" / f"{names[-1]}.pkl").touch()
    assert told(tmp_path)["splits/crossmodal_test.txt: 20 of 20 names"]
