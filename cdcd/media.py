"""Video and sound files: what they hold, their frames by presentation time, and writing them.

PyAV reads the container (time stamps, start offsets, rotation, edit lists) and all sound. decord
reads the frames of files on which it is right; `uses_decord` is the only place that decides.
Everything but `decode_audio` streams: memory does not grow with the length of the file.
"""

from __future__ import annotations

import io
import logging
import math
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cdcd.data.files import StorageError, atomic_path

logger = logging.getLogger(__name__)

Reason = Literal[
    "missing_file",
    "empty_file",
    "unreadable",
    "truncated",
    "no_video_stream",
    "no_audio_stream",
    "no_frames",
    "bad_argument",
    "not_written",
    "too_long",
]

_MAX_SECONDS = 24 * 3600.0
TRUNCATION_SECONDS = 0.5  # a file may lack this much of what its header promises
_GAP_SECONDS = 0.1  # holes in the sound longer than this are filled with silence
_SHORT_AUDIO_SECONDS = 0.25  # generated sound may end this early; silence fills the rest
_BATCH_BYTES = 16 << 20  # pixels taken from decord at a time
_DECORD_BYTES = 256 << 20  # pixels it may come to hold: its queue of decoded frames has no limit
_STAMP_SLACK = 1e-3  # seconds by which a coarse clock may stamp a frame late
_FRAME_SLACK = 0.01  # in frames: rounding of durations by containers with coarse clocks
_DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})
_COPIED_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
_CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


class MediaError(ValueError):
    """A file that cannot be read or written as asked; one line with rule, value and remedy.

    Attributes:
        reason: a stable word for manifests and tests.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, Reason]]:
        # Exceptions travel between worker processes; the default would drop `reason`.
        return type(self), (str(self), self.reason)


@dataclass(frozen=True)
class VideoInfo:
    """The video stream that is shown.

    Attributes:
        width: in pixels as displayed, after rotation.
        height: in pixels as displayed, after rotation.
        fps: frames per second on average over the presentation.
        num_frames: frames that the container lists, None when it lists none.
        rotation: degrees counter-clockwise, a multiple of 90, already applied to width and height.
        start: presentation time of the first frame in seconds.
    """

    width: int
    height: int
    fps: float
    num_frames: int | None
    rotation: int
    start: float


@dataclass(frozen=True)
class AudioInfo:
    """The sound stream that is heard: rate in Hz, channels, start in seconds of presentation."""

    rate: int
    channels: int
    start: float


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds.

    Attributes:
        duration_seconds: from the first video frame's presentation to the end of the last one's;
            of the sound where there is no video.
        video: None for a file of sound only.
        audio: None for a silent file.
    """

    duration_seconds: float
    video: VideoInfo | None
    audio: AudioInfo | None


@dataclass(frozen=True)
class _Facts:
    """`MediaInfo` plus what the readers must know; times in units of `time_base`."""

    info: MediaInfo
    video_index: int
    audio_index: int
    time_base: Fraction
    first: int
    last: int
    num_frames: int
    has_time_stamps: bool
    is_plain: bool
    codec: str


def probe(path: str | Path) -> MediaInfo:
    """Read what a file holds; all packets are counted, one frame is decoded.

    Raises:
        MediaError: the file is missing, empty, no media, cut short, or has no decodable frame.
    """
    return _facts(path).info


def uses_decord(path: str | Path, height: int | None = None) -> bool:
    """Whether decord reads this file's frames; PyAV reads the others.

    decord numbers frames in the order of the file, ignores edit lists and start offsets, may turn
    frames or not, and guesses the rate. It is right, and used, where none of this matters: the
    file's only video stream, whole, in a codec it knows, of even size, not rotated, starting at
    time 0, with every packet shown and equally spaced. It also decodes ahead without limit where
    the machine is busy, so long videos, whose scaled frames would not all fit in 256 MiB, are read
    by PyAV.

    Args:
        path: any file.
        height: shorter side of the wanted frames, as in `iterate_frames`.
    """
    facts = _facts(path)
    if not facts.is_plain or facts.info.video is None:
        return False
    width, rows = _scaled_size(facts.info.video.width, facts.info.video.height, height)
    if 3 * width * rows * facts.num_frames > _DECORD_BYTES:
        return False
    try:
        import decord  # noqa: F401
    except ImportError:  # no wheel on this platform
        return False
    return True


def frame_times(path: str | Path) -> np.ndarray:
    """Return when each frame is shown, in seconds after the first: float64 `[n]`, ascending.

    Raises:
        MediaError: the file cannot be read or has no video stream.
    """
    facts = _facts(path)
    _video_of(path, facts)
    if not facts.has_time_stamps:
        step = facts.info.duration_seconds / facts.num_frames
        return np.arange(facts.num_frames, dtype=np.float64) * step
    with _opened(path) as container:
        stream = container.streams[facts.video_index]
        packets = _packets(container, stream)
        ticks = [p.pts for p in packets if not p.is_corrupt and not p.is_discard]
    return (np.sort(np.array(ticks, dtype=np.int64)) - facts.first) * float(facts.time_base)


def decode_audio(
    path: str | Path,
    sample_rate_hz: int = 22050,
    align_to_video: bool = True,
    max_seconds: float | None = None,
) -> np.ndarray:
    """Decode the sound to one channel.

    Args:
        path: any file with a sound stream.
        sample_rate_hz: of the result.
        align_to_video: sample 0 is the instant of the first video frame: sound before it is
            dropped, missing sound is silence. Without a video stream, and when False, sample 0 is
            the first sample of the sound.
        max_seconds: longer sound is refused before it fills the memory; None: any length.

    Returns:
        float32 `[n]`, the mean of the channels, nominally in [-1, 1], resampled with soxr. n is
        the stream's own length, without the padding of the last codec frame.

    Raises:
        MediaError: the file cannot be read, has no sound, or too much of it (`too_long`).
    """
    import av
    import soxr  # type: ignore[import-untyped]

    facts = _facts(path)
    if facts.info.audio is None:
        raise MediaError(
            f"{path}: must have an audio stream: got none; give a file with sound",
            "no_audio_stream",
        )
    pieces: list[np.ndarray] = []
    length = 0  # samples gathered
    start: float | None = None  # of the first sample, on the container's clock
    rate = facts.info.audio.rate
    with _opened(path) as container:
        stream = container.streams[facts.audio_index]
        stated = stream.duration * stream.time_base if stream.duration else None
        most = math.inf if max_seconds is None else max_seconds * rate
        if stated is not None and stated * rate > most:
            raise _too_long(path, float(stated), max_seconds)
        resampler, kind = None, None
        for frame in _decoded(container, stream):
            if frame.sample_rate != rate:
                raise MediaError(
                    f"{path}: the audio rate must stay the same: got {rate} Hz, then "
                    f"{frame.sample_rate} Hz; convert the file first",
                    "unreadable",
                )
            time = None if frame.pts is None else float(frame.pts * frame.time_base)
            if (frame.format.name, frame.layout.name) != kind:
                # Packed, because PyAV reads beyond its eight planes where there are more channels.
                resampler = av.AudioResampler(format="flt")
                kind = (frame.format.name, frame.layout.name)
            assert resampler is not None
            for packed in resampler.resample(frame):
                channels = packed.to_ndarray().reshape(-1, packed.layout.nb_channels)
                piece = channels.mean(axis=1, dtype=np.float32)
                if start is None:
                    start = time or 0.0
                elif time is not None:
                    gap = round((time - start) * rate) - length
                    if length + gap > most:
                        raise _too_long(path, (length + gap) / rate, max_seconds)
                    if gap > _GAP_SECONDS * rate:
                        pieces.append(np.zeros(gap, np.float32))
                        length += gap
                pieces.append(piece)
                length += len(piece)
                if length > most:
                    raise _too_long(path, length / rate, max_seconds)
    if start is None:
        raise MediaError(
            f"{path}: must hold decodable sound: got none; convert the file first",
            "no_audio_stream",
        )
    audio = np.concatenate(pieces)
    # Codecs pad their last frame: the container knows where the sound ends.
    if stated is not None and 0 < len(audio) - round(stated * rate) < TRUNCATION_SECONDS * rate:
        audio = audio[: round(stated * rate)]
    if rate != sample_rate_hz:
        audio = soxr.resample(audio, rate, sample_rate_hz, quality="HQ")
    if align_to_video and facts.info.video is not None:
        shift = round((start - facts.info.video.start) * sample_rate_hz)
        if max_seconds is not None and shift > max_seconds * sample_rate_hz:
            raise _too_long(path, shift / sample_rate_hz, max_seconds)
        audio = np.pad(audio, (shift, 0)) if shift > 0 else audio[-shift:]
    return np.ascontiguousarray(audio, dtype=np.float32)


def _too_long(path: str | Path, seconds: float, most: float | None) -> MediaError:
    return MediaError(
        f"{path}: the sound must last at most {most:g} s: it has {seconds:.1f} s or more; cut it",
        "too_long",
    )


def iterate_frames(
    path: str | Path,
    fps: float,
    height: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    *,
    num_threads: int = 1,
) -> Iterator[np.ndarray]:
    """Sample frames by presentation time: frame i is what is on screen at `start + i / fps`.

    Args:
        path: any video; constant or variable rate, rotated or not.
        fps: of the samples; frames of the file are repeated or left out as needed.
        height: length of the shorter side in pixels, the longer one rounded to an even number;
            None keeps the displayed size.
        start: seconds after the first frame.
        end: seconds after the first frame; exactly `round((end - start) * fps)` frames come, the
            last one held where the video ends earlier. None: up to the end of the video.
        num_threads: of the decoder; 0 chooses.

    Yields:
        uint8 `[h, w, 3]` RGB, rotation applied; to be read, not written.

    Raises:
        MediaError: the file cannot be read, or `start` is not inside it.
    """
    facts = _facts(path)
    video = _video_of(path, facts)
    if fps <= 0 or (height is not None and height < 2):
        raise MediaError(
            f"fps must be positive and height at least 2: got fps {fps} and height {height}",
            "bad_argument",
        )
    if not 0 <= start < facts.info.duration_seconds:
        raise MediaError(
            f"{path}: start must lie in the video's {facts.info.duration_seconds:.3f} s: "
            f"got {start}; start earlier",
            "bad_argument",
        )
    if end is None:
        count = math.ceil((facts.info.duration_seconds - start) * fps - _FRAME_SLACK)
        count = max(count, 1)
    else:
        count = round((end - start) * fps)
    times = (start + i / fps + _STAMP_SLACK for i in range(count))
    width, rows = _scaled_size(video.width, video.height, height)
    read = _sample_decord if uses_decord(path, height) else _sample_pyav
    yield from read(path, facts, times, (width, rows), num_threads)


def iterate_clip(data: bytes) -> Iterator[np.ndarray]:
    """All frames, in order, of a clip that `encode_clip` wrote: uint8 `[h, w, 3]` RGB."""
    import av

    try:
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.error.FFmpegError as error:
        raise MediaError(
            f"a stored clip of {len(data)} bytes must be a whole mp4: {_why(error)}; "
            "run the stage that writes it again",
            "unreadable",
        ) from None


def encode_clip(
    frames: Iterable[np.ndarray], fps: int | Fraction, crf: int = 23, preset: str = "veryfast"
) -> bytes:
    """Encode frames as H.264 in mp4; equal frames give equal bytes.

    Args:
        frames: uint8 `[h, w, 3]` RGB of one size; odd sizes are rounded down to even by scaling.
        fps: of the result.
        crf: 0 (lossless) to 51.
        preset: of x264.

    Raises:
        MediaError: there is no frame, or the size changes.
    """
    import av
    from av.video.reformatter import VideoReformatter

    buffer = io.BytesIO()
    shape: tuple[int, ...] | None = None
    # One for all frames and without threads: setting up either costs more than a small picture.
    reformatter = VideoReformatter()
    # Bit-exact flags keep dates and library versions out; one thread keeps the rate control's
    # decisions in one order.
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {
            "crf": str(crf),
            "preset": preset,
            "flags": "+bitexact",
            # The macroblock tree reads memory that nobody wrote: its bytes differ by chance.
            "x264-params": "threads=1:lookahead-threads=1:mbtree=0",
        }
        for index, pixels in enumerate(frames):
            if shape is None:
                shape = pixels.shape
                stream.height, stream.width = (max(2, side // 2 * 2) for side in shape[:2])
            elif pixels.shape != shape:
                raise MediaError(
                    f"the frames of a clip must have one size: got {pixels.shape} after {shape}",
                    "bad_argument",
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = reformatter.reformat(frame, stream.width, stream.height, "yuv420p", threads=1)
            frame.pts, frame.time_base = index, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        if shape is None:
            raise MediaError("a clip must have at least one frame: got none", "no_frames")
        container.mux(stream.encode(None))
    return buffer.getvalue()


def write_wav(
    path: str | Path, audio: np.ndarray | Iterable[np.ndarray], sample_rate_hz: int
) -> None:
    """Write 16-bit sound; the file appears under its name only when it is whole.

    Args:
        path: any format that libsndfile knows by its suffix (wav, flac, ogg).
        audio: float32 `[n]` in [-1, 1], or pieces of it.
        sample_rate_hz: of the sound.

    Raises:
        MediaError: the suffix is unknown or the disk is full.
    """
    import soundfile

    path = Path(path)
    kind = path.suffix[1:].upper()
    if kind not in soundfile.available_formats():
        raise MediaError(
            f"{path}: the suffix must name a sound format: got {path.suffix!r}; use .wav",
            "bad_argument",
        )
    subtype = "VORBIS" if kind == "OGG" else "PCM_16"
    pieces = [audio] if isinstance(audio, np.ndarray) else audio
    with _replacing(path) as part:
        try:
            with soundfile.SoundFile(
                part, "w", sample_rate_hz, channels=1, format=kind, subtype=subtype
            ) as out:
                for piece in pieces:
                    out.write(np.clip(piece, -1.0, 1.0))
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error


def mux(
    video_path: str | Path,
    audio: np.ndarray | Iterable[np.ndarray],
    sample_rate_hz: int,
    out_path: str | Path,
) -> float:
    """Put sound on a video, replacing its own; the pictures are copied, not encoded again.

    The sound starts with the first video frame and lasts exactly as long as the video: surplus is
    cut off, a shortfall of up to 0.25 s is silence. Pictures in a codec or with time stamps that
    mp4 cannot hold are encoded again as H.264. The file appears under its name when it is whole.

    Args:
        video_path: any video; rotation metadata is kept.
        audio: float32 `[n]` in [-1, 1], or pieces of it, consumed as they are written.
        sample_rate_hz: a rate that AAC knows.
        out_path: .mp4, .m4v or .mov, not the video itself.

    Returns:
        Duration of the written video in seconds.

    Raises:
        MediaError: the video cannot be read, the sound is too short, or the disk is full.
    """
    facts = _facts(video_path)
    _video_of(video_path, facts)
    out_path = Path(out_path)
    if out_path.suffix.lower() not in _CONTAINERS:
        raise MediaError(
            f"{out_path}: the suffix must be one of {', '.join(_CONTAINERS)}: "
            f"got {out_path.suffix!r}; rename the output",
            "bad_argument",
        )
    if sample_rate_hz not in _AAC_RATES:
        raise MediaError(
            f"the sound's rate must be one that AAC knows: got {sample_rate_hz} Hz; resample to "
            "22050 or 44100",
            "bad_argument",
        )
    if out_path.exists() and out_path.samefile(video_path):
        raise MediaError(
            f"{out_path}: the output must differ from the video: got the same file; "
            "choose another name",
            "bad_argument",
        )
    duration = facts.info.duration_seconds
    pieces = [audio] if isinstance(audio, np.ndarray) else audio
    write = _copy_pictures if _is_copyable(facts) else _encode_pictures
    with _replacing(out_path) as part:
        sound = _Sound(iter(pieces), sample_rate_hz, round(duration * sample_rate_hz))
        write(video_path, facts, sound, part, _CONTAINERS[out_path.suffix.lower()])
        try:
            written = _facts(part).info
        except MediaError as error:
            raise OSError(f"it cannot be read back: {error}") from None
        video = _video_of(video_path, facts)
        if abs(written.duration_seconds - duration) > 1 / video.fps + 1e-3:
            raise MediaError(
                f"{out_path}: must last as long as {video_path}, {duration:.3f} s: got "
                f"{written.duration_seconds:.3f} s; convert the video to H.264 mp4 first",
                "not_written",
            )
    return written.duration_seconds


# Reading


def _facts(path: str | Path) -> _Facts:
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise MediaError(
            f"{path}: must be a readable file: {reason}; check the path", "missing_file"
        ) from None
    if not path.is_file():
        raise MediaError(
            f"{path}: must be a file: got a folder or a device; give the path of a video",
            "missing_file",
        )
    if stat.st_size == 0:
        raise MediaError(
            f"{path}: must not be empty: got 0 bytes; copy or download it again", "empty_file"
        )
    return _scan(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _scan(path: str, size: int, _changed: int) -> _Facts:
    with _opened(path) as container:
        video, audio = _best_streams(container)
        for stream in (video, audio):
            if stream is not None and stream.codec_context is None:
                raise MediaError(
                    f"{path}: must be in a known codec: its {stream.type} stream is not; convert "
                    "it to mp4 or wav",
                    "unreadable",
                )
        if video is None and audio is None:
            raise MediaError(
                f"{path}: must hold a video or sound stream: got neither; give another file",
                "no_video_stream",
            )
        if container.duration and container.duration / 1e6 > _MAX_SECONDS:
            # Every packet is counted below: a tiny file may claim years.
            raise _too_long(path, container.duration / 1e6, _MAX_SECONDS)
        promised, is_whole = _promised(container, video, size)
        stamps: dict[int, array[int]] = {s.index: array("q") for s in (video, audio) if s}
        # End of the packet that is shown last; an earlier one may claim to last beyond it.
        ends: dict[int, int] = {}
        newest: dict[int, int] = {}
        latest = 0.0  # end of whatever the container holds, for its promise
        has_time_stamps, has_hidden = True, False
        for packet in _packets(container):
            if packet.is_corrupt:
                is_whole = False
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is None:
                has_time_stamps = has_time_stamps and packet.stream is not video
                if packet.stream_index in stamps:
                    stamps[packet.stream_index].append(0)
                continue
            end = stamp + (packet.duration or 0)
            latest = max(latest, float(end * packet.time_base))
            if packet.stream_index not in stamps:
                continue
            if packet.stream is video:
                has_time_stamps &= packet.pts is not None and packet.dts is not None
                if packet.is_discard:
                    has_hidden = True
                    continue
            stamps[packet.stream_index].append(stamp)
            if stamp >= newest.get(packet.stream_index, stamp):
                newest[packet.stream_index], ends[packet.stream_index] = stamp, end
        sound = _audio_info(audio, stamps)
        if video is None:
            assert audio is not None
            shown = np.asarray(stamps[audio.index])
            length = (ends.get(audio.index, 0) - int(shown.min())) if len(shown) else 0
            seconds = float(length * audio.time_base)
            return _Facts(
                MediaInfo(seconds, None, sound),
                -1, audio.index, audio.time_base, 0, 0, 0, True, False, "",
            )  # fmt: skip
        base: Fraction = video.time_base
        shown = np.sort(np.asarray(stamps[video.index], dtype=np.int64))
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        if not len(shown):
            raise _no_frames(path)
        if not has_time_stamps and len(np.unique(shown)) < len(shown):
            # Raw streams carry no clock: frames follow each other at the nominal rate.
            first, step = 0, 1 / (rate * base)
            last = round((len(shown) - 1) * step)
            end = round(len(shown) * step)
            is_constant = False
        else:
            first = int(shown[0])
            steps = np.diff(shown)
            step = Fraction(int(shown[-1]) - first, len(steps)) if len(steps) else 1 / (rate * base)
            last, end = int(shown[-1]), ends[video.index]
            if end <= last:  # the last packet states no duration
                end = last + max(1, round(step))
            is_constant = bool(len(steps) == 0 or np.abs(steps - float(step)).max() <= 1)
        duration = float((end - first) * base)
        held = duration if _is_mov(container) else latest - (container.start_time or 0) / 1e6
        if promised is not None and held < promised - TRUNCATION_SECONDS:
            raise MediaError(
                f"{path}: truncated: the header promises {promised:.2f} s but only {held:.2f} s "
                "can be read; copy or download it again",
                "truncated",
            )
        num_videos = len(container.streams.video)
        codec = video.codec_context.name
        index, start = video.index, float(first * base)
        audio_index = audio.index if audio is not None else -1
        frame = _wound_back(container, video, first)

    if frame is None:
        # Raw streams and some damaged files cannot be wound back.
        with _opened(path) as container:
            frame = next(_decoded(container, container.streams[index]), None)
    if frame is None:
        raise _no_frames(path)
    rotation = round(frame.rotation / 90) * 90 % 360
    width, height = frame.width, frame.height
    is_plain = (
        is_whole
        and has_time_stamps
        and is_constant
        and not has_hidden
        and first == 0
        and rotation == 0
        and num_videos == 1
        and codec in _DECORD_CODECS
        and width % 2 == height % 2 == 0
    )
    if rotation in (90, 270):
        width, height = height, width
    fps = len(shown) / duration if duration > 0 else float(rate)
    info = MediaInfo(duration, VideoInfo(width, height, fps, len(shown), rotation, start), sound)
    logger.debug("%s: %s, read by %s", path, info, "decord" if is_plain else "PyAV")
    return _Facts(
        info, index, audio_index, base, first, last, len(shown), has_time_stamps, is_plain, codec
    )


def _wound_back(container: Any, video: Any, first: int) -> Any:
    """Return the first frame of a container that was read to its end, None where that fails."""
    import av

    try:
        container.seek(first, stream=video)
    except av.error.FFmpegError:
        return None
    return next(_decoded(container, video), None)


def _best_streams(container: Any) -> tuple[Any, Any]:
    """The video stream that a player would show and the sound that belongs to it."""
    from av.stream import Disposition

    video = container.streams.best("video")
    if video is not None and video.disposition & Disposition.attached_pic:
        video = None  # the cover of a piece of music
    return video, container.streams.best("audio", related=video)


def _audio_info(audio: Any, stamps: dict[int, array[int]]) -> AudioInfo | None:
    if audio is None or not len(stamps[audio.index]):
        return None
    # Not the first packet: codecs prepend packets that only prime the decoder.
    start = float((audio.start_time or 0) * audio.time_base)
    return AudioInfo(audio.codec_context.sample_rate, audio.codec_context.channels, start)


def _is_mov(container: Any) -> bool:
    return "mov" in container.format.name.split(",")


def _promised(container: Any, video: Any, size: int) -> tuple[float | None, bool]:
    """Seconds that the header promises, if it does, and whether the file is long enough."""
    if not _is_mov(container):
        return (container.duration / 1e6 if container.duration else None), True
    entries: Any = video.index_entries if video is not None else ()
    if len(entries) < 2:  # fragmented files list nothing beforehand
        return None, True
    first, last = entries[0], entries[-1]
    spacing = (last.timestamp - first.timestamp) / (len(entries) - 1)
    seconds = (last.timestamp - first.timestamp + spacing) * float(video.time_base)
    return seconds, last.pos + last.size <= size


def _no_frames(path: str | Path) -> MediaError:
    return MediaError(
        f"{path}: must hold at least one decodable video frame: got 0; record or convert it again",
        "no_frames",
    )


def _video_of(path: str | Path, facts: _Facts) -> VideoInfo:
    if facts.info.video is None:
        raise MediaError(
            f"{path}: must have a video stream: got sound only; give a video", "no_video_stream"
        )
    return facts.info.video


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    import av

    try:
        # An absolute name keeps FFmpeg from reading a protocol into a colon.
        container = av.open(str(Path(path).absolute()), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"{path}: must be a whole media file: {_why(error)}: truncated, or no video; "
            "copy it again or convert it to mp4",
            "unreadable",
        ) from None
    with container:
        yield container


def _why(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Packets in file order until the end or the first damage that the demuxer cannot pass."""
    import av

    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            logger.warning("%s: reading stopped early: %s", container.name, _why(error))
            return
        if packet is None:
            return
        if packet.size:  # empty packets only flush decoders
            yield packet


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames of a stream; damaged packets are passed over."""
    import av

    num_bad = 0
    for packet in _packets(container, stream):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            num_bad += 1
    with suppress(av.error.FFmpegError):
        yield from stream.decode(None)
    if num_bad:
        logger.warning("%s: %d packets could not be decoded", container.name, num_bad)


def _scaled_size(width: int, height: int, shorter: int | None) -> tuple[int, int]:
    if shorter is None:
        return width, height
    scale = shorter / min(width, height)
    if width <= height:
        return shorter, max(2, round(height * scale / 2) * 2)
    return max(2, round(width * scale / 2) * 2), shorter


def _sample_decord(
    path: str | Path,
    facts: _Facts,
    times: Iterator[float],
    size: tuple[int, int],
    num_threads: int,
) -> Iterator[np.ndarray]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    width, rows = size
    rate = facts.num_frames / facts.info.duration_seconds
    batch = max(1, _BATCH_BYTES // (width * rows * 3))
    pending: list[float] = []
    try:
        reader = decord.VideoReader(
            str(Path(path).absolute()),
            decord.cpu(0),
            width=width,
            height=rows,
            num_threads=num_threads,
        )
        if len(reader) != facts.num_frames:
            raise decord.DECORDError("it counts other frames than the container")
        while pending := list(islice(times, batch)):
            # 1e-6 of a frame: the product of two rounded numbers must not fall below an integer.
            indices = [min(int(time * rate + 1e-6), facts.num_frames - 1) for time in pending]
            unique = sorted(set(indices))
            pixels = dict(zip(unique, reader.get_batch(unique).asnumpy(), strict=True))
            for index in indices:
                yield pixels[index]
    except decord.DECORDError as error:
        logger.warning("%s: decord gave up, PyAV takes over: %s", path, _last_words(error))
        yield from _sample_pyav(path, facts, chain(pending, times), size, num_threads)


def _last_words(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rsplit("] ", 1)[-1]


def _sample_pyav(
    path: str | Path,
    facts: _Facts,
    times: Iterator[float],
    size: tuple[int, int],
    num_threads: int,
) -> Iterator[np.ndarray]:
    render = _Renderer(size, _video_of(path, facts).rotation)
    target = next(times, None)
    current: Any = None
    time = 0.0
    if target is None:
        return
    for time, frame in _timed_frames(path, facts, target, num_threads):
        while current is not None and target is not None and target < time:
            yield render(current)
            target = next(times, None)
        if target is None:
            return
        current = frame
    if current is None:
        raise _no_frames(path)
    promised = float((facts.last - facts.first) * facts.time_base)
    if time < promised - TRUNCATION_SECONDS:
        raise MediaError(
            f"{path}: truncated: the header promises frames up to {promised:.2f} s but only those "
            f"up to {time:.2f} s can be decoded; copy or download it again",
            "truncated",
        )
    while target is not None:
        yield render(current)
        target = next(times, None)


class _Renderer:
    """Decoded frames to scaled, turned RGB; the last one is kept, because samples may repeat."""

    def __init__(self, size: tuple[int, int], rotation: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._size = size if rotation % 180 == 0 else size[::-1]
        self._turns = rotation // 90
        self._reformatter = VideoReformatter()
        self._frame: Any = None
        self._pixels: np.ndarray | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        if self._pixels is None or frame is not self._frame:
            width, height = self._size
            # Averaging is what a smaller picture needs, and costs half of the cubic filter.
            is_smaller = width * height < frame.width * frame.height
            scaled = self._reformatter.reformat(
                frame,
                width,
                height,
                "rgb24",
                interpolation="AREA" if is_smaller else "BICUBIC",
                threads=1,
            )
            pixels = scaled.to_ndarray()
            self._pixels = np.ascontiguousarray(np.rot90(pixels, self._turns))
            self._frame = frame
        return self._pixels


def _timed_frames(
    path: str | Path, facts: _Facts, start: float, num_threads: int
) -> Iterator[tuple[float, Any]]:
    """Frames with their seconds after the first one, from the one on screen at `start` on."""
    if start > 1.0 and facts.has_time_stamps:
        with _opened(path) as container:
            stream = _prepared(container, facts, num_threads)
            container.seek(facts.first + int(start / facts.time_base), stream=stream)
            frames = _stamped(container, stream, facts)
            head = next(frames, None)
            if head is not None and head[0] <= start:
                yield head
                yield from frames
                return
    with _opened(path) as container:  # from the top: the beginning, or a file that cannot seek
        yield from _stamped(container, _prepared(container, facts, num_threads), facts)


def _prepared(container: Any, facts: _Facts, num_threads: int) -> Any:
    stream = container.streams[facts.video_index]
    stream.codec_context.thread_count = num_threads
    stream.thread_type = "AUTO"
    return stream


def _stamped(container: Any, stream: Any, facts: _Facts) -> Iterator[tuple[float, Any]]:
    step = facts.info.duration_seconds / facts.num_frames
    latest = 0.0
    for index, frame in enumerate(_decoded(container, stream)):
        if frame.pts is not None and facts.has_time_stamps:
            time = float((frame.pts - facts.first) * facts.time_base)
        else:
            time = index * step
        latest = max(latest, time)  # time never runs backwards, whatever the file says
        yield latest, frame


# Writing


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name when the block succeeds and vanishes otherwise."""
    import av

    try:
        with atomic_path(path) as part:
            yield part
    except (OSError, av.error.FFmpegError, StorageError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if path.is_dir():
            raise MediaError(
                f"{path}: must be a file to write: it is a folder; choose another name",
                "not_written",
            ) from error
        raise MediaError(
            f"{path}: could not be written: {_why(cause or error)}; free space on the disk or "
            "choose another folder",
            "not_written",
        ) from error


def _is_copyable(facts: _Facts) -> bool:
    return facts.codec in _COPIED_CODECS and facts.has_time_stamps


class _Sound:
    """Encodes pieces of sound as AAC as far as the pictures have come."""

    def __init__(self, pieces: Iterator[np.ndarray], rate: int, num_samples: int) -> None:
        self._pieces = pieces
        self.rate = rate
        self._left = num_samples
        self._done = 0
        self._stream: Any = None

    def open(self, container: Any) -> None:
        self._stream = container.add_stream("aac", rate=self.rate, layout="mono")
        # 6144 bits per frame of 1024 samples is the most that AAC allows for one channel.
        self._stream.bit_rate = min(192_000, 6 * self.rate)

    def advance(self, container: Any, seconds: float) -> None:
        """Encode until the sound has reached `seconds` or ended."""
        import av

        while self._left and self._done < seconds * self.rate:
            piece = next(self._pieces, None)
            if piece is None:
                if self._left > _SHORT_AUDIO_SECONDS * self.rate:
                    total = self._done + self._left
                    raise MediaError(
                        f"the sound must last as long as the video, {total / self.rate:.3f} s: "
                        f"got {self._done / self.rate:.3f} s; generate the missing part",
                        "bad_argument",
                    )
                piece = np.zeros(self._left, np.float32)
            samples = np.asarray(piece, np.float32).ravel()[: self._left]
            for at in range(0, len(samples), self.rate):  # a second at a time
                block = np.ascontiguousarray(samples[at : at + self.rate])
                frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
                frame.sample_rate = self.rate
                frame.pts, frame.time_base = self._done, Fraction(1, self.rate)
                container.mux(self._stream.encode(frame))
                self._done += len(block)
                self._left -= len(block)

    def close(self, container: Any) -> None:
        self.advance(container, math.inf)
        container.mux(self._stream.encode(None))


@contextmanager
def _output(part: Path, kind: str, timescale: int) -> Iterator[Any]:
    import av

    # Track lengths are rounded to the file's timescale; the sound's own rate keeps them exact.
    options = {"movflags": "+faststart", "movie_timescale": str(timescale)}
    container = av.open(str(part.absolute()), "w", format=kind, options=options)
    try:
        yield container
        container.close()
    except BaseException:
        # Closing writes a trailer, which may fail for the same reason as what came before.
        with suppress(av.error.FFmpegError, OSError):
            container.close()
        raise


def _copy_pictures(
    video_path: str | Path, facts: _Facts, sound: _Sound, part: Path, kind: str
) -> None:
    with _opened(video_path) as source, _output(part, kind, sound.rate) as container:
        stream = source.streams[facts.video_index]
        copied = container.add_stream_from_template(stream)
        sound.open(container)
        for packet in _packets(source, stream):
            if packet.is_corrupt:
                continue
            packet.pts -= facts.first
            packet.dts -= facts.first
            packet.stream = copied
            sound.advance(container, float(packet.dts * packet.time_base))
            container.mux(packet)
        sound.close(container)


def _encode_pictures(
    video_path: str | Path, facts: _Facts, sound: _Sound, part: Path, kind: str
) -> None:
    import av

    video = _video_of(video_path, facts)
    size = (max(2, video.width // 2 * 2), max(2, video.height // 2 * 2))
    render = _Renderer(size, video.rotation)
    clock = Fraction(1, 90_000)
    step = max(1, round(1 / (video.fps * clock)))
    previous = -1
    with _output(part, kind, sound.rate) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator())
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = clock
        stream.options = {"crf": "18", "preset": "veryfast"}
        sound.open(container)

        def write(packets: Iterable[Any]) -> None:
            for packet in packets:
                packet.duration = packet.duration or step
                container.mux(packet)

        for time, frame in _timed_frames(video_path, facts, 0.0, 0):
            picture = av.VideoFrame.from_ndarray(render(frame), format="rgb24")
            picture.pts = previous = max(round(time / clock), previous + 1)
            picture.time_base = clock
            write(stream.encode(picture))
            sound.advance(container, time)
        write(stream.encode(None))
        sound.close(container)
