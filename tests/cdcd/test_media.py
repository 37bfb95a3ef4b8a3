import io
import os
import resource
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cdcd import media
from cdcd.media import MediaError

RATE = 22050
SIZE = (64, 48)


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red corner top left, and the frame's number in black and white stripes at the bottom."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 3, : width // 3] = (255, 0, 0)
    stripe = width // 8
    for bit in range(8):
        if index >> bit & 1:
            pixels[height // 2 :, bit * stripe : (bit + 1) * stripe] = 255
    return pixels


def index_of(pixels: np.ndarray) -> int:
    height, width, _ = pixels.shape
    row = pixels[3 * height // 4, :, 1]
    stripe = width // 8
    return sum(int(row[bit * stripe + stripe // 2] > 128) << bit for bit in range(8))


def make_video(
    path: Path,
    num_frames: int = 30,
    fps: Fraction | int = 30,
    *,
    stamps: list[int] | None = None,
    time_base: Fraction | None = None,
    shift: int = 0,
    rotation: int = 0,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    audio: np.ndarray | None = None,
    audio_rate: int = 48000,
    video_delay: int = 0,
) -> Path:
    """Write a video; stamps in units of time_base, shift in frames cut off by an edit list."""
    even = (size[0] // 2 * 2, size[1] // 2 * 2) if codec == "libx264" else size
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.width, stream.height = even
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec == "libx264":
            stream.options = {"g": "10", "crf": "10", "preset": "ultrafast"}
        if time_base is not None:
            stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = None
        if audio is not None:
            layout = "stereo" if audio.ndim == 2 else "mono"
            sound = out.add_stream("aac", rate=audio_rate, layout=layout)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, even), format="rgb24")
            frame.pts = stamps[index] if stamps else index
            frame.time_base = time_base or 1 / Fraction(fps)
            for packet in stream.encode(frame):
                _mux_shifted(out, packet, shift - video_delay, fps)
        for packet in stream.encode(None):
            _mux_shifted(out, packet, shift - video_delay, fps)
        if audio is not None:
            samples = np.ascontiguousarray(np.atleast_2d(audio), np.float32)
            block = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            block.sample_rate, block.pts = audio_rate, 0
            block.time_base = Fraction(1, audio_rate)
            out.mux(sound.encode(block))
            out.mux(sound.encode(None))
    return path


def _mux_shifted(out: Any, packet: Any, shift: int, fps: Fraction | int) -> None:
    ticks = round(shift / fps / packet.time_base)
    packet.pts -= ticks
    packet.dts -= ticks
    out.mux(packet)


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def frames_of(path: Path, fps: float, **options: Any) -> list[int]:
    return [index_of(pixels) for pixels in media.iterate_frames(path, fps, **options)]


# Reading


def test_probe_tells_what_the_file_holds(tmp_path: Path) -> None:
    sound = tone(1.0, 48000)
    path = make_video(tmp_path / "a.mp4", fps=Fraction(30000, 1001), audio=np.stack([sound, sound]))
    info = media.probe(path)
    assert info.video is not None
    assert info.audio is not None
    assert info.duration_seconds == pytest.approx(30 * 1001 / 30000, abs=1e-4)
    assert (info.video.width, info.video.height, info.video.num_frames) == (64, 48, 30)
    assert info.video.fps == pytest.approx(30000 / 1001, abs=1e-3)
    assert (info.video.rotation, info.video.start) == (0, 0.0)
    assert (info.audio.rate, info.audio.channels) == (48000, 2)
    assert info.audio.start == pytest.approx(0, abs=1e-3)


def test_every_frame_once_at_the_files_own_rate(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    assert media.uses_decord(path)
    assert frames_of(path, 30) == list(range(30))


@pytest.mark.parametrize("fps", [7, 24, 25, 60, 59.94])
def test_samples_show_what_is_on_screen(tmp_path: Path, fps: float) -> None:
    path = make_video(tmp_path / "a.mp4")
    expected = [min(int((i / fps + 1e-3) * 30), 29) for i in range(int(np.ceil(fps - 1e-6)))]
    assert frames_of(path, fps) == expected


def test_both_decoders_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=20)
    for options in ({}, {"height": 24}, {"start": 0.2, "end": 0.5}):
        by_decord = list(media.iterate_frames(path, 24, **options))
        with monkeypatch.context() as patch:
            patch.setattr(media, "uses_decord", lambda *_: False)
            by_pyav = list(media.iterate_frames(path, 24, **options))
        assert len(by_decord) == len(by_pyav)
        for first, second in zip(by_decord, by_pyav, strict=True):
            assert first.shape == second.shape
            # Their scalers differ a little, most of all at edges as hard as these.
            assert np.abs(first.astype(int) - second).mean() < 5
            assert index_of(first) == index_of(second)


def test_variable_rate_is_sampled_by_time(tmp_path: Path) -> None:
    stamps = [0, 100, 150, 700, 710, 1000]  # milliseconds
    path = make_video(tmp_path / "v.mp4", 6, stamps=stamps, time_base=Fraction(1, 1000))
    info = media.probe(path)
    assert not media.uses_decord(path)
    assert info.duration_seconds >= 1.0
    expected = [
        max(k for k, stamp in enumerate(stamps) if stamp <= 1000 * i / 20) for i in range(21)
    ]
    assert frames_of(path, 20)[:21] == expected


def test_240_fps(tmp_path: Path) -> None:
    path = make_video(tmp_path / "f.mp4", num_frames=48, fps=240)
    assert media.probe(path).duration_seconds == pytest.approx(0.2, abs=1e-4)
    assert frames_of(path, 30) == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize(
    ("rotation", "corner"), [(90, (-8, 8)), (180, (-8, -8)), (-90, (8, -8)), (0, (8, 8))]
)
def test_rotation_is_applied(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    path = make_video(tmp_path / "r.mp4", num_frames=3, rotation=rotation)
    video = media.probe(path).video
    assert video is not None
    size = (48, 64) if rotation in (90, -90) else (64, 48)
    assert (video.width, video.height) == size
    frame = next(media.iterate_frames(path, 30))
    assert frame.shape == (size[1], size[0], 3)
    assert frame[corner][0] > 200
    small = next(media.iterate_frames(path, 30, height=24))
    assert min(small.shape[:2]) == 24
    assert (small.shape[0] > small.shape[1]) == (size[1] > size[0])


def test_frames_cut_by_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = make_video(tmp_path / "e.mp4", shift=13)
    info = media.probe(path)
    assert info.duration_seconds == pytest.approx(17 / 30, abs=1e-3)
    assert not media.uses_decord(path)
    assert frames_of(path, 30) == list(range(13, 30))


def test_a_late_start_is_time_zero(tmp_path: Path) -> None:
    path = make_video(tmp_path / "l.mp4", audio=tone(1.5, 48000), video_delay=3)
    info = media.probe(path)
    assert info.video is not None
    assert info.video.start == pytest.approx(0.1, abs=1e-3)
    assert info.duration_seconds == pytest.approx(1.0, abs=1e-3)
    assert frames_of(path, 30) == list(range(30))


def test_windows_in_the_middle_equal_the_whole(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=59)
    late = make_video(tmp_path / "l.mp4", num_frames=59, video_delay=3)
    for video in (path, late):
        whole = frames_of(video, 30)
        assert frames_of(video, 30, start=1.2) == whole[36:]
        assert frames_of(video, 30, start=0.5, end=1.5) == whole[15:45]


def test_a_given_end_gives_exactly_that_many_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=28)
    assert frames_of(path, 30, end=1.0) == [*range(28), 27, 27]


def test_one_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "one.mp4", num_frames=1)
    assert media.probe(path).duration_seconds == pytest.approx(1 / 30, abs=1e-3)
    assert frames_of(path, 30) == [0]
    out = tmp_path / "out.mp4"
    media.mux(path, tone(1), RATE, out)
    assert media.probe(out).duration_seconds == pytest.approx(1 / 30, abs=1e-3)


def test_odd_sizes_and_other_codecs(tmp_path: Path) -> None:
    path = make_video(tmp_path / "odd.avi", num_frames=10, size=(63, 47), codec="mjpeg")
    video = media.probe(path).video
    assert video is not None
    assert (video.width, video.height) == (63, 47)
    assert not media.uses_decord(path)
    assert next(media.iterate_frames(path, 30)).shape == (47, 63, 3)
    assert next(media.iterate_frames(path, 30, height=20)).shape == (20, 26, 3)
    out = tmp_path / "out.mp4"  # encoded again: mp4 players do not know this codec
    media.mux(path, tone(1), RATE, out)
    written = media.probe(out)
    assert written.video is not None
    assert (written.video.width, written.video.height) == (62, 46)
    assert written.duration_seconds == pytest.approx(10 / 30, abs=1 / 30)
    assert frames_of(out, 30) == list(range(10))


def test_raw_streams_without_time_stamps(tmp_path: Path) -> None:
    path = make_video(tmp_path / "raw.h264", num_frames=20, fps=25)
    assert media.probe(path).duration_seconds == pytest.approx(0.8, abs=0.05)
    assert frames_of(path, 25)[:20] == list(range(20))
    out = tmp_path / "out.mp4"
    media.mux(path, tone(1), RATE, out)
    assert media.probe(out).duration_seconds == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("marked", [0, 1])
def test_the_default_of_several_streams_is_shown(tmp_path: Path, marked: int) -> None:
    path = tmp_path / "two.mp4"
    sizes = [(32, 32), (64, 48)]
    with av.open(str(path), "w") as out:
        streams: list[Any] = [out.add_stream("libx264", rate=30) for _ in sizes]
        for stream, size in zip(streams, sizes, strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        streams[marked].disposition = av.stream.Disposition.default
        for stream, size in zip(streams, sizes, strict=True):
            for index in range(30):
                frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    width, height = sizes[marked]
    video = media.probe(path).video
    assert video is not None
    assert (video.width, video.height) == (width, height)
    assert not media.uses_decord(path)
    frames = list(media.iterate_frames(path, 30))
    assert frames[0].shape == (height, width, 3)
    assert [index_of(pixels) for pixels in frames] == list(range(30))


def test_damage_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=59)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    middle = start + length // 2
    data[middle : middle + length // 10] = bytes(length // 10)
    path.write_bytes(data)
    assert len(frames_of(path, 30)) == 59


# Sound


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (48000, 2)])
def test_sound_is_mixed_and_resampled(tmp_path: Path, rate: int, channels: int) -> None:
    one = tone(1.0, rate)
    audio = one if channels == 1 else np.stack([one * 1.5, one * 0.5])
    path = make_video(tmp_path / "s.mp4", audio=audio, audio_rate=rate)
    heard = media.decode_audio(path)
    assert heard.dtype == np.float32
    assert len(heard) == pytest.approx(RATE, abs=2)
    middle = slice(3000, -3000)
    want = tone(1.0)[: len(heard)]
    # The mean of the channels, at the same level and the same place.
    assert np.corrcoef(heard[middle], want[middle])[0, 1] > 0.99
    assert heard[middle].std() == pytest.approx(want[middle].std(), rel=0.02)


@pytest.mark.parametrize("align", [True, False])
def test_sound_before_the_first_frame_is_dropped(tmp_path: Path, align: bool) -> None:
    sound = np.zeros(72000, np.float32)
    sound[24000:] = tone(1.0, 48000)
    path = make_video(tmp_path / "s.mp4", audio=sound, video_delay=6)
    heard = media.decode_audio(path, align_to_video=align)
    onset = int(np.argmax(np.abs(heard) > 0.1))
    assert onset / RATE == pytest.approx(0.3 if align else 0.5, abs=0.01)


def test_a_silent_video_has_no_sound_to_decode(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    assert media.probe(path).audio is None
    with pytest.raises(MediaError, match=r"must have an audio stream: got none; give") as caught:
        media.decode_audio(path)
    assert caught.value.reason == "no_audio_stream"


def test_wav_keeps_its_samples_whole_or_in_pieces(tmp_path: Path) -> None:
    audio = tone(0.5)
    media.write_wav(tmp_path / "a.wav", audio, RATE)
    media.write_wav(tmp_path / "b.wav", iter(np.array_split(audio, 7)), RATE)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    with wave.open(str(tmp_path / "a.wav")) as opened:
        assert (opened.getframerate(), opened.getnchannels()) == (RATE, 1)
        assert opened.getnframes() == len(audio)
    heard = media.decode_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(heard, audio, atol=1e-4)
    assert media.probe(tmp_path / "a.wav").duration_seconds == pytest.approx(0.5, abs=1e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.wav"]


def test_wav_needs_a_known_suffix(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"suffix must name a sound format: got '.xyz'; use .wav"):
        media.write_wav(tmp_path / "a.xyz", tone(0.1), RATE)


# Clips


def test_clips_are_deterministic_and_come_back() -> None:
    frames = [picture(index, (62, 46)) for index in range(12)]
    data = media.encode_clip(iter(frames), 30, crf=10)
    assert data == media.encode_clip(iter(frames), 30, crf=10)
    back = list(media.iterate_clip(data))
    assert len(back) == 12
    for first, second in zip(frames, back, strict=True):
        assert np.abs(first.astype(int) - second).mean() < 4
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 30)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert not container.streams.audio
        assert "creation_time" not in container.metadata
        assert "encoder" not in container.metadata


def test_clips_of_odd_size_become_even() -> None:
    data = media.encode_clip([picture(0, (63, 47))], 30)
    assert next(media.iterate_clip(data)).shape == (46, 62, 3)


def test_clips_need_frames_of_one_size() -> None:
    with pytest.raises(MediaError, match="at least one frame: got none"):
        media.encode_clip([], 30)
    with pytest.raises(MediaError, match="must have one size"):
        media.encode_clip([picture(0), picture(0, (32, 32))], 30)
    with pytest.raises(MediaError, match="must be a whole mp4"):
        list(media.iterate_clip(b"no clip"))


# Muxing


def pieces(audio: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.array_split(audio, 9)


Maker = Callable[[Path], Path]
KINDS: dict[str, Maker] = {
    "plain": lambda folder: make_video(folder / "in.mp4", num_frames=45),
    "with sound": lambda folder: make_video(
        folder / "in.mp4", audio=tone(1, 8000), audio_rate=8000
    ),
    "rotated": lambda folder: make_video(folder / "in.mp4", rotation=90),
    "late": lambda folder: make_video(folder / "in.mp4", audio=tone(1, 48000), video_delay=5),
    "edit list": lambda folder: make_video(folder / "in.mp4", shift=13),
    "240 fps": lambda folder: make_video(folder / "in.mp4", num_frames=100, fps=240),
    "variable": lambda folder: make_video(
        folder / "in.mp4", 6, stamps=[0, 100, 150, 700, 710, 1000], time_base=Fraction(1, 1000)
    ),
    "matroska": lambda folder: make_video(folder / "in.mkv"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mux_lasts_as_long_as_the_video(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path)
    before = media.probe(path)
    out = tmp_path / "out.mp4"
    sound = tone(before.duration_seconds + 1)
    duration = media.mux(path, pieces(sound), RATE, out)
    after = media.probe(out)
    assert before.video is not None
    assert after.video is not None
    assert after.audio is not None
    assert duration == after.duration_seconds
    assert abs(duration - before.duration_seconds) <= 1 / before.video.fps
    assert after.video.num_frames == before.video.num_frames
    assert (after.video.rotation, after.video.start) == (before.video.rotation, 0.0)
    assert after.audio.start == pytest.approx(0, abs=1e-3)
    assert frames_of(out, 30) == frames_of(path, 30)
    heard = media.decode_audio(out, sample_rate_hz=RATE)
    assert len(heard) == round(before.duration_seconds * RATE)
    assert np.corrcoef(heard, sound[: len(heard)])[0, 1] > 0.98
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({path.name, "out.mp4"})


def test_mux_copies_the_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "in.mp4")
    media.mux(path, tone(1), RATE, tmp_path / "out.mp4")
    contents = []
    for name in ("in.mp4", "out.mp4"):
        with av.open(str(tmp_path / name)) as container:
            contents.append([bytes(p) for p in container.demux(video=0) if p.size])
    assert contents[0] == contents[1]


def test_sound_a_little_short_is_filled_and_far_too_short_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "in.mp4")
    media.mux(path, tone(0.9), RATE, tmp_path / "out.mp4")
    heard = media.decode_audio(tmp_path / "out.mp4")
    assert len(heard) == RATE
    assert np.abs(heard[int(0.95 * RATE) :]).max() < 0.01
    kept = (tmp_path / "out.mp4").read_bytes()
    with pytest.raises(MediaError, match=r"as long as the video, 1.000 s: got 0.500 s; generate"):
        media.mux(path, tone(0.5), RATE, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == kept
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("out", "rate", "message"),
    [
        ("out.xyz", RATE, r"suffix must be one of .mp4, .m4v, .mov: got '.xyz'; rename"),
        ("in.mp4", RATE, "must differ from the video: got the same file; choose another"),
        ("out.mp4", 22051, "one that AAC knows: got 22051 Hz; resample"),
    ],
)
def test_mux_names_wrong_arguments(tmp_path: Path, out: str, rate: int, message: str) -> None:
    path = make_video(tmp_path / "in.mp4", num_frames=5)
    kept = path.read_bytes()
    with pytest.raises(MediaError, match=message):
        media.mux(path, tone(1), rate, tmp_path / out)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("writer", ["mux", "wav"])
def test_a_full_disk_is_one_error_and_leaves_no_file(tmp_path: Path, writer: str) -> None:
    path = make_video(tmp_path / "in.mp4", num_frames=59)
    out = tmp_path / ("out.mp4" if writer == "mux" else "out.wav")
    out.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # stands in for a full disk
    noise = np.random.default_rng(0).uniform(-1, 1, 2 * RATE).astype("f4")
    write = {
        "mux": lambda: media.mux(path, noise, RATE, out),
        "wav": lambda: media.write_wav(out, noise, RATE),
    }[writer]
    try:
        with pytest.raises(MediaError, match=r"out\.\w+: could not be written: .*free space"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 2


# Bad files


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def faststart(path: Path, num_frames: int = 150) -> Path:
    """A video whose header comes first, so that a cut leaves it readable."""
    make_video(path.with_suffix(".tmp.mp4"), num_frames=num_frames)
    media.mux(path.with_suffix(".tmp.mp4"), tone(num_frames / 30), RATE, path)
    path.with_suffix(".tmp.mp4").unlink()
    return path


def sound_only(path: Path) -> Path:
    media.write_wav(path.with_suffix(".wav"), tone(1), RATE)
    path.with_suffix(".wav").rename(path)
    return path


def touch(path: Path, data: bytes = b"") -> Path:
    path.write_bytes(data)
    return path


BAD: dict[str, tuple[Maker, str, str]] = {
    "missing": (lambda p: p, "missing_file", "readable file: no such file; check the path"),
    "folder": (lambda p: p.parent, "missing_file", "must be a file: got a folder or a device"),
    "empty": (touch, "empty_file", "must not be empty: got 0 bytes; copy or download it again"),
    "text": (lambda p: touch(p, b"not a video" * 99), "unreadable", "must be a whole media file"),
    "header cut off": (
        lambda p: cut(make_video(p), 0.5),
        "unreadable",
        "must be a whole media file: .*truncated.*copy it again",
    ),
    "cut in the middle": (
        lambda p: cut(faststart(p), 0.5),
        "truncated",
        r"truncated: the header promises 5.00 s but only [12].\d\d s can be read; copy",
    ),
    "no frames": (
        lambda p: make_video(p, num_frames=0, audio=tone(1, 48000)),
        "no_frames",
        "at least one decodable video frame: got 0|must have a video stream|whole media file",
    ),
    "sound only": (sound_only, "no_video_stream", "must have a video stream: got sound only"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_videos_are_one_line(tmp_path: Path, kind: str) -> None:
    make, reason, message = BAD[kind]
    path = make(tmp_path / "bad.mp4")
    for use in (
        lambda: list(media.iterate_frames(path, 30)),
        lambda: media.mux(path, tone(1), RATE, tmp_path / "out.mp4"),
    ):
        with pytest.raises(MediaError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        if kind != "no frames":  # how a container says this differs
            assert caught.value.reason == reason
    assert not (tmp_path / "out.mp4").exists()


def test_frames_that_cannot_be_decoded_are_no_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=5)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="at least one decodable video frame: got 0") as caught:
        media.probe(path)
    assert caught.value.reason == "no_frames"


def test_a_tail_that_cannot_be_decoded_is_truncation(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=59)
    data = bytearray(path.read_bytes())
    end = data.index(b"moov") - 4
    start = data.index(b"mdat") + 4
    data[(start + end) // 2 : end] = bytes(end - (start + end) // 2)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"truncated: .*promises frames up to 1.93 s but only"):
        list(media.iterate_frames(path, 30))


def test_a_few_missing_frames_at_the_end_are_no_truncation(tmp_path: Path) -> None:
    whole = faststart(tmp_path / "a.mp4")
    size = whole.stat().st_size
    path = cut(whole, 1 - 200 / size)
    assert media.probe(path).duration_seconds > 4.5
    assert len(frames_of(path, 30)) >= 135


@pytest.mark.parametrize("start", [-0.1, 1.0, 9.0])
def test_start_must_lie_inside(tmp_path: Path, start: float) -> None:
    path = make_video(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=rf"start must lie in the video's 1.000 s: got {start}"):
        list(media.iterate_frames(path, 30, start=start))


def test_errors_survive_the_way_between_processes() -> None:
    import copy

    error = copy.copy(MediaError("a: b; c", "truncated"))
    assert (str(error), error.reason) == ("a: b; c", "truncated")


def test_long_videos_are_read_a_frame_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "in.mp4", num_frames=59)
    assert media.uses_decord(path)
    assert media.uses_decord(path, height=24)
    # decord decodes ahead without limit, so it must not see what it could not hold.
    monkeypatch.setattr(media, "_DECORD_BYTES", 59 * 64 * 48 * 3 // 2)
    assert not media.uses_decord(path)
    assert media.uses_decord(path, height=24)
    decoded = []
    render = media._Renderer.__call__
    monkeypatch.setattr(
        media._Renderer, "__call__", lambda self, frame: decoded.append(0) or render(self, frame)
    )
    frames = media.iterate_frames(path, 30)
    for index, pixels in enumerate(frames):
        assert index_of(pixels) == index
        assert len(decoded) == index + 1  # nothing is gathered ahead of the reader


# Real files


@pytest.mark.skipif("CDCD_REAL_DATA" not in os.environ, reason="CDCD_REAL_DATA is not set")
def test_every_real_clip(tmp_path: Path) -> None:
    root = Path(os.environ["CDCD_REAL_DATA"])
    paths = sorted([*(root / "clips").glob("*.mp4"), *(root / "video").glob("*.mp4")])
    assert paths
    for path in paths:
        info = media.probe(path)
        assert info.video is not None
        num = sum(1 for _ in media.iterate_frames(path, 10, height=48, num_threads=0))
        assert num == int(np.ceil(info.duration_seconds * 10 - 0.01))
        out = tmp_path / "out.mp4"
        duration = media.mux(path, pieces(tone(info.duration_seconds)), RATE, out)
        assert abs(duration - info.duration_seconds) <= 1 / info.video.fps
        assert len(media.decode_audio(out)) == round(info.duration_seconds * RATE)


def test_the_real_files_with_late_pictures_lose_the_early_sound() -> None:
    if "CDCD_REAL_DATA" not in os.environ:
        pytest.skip("CDCD_REAL_DATA is not set")
    path = Path(os.environ["CDCD_REAL_DATA"]) / "clips/cdcd_motivation_gt.mp4"
    aligned = media.decode_audio(path)
    whole = media.decode_audio(path, align_to_video=False)
    dropped = round(0.0454 * RATE)
    assert len(whole) - len(aligned) == dropped
    np.testing.assert_array_equal(aligned, whole[dropped:])


def test_an_overlong_packet_in_the_middle_adds_no_time(tmp_path: Path) -> None:
    """The video ends with the frame that is shown last, whatever earlier packets claim."""
    plain = make_video(tmp_path / "plain.mp4", 30, 30)
    odd = tmp_path / "odd.mkv"
    with av.open(str(plain)) as source, av.open(str(odd), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [p for p in source.demux(source.streams.video[0]) if p.dts is not None]
        newest = max(packet.pts for packet in packets)
        for packet in packets:
            if packet.pts != newest:
                packet.duration *= 9
            packet.stream = stream
            out.mux(packet)
    assert media.probe(odd).duration_seconds == pytest.approx(1.0, abs=0.002)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    (tmp_path / "o.wav").mkdir()
    with pytest.raises(MediaError, match=r"o.wav: must be a file to write: it is a folder"):
        media.write_wav(tmp_path / "o.wav", np.zeros(100, np.float32), RATE)


# How long, and when


def test_sound_may_last_exactly_as_long_as_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    media.write_wav(path, tone(2.0), RATE)
    assert len(media.decode_audio(path, max_seconds=2.0)) == 2 * RATE
    assert len(media.decode_audio(path, max_seconds=None)) == 2 * RATE
    told = r"a\.wav: the sound must last at most 1\.9 s: it has 2\.0 s or more; cut it"
    with pytest.raises(MediaError, match=told) as caught:
        media.decode_audio(path, max_seconds=1.9)
    assert caught.value.reason == "too_long"
    assert "\n" not in str(caught.value)


def test_too_much_sound_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=90, audio=tone(3.0, 48000))

    def refuse(*_: Any) -> Any:
        raise AssertionError("nothing must be decoded")

    media.probe(path)  # decodes one frame; what it found is kept
    monkeypatch.setattr(media, "_decoded", refuse)
    with pytest.raises(MediaError, match=r"at most 2 s: it has 3\.0 s"):
        media.decode_audio(path, max_seconds=2)


@pytest.mark.parametrize("seconds", [4.0, 0.5])
def test_sound_of_unstated_length_is_refused_on_the_way(tmp_path: Path, seconds: float) -> None:
    # Matroska does not say how long a single stream is.
    path, rate = tmp_path / "a.mkv", 16000
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in np.arange(0, seconds, 0.1):
            samples = np.rint(tone(0.1, rate) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(start * rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].duration is None
    if seconds < 2:
        assert len(media.decode_audio(path, max_seconds=2)) == pytest.approx(
            seconds * RATE, abs=0.1 * RATE
        )
        return
    with pytest.raises(MediaError) as caught:
        media.decode_audio(path, max_seconds=2)
    assert caught.value.reason == "too_long"
    pulled = float(str(caught.value).rpartition(" s or more")[0].rpartition(" ")[2])
    assert 2 <= pulled <= 2.2  # no more was decoded than it took to know


@pytest.mark.parametrize("rate", [8000, 44100])
def test_the_limit_is_in_seconds_of_the_file_not_of_the_result(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    media.write_wav(path, tone(1.0, rate), rate)
    assert len(media.decode_audio(path, max_seconds=1.0)) == pytest.approx(RATE, abs=1)
    with pytest.raises(MediaError, match=r"at most 0\.9 s"):
        media.decode_audio(path, max_seconds=0.9)


def test_a_gap_in_the_sound_counts_before_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gap(tmp_path / "gap.mkv", seconds=3600)

    def refuse(*_: Any) -> Any:
        raise AssertionError("an hour of silence must not be made")

    with monkeypatch.context() as patch:
        patch.setattr(media.np, "zeros", refuse)
        with pytest.raises(MediaError) as caught:
            media.decode_audio(path, max_seconds=60)
    assert caught.value.reason == "too_long"
    short = make_gap(tmp_path / "short.mkv", seconds=2)
    heard = media.decode_audio(short, max_seconds=60)
    assert len(heard) / RATE == pytest.approx(3.0, abs=0.1)
    assert np.abs(heard[int(1.0 * RATE) : int(1.9 * RATE)]).max() < 0.05


def make_gap(path: Path, seconds: int) -> Path:
    """Half a second of sound, nothing until `seconds` later, half a second of it again."""
    rate = 16000
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        for start in (0.0, 0.5 + seconds):
            samples = np.rint(tone(0.5, rate) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(start * rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_silence_before_a_late_sound_counts(tmp_path: Path) -> None:
    # The pictures begin at 0, the sound an hour later: aligning would fill the hour.
    path = tmp_path / "late.mkv"
    plain = make_video(tmp_path / "plain.mp4", audio=tone(1.0, 48000))
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        pairs = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts += round(3600 / packet.time_base)
                packet.dts += round(3600 / packet.time_base)
            packet.stream = pairs[packet.stream.index]
            out.mux(packet)
    with pytest.raises(MediaError) as caught:
        media.decode_audio(path, max_seconds=60)
    assert caught.value.reason == "too_long"
    assert len(media.decode_audio(path, align_to_video=False, max_seconds=60)) < 2 * RATE


@pytest.mark.parametrize("fps", [24, 30, 60, Fraction(30000, 1001), Fraction(670000, 22333)])
def test_frame_times_are_those_of_a_constant_rate(tmp_path: Path, fps: Fraction | int) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=20, fps=fps)
    times = media.frame_times(path)
    assert (times.dtype, times.shape) == (np.float64, (20,))
    np.testing.assert_allclose(times, np.arange(20) / float(fps), atol=1e-4)
    assert times[0] == 0


def test_frame_times_of_a_variable_rate_are_in_order_of_showing(tmp_path: Path) -> None:
    stamps = [0, 100, 150, 700, 710, 1000]
    path = make_video(tmp_path / "v.mp4", 6, stamps=stamps, time_base=Fraction(1, 1000))
    np.testing.assert_allclose(media.frame_times(path), np.array(stamps) / 1000, atol=1e-3)
    # x264 stores frames in another order than they are shown in.
    mixed = tmp_path / "b.mp4"
    with av.open(str(mixed), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"bf": "3", "b-pyramid": "normal", "preset": "medium"}
        for index in range(24):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(mixed)) as container:
        stored = [p.pts for p in container.demux(video=0) if p.size]
    assert stored != sorted(stored)
    np.testing.assert_allclose(media.frame_times(mixed), np.arange(24) / 30, atol=1e-4)


def test_frame_times_start_with_the_first_frame_that_is_shown(tmp_path: Path) -> None:
    late = make_video(tmp_path / "l.mp4", audio=tone(1.5, 48000), video_delay=3)
    np.testing.assert_allclose(media.frame_times(late), np.arange(30) / 30, atol=1e-3)
    cut = make_video(tmp_path / "e.mp4", shift=13)
    np.testing.assert_allclose(media.frame_times(cut), np.arange(17) / 30, atol=1e-3)


def test_frame_times_of_streams_without_stamps_are_evenly_spaced(tmp_path: Path) -> None:
    path = make_video(tmp_path / "raw.h264", num_frames=20, fps=25)
    times = media.frame_times(path)
    np.testing.assert_allclose(np.diff(times), 0.04, atol=3e-3)
    assert len(times) == pytest.approx(20, abs=1)


def test_frame_times_need_a_video(tmp_path: Path) -> None:
    media.write_wav(tmp_path / "a.wav", tone(0.5), RATE)
    with pytest.raises(MediaError, match="must have a video stream: got sound only") as caught:
        media.frame_times(tmp_path / "a.wav")
    assert caught.value.reason == "no_video_stream"
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        media.frame_times(tmp_path / "x.mp4")


@pytest.mark.parametrize("name", ["cdcd_motivation_gt.mp4", "cdcd_tiktok1.mp4"])
def test_frame_times_of_real_clips(real_data: Path, name: str) -> None:
    path = real_data / "clips" / name
    info, times = media.probe(path), media.frame_times(path)
    assert info.video is not None
    assert times[0] == 0
    assert (np.diff(times) > 0).all()
    assert len(times) == info.video.num_frames
    assert times[-1] == pytest.approx(info.duration_seconds - 1 / info.video.fps, abs=0.02)
