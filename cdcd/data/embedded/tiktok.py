"""Write a stand-in for a TikTok Dance-Music download: its names, our own songs and dances.

The videos are not published and may not be shipped, so portrait ones are made here: a drawn dancer
to a song, at the frame rates that phones write, with OpenPose's files of what is drawn. Everything
that real files are known for occurs: points that are not detected, frames without anybody, people
in the background.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded import dance, music, skeleton
from cdcd.data.embedded.video import (
    _BACKGROUND,
    _FLOOR,
    _LINE,
    _SKIN,
    _SUPERSAMPLE,
    _TRUNK,
    _colour,
    _limb,
    frame_size,
)
from cdcd.data.files import atomic_directory
from cdcd.data.parallel import ordered_map
from cdcd.data.samples import GENRES

Array = NDArray[np.float64]

RATES = (Fraction(24), Fraction(30000, 1001), Fraction(30), Fraction(670000, 22333))
"""Frames per second; the last one is of a real phone."""
SECONDS = (5.0, 9.0)
"""Shortest and longest video."""
TEST_EVERY = 4
_GROUPS = 5
_CRF, _PRESET = 20, "superfast"
_GREY = (104, 108, 118)
_BODY = {name: index for index, name in enumerate(skeleton.JOINTS)}
_JOINTS = (
    "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", None,
    "rhip", "rknee", "rankle", "lhip", "lknee", "lankle",
)  # fmt: skip
"""BODY_25 points 2 to 14 that are joints; 8 lies between the hips."""
_FOOT: Array = np.array([(-0.02, -0.06, 0.19), (0.04, -0.06, 0.16), (0.0, -0.06, -0.05)])
"""Big toe, small toe and heel of the left foot from its ankle."""


@dataclass(frozen=True)
class Video:
    """One video of the download.

    Attributes:
        song: number of the song.
        number: of the video, in the whole download.
        group: a folder of the collection; train and test share them.
        split: `train` or `test`.
    """

    song: int
    number: int
    group: int
    split: str

    @property
    def stem(self) -> str:
        """The published form of names."""
        return f"{self.group:06d}_{self.song}_{self.number}"

    @property
    def _place(self) -> int:
        # The number alone would give songs for test some of the frame rates only.
        return self.number + self.song // TEST_EVERY

    @property
    def rate(self) -> Fraction:
        """Frames per second."""
        return RATES[self._place % len(RATES)]

    @property
    def has_bystander(self) -> bool:
        """Whether somebody else is in the picture."""
        return self._place % 5 == 1

    @property
    def has_empty_frames(self) -> bool:
        """Whether OpenPose found nobody in some frames."""
        return self._place % 3 == 2


def plan(num_songs: int, videos_per_song: int) -> list[Video]:
    """List the videos; every fourth song, with all its videos, is for test.

    Raises:
        ValueError: fewer than four songs or more than there are.
    """
    if not TEST_EVERY <= num_songs <= 6 * len(GENRES):
        raise ValueError(
            f"ingest.tiktok.embedded.num_songs must be {TEST_EVERY} to {6 * len(GENRES)}, because "
            f"every fourth song is for test: got {num_songs}; use 24"
        )
    videos = []
    for song in range(num_songs):
        split = "test" if song % TEST_EVERY == TEST_EVERY - 1 else "train"
        for j in range(videos_per_song):
            # Pairs of songs share groups, and every second pair is of both splits.
            group = (song // 2 + j) % _GROUPS + 1
            videos.append(Video(song, song * videos_per_song + j, group, split))
    return videos


def make_camera(rng: np.random.Generator) -> skeleton.Camera:
    """Place an upright phone before the dancer; pixels of a picture of 1080 x 1920."""
    near = skeleton._look_at(
        "phone", rng.uniform(-0.35, 0.35), rng.uniform(90.0, 150.0), rng.uniform(430.0, 520.0)
    )
    focal = rng.uniform(2250.0, 2450.0)
    matrix = np.array([[focal, 0.0, 540.0], [0.0, focal, 960.0], [0.0, 0.0, 1.0]])
    return skeleton.Camera("phone", (1080, 1920), matrix, near.rotation, near.translation)


def body_25(body: skeleton.Skeleton) -> Array:
    """Return OpenPose's 25 points `[n, 25, 3]` of a dancer, in centimetres of the world."""
    joints, face = body.joints, skeleton.coco_keypoints(body)[:, :5]
    points = np.empty((len(joints), 25, 3))
    points[:, 0] = face[:, 0]
    points[:, 1] = joints[:, [_BODY["lshoulder"], _BODY["rshoulder"]]].mean(axis=1)
    for index, name in enumerate(_JOINTS, start=2):
        points[:, index] = (
            joints[:, _BODY[name]]
            if name is not None
            else joints[:, [_BODY["lhip"], _BODY["rhip"]]].mean(axis=1)
        )
    points[:, 15:19] = face[:, [2, 1, 4, 3]]
    for first, name, mirror in ((19, "lankle", 1.0), (22, "rankle", -1.0)):
        ankle = _BODY[name]
        offsets = _FOOT * (mirror, 1.0, 1.0) * body.scaling
        turned = np.einsum("nij,kj->nki", body.rotations[:, ankle], offsets)
        points[:, first : first + 3] = joints[:, ankle, None] + turned
    return points


def at_times(values: Array, times: Array) -> Array:
    """Interpolate something sampled at 60 Hz, `[n, ...]`, at times in seconds."""
    position = np.clip(times * dance.MOTION_RATE_HZ, 0, len(values) - 1)
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, len(values) - 1)
    weight = (position - before).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray((1 - weight) * values[before] + weight * values[after])


@dataclass(frozen=True, eq=False)
class Take:
    """What a camera sees: people, by picture.

    Attributes:
        camera: of the scene.
        joints: for each person `[n, 24, 3]` in centimetres, the dancer last.
        points: for each person BODY_25 points `[n, 25, 3]`, in the same order.
        scaling: centimetres per body unit of each.
        start: second of the song at which the video begins.
        seconds: its length.
    """

    camera: skeleton.Camera
    joints: tuple[Array, ...]
    points: tuple[Array, ...]
    scaling: tuple[float, ...]
    start: float
    seconds: float

    def pixels(self, points: Array, width: int) -> Array:
        """Project world points `[..., 3]` to pixels `[..., 2]` of a picture that wide."""
        return self.camera.project(points) * (width / self.camera.size[0])


def film(video: Video, score: music.Score, seed: int) -> Take:
    """Dance to a part of a song, somewhere before a camera."""
    data_seed = _data_seed(seed)
    rng = music.generator(data_seed, video.stem)
    count = int(rng.uniform(*SECONDS) * video.rate)
    seconds = float(count / video.rate)
    start = rng.uniform(0.0, score.duration - 0.1 - seconds)
    times = start + np.arange(count) / float(video.rate)
    camera = make_camera(rng)
    bodies = [_dance(score, start + seconds, f"dancer {video.number}", data_seed)]
    if video.has_bystander:
        other = _dance(score, start + seconds, f"bystander {video.number}", data_seed)
        aside = np.array([rng.choice([-1.0, 1.0]) * 75.0, 0.0, -170.0])
        bodies.insert(0, skeleton.Skeleton(other.joints + aside, other.rotations, other.scaling))
    return Take(
        camera,
        tuple(at_times(body.joints, times) for body in bodies),
        tuple(at_times(body_25(body), times) for body in bodies),
        tuple(body.scaling for body in bodies),
        start,
        seconds,
    )


def compose(song: int, seed: int) -> music.Score:
    """Write a song of the download."""
    genre, digit = GENRES[song % len(GENRES)], song // len(GENRES)
    return music.compose(genre, digit, seed=_data_seed(seed))


def _data_seed(seed: int) -> int:
    # Not the songs of the AIST++ stand-in with the same seed.
    return zlib.crc32(f"tiktok {seed}".encode())


def _dance(score: music.Score, seconds: float, name: str, data_seed: int) -> skeleton.Skeleton:
    style = dance.make_style(music.generator(data_seed, name, "style"))
    count = int(seconds * dance.MOTION_RATE_HZ) + 2
    rng = music.generator(data_seed, name, "dance")
    poses, trans = dance.choreograph(score, style, num_frames=count, rng=rng)
    return skeleton.forward_kinematics(
        poses.astype(np.float64), trans.astype(np.float64), style.scaling
    )


def draw_frames(take: Take, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Draw everybody in every picture, uint8 `[height, width, 3]`.

    Args:
        take: what is seen.
        size: width and height.
    """
    from PIL import Image, ImageDraw

    width, height = (side * _SUPERSAMPLE for side in size)
    background = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(background)
    edge = float(take.pixels(np.array([0.0, skeleton.FLOOR_CM, -230.0]), width)[1])
    pen.rectangle((0, edge, width, height), fill=_FLOOR)
    pen.line((0, edge, width, edge), fill=_LINE, width=_SUPERSAMPLE)
    people = [_Figure(take, index, width) for index in range(len(take.joints))]
    for i in range(len(take.joints[0])):
        image = background.copy()
        pen = ImageDraw.Draw(image)
        for figure in people:
            figure.draw(pen, i)
        yield np.asarray(image.reduce(_SUPERSAMPLE))


_ORDER = [
    j for j in range(1, 24) if skeleton.JOINTS[j] not in ("head", "linshoulder", "rinshoulder")
]


class _Figure:
    """One person as drawn: limbs by side, the dancer in colour and others in grey."""

    def __init__(self, take: Take, index: int, width: int) -> None:
        self._is_dancer = index == len(take.joints) - 1
        self._pixels = take.pixels(take.joints[index], width)
        nose = take.pixels(take.points[index][:, 0], width)
        # Behind the nose, as the head is.
        self._face = 0.5 * (nose + self._pixels[:, skeleton.JOINTS.index("head")])
        rotation = skeleton.rotation_matrices(take.camera.rotation)
        root = take.joints[index][:, 0] @ rotation.T + take.camera.translation
        scale = width / take.camera.size[0] * take.camera.matrix[0, 0]
        self._unit = scale * take.scaling[index] / root[:, 2]

    def draw(self, pen: Any, i: int) -> None:
        points = [(float(x), float(y)) for x, y in self._pixels[i]]
        unit = float(self._unit[i])
        for joint in _ORDER:
            colour = _colour(joint) if self._is_dancer else _GREY
            thick = 0.085 * unit * (1.35 if colour == _TRUNK else 1.0)
            _limb(pen, points[skeleton.PARENTS[joint]], points[joint], colour, thick)
        (x, y), r = self._face[i], 0.115 * unit
        y -= 0.04 * unit
        pen.ellipse((x - r, y - r, x + r, y + r), fill=_SKIN if self._is_dancer else _GREY)


def openpose_frames(
    video: Video, take: Take, size: tuple[int, int], rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield what OpenPose writes about each picture.

    Args:
        video: says who is seen and whether frames are missed.
        take: what is seen.
        size: width and height of the pictures.
        rng: draws confidences, jitter and what is missed.
    """
    count = len(take.joints[0])
    missed = rng.random(count) < 0.02
    missed[rng.integers(1, count)] = True
    levels = (0.35, 0.8)[-len(take.points) :]
    people = [
        _detected(take.pixels(points, size[0]), size, level, rng)
        for points, level in zip(take.points, levels, strict=True)
    ]
    for i in range(count):
        seen = [] if video.has_empty_frames and missed[i] else [person[i] for person in people]
        yield {
            "version": 1.3,
            "people": [
                {
                    "person_id": [-1],
                    "pose_keypoints_2d": [round(float(number), 4) for number in points.ravel()],
                    "face_keypoints_2d": [],
                    "hand_left_keypoints_2d": [],
                    "hand_right_keypoints_2d": [],
                    "pose_keypoints_3d": [],
                }
                for points in seen
            ],
        }


def _detected(
    pixels: Array, size: tuple[int, int], level: float, rng: np.random.Generator
) -> Array:
    n = len(pixels)
    confidence = np.clip(level + 0.06 * rng.standard_normal((n, 25, 1)), 0.05, 1.0)
    found = np.concatenate(
        [pixels + 0.002 * size[1] * rng.standard_normal(pixels.shape), confidence], 2
    )
    inside = ((found[..., :2] > 0) & (found[..., :2] < size)).all(axis=-1)
    found[~inside | (rng.random((n, 25)) < 0.006)] = 0.0
    return found


@dataclass(frozen=True)
class _Song:
    """The work on one song: its music and every video with it."""

    root: Path
    videos: tuple[Video, ...]
    seed: int
    video_height: int


def _write_song(song: _Song) -> int:
    score = compose(song.videos[0].song, song.seed)
    sound = music.render(score)
    mono = sound.astype(np.float32).mean(axis=1) / 32768.0
    for video in song.videos:
        _write_video(song, video, score, mono)
    return len(song.videos)


def _write_video(song: _Song, video: Video, score: music.Score, sound: NDArray[np.float32]) -> None:
    from cdcd import media

    stem, videos = video.stem, song.root / "videos"
    longer, shorter = frame_size(song.video_height)
    size = (shorter, longer)
    take = film(video, score, song.seed)
    silent = videos / f".{stem}.silent.mp4"
    silent.write_bytes(media.encode_clip(draw_frames(take, size), video.rate, _CRF, _PRESET))
    first = round(take.start * music.SAMPLE_RATE_HZ)
    heard = sound[first : first + round(take.seconds * music.SAMPLE_RATE_HZ)]
    media.mux(silent, heard, music.SAMPLE_RATE_HZ, videos / f"{stem}.mp4")
    silent.unlink()
    folder = song.root / "openpose" / stem
    folder.mkdir()
    rng = music.generator(_data_seed(song.seed), stem, "openpose")
    for i, tree in enumerate(openpose_frames(video, take, size, rng)):
        text = json.dumps(tree, separators=(",", ":"))
        (folder / f"{stem}_{i:012d}_keypoints.json").write_text(text, encoding="utf-8")


def write_download(
    root: Path,
    *,
    seed: int,
    num_songs: int = 24,
    videos_per_song: int = 3,
    video_height: int = 96,
    num_workers: int = 1,
) -> None:
    """Write `videos/`, `openpose/`, `train.txt` and `test.txt` of a stand-in under `root`.

    Equal arguments give equal bytes, whatever `num_workers` is. An existing `root` is replaced as
    a whole once everything is written.

    Args:
        root: the folder to become the download.
        seed: seed of songs, dancers and cameras.
        num_songs: 4 to 60; every fourth one is for test.
        videos_per_song: each of another dancer, place in the song and camera.
        video_height: shorter side of the upright 9:16 videos in pixels, a multiple of 4.
        num_workers: processes that render at the same time.

    Raises:
        ValueError: fewer than four songs or more than sixty.
    """
    from tqdm import tqdm

    videos = plan(num_songs, videos_per_song)
    with atomic_directory(root) as folder:
        for name in ("videos", "openpose"):
            (folder / name).mkdir()
        for split in ("train", "test"):
            lines = [f"{video.stem}.mp4\n" for video in videos if video.split == split]
            (folder / f"{split}.txt").write_text("".join(sorted(lines)), encoding="utf-8")
        songs = [tuple(v for v in videos if v.song == song) for song in range(num_songs)]
        jobs = [_Song(folder, song, seed, video_height) for song in songs]
        with tqdm(total=len(videos), desc="embedded data", unit="video") as bar:
            for count in ordered_map(_write_song, jobs, num_workers):
                bar.update(count)
