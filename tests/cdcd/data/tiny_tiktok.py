"""A tiny TikTok download: three songs, two videos each, one per peculiarity of real ones.

The nose of whoever dances is at x = 10 + 10 t and y = 12, so a key point tells its time.
"""

import atexit
import json
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 4.2
NTSC, ODD = Fraction(30000, 1001), Fraction(670000, 22333)
RATES = {
    "000001_4_10": Fraction(24),
    "000001_4_11": NTSC,  # two people
    "000002_5_12": Fraction(30),  # an empty `people`; 44,100 Hz mono wav
    "000002_5_13": Fraction(30),  # 54 numbers
    "000001_9_14": Fraction(30),  # 22,050 Hz stereo wav
    "000003_9_15": ODD,
}
TEST = ("000001_9_14", "000003_9_15")
TWO_PEOPLE, EMPTY, OLD = "000001_4_11", "000002_5_12", "000002_5_13"
EMPTY_FRAME = 40
CLICK_SECONDS = 2.5


def nose_x(time: Any) -> Any:
    return 10 + 10 * time


def pose(time: float, confidence: float = 0.8, shift: float = 0.0) -> list[float]:
    points = np.zeros((25, 3))
    points[:, 0] = nose_x(time) + shift + np.arange(25) * 0.25
    points[:, 1] = 12 + np.arange(25)
    points[:, 2] = confidence
    return [round(float(number), 6) for number in points.ravel()]


def tree(*poses: list[float]) -> dict[str, Any]:
    people = [{"person_id": [-1], "pose_keypoints_2d": p, "face_keypoints_2d": []} for p in poses]
    return {"version": 1.3, "people": people}


def write_poses(folder: Path, trees: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for i, value in enumerate(trees):
        path = folder / f"{folder.name}_{i:012d}_keypoints.json"
        path.write_text(json.dumps(value))


def sound(seconds: float, rate_hz: int) -> np.ndarray:
    """Quiet, with a click of 20 ms at `CLICK_SECONDS`."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    click = (time >= CLICK_SECONDS) & (time < CLICK_SECONDS + 0.02)
    return ((0.02 + 0.4 * click) * np.sin(2 * np.pi * 880 * time)).astype("f4")


def write_video(path: Path, rate: Fraction, seconds: float, *, has_sound: bool = True) -> int:
    """36 x 64; returns the number of frames."""
    from cdcd import media

    count = round(seconds * rate)
    frames = (np.full((64, 36, 3), 40 + i % 100, "u1") for i in range(count))
    data = media.encode_clip(frames, rate, preset="ultrafast")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not has_sound:
        path.write_bytes(data)
        return count
    silent = path.with_name(f"silent {path.stem}.mp4")
    silent.write_bytes(data)
    media.mux(silent, sound(seconds + 0.1, 44100), 44100, path)
    silent.unlink()
    return count


def write_wav(path: Path, seconds: float, rate_hz: int, channels: int) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    mono = sound(seconds, rate_hz)
    soundfile.write(path, np.stack([mono] * channels, axis=1), rate_hz, subtype="PCM_16")


def add(root: Path, stem: str, rate: Fraction, seconds: float = SECONDS, **video: bool) -> int:
    """Write one video with its key points; returns the number of frames."""
    count = write_video(root / "videos" / f"{stem}.mp4", rate, seconds, **video)
    write_poses(root / "openpose" / stem, [tree(pose(float(i / rate))) for i in range(count)])
    return count


def files(root: Path, stem: str) -> list[Path]:
    return sorted((root / "openpose" / stem).iterdir())


def edit(root: Path, stem: str, frame: int, value: dict[str, Any] | str) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    files(root, stem)[frame].write_text(text)


def write_lists(root: Path) -> None:
    train = [stem for stem in RATES if stem not in TEST]
    lines = [f"/home/someone/videos/{stem}.mp4" for stem in train]
    (root / "train.txt").write_bytes("\r\n".join(lines).encode() + b"\r\n\r\n")
    (root / "test.txt").write_text("\n".join(f"{stem} " for stem in TEST))  # no final newline


def build(root: Path) -> Path:
    for stem, rate in RATES.items():
        count = add(root, stem, rate)
        times = [float(i / rate) for i in range(count)]
        if stem == TWO_PEOPLE:
            for i, time in enumerate(times):
                others = [pose(time, 0.3, shift=5), pose(time), pose(time, 0.5, shift=-5)]
                edit(root, stem, i, tree(*others))
        if stem == EMPTY:
            edit(root, stem, EMPTY_FRAME, tree())
        if stem == OLD:
            edit(root, stem, 0, tree(pose(0.0)[:54]))
    write_wav(root / "audio" / f"{EMPTY}.wav", SECONDS, 44100, 1)
    write_wav(root / "audio" / "000001_9_14.wav", SECONDS, 22050, 2)
    write_lists(root)
    return root


@cache
def shared() -> Path:
    """One download for all tests of a process; they must not write into it."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_tiktok")
    atexit.register(folder.cleanup)
    return build(Path(folder.name))
