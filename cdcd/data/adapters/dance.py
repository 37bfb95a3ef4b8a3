"""What the dance datasets share: windows of 2 to 6 seconds, whole songs, cut and encoded clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.adapters.base import Options, decoders
from cdcd.data.files import is_disk_full
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.samples import MOTION_RATE_HZ, SAMPLE_RATE_HZ, MotionKind, Sample

PEAK = 0.95
SILENCE = 1e-6
"""Sound below this peak (-120 dB of full scale) is left as it is."""
UNIT_SECONDS = 2
TOLERANCE_FRAMES = 6
MAX_SONG_SECONDS = 600.0
"""Longer music is refused; the pieces of AIST last a minute."""
CLIP_CRF = 23
# The slower presets turn on x264's macroblock tree, whose assembly reads memory that nobody wrote:
# equal frames then give unequal bytes.
CLIP_PRESET = "superfast"


def told(error: Exception, path: Path) -> str:
    """Return an error's message without the folder: manifests do not depend on where data lie."""
    return str(error).replace(str(path), path.name)


def num_units(num_frames: int) -> int:
    """Return how many 2-second units a motion has: six frames short of one still count.

    The published counts follow the nominal duration, and motions may be a few frames shorter.
    """
    return (num_frames + TOLERANCE_FRAMES) // (UNIT_SECONDS * MOTION_RATE_HZ)


@dataclass(frozen=True)
class Window:
    """One segment: its number from 1, its first second, and how many of its seconds are dance."""

    number: int
    start_seconds: int
    valid_seconds: float


def plan_windows(num_frames: int, segment_seconds: int) -> list[Window]:
    """Cut a motion into consecutive windows of 2, 4 or 6 seconds.

    A tail below 2 s is dropped; the last longer window is kept when 2 s of it exist, and says so
    in `valid_seconds`.
    """
    units = num_units(num_frames)
    end_seconds = max(units * UNIT_SECONDS, num_frames / MOTION_RATE_HZ)
    starts = range(0, units * UNIT_SECONDS, segment_seconds)
    return [
        Window(number, start, min(float(segment_seconds), end_seconds - start))
        for number, start in enumerate(starts, start=1)
    ]


def song(path: Path) -> tuple[NDArray[np.float32], float]:
    """Return a source's whole sound, scaled to a peak of 0.95, and the gain that took.

    Scaled as a whole rather than per segment, so that quiet parts of a song stay quiet.
    """
    state = path.stat()
    return _decoded_song(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)  # a song serves many sequences; time and size tell a rewritten file
def _decoded_song(path: Path, _mtime: int, _size: int) -> tuple[NDArray[np.float32], float]:
    from cdcd import media

    try:
        audio = media.decode_audio(
            path, sample_rate_hz=SAMPLE_RATE_HZ, max_seconds=MAX_SONG_SECONDS
        )
    except media.MediaError as error:
        if error.reason == "too_long":
            raise SkipItem("length_mismatch", told(error, path)) from None
        raise SkipItem("unreadable_audio", told(error, path)) from None
    if not np.isfinite(audio).all():
        raise SkipItem("unreadable_audio", f"{path.name} decodes to numbers that are not finite")
    peak = float(np.abs(audio).max(initial=0.0))
    gain = PEAK / peak if peak > SILENCE else 1.0
    return (audio * np.float32(gain)).astype(np.float32), gain


def cut(
    track: NDArray[np.float32], window: Window, seconds: int, rate_hz: int
) -> tuple[NDArray[np.float32], int]:
    """Cut a window out of sound `[n]` or motion `[n, d]` and fill it up; return what was filled.

    Sound is filled with zeros, motion with its last frame.
    """
    start = window.start_seconds * rate_hz
    length = seconds * rate_hz
    part = track[start : start + min(length, round(window.valid_seconds * rate_hz))]
    missing = length - len(part)
    if missing:
        # A window always starts inside the dance, so a motion has a last frame to repeat.
        filler = np.repeat(track[-1:], missing, axis=0) if track.ndim == 2 else np.zeros(missing)
        part = np.concatenate([part, filler.astype(np.float32)])
    return np.ascontiguousarray(part, dtype=np.float32), missing


def encode_clips(
    path: Path, windows: list[Window], options: Options
) -> Iterator[tuple[bytes, int]]:
    """Decode a video once and yield one clip per window with its number of repeated frames."""
    from cdcd import media

    frames_per_clip = options.segment_seconds * options.video_fps
    end_seconds = windows[-1].start_seconds + windows[-1].valid_seconds
    try:
        # Frames held at the end of a short video are added here, where they are counted.
        end_seconds = min(end_seconds, media.probe(path).duration_seconds)
        frames = media.iterate_frames(
            path, options.video_fps, height=options.video_height, end=end_seconds
        )
        last: NDArray[np.uint8] | None = None
        for _ in windows:
            clip = list(islice(frames, frames_per_clip))
            last = clip[-1] if clip else last
            if last is None:
                raise SkipItem("unreadable_video", f"{path.name} has no frames")
            missing = frames_per_clip - len(clip)
            clip += [last] * missing
            yield media.encode_clip(clip, options.video_fps, CLIP_CRF, CLIP_PRESET), missing
    except media.MediaError as error:
        if is_disk_full(error):
            raise
        raise SkipItem("unreadable_video", told(error, path)) from None


def segments(
    record: Record,
    planned: list[tuple[str, Window]],
    options: Options,
    shared: dict[str, Any],
    *,
    motion: NDArray[np.float32],
    motion_rate_hz: int,
    audio: NDArray[np.float32],
    clips: Mapping[int, tuple[bytes, int]],
) -> Iterator[tuple[Window, Record, Sample]]:
    """Cut a decoded dance into its samples.

    Args:
        record: of the whole dance.
        planned: key and window of each sample.
        options: their length.
        shared: facts of all of them.
        motion: `[n, dim]` at `motion_rate_hz`.
        motion_rate_hz: frames per second.
        audio: `[n]` at 22,050 Hz.
        clips: encoded video and its repeated frames by the window's number; empty without video.
    """
    seconds = options.segment_seconds
    for key, window in planned:
        moves, motion_pad = cut(motion, window, seconds, motion_rate_hz)
        sound, audio_pad = cut(audio, window, seconds, SAMPLE_RATE_HZ)
        clip, video_pad = clips.get(window.number, (None, 0))
        facts = {
            **shared,
            "segment": window.number,
            "valid_seconds": window.valid_seconds,
            "motion_pad_frames": motion_pad,
            "audio_pad_samples": audio_pad,
            "video_pad_frames": video_pad,
        }
        listed = Record(
            key=key,
            split=record.split,
            genre=record.genre,
            song=record.song,
            sequence=record.sequence,
            licence=record.licence,
            sources=record.sources,
            facts=facts,
        )
        meta = {**facts, "sources": record.sources}
        yield window, listed, Sample(key, record.split, sound, moves, clip, meta)


def shared_facts(record: Record, options: Options, kind: MotionKind, gain: float) -> dict[str, Any]:
    """Return the facts that the samples of every whole dance carry."""
    return {
        "song": record.song,
        "sequence": record.sequence,
        "audio_source": record.facts["audio_source"],
        "audio_gain": gain,
        "audio_normalisation": f"peak of the whole source at {PEAK}",
        "video_fps": options.video_fps,
        "motion": kind.name,
        "motion_rate_hz": kind.rate_hz,
        "licence": record.licence,
        "segment_seconds": options.segment_seconds,
        "decoders": media_decoders(),
    }


def media_decoders() -> dict[str, str]:
    """Return the versions of the decoders of sound and video."""
    return {name: decoders()[name] for name in ("av", "decord") if name in decoders()}
