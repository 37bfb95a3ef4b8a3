"""Dance videos of the stand-in data: a drawn skeleton with its music, as H.264 and AAC in mp4."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded.dance import MOTION_RATE_HZ
from cdcd.data.embedded.music import SAMPLE_RATE_HZ
from cdcd.data.embedded.skeleton import (
    FLOOR_CM,
    JOINTS,
    PARENTS,
    Camera,
    Skeleton,
    coco_keypoints,
)

Array = NDArray[np.float64]
VIDEO_RATE = Fraction(60000, 1001)

_BACKGROUND, _FLOOR, _LINE = (38, 40, 48), (64, 62, 66), (110, 108, 112)
_TRUNK, _LEFT, _RIGHT, _SKIN = (214, 214, 220), (240, 140, 60), (80, 170, 240), (238, 206, 180)
_SUPERSAMPLE = 2


def frame_size(height: int) -> tuple[int, int]:
    """Return the even width and the height of a 16:9 picture."""
    return 2 * round(height * 8 / 9), height


def num_video_frames(num_motion_frames: int) -> int:
    """Return how many pictures last as long as a motion of that many frames at 60 Hz."""
    return round(num_motion_frames * VIDEO_RATE / MOTION_RATE_HZ)


def _colour(joint: int) -> tuple[int, int, int]:
    name = JOINTS[joint]
    if name[0] in "lr" and name != "root":
        return _LEFT if name[0] == "l" else _RIGHT
    return _TRUNK


def _at_video_times(values: Array, count: int) -> Array:
    # Pictures come slightly slower than poses, so every picture lies between two poses.
    position = np.minimum(np.arange(count) * (MOTION_RATE_HZ / float(VIDEO_RATE)), len(values) - 1)
    before = np.floor(position).astype(np.int64)
    after = np.minimum(before + 1, len(values) - 1)
    weight = (position - before).reshape(-1, *[1] * (values.ndim - 1))
    return np.asarray((1 - weight) * values[before] + weight * values[after])


def draw_frames(skeleton: Skeleton, camera: Camera, height: int) -> Iterator[NDArray[np.uint8]]:
    """Draw the dancer at the times of the video's frames, as uint8 `[height, width, 3]`."""
    from PIL import Image, ImageDraw

    width, _ = frame_size(height)
    size = (width * _SUPERSAMPLE, height * _SUPERSAMPLE)
    scale = size[1] / camera.size[1]
    shift = (size[0] - camera.size[0] * scale) / 2
    count = num_video_frames(len(skeleton.joints))
    joints = _at_video_times(skeleton.joints, count)
    nose = _at_video_times(coco_keypoints(skeleton)[:, 0], count)
    pixels = camera.project(joints) * scale + (shift, 0)
    face = camera.project(nose) * scale + (shift, 0)
    head = JOINTS.index("head")
    centre = 0.5 * (pixels[:, head] + face) - (0, 0.03 * size[1])
    # A body unit as it appears where the dancer stands.
    distance = float(np.linalg.norm(camera.translation))
    unit = scale * camera.matrix[0, 0] * skeleton.scaling / distance
    thick, radius = 0.085 * unit, 0.115 * unit

    background = Image.new("RGB", size, _BACKGROUND)
    pen = ImageDraw.Draw(background)
    edge = camera.project(np.array([0.0, FLOOR_CM, -150.0]))[1] * scale
    pen.rectangle((0, edge, *size), fill=_FLOOR)
    pen.line((0, edge, size[0], edge), fill=_LINE, width=_SUPERSAMPLE)
    # Far limbs first would need sorting per frame; a fixed order with the arms last reads well.
    order = [j for j in range(1, 24) if JOINTS[j] not in ("head", "linshoulder", "rinshoulder")]
    bones = [(j, PARENTS[j], _colour(j)) for j in order]
    for i in range(count):
        image = background.copy()
        pen = ImageDraw.Draw(image)
        points = [(float(x), float(y)) for x, y in pixels[i]]
        for joint, parent, colour in bones:
            width_here = thick * (1.35 if colour == _TRUNK else 1.0)
            _limb(pen, points[parent], points[joint], colour, width_here)
        x, y = centre[i]
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_SKIN)
        yield np.asarray(image.reduce(_SUPERSAMPLE))


def _limb(
    pen: object,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: tuple[int, int, int],
    width: float,
) -> None:
    from PIL import ImageDraw

    assert isinstance(pen, ImageDraw.ImageDraw)
    pen.line((start, end), fill=colour, width=max(round(width), 1))
    r = width / 2
    pen.ellipse((end[0] - r, end[1] - r, end[0] + r, end[1] + r), fill=colour)


def write_video(
    path: Path, frames: Iterator[NDArray[np.uint8]], music: NDArray[np.int16], height: int
) -> None:
    """Encode pictures at 60000/1001 per second with music of the same length.

    Args:
        path: the mp4 file to write.
        frames: uint8 `[height, width, 3]`.
        music: int16 `[n, 2]` at 48 kHz; cut to the length of the pictures.
        height: of the pictures.
    """
    import av

    width, _ = frame_size(height)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    with av.open(str(path), "w", format="mp4", container_options=options) as container:
        video = container.add_stream("libx264", rate=VIDEO_RATE)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        # x264's macroblock tree reads memory that it has not written: equal pictures then give
        # different bytes at some sizes.
        video.options = {"preset": "veryfast", "crf": "20", "threads": "1", "mbtree": "0"}
        video.codec_context.thread_count = 1
        video.codec_context.flags |= av.codec.context.Flags.bitexact
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="stereo")
        audio.bit_rate = 128000
        audio.options = {"aac_coder": "fast"}
        audio.codec_context.flags |= av.codec.context.Flags.bitexact
        count = 0
        for count, picture in enumerate(frames, start=1):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = count - 1, 1 / VIDEO_RATE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        total = round(count / VIDEO_RATE * SAMPLE_RATE_HZ)
        for first in range(0, total, 1024):
            block = music[first : min(first + 1024, total)].reshape(1, -1)
            sound = av.AudioFrame.from_ndarray(block, format="s16", layout="stereo")
            sound.sample_rate = SAMPLE_RATE_HZ
            sound.pts, sound.time_base = first, Fraction(1, SAMPLE_RATE_HZ)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
