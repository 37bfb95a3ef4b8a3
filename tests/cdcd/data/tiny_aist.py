"""A tiny AIST++ download with one sequence per defect that real ones have."""

import atexit
import os
import pickle
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from cdcd.config import Params, parse_params

ROOT = Path(__file__).parents[3]

GOOD_TRAIN = {
    "gBR_sBM_cAll_d04_mBR0_ch01": 6,  # 80 BPM, (N, 24, 3), with video
    "gBR_sBM_cAll_d05_mBR5_ch02": 3,  # 130 BPM, one frame short, protocol 2, no video
    "gPO_sBM_cAll_d10_mPO5_ch01": 3,  # sound from camera c03
    "gPO_sBM_cAll_d11_mPO5_ch02": 3,  # a wav of its own
}
GOOD_VAL = {"gHO_sBM_cAll_d20_mHO5_ch01": 3}  # 135 BPM: the House rule
GOOD_TEST = {"gHO_sBM_cAll_d20_mHO5_ch02": 3}
GOOD = GOOD_TRAIN | GOOD_VAL | GOOD_TEST
BAD = {
    "gBR_sBM_cAll_d06_mBR0_ch03": "ignored_sequence",
    "gBR_sBM_cAll_d06_mBR1_ch01": "too_short",
    "gBR_sBM_cAll_d06_mBR2_ch01": "corrupt_motion",
    "gBR_sBM_cAll_d06_mBR5_ch04": "length_mismatch",  # half of the choreography
    "gHO_sBM_cAll_d19_mHO0_ch01": "nonfinite_motion",
    "gHO_sBM_cAll_d19_mHO1_ch01": "unsafe_pickle",
    "gPO_sBM_cAll_d12_mPO0_ch01": "missing_motion",
    "gPO_sBM_cAll_d12_mPO1_ch01": "missing_audio",
    "gPO_sBM_cAll_d12_mPO3_ch01": "no_audio_stream",
    "gPO_sBM_cAll_d12_mPO4_ch01": "length_mismatch",  # a wav shorter than the motion
    "gPO_sBM_cAll_d12_mPO5_ch09": "unreadable_video",  # cut in the middle
    "gSS_sBM_cAll_d12_mSS5_ch09": "unknown_genre",
    "gBR_sGR_cAll_d04_d05_d06_mBR0_ch01": "unsupported_name",
}
DUPLICATE = "gHO_sBM_cAll_d20_mHO5_ch02"  # in train as well as in test


class Exploit:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def num_frames(name: str) -> int:
    """Nominal length: 16 beats at 60 Hz."""
    number = int(name.split("_")[4][-1])
    bpm = 110 + 5 * number if "_mHO" in name else 80 + 10 * number
    return round(16 * 60 / bpm * 60)


def motion(length: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "smpl_poses": (0.1 * rng.standard_normal((length, 72))).cumsum(0).astype("f4"),
        "smpl_trans": rng.standard_normal((length, 3)).cumsum(0).astype("f4"),
        "smpl_scaling": np.array([93.5], "f4"),
        "smpl_loss": 1.5,
    }


def write_wav(path: Path, seconds: float, frequency: float = 220.0, peak: float = 0.4) -> None:
    import soundfile

    time = np.arange(round(48000 * seconds)) / 48000
    left = peak * np.sin(2 * np.pi * frequency * time) * np.linspace(0.2, 1.0, len(time))
    soundfile.write(path, np.stack([left, 0.9 * left], axis=1), 48000, subtype="PCM_16")


def write_video(path: Path, seconds: float, has_sound: bool) -> None:
    """60000/1001 fps, 64 x 36; grey rises from 20 by 16 a second, with a bar that moves."""
    import av

    rate = Fraction(60000, 1001)
    bar = np.zeros((36, 64, 1))
    bar[:, :8], bar[:, 8:16] = 15, -15
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = 64, 36, "yuv420p"
        video.options = {"preset": "ultrafast"}
        if has_sound:
            sound = container.add_stream("aac", rate=48000, layout="stereo")
            time = np.arange(round(48000 * seconds)) / 48000
            wave = np.tile((0.3 * np.sin(2 * np.pi * 330 * time)).astype("f4"), (2, 1))
            for start in range(0, wave.shape[1], 1024):
                block = np.ascontiguousarray(wave[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 48000, start
                frame.time_base = Fraction(1, 48000)
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
        for index in range(round(seconds * rate)):
            grey = 20 + 16 * float(index / rate) + np.roll(bar, index // 3, axis=1)
            pixels = np.broadcast_to(np.rint(grey).astype("u1"), (36, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))


def build(root: Path) -> Path:
    """Write the download; returns `root` with annotations/, music/ and videos/."""
    motions = root / "annotations" / "motions"
    splits = root / "annotations" / "splits"
    for folder in (motions, splits, root / "music", root / "videos"):
        folder.mkdir(parents=True)
    names = [*GOOD, *BAD]
    for seed, name in enumerate(names):
        if BAD.get(name) in ("missing_motion", "unknown_genre", "unsupported_name"):
            continue
        tree = motion(num_frames(name), seed)
        protocol = 2 if name == "gBR_sBM_cAll_d05_mBR5_ch02" else 4
        if name == "gBR_sBM_cAll_d04_mBR0_ch01":
            tree["smpl_poses"] = tree["smpl_poses"].reshape(-1, 24, 3)
        if name == "gBR_sBM_cAll_d05_mBR5_ch02":
            tree = motion(num_frames(name) - 1, seed)
        if name == "gBR_sBM_cAll_d06_mBR5_ch04":
            tree = motion(num_frames(name) // 2, seed)
        if BAD.get(name) == "too_short":
            tree = motion(100, seed)
        if BAD.get(name) == "nonfinite_motion":
            tree["smpl_trans"][7, 1] = np.nan
        if BAD.get(name) == "unsafe_pickle":
            tree["smpl_loss"] = Exploit()
        data = pickle.dumps(tree, protocol=protocol)
        if BAD.get(name) == "corrupt_motion":
            data = data[: len(data) // 2]
        (motions / f"{name}.pkl").write_bytes(data)

    train = [*GOOD_TRAIN, *BAD, DUPLICATE]
    (splits / "crossmodal_train.txt").write_bytes("\r\n".join(train).encode() + b"\r\n\r\n")
    (splits / "crossmodal_val.txt").write_text("\n".join(GOOD_VAL) + "\n")
    (splits / "crossmodal_test.txt").write_text("\n".join(GOOD_TEST))  # no final newline
    ignored = "gBR_sBM_cAll_d06_mBR0_ch03 \n"  # a trailing blank, as in the published list
    (root / "annotations" / "ignore_list.txt").write_text(ignored)

    music, videos = root / "music", root / "videos"
    write_wav(music / "mBR0.wav", 13.0, 220)
    write_wav(music / "mHO5.wav", 8.0, 330)
    for song in ("mBR1", "mBR2", "mBR5", "mHO0", "mHO1"):
        write_wav(music / f"{song}.wav", 10.0, 440)
    write_wav(music / "mPO4.wav", 5.0)
    write_wav(music / "gPO_sBM_cAll_d11_mPO5_ch02.wav", 443 / 60)
    write_video(videos / "gBR_sBM_c01_d04_mBR0_ch01.mp4", 12.0, has_sound=True)
    write_video(videos / "gPO_sBM_c03_d10_mPO5_ch01.mp4", 443 / 60, has_sound=True)
    write_video(videos / "gPO_sBM_c01_d12_mPO3_ch01.mp4", 8.73, has_sound=False)
    whole = (videos / "gPO_sBM_c03_d10_mPO5_ch01.mp4").read_bytes()
    (videos / "gPO_sBM_c01_d12_mPO5_ch09.mp4").write_bytes(whole[: len(whole) // 2])
    return root


@cache
def shared() -> Path:
    """One download for all tests of a process; they must not write into it."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_aist")
    atexit.register(folder.cleanup)
    return build(Path(folder.name))


def params(root: Path | None, **changes: object) -> Params:
    """params.yaml pointed at a download; `changes` are `section__key=value`."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["ingest"]["num_workers"] = tree["shard"]["num_workers"] = 1
    tree["ingest"]["max_skipped_share"] = 0.9
    tree["shard"]["video_height"] = 36
    tree["shard"]["samples_per_shard"] = 8
    if root is not None:
        tree["ingest"]["aist"] |= {
            "annotations_dir": str(root / "annotations"),
            "videos_dir": str(root / "videos"),
            "music_dir": str(root / "music"),
        }
    for path, value in changes.items():
        *sections, key = path.split("__")
        branch = tree
        for section in sections:
            branch = branch[section]
        branch[key] = value
    return parse_params(tree)
