import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cdcd import media
from cdcd.data.adapters import tiktok as adapter
from cdcd.data.adapters.base import Options
from cdcd.data.embedded import dance, music, skeleton, tiktok
from cdcd.data.embedded.video import frame_size

SETTING = SimpleNamespace(root="x", clip_seconds=2, normalise_motion=False)
OPTIONS = Options(segment_seconds=2, video_fps=15, video_height=48, image_size=96)
HEIGHT = 96
VIDEOS = tiktok.plan(4, 1)


def _write(root: Path, num_workers: int) -> Path:
    tiktok.write_download(
        root, seed=3, num_songs=4, videos_per_song=1, video_height=HEIGHT, num_workers=num_workers
    )
    return root


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("a") / "download", num_workers=1)


def _digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _people(root: Path, stem: str) -> list[list[np.ndarray]]:
    files = sorted((root / "openpose" / stem).iterdir())
    return [
        [
            np.array(person["pose_keypoints_2d"]).reshape(25, 3)
            for person in json.loads(path.read_text())["people"]
        ]
        for path in files
    ]


def test_songs_are_held_out_and_groups_are_shared():
    videos = tiktok.plan(24, 3)
    assert len({video.stem for video in videos}) == len({video.number for video in videos}) == 72
    by = {split: [v for v in videos if v.split == split] for split in ("train", "test")}
    songs, groups = (
        {split: {getattr(v, name) for v in by[split]} for split in by} for name in ("song", "group")
    )
    assert not songs["train"] & songs["test"]
    assert len(songs["test"]) == 6
    assert groups["train"] & groups["test"]
    for split in by:
        assert {video.rate for video in by[split]} == set(tiktok.RATES)
        assert {video.has_bystander for video in by[split]} == {True, False}
        assert {video.has_empty_frames for video in by[split]} == {True, False}


@pytest.mark.parametrize("num_songs", [3, 61])
def test_other_numbers_of_songs_are_refused(num_songs):
    with pytest.raises(ValueError, match=f"num_songs must be 4 to 60.*got {num_songs}"):
        tiktok.plan(num_songs, 1)


def test_equal_arguments_give_equal_bytes_whatever_the_workers(download, tmp_path):
    assert _digests(_write(tmp_path / "again", num_workers=2)) == _digests(download)


def test_the_layout(download):
    assert sorted(path.name for path in download.iterdir()) == [
        "openpose",
        "test.txt",
        "train.txt",
        "videos",
    ]
    assert sorted(path.stem for path in (download / "videos").iterdir()) == sorted(
        video.stem for video in VIDEOS
    )
    for video in VIDEOS:
        info = media.probe(download / "videos" / f"{video.stem}.mp4")
        assert (info.video.width, info.video.height) == frame_size(HEIGHT)[::-1]
        assert info.video.fps == pytest.approx(float(video.rate), abs=1e-3)
        assert info.audio is not None
        assert 4.9 < info.duration_seconds < 9
        assert info.video.num_frames == len(_people(download, video.stem))


def test_it_is_read_like_a_real_download(download):
    source = adapter.open_source(SETTING, download)
    records = [source.inspect(item) for item in source.items()]
    assert all(record.status == "ok" for record in records), records
    assert {record.split for record in records} == {"train", "test"}
    record = records[0]
    samples = [sample for _, sample in source.load(record, OPTIONS)]
    assert len(samples) == len(source.planned_keys(record, OPTIONS)) >= 2
    for sample in samples:
        assert sample.motion.shape == (60, 75)
        assert np.abs(sample.audio).max() > 0.1
    assert all(finding.is_fine for finding in adapter.check(download))


def test_key_points_lie_on_the_drawn_dancer(download):
    sides = {
        13: "left",
        14: "left",
        6: "left",
        7: "left",
        10: "right",
        11: "right",
        3: "right",
        4: "right",
    }
    hits, total = 0, 0
    for video in VIDEOS:
        path = download / "videos" / f"{video.stem}.mp4"
        info = media.probe(path)
        people = _people(download, video.stem)
        # Frame i of the file, as its own rate samples it.
        frames = media.iterate_frames(path, info.video.fps)
        for frame, seen in zip(frames, people, strict=True):
            if not seen:
                continue
            for index, side in sides.items():
                x, y, confidence = seen[-1][index]
                if not confidence:
                    continue
                rows, columns = (slice(max(0, int(v) - 1), int(v) + 2) for v in (y, x))
                patch = frame[rows, columns].astype(int)
                red, blue = patch[..., 0], patch[..., 2]
                is_there = red - blue > 60 if side == "left" else blue - red > 60
                hits += bool(is_there.any())
                total += 1
    # Limbs that cross cover each other.
    assert hits / total > 0.93


def test_what_real_files_are_known_for_occurs(download):
    people = {video: _people(download, video.stem) for video in VIDEOS}
    for video, frames in people.items():
        empty = sum(not seen for seen in frames)
        assert (empty > 0) == video.has_empty_frames
        assert empty < len(frames) / 4
        most = max(map(len, frames))
        assert most == 1 + video.has_bystander
        for seen in frames:
            confidence = [points[:, 2].mean() for points in seen]
            assert not seen or int(np.argmax(confidence)) == len(seen) - 1
    lost = [(points[:, 2] == 0) for frames in people.values() for seen in frames for points in seen]
    assert 0 < np.mean(lost) < 0.2
    flat = np.concatenate([seen[-1] for frames in people.values() for seen in frames if seen])
    assert (flat[flat[:, 2] == 0] == 0).all()
    assert flat[:, 0].max() < frame_size(HEIGHT)[1]
    assert flat[:, 1].max() < frame_size(HEIGHT)[0]


def test_the_25_points_are_where_openpose_has_them():
    poses = np.zeros((1, 72))
    body = skeleton.forward_kinematics(poses, np.zeros((1, 3)), 95.0)
    points = tiktok.body_25(body)[0]
    x, y = points[:, 0], points[:, 1]
    # In the T-pose the dancer's left is at +x; OpenPose counts right sides first.
    right, left = (
        [2, 3, 4, 9, 10, 11, 15, 17, 22, 23, 24],
        [5, 6, 7, 12, 13, 14, 16, 18, 19, 20, 21],
    )
    assert (x[right] < 0).all()
    assert (x[left] > 0).all()
    assert x[right] == pytest.approx(-x[left], abs=1e-9)
    assert abs(x[[0, 1, 8]]).max() < 1e-9
    assert y[0] > y[1] > y[8] > y[13] > y[14] > y[19]
    assert x[7] > x[6] > x[5]
    assert points[19, 2] > points[20, 2] > points[21, 2]  # toes in front of the heel
    assert x[20] > x[19]  # the small toe is outside


def test_points_between_poses_are_interpolated():
    values = np.arange(10.0)[:, None]
    times = np.array([0.0, 0.5, 2.25, 100.0]) / dance.MOTION_RATE_HZ
    assert tiktok.at_times(values, times)[:, 0] == pytest.approx([0, 0.5, 2.25, 9])


def test_the_dance_is_on_the_song(download):
    video = VIDEOS[0]
    score = tiktok.compose(video.song, 3)
    take = tiktok.film(video, score, 3)
    heard = media.decode_audio(download / "videos" / f"{video.stem}.mp4", 48000)
    first = round(take.start * music.SAMPLE_RATE_HZ)
    played = music.render(score)[first : first + len(heard)].mean(axis=1) / 32768
    assert np.corrcoef(heard[: len(played)], played)[0, 1] > 0.95
    assert len(heard) / 48000 == pytest.approx(take.seconds, abs=0.05)
    assert take.start + take.seconds < score.duration


def test_songs_are_not_those_of_other_stand_ins():
    assert tiktok.compose(0, 0) != music.compose("BR", 0, seed=0)
    assert tiktok.compose(0, 0) == tiktok.compose(0, 0)
    assert len({tiktok.compose(song, 0).name for song in range(60)}) == 60
