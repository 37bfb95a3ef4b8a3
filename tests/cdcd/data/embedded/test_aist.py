import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cdcd.data import pickles
from cdcd.data.embedded import aist, dance, music
from cdcd.data.samples import GENRES, SPLITS

NAME = re.compile(r"g([A-Z]{2})_sBM_cAll_d(\d\d)_m\1([0-5])_ch(0[1-9]|10)")
FULL = aist.plan(6, 3)
FIRST_DANCER = {"BR": 4, "PO": 10, "LO": 13, "MH": 22, "LH": 16, "HO": 19, "WA": 25, "KR": 28}
HELD_OUT = "mBR0 mHO5 mJB5 mJS3 mKR2 mLH4 mLO2 mMH3 mPO1 mWA0"


def _write(root: Path, num_workers: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # Two genres have every rule in them: House has its own tempo.
        patch.setattr(aist, "GENRES", ("HO", "KR"))
        aist.write_download(
            root,
            seed=3,
            songs_per_genre=3,
            choreographies_per_song=2,
            video_height=48,
            num_workers=num_workers,
        )
    return root


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("a") / "download", num_workers=1)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _names(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines()]


def _songs(sequences, split):
    return {f"m{s.genre}{s.digit}" for s in sequences if s.split == split}


@pytest.mark.parametrize("songs", [3, 4, 5, 6])
def test_no_song_is_in_two_splits(songs):
    sequences = aist.plan(songs, 2)
    train, val, test = (_songs(sequences, split) for split in ("train", "val", "test"))
    assert len(val) == len(test) == len(GENRES)
    assert len(train) == (songs - 2) * len(GENRES)
    assert not train & val
    assert not train & test
    assert not val & test


def test_the_full_size_holds_out_the_pieces_that_aist_holds_out():
    assert _songs(FULL, "test") == set(HELD_OUT.split())
    assert len({s.digit for s in FULL if s.split == "val"}) > 2
    counts = {split: sum(s.split == split for s in FULL) for split in ("train", "val", "test")}
    assert counts == {"train": 120, "val": 10, "test": 10}


def test_fewer_than_three_songs_are_refused():
    with pytest.raises(ValueError, match=r"songs_per_genre must be at least 3.*got 2; use 3 to 6"):
        aist.plan(2, 1)


def test_a_refused_download_leaves_the_earlier_one(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(ValueError, match="at least 3"):
        aist.write_download(
            tmp_path, seed=0, songs_per_genre=2, choreographies_per_song=1, video_height=48
        )
    assert (tmp_path / "kept").exists()


def test_names_and_dancers_are_those_of_aist():
    names = [sequence.name() for sequence in FULL]
    assert names == sorted(set(names))
    for sequence in FULL:
        match = NAME.fullmatch(sequence.name())
        assert match is not None
        first = FIRST_DANCER.get(match[1], {"JS": 1, "JB": 7}.get(match[1]))
        assert first <= int(match[2]) < first + 3
        assert sequence.name("c01") == sequence.name().replace("cAll", "c01")
        assert (sequence.choreography == 2) or sequence.split != "test"


def test_dances_to_one_song_have_their_own_dancer_and_choreography():
    by_song = {}
    for sequence in FULL:
        by_song.setdefault((sequence.genre, sequence.digit), []).append(sequence)
    for sequences in by_song.values():
        assert len({s.dancer for s in sequences}) == len(sequences)
        assert len({s.choreography for s in sequences}) == len(sequences)


def test_lengths_are_sixteen_beats_and_some_lack_a_frame():
    missing = []
    for sequence in FULL:
        bpm = 110 + 5 * sequence.digit if sequence.genre == "HO" else 80 + 10 * sequence.digit
        missing.append(round(16 * 60 / bpm * 60) - sequence.num_frames)
    assert set(missing) == {0, 1}
    assert 0.05 < np.mean(missing) < 0.5


def test_layout(download):
    annotations = download / "annotations"
    lists = {s: _names(annotations / "splits" / f"crossmodal_{s}.txt") for s in SPLITS}
    names = sorted(name for names in lists.values() for name in names)
    assert len(names) == 2 * (2 + 1 + 1)
    for folder in ("motions", "keypoints2d", "keypoints3d"):
        assert sorted(p.stem for p in (annotations / folder).glob("*.pkl")) == names
    videos = sorted(path.name for path in (download / "videos").iterdir())
    assert videos == sorted(name.replace("cAll", "c01") + ".mp4" for name in names)
    music = sorted(path.name for path in (download / "music").iterdir())
    assert music == [f"m{genre}{digit}.wav" for genre in ("HO", "KR") for digit in range(3)]
    mapping = dict(line.split() for line in _names(annotations / "cameras" / "mapping.txt"))
    assert sorted(mapping) == names
    cameras = json.loads((annotations / "cameras" / f"{mapping[names[0]]}.json").read_text())
    assert [camera["name"] for camera in cameras] == [f"c0{i}" for i in range(1, 10)]
    assert cameras[0]["size"] == [1920, 1080]


def test_lists_have_the_quirks_of_the_published_ones(download):
    annotations = download / "annotations"
    ignored = (annotations / "ignore_list.txt").read_text()
    train = _names(annotations / "splits" / "crossmodal_train.txt")
    assert {line.strip() for line in ignored.splitlines()} < set(train)
    assert any(line.endswith(" ") for line in ignored.splitlines())
    assert not (annotations / "splits" / "crossmodal_test.txt").read_text().endswith("\n")
    assert (annotations / "splits" / "crossmodal_val.txt").read_text().endswith("\n")


def test_annotations_hold_the_arrays_of_the_real_ones(download):
    annotations = download / "annotations"
    for path in sorted((annotations / "motions").iterdir()):
        motion = pickles.load(path)
        n = len(motion["smpl_poses"])
        assert motion["smpl_poses"].shape == (n, 72)
        assert motion["smpl_trans"].shape == (n, 3)
        assert motion["smpl_scaling"].shape == (1,)
        assert {motion[k].dtype for k in motion if k != "smpl_loss"} == {np.dtype("float32")}
        assert isinstance(motion["smpl_loss"], float)
        points3d = pickles.load(annotations / "keypoints3d" / path.name)
        assert points3d["keypoints3d"].shape == points3d["keypoints3d_optim"].shape == (n, 17, 3)
        assert points3d["keypoints3d"].dtype == np.float64
        assert np.isnan(points3d["keypoints3d"]).any()
        assert np.isfinite(points3d["keypoints3d_optim"]).all()
        points2d = pickles.load(annotations / "keypoints2d" / path.name)
        assert points2d["keypoints2d"].shape == (9, n, 17, 3)
        assert points2d["keypoints2d"].dtype == points2d["det_scores"].dtype == np.float32
        lost = np.isnan(points2d["keypoints2d"]).all(axis=(2, 3))
        assert lost.any()
        np.testing.assert_array_equal(lost, points2d["det_scores"] == 0)
        assert points2d["timestamps"][:3].tolist() == [0, 16667, 33333]


def test_media_are_as_long_as_the_dance(download):
    import av
    import soundfile

    for path in sorted((download / "annotations" / "motions").iterdir()):
        seconds = len(pickles.load(path)["smpl_poses"]) / 60
        with av.open(str(download / "videos" / f"{path.stem.replace('cAll', 'c01')}.mp4")) as clip:
            stream = clip.streams.video[0]
            assert abs(stream.duration * stream.time_base - seconds) < 1.5 / 60
        wav = soundfile.info(download / "music" / f"{path.stem.split('_')[4]}.wav")
        assert (wav.samplerate, wav.channels, wav.subtype) == (48000, 2, "PCM_16")
        assert wav.duration > seconds + 1


def test_bytes_depend_on_the_seed_and_not_on_the_workers(download, tmp_path):
    again = _digests(_write(tmp_path / "again", num_workers=2))
    assert again == _digests(download)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_another_seed_is_another_song_and_another_dance():
    scores = [music.compose("KR", 0, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(music.render(scores[0]), music.render(scores[1]))
    dances = [
        dance.choreograph(
            scores[0],
            dance.make_style(music.generator(seed, "d28")),
            num_frames=300,
            rng=music.generator(seed, "name", "dance"),
        )[0]
        for seed in (0, 1)
    ]
    assert not np.array_equal(*dances)
