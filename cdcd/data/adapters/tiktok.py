"""TikTok Dance-Music: videos, OpenPose's key points and sound, turned into samples.

Raw videos are not published, only their links, and every user runs OpenPose alone. So the layout
is ours; clips that were cut beforehand (`cdcd.data.adapters.clips`) are read too:

```
<root>/videos/000007_7_188.mp4                              or .mov, .mkv, .webm
       openpose/000007_7_188/<anything>_keypoints.json      BODY_25, one file per frame
       audio/000007_7_188.wav                               optional; else the video's own sound
       {train,test}.txt                                     or tiktok_{train,test}.txt, or D2M-GAN's
                                                            tiktok_*_{train,test}_segment.txt;
                                                            in <root>, <root>/dataset, <root>/data
```

A stem is `{group:06d}_{music}_{video}`. Songs, which the splits share none of, are its second
field; groups are shared. Of a line in a list only the stem counts. There is no list for validation
and no genre.

Key points lie at the presentation times of the video's frames: the i-th file belongs to the i-th
frame, whatever the frame rate is. They are brought to 30 Hz by the nearest time stamp. Sample 0 of
the sound is the first frame, also of a wav beside the video.

Where there is no published rule this is ours. A segment may lack 0.1 s, three frames of motion, as
in AIST++: the same share of a segment, twice as much would be a tenth of one. The files of key
points may be 2 frames or 0.2 s fewer or more than the video's frames. Sound may end 0.2 s before
the motion; it may go on for a second, which is cut off, as phones often write it so.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.adapters import dance
from cdcd.data.adapters.base import (
    Expected,
    Finding,
    Options,
    Source,
    check_unchanged,
    is_file,
    read_bytes,
    read_through,
    sha256_bytes,
)
from cdcd.data.adapters.clips import (
    LENGTHS,
    TIKTOK_LICENCE,
    TIKTOK_SHORT_LICENCE,
    WHERE_TIKTOK,
    Listed,
    ListedSource,
    check_clips,
    check_songs,
    check_wav,
    find_clips,
    open_clips,
    read_stems,
    require_readable,
    tiktok_song,
)
from cdcd.data.files import sha256_file
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.samples import BODY_25, SAMPLE_RATE_HZ, SMPL, Sample, safe_key

if TYPE_CHECKING:
    from cdcd.config import TiktokSource

NUM_POINTS = 25
MID_HIP = 8
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
FRAME_TOLERANCE = 2
FRAME_TOLERANCE_SECONDS = 0.2
SOUND_SHORT_SECONDS = 0.2
SOUND_LONG_SECONDS = 1.0
MAX_SECONDS = dance.MAX_SONG_SECONDS
"""Videos and sounds that claim more are no clips of this dataset."""

_MAX_JSON_BYTES = 16 << 20
_FRAME = re.compile(r"([0-9]+)_keypoints\.json")
_SPLITS = ("train", "test")
_FAMILIES = (
    "{split}.txt",
    "tiktok_{split}.txt",
    "tiktok_{kind}_{split}_segment.txt",
)
_KINDS = ("audio", "motion", "video")
_SEGMENT_ENDING = re.compile(r"_seg[0-9]+$")
_VIDEOS, _SONGS = {"train": 392, "test": 53}, {"train": 43, "test": 43}
_SEGMENTS = {"train": 2384, "test": 307}

Points = NDArray[np.float32]


# Key points


def read_people(data: bytes, what: str) -> Points:
    """Return the people of one OpenPose file as float32 `[p, 25, 3]` (x, y, confidence).

    Raises:
        SkipItem: corrupt_motion, or unsupported_motion for the older 18 points.
    """
    try:
        tree = json.loads(data)
        people = tree["people"]
        if not isinstance(people, list):
            raise TypeError("people must be a list")
        poses = [pose for person in people if (pose := _pose(person, what))]
        points = np.array(poses, dtype=np.float64).reshape(-1, NUM_POINTS, 3)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise SkipItem("corrupt_motion", f"{what} must be OpenPose's JSON: {told}") from None
    with np.errstate(over="ignore"):
        cast = points.astype(np.float32)
    if not np.isfinite(cast).all():
        raise SkipItem("corrupt_motion", f"{what} must hold finite numbers: it does not")
    return cast


def _pose(person: Any, what: str) -> list[float]:
    if "pose_keypoints_2d" not in person and "pose_keypoints" in person:
        raise SkipItem(
            "unsupported_motion",
            f"{what} must have pose_keypoints_2d: it has pose_keypoints, of an OpenPose before "
            "1.3; run a newer one with --model_pose BODY_25",
        )
    pose = person["pose_keypoints_2d"]
    if not isinstance(pose, list) or not {type(number) for number in pose} <= {int, float}:
        raise TypeError("pose_keypoints_2d must be a list of numbers")
    if len(pose) == 54:
        raise SkipItem(
            "unsupported_motion",
            f"{what} must have 25 points (BODY_25): it has 18 (COCO); run OpenPose again with "
            "--model_pose BODY_25",
        )
    if len(pose) not in (0, 3 * NUM_POINTS):  # none: only a face or hands were found
        raise ValueError(f"a pose must have {3 * NUM_POINTS} numbers: got {len(pose)}")
    return pose


def best_person(people: Points) -> Points | None:
    """Return the points `[25, 3]` of the person with the highest mean confidence, or None."""
    confidence = people[:, :, 2].mean(axis=1)
    if not len(people) or confidence.max() <= 0:
        return None
    return people[int(confidence.argmax())]


def fill_empty(frames: list[Points | None]) -> Points:
    """Return points `[n, 25, 3]`: a frame without a person is the one before, confidence 0.

    Frames before the first person take the first one's points, with confidence 0 as well.

    Raises:
        SkipItem: nonfinite_motion where more than half of the frames are empty.
    """
    num_empty = sum(frame is None for frame in frames)
    known = next((frame for frame in frames if frame is not None), None)
    if known is None or 2 * num_empty > len(frames):
        raise SkipItem(
            "nonfinite_motion",
            f"at least half of the frames must show a person: {num_empty} of {len(frames)} do not",
        )
    filled = np.empty((len(frames), NUM_POINTS, 3), dtype=np.float32)
    for i, frame in enumerate(frames):
        filled[i] = known if frame is None else frame
        if frame is None:
            filled[i, :, 2] = 0.0
        else:
            known = frame
    return filled


def nearest_frames(stamps: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each time the index of the nearest stamp, the earlier one of two as near.

    Args:
        stamps: `[n]` seconds, ascending.
        times: `[m]` seconds.
    """
    # A microsecond: two stamps as near must not be told apart by rounding.
    middles = (stamps[1:] + stamps[:-1]) / 2 + 1e-6
    return np.searchsorted(middles, times).astype(np.int64)


def normalise(points: Points, width: int, height: int) -> Points:
    """Return points `[n, 25, 3]` with x over the width and y over the height, around the mid-hip.

    Points that were not detected (0, 0) stay so. A frame without a mid-hip takes the one before,
    the first frames the first that is known; the picture's middle where there is none at all.
    """
    is_found = (points[..., :2] != 0).any(axis=-1)
    places = points[..., :2] / np.array([width, height], dtype=np.float32)
    has_hip = is_found[:, MID_HIP]
    centre = np.full((len(points), 2), 0.5, dtype=np.float32)
    if has_hip.any():
        latest = np.maximum.accumulate(np.where(has_hip, np.arange(len(points)), -1))
        centre = places[np.where(latest < 0, int(has_hip.argmax()), latest), MID_HIP]
    moved = np.where(is_found[..., None], places - centre[:, None], 0.0)
    return np.concatenate([moved, points[..., 2:]], axis=-1, dtype=np.float32)


def frame_files(folder: Path) -> list[Path | None]:
    """Return OpenPose's files by frame, None where a number is left out.

    Raises:
        SkipItem: missing_motion, corrupt_motion (a number twice) or unreadable_file.
    """

    def listing(folder: Path) -> list[Path]:
        return sorted(p for p in folder.glob("*_keypoints.json") if not p.name.startswith("."))

    files: list[Path] = read_through(listing, folder)
    if not files:
        raise SkipItem("missing_motion", f"no *_keypoints.json in openpose/{folder.name}/")
    matches = [_FRAME.search(path.name) for path in files]
    if not all(matches):
        return list(files)
    # Not all programs fill numbers up with zeros.
    numbered = {int(match[1]): path for match, path in zip(matches, files, strict=True) if match}
    if len(numbered) < len(files):
        raise SkipItem(
            "corrupt_motion",
            f"openpose/{folder.name}/ must have one file per frame: {len(files)} files have "
            f"{len(numbered)} numbers; keep one run of OpenPose",
        )
    first, last = min(numbered), max(numbered)
    if last - first >= 4 * len(files) + 100:  # the numbers are no frames, or most frames are lost
        raise SkipItem(
            "length_mismatch",
            f"openpose/{folder.name}/ must have one file per frame: {len(files)} files are "
            f"numbered {first} to {last}",
        )
    return [numbered.get(number) for number in range(first, last + 1)]


class _Digest:
    """One checksum for the names and contents of several files, taken while they are read."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def read(self, path: Path) -> bytes:
        data = read_bytes(path, _MAX_JSON_BYTES)
        line = f"{path.name} {sha256_bytes(data)}\n"
        self._hash.update(line.encode("utf-8", "surrogateescape"))
        return data

    @property
    def value(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True, eq=False)
class Motion:
    """Key points of one video at 30 Hz.

    Attributes:
        points: float32 `[n, 25, 3]`, pixels and confidence.
        digest: of all files they come from.
        num_files: how many those are.
        num_empty: frames of the video without a person.
        most_people: in any frame.
    """

    points: Points
    digest: str
    num_files: int
    num_empty: int
    most_people: int


def load_motion(folder: Path, stamps: NDArray[np.float64], duration: float) -> Motion:
    """Read OpenPose's output for a video and bring it to 30 Hz.

    Args:
        folder: of one JSON file per frame.
        stamps: `[n]` presentation times of the frames, in seconds after the first.
        duration: seconds from the first frame to the end of the last.

    Raises:
        SkipItem: length_mismatch, nonfinite_motion and what the files are refused for.
    """
    files = frame_files(folder)
    have, need = len(files), len(stamps)
    allowed = max(FRAME_TOLERANCE, FRAME_TOLERANCE_SECONDS * need / duration)
    if abs(have - need) > allowed + 1e-6:
        raise SkipItem(
            "length_mismatch",
            f"openpose/{folder.name}/ must have a file for each of the video's {need} frames, "
            f"within {int(allowed + 1e-6)}: it has {have}",
        )
    frames: list[Points | None] = []
    digest, most = _Digest(), 0
    for path in files:
        people = read_people(digest.read(path), path.name) if path is not None else None
        most = max(most, 0 if people is None else len(people))
        frames.append(None if people is None else best_person(people))
    del frames[need:]  # files beyond the last picture show nothing
    seconds = duration if have >= need else float(stamps[have])
    count = max(1, round(seconds * BODY_25.rate_hz))
    times = np.arange(count) / BODY_25.rate_hz
    points = fill_empty(frames)[nearest_frames(stamps[: len(frames)], times)]
    return Motion(
        points=points,
        digest=digest.value,
        num_files=sum(path is not None for path in files),
        num_empty=sum(frame is None for frame in frames),
        most_people=most,
    )


# The download


@dataclass(frozen=True, eq=False)
class Tiktok(ListedSource):
    """Raw videos with OpenPose's key points.

    Roots: videos, openpose, audio (where there is one), lists. Settings: layout, lists (split to
    files below `lists`), normalise_motion.
    """

    dataset = "tiktok"
    terms = TIKTOK_LICENCE
    licence = TIKTOK_SHORT_LICENCE
    unit = "video"

    def names(self) -> dict[str, set[str]]:
        """Return the listed stems by split, without the number of a segment."""
        folder = self.roots["lists"]
        return {
            split: {
                _SEGMENT_ENDING.sub("", stem)
                for path in paths
                for stem in read_stems(folder / path)
            }
            for split, paths in self.settings["lists"].items()
        }

    def song(self, name: str) -> str:
        """See `ListedSource`."""
        return tiktok_song(name)

    def find_video(self, stem: str) -> str | None:
        """Return the manifest path of a video, whatever its container is."""
        for suffix in (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)):
            path = f"videos/{stem}{suffix}"
            if is_file(self.resolve(path)):
                return path
        return None

    def inspect(self, item: Listed) -> Record:
        """See `Source`."""
        known: dict[str, Any] = {
            "key": safe_key(item.name),
            "split": item.split,
            "sequence": item.name,
            "licence": self.licence,
        }
        try:
            known["song"] = tiktok_song(item.name)
            sources, facts = self._inspect(item)
        except SkipItem as skip:
            return Record(**known, status="skipped", reason=skip.reason, detail=skip.detail)
        return Record(**known, sources=sources, facts=facts)

    def _inspect(self, item: Listed) -> tuple[dict[str, str], dict[str, Any]]:
        if item.duplicate_of is not None:
            raise SkipItem(
                "duplicate_key", f"listed in {item.split} although {item.duplicate_of} has it"
            )
        video = self.find_video(item.name)
        if video is None:
            raise SkipItem(
                "missing_video",
                f"no file videos/{item.name}.mp4 (or {', '.join(SUFFIXES[1:])}); frames have their "
                "times from it",
            )
        poses = f"openpose/{item.name}"
        if not self.resolve(poses).is_dir():
            raise SkipItem("missing_motion", f"no folder {poses}/")
        info, has_sound, stamps = self._probe(video)
        motion = load_motion(self.resolve(poses), stamps, info["duration_seconds"])
        count = len(motion.points)
        if not _windows(count, dance.UNIT_SECONDS):
            raise SkipItem(
                "too_short",
                f"a motion must last {dance.UNIT_SECONDS} s: got {count} frames at 30 Hz",
            )
        audio, audio_source = self._find_audio(item.name, video, has_sound, count)
        files = {video, audio}
        sources = {path: str(read_through(sha256_file, self.resolve(path))) for path in files}
        facts = {
            "motion": poses,
            "audio": audio,
            "audio_source": audio_source,
            "video": video,
            "num_frames": count,
            "motion_rate_hz": BODY_25.rate_hz,
            "num_motion_files": motion.num_files,
            "empty_frames": motion.num_empty,
            "most_people": motion.most_people,
            **info,
        }
        return dict(sorted({**sources, poses: motion.digest}.items())), facts

    def _probe(self, video: str) -> tuple[dict[str, Any], bool, NDArray[np.float64]]:
        from cdcd import media

        path = self.resolve(video)
        try:
            info = media.probe(path)
            if info.video is None:
                raise SkipItem("unreadable_video", f"{video} has no video stream")
            _check_claim(video, info.duration_seconds)
            stamps = media.frame_times(path)
        except media.MediaError as error:
            raise SkipItem("unreadable_video", str(error).replace(str(path), path.name)) from None
        seconds = info.duration_seconds
        if not (seconds > 0 and len(stamps)):
            raise SkipItem("unreadable_video", f"{video} must last longer than 0 s")
        facts = {
            "duration_seconds": seconds,
            "width": info.video.width,
            "height": info.video.height,
            "source_fps": info.video.fps,
        }
        return facts, info.audio is not None, stamps

    def _find_audio(self, stem: str, video: str, has_sound: bool, count: int) -> tuple[str, str]:
        path = f"audio/{stem}.wav"
        if "audio" in self.roots and is_file(self.resolve(path)):
            seconds = check_wav(self.resolve(path), path)
            _check_claim(path, seconds)
            _check_sound(path, seconds, count)
            return path, "wav"
        if not has_sound:
            raise SkipItem("no_audio_stream", f"{video} has no sound, and there is no {path}")
        return video, "video"

    def planned_keys(self, record: Record, options: Options) -> list[str]:
        """See `Source`."""
        return [key for key, _ in _planned(record, options)]

    def load(self, record: Record, options: Options) -> Iterator[tuple[Record, Sample | None]]:
        """See `Source`."""
        facts = record.facts
        kept = {path: sha for path, sha in record.sources.items() if path != facts["motion"]}
        check_unchanged(self, replace(record, sources=kept))
        vectors = self._vectors(record)
        audio, gain = dance.song(self.resolve(facts["audio"]))
        _check_sound(facts["audio"], len(audio) / SAMPLE_RATE_HZ, len(vectors))
        windows = _windows(len(vectors), options.segment_seconds)
        encoded = dance.encode_clips(self.resolve(facts["video"]), windows, options)
        clips = dict(enumerate(encoded, start=1))
        shared = {
            **dance.shared_facts(record, options, BODY_25, gain),
            "bpm": None,
            "motion_is_normalised": bool(self.settings["normalise_motion"]),
            "width": facts["width"],
            "height": facts["height"],
        }
        cut_samples = dance.segments(
            record,
            _planned(record, options),
            options,
            shared,
            motion=vectors,
            motion_rate_hz=BODY_25.rate_hz,
            audio=audio,
            clips=clips,
        )
        for _, listed, sample in cut_samples:
            yield listed, sample

    def _vectors(self, record: Record) -> NDArray[np.float32]:
        info, _, stamps = self._probe(record.facts["video"])
        folder = record.facts["motion"]
        motion = load_motion(self.resolve(folder), stamps, info["duration_seconds"])
        if motion.digest != record.sources[folder]:
            raise SkipItem("changed_source", f"{folder}/ is not the folder that ingest saw")
        points = motion.points
        if self.settings["normalise_motion"]:
            points = normalise(points, info["width"], info["height"])
        return points.reshape(len(points), BODY_25.dim)

    def expected(self) -> Expected:
        """See `Source`."""
        return Expected(_VIDEOS, _SEGMENTS, "lists of L-YeZhu/D2M-GAN, segments of 2 s")


def _windows(num_frames: int, segment_seconds: int) -> list[dance.Window]:
    # The rule of AIST++ in seconds; it counts in frames of SMPL motion.
    frames = num_frames * SMPL.rate_hz // BODY_25.rate_hz
    return dance.plan_windows(frames, segment_seconds)


def _planned(record: Record, options: Options) -> list[tuple[str, dance.Window]]:
    windows = _windows(record.facts["num_frames"], options.segment_seconds)
    return sorted((f"{record.key}_seg{window.number}", window) for window in windows)


def _check_claim(what: str, seconds: float) -> None:
    if seconds > MAX_SECONDS or not math.isfinite(seconds):
        raise SkipItem(
            "length_mismatch", f"{what} must last at most {MAX_SECONDS} s: it says {seconds:.0f} s"
        )


def _check_sound(what: str, seconds: float, num_frames: int) -> None:
    motion = num_frames / BODY_25.rate_hz
    if not -SOUND_SHORT_SECONDS - 1e-6 <= seconds - motion <= SOUND_LONG_SECONDS:
        raise SkipItem(
            "length_mismatch",
            f"sound must end between {SOUND_SHORT_SECONDS} s before and {SOUND_LONG_SECONDS:g} s "
            f"after the motion of {motion:.3f} s: {what} has {seconds:.3f} s",
        )


# Finding it


def _find_lists(root: Path) -> dict[str, list[str]]:
    """Return the lists of the first family that has both splits, or of the first with any."""
    partly: dict[str, list[str]] = {}
    for family in _FAMILIES:
        for folder in (root, root / "dataset", root / "data"):
            found = {}
            for split in _SPLITS:
                names = dict.fromkeys(family.format(split=split, kind=kind) for kind in _KINDS)
                paths = [folder / name for name in names if (folder / name).is_file()]
                if paths:
                    found[split] = [path.relative_to(root).as_posix() for path in paths]
            if len(found) == len(_SPLITS):
                return found
            partly = partly or found
    return partly


def _find_raw(root: Path) -> Path:
    for folder in (root, root / "tiktok"):
        if (folder / "videos").is_dir() or (folder / "openpose").is_dir():
            return folder
    return root


def open_source(setting: TiktokSource, root: Path) -> Source:
    """Find and check a TikTok Dance-Music download: raw videos, or clips cut beforehand.

    Args:
        setting: section `ingest.tiktok`.
        root: the folder that `setting.root` names.

    Raises:
        ValueError: a folder or list is missing; one line that names the parameter.
    """
    if not root.is_dir():
        raise ValueError(
            f"ingest.tiktok.root must be an existing folder: got {str(root)!r}; mend the path in "
            "params.yaml, or set it to null for the embedded data"
        )
    folder = _find_raw(root)
    missing = [name for name in ("videos", "openpose") if not (folder / name).is_dir()]
    if len(missing) == 2:
        return _open_clips(setting, root)
    if missing:
        raise ValueError(
            f"ingest.tiktok.root must hold videos/ and openpose/: {str(folder)!r} has no "
            f"{missing[0]}/; {_REMEDIES[missing[0]]}"
        )
    return _open_raw(folder, setting.normalise_motion)


_REMEDIES = {
    "videos": f"fetch the videos from the links in the annotation file ({WHERE_TIKTOK})",
    "openpose": "run OpenPose with --model_pose BODY_25 --write_json openpose/<stem> on each video",
}


def _open_clips(setting: TiktokSource, root: Path) -> Source:
    if all(find_clips("tiktok", root, seconds) is None for seconds in LENGTHS):
        inner = [child for child in sorted(root.iterdir()) if (child / "openpose").is_dir()]
        remedy = f"give {str(inner[0])!r} instead" if inner else WHERE_TIKTOK
        raise ValueError(
            f"ingest.tiktok.root must hold videos/ and openpose/, or clips in "
            f"audio_s{setting.clip_seconds}/ and motion_s{setting.clip_seconds}/: {str(root)!r} "
            f"has neither; {remedy}"
        )
    clips = open_clips("tiktok", root, setting.clip_seconds, "ingest.tiktok.root")
    if setting.normalise_motion:
        raise ValueError(
            "ingest.tiktok.normalise_motion must be false for pre-cut clips: got true, but the "
            "size of their pictures is not known; set it to false, or give the raw videos"
        )
    return clips


def _open_raw(folder: Path, normalise_motion: bool) -> Tiktok:
    lists = _find_lists(folder)
    if missing := [split for split in _SPLITS if split not in lists]:
        raise ValueError(
            f"ingest.tiktok.root must hold lists of both splits: {str(folder)!r} has no "
            f"{missing[0]}.txt, tiktok_{missing[0]}.txt nor "
            f"tiktok_audio_{missing[0]}_segment.txt, in itself, dataset/ or data/; {WHERE_TIKTOK}"
        )
    names = ("videos", "openpose", "audio")
    roots = {name: folder / name for name in names if (folder / name).is_dir()}
    source = Tiktok(
        roots={**roots, "lists": folder},
        settings={"layout": "openpose", "lists": lists, "normalise_motion": normalise_motion},
    )
    require_readable(source, "ingest.tiktok.root")
    return source


def check(root: Path) -> list[Finding]:
    """Say what of TikTok Dance-Music lies in a folder, and where the rest is to be had.

    Never raises: what is wrong with the folder is a finding too.
    """
    try:
        findings = check_clips("tiktok", root)
        folder = _find_raw(root)
        if findings and not (folder / "videos").is_dir() and not (folder / "openpose").is_dir():
            return findings
        return [*findings, *_check_raw(folder)]
    except (ValueError, OSError) as error:
        return [Finding(False, str(error))]


def _check_raw(folder: Path) -> Iterator[Finding]:
    for name, remedy in _REMEDIES.items():
        if not (folder / name).is_dir():
            yield Finding(False, f"{name}/: missing; {remedy}")
            continue
        count = sum(1 for path in (folder / name).iterdir() if not path.name.startswith("."))
        yield Finding(count > 0, f"{name}/: {count:,} of 445" + ("" if count else f"; {remedy}"))
    if (folder / "audio").is_dir():
        count = sum(1 for _ in (folder / "audio").glob("*.wav"))
        yield Finding(True, f"audio/: {count:,} wav files; other videos give their own sound")
    try:
        source = _open_raw(folder, False)
    except ValueError as error:
        yield Finding(False, str(error))
        return
    songs = source.songs()
    for split, stems in source.names().items():
        found = [stem for stem in stems if "videos" in source.roots and source.find_video(stem)]
        text = (
            f"{split}: {len(stems):,} of {_VIDEOS[split]:,} videos listed "
            f"({', '.join(source.settings['lists'][split])}), {len(songs.get(split, ())):,} of "
            f"{_SONGS[split]:,} songs, {len(found):,} with a file"
        )
        if len(found) < len(stems):
            text += f"; {_REMEDIES['videos']}, some are dead"
        yield Finding(bool(stems) and len(found) == len(stems), text)
        yield _check_segments(source, split, found)
    yield check_songs(songs)


def _check_segments(source: Tiktok, split: str, stems: list[str]) -> Finding:
    from cdcd import media

    count = num_bad = 0
    for stem in stems:
        path = source.find_video(stem)
        assert path is not None
        try:
            seconds = media.probe(source.resolve(path)).duration_seconds
        except media.MediaError:
            num_bad += 1
            continue
        count += len(_windows(round(seconds * BODY_25.rate_hz), dance.UNIT_SECONDS))
    text = f"{split}: {count:,} of {_SEGMENTS[split]:,} segments of 2 s by the videos' lengths"
    if num_bad:
        text += f"; {num_bad:,} videos cannot be read, fetch or convert them again"
    return Finding(count > 0 and not num_bad, text)
