"""Write a stand-in for an AIST++ download: the real layout and names, our own songs and dances.

AIST videos and music may not be shipped, so the pipeline's default data is made here. It is read
through the same adapter as a real download; nothing downstream knows the difference.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded import dance, music, skeleton
from cdcd.data.files import atomic_directory
from cdcd.data.parallel import ordered_map
from cdcd.data.samples import GENRES

_DANCERS = {
    "BR": 4, "PO": 10, "LO": 13, "MH": 22, "LH": 16, "HO": 19, "WA": 25, "KR": 28, "JS": 1, "JB": 7,
}  # fmt: skip
"""First of the three dancers of each genre, as in AIST++."""

_HELD_OUT = {
    "BR": 0, "HO": 5, "JB": 5, "JS": 3, "KR": 2, "LH": 4, "LO": 2, "MH": 3, "PO": 1, "WA": 0,
}  # fmt: skip
"""Digit of the piece that AIST++ holds out."""

SETTING = "setting1"
CAMERA = "c01"


@dataclass(frozen=True)
class Sequence:
    """One dance of the download.

    Attributes:
        genre: genre code.
        digit: number of the piece.
        dancer: number of the dancer.
        choreography: number of the choreography.
        split: `train`, `val` or `test`.
    """

    genre: str
    digit: int
    dancer: int
    choreography: int
    split: str

    def name(self, camera: str = "cAll") -> str:
        """Return the AIST++ name, of the annotations or of one camera's video."""
        return (
            f"g{self.genre}_sBM_{camera}_d{self.dancer:02d}_m{self.genre}{self.digit}"
            f"_ch{self.choreography:02d}"
        )

    @property
    def num_frames(self) -> int:
        """Frames at 60 Hz: 16 beats, and in every fifth dance one less, as in the real files."""
        beats_seconds = music.BASIC_BEATS * 60 / music.bpm_of(self.genre, self.digit)
        nominal = round(beats_seconds * dance.MOTION_RATE_HZ)
        return nominal - int((self.digit + self.choreography + self.dancer) % 5 == 0)


def plan(songs_per_genre: int, choreographies_per_song: int) -> list[Sequence]:
    """List the dances, sorted by name; no song belongs to two splits.

    Raises:
        ValueError: fewer than three songs, which cannot be disjoint over three splits.
    """
    if songs_per_genre < 3:
        raise ValueError(
            "ingest.aist.embedded.songs_per_genre must be at least 3, because train, val and test "
            f"share no song: got {songs_per_genre}; use 3 to 6"
        )
    sequences = []
    for index, genre in enumerate(GENRES):
        test = _HELD_OUT[genre] % songs_per_genre
        val = (test + 1 + index % (songs_per_genre - 1)) % songs_per_genre
        for digit in range(songs_per_genre):
            split = {test: "test", val: "val"}.get(digit, "train")
            count = choreographies_per_song if split == "train" else 1
            for j in range(count):
                # As published: test dances are ch02, val dances ch01.
                choreography = {"test": 2, "val": 1}.get(split, (digit + j) % 10 + 1)
                dancer = _DANCERS[genre] + (digit + index + j) % 3
                sequences.append(Sequence(genre, digit, dancer, choreography, split))
    return sorted(sequences, key=lambda sequence: sequence.name())


def _dump(path: Path, value: dict[str, Any]) -> None:
    with path.open("wb") as file:
        pickle.dump(value, file, protocol=4)


def _keypoints2d(points: NDArray[np.float64], rng: np.random.Generator) -> dict[str, Any]:
    n = len(points)
    cameras = skeleton.make_cameras()
    keypoints = np.empty((len(cameras), n, len(skeleton.KEYPOINTS), 3), dtype=np.float32)
    for i, camera in enumerate(cameras):
        keypoints[i, ..., :2] = camera.project(points)
        keypoints[i, ..., 2] = rng.uniform(0.6, 1.0, (n, 1))
    scores = rng.uniform(0.9, 1.0, (len(cameras), n)).astype(np.float32)
    missed = rng.random((len(cameras), n)) < 0.004
    keypoints[missed] = np.nan
    scores[missed] = 0.0
    timestamps = np.round(np.arange(n) * 1e6 / dance.MOTION_RATE_HZ).astype(np.int64)
    return {"keypoints2d": keypoints, "det_scores": scores, "timestamps": timestamps}


def _keypoints3d(points: NDArray[np.float64], rng: np.random.Generator) -> dict[str, Any]:
    raw = points + rng.normal(0.0, 0.5, points.shape)
    raw[rng.random(points.shape[:2]) < 0.002] = np.nan
    return {"keypoints3d": raw, "keypoints3d_optim": points}


def _write_sequence(
    song: _Song, sequence: Sequence, score: music.Score, sound: NDArray[np.int16]
) -> None:
    from cdcd.data.embedded.video import draw_frames, write_video

    seed, name = song.seed, sequence.name()
    style = dance.make_style(music.generator(seed, f"d{sequence.dancer:02d}"))
    poses, trans = dance.choreograph(
        score, style, num_frames=sequence.num_frames, rng=music.generator(seed, name, "dance")
    )
    rng = music.generator(seed, name, "capture")
    annotations = song.root / "annotations"
    scaling = np.array([style.scaling], dtype=np.float32)
    _dump(
        annotations / "motions" / f"{name}.pkl",
        {
            "smpl_loss": float(rng.uniform(1.2, 1.8)),
            "smpl_poses": poses,
            "smpl_scaling": scaling,
            "smpl_trans": trans,
        },
    )
    body = skeleton.forward_kinematics(
        poses.astype(np.float64), trans.astype(np.float64), float(scaling[0])
    )
    points = skeleton.coco_keypoints(body)
    _dump(annotations / "keypoints3d" / f"{name}.pkl", _keypoints3d(points, rng))
    _dump(annotations / "keypoints2d" / f"{name}.pkl", _keypoints2d(points, rng))
    camera = skeleton.make_cameras()[0]
    write_video(
        song.root / "videos" / f"{sequence.name(CAMERA)}.mp4",
        draw_frames(body, camera, song.video_height),
        sound,
        song.video_height,
    )


@dataclass(frozen=True)
class _Song:
    """The work on one piece: its music and every dance to it."""

    root: Path
    sequences: tuple[Sequence, ...]
    seed: int
    video_height: int


def _write_song(song: _Song) -> int:
    import soundfile

    first = song.sequences[0]
    score = music.compose(first.genre, first.digit, seed=song.seed)
    sound = music.render(score)
    soundfile.write(
        song.root / "music" / f"{score.name}.wav", sound, music.SAMPLE_RATE_HZ, subtype="PCM_16"
    )
    for sequence in song.sequences:
        _write_sequence(song, sequence, score, sound)
    return len(song.sequences)


def _write_lists(root: Path, sequences: list[Sequence]) -> None:
    annotations = root / "annotations"
    for split in ("train", "val", "test"):
        names = "\n".join(s.name() for s in sequences if s.split == split)
        # As published: the test list has no final newline.
        ending = "" if split == "test" else "\n"
        path = annotations / "splits" / f"crossmodal_{split}.txt"
        path.write_text(names + ending, encoding="utf-8")
    train = [s.name() for s in sequences if s.split == "train"]
    # As published: one of the ignored names carries a trailing blank.
    ignored = f"{train[len(train) // 3]}\n{train[2 * len(train) // 3]} \n"
    (annotations / "ignore_list.txt").write_text(ignored, encoding="utf-8")
    mapping = "".join(f"{s.name()} {SETTING}\n" for s in sequences)
    (annotations / "cameras" / "mapping.txt").write_text(mapping, encoding="utf-8")
    setting = [camera.as_setting() for camera in skeleton.make_cameras()]
    text = json.dumps(setting, indent=1)
    (annotations / "cameras" / f"{SETTING}.json").write_text(text + "\n", encoding="utf-8")


def write_download(
    root: Path,
    *,
    seed: int,
    songs_per_genre: int,
    choreographies_per_song: int,
    video_height: int,
    num_workers: int = 1,
) -> None:
    """Write `annotations/`, `videos/` and `music/` of a stand-in download under `root`.

    Equal arguments give equal bytes, whatever `num_workers` is. An existing `root` is replaced as
    a whole once everything is written.

    Args:
        root: the folder to become the download.
        seed: seed of songs, dancers and choreographies.
        songs_per_genre: 3 to 6; one is held out for val and one for test.
        choreographies_per_song: dances to each training song; held-out songs have one.
        video_height: pixels of the 16:9 videos, a multiple of 4.
        num_workers: processes that render at the same time.

    Raises:
        ValueError: fewer than three songs per genre.
    """
    from tqdm import tqdm

    sequences = plan(songs_per_genre, choreographies_per_song)
    songs: dict[tuple[str, int], list[Sequence]] = {}
    for sequence in sequences:
        songs.setdefault((sequence.genre, sequence.digit), []).append(sequence)
    with atomic_directory(root) as folder:
        for name in ("motions", "keypoints2d", "keypoints3d", "cameras", "splits"):
            (folder / "annotations" / name).mkdir(parents=True)
        for name in ("videos", "music"):
            (folder / name).mkdir()
        _write_lists(folder, sequences)
        jobs = [_Song(folder, tuple(song), seed, video_height) for song in songs.values()]
        with tqdm(total=len(sequences), desc="embedded data", unit="dance") as bar:
            for count in ordered_map(_write_song, jobs, num_workers):
                bar.update(count)
