"""One vector of 2048 numbers per segment without weights: brightness and change over a grid.

It has the shape of the published features, `[1, 2048]`, and the frame sampling that this project
fixes for them (64 frames spread evenly over the segment, 224 x 224 centre crop, mean over time), so
everything that expects such features can be tried without a download. It knows no motion beyond
change of brightness; `MotionEnergy` serves a model better.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

NUM_SAMPLED = 64
SHORTER_SIDE, CROP, GRID = 256, 224, 32
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def spread(frames: list[np.ndarray], count: int = NUM_SAMPLED) -> list[np.ndarray]:
    """Return `count` frames spread evenly over the given ones, repeated where there are fewer."""
    places = np.floor((np.arange(count) + 0.5) * len(frames) / count).astype(int)
    return [frames[place] for place in places]


class Cells:
    """See the module.

    Args of the constructor:
        frames_hz: rate of the frames.
        window_frames: frames of a segment; windows do not overlap.
        frame_height: shorter side in pixels of the frames it is made for.
    """

    name = "cells"
    version = "1"
    dim = 2 * GRID * GRID

    def __init__(self, frames_hz: float, window_frames: int, frame_height: int) -> None:
        if window_frames < 1:
            raise ValueError(f"window_frames must be at least 1: got {window_frames}; use 60")
        self.frames_hz = float(frames_hz)
        self.window_frames = window_frames
        self.frame_height = frame_height
        self.rate_hz = self.frames_hz / window_frames

    def __call__(self, frames: Iterator[np.ndarray]) -> np.ndarray:
        """Frames uint8 `[h, w, 3]` RGB to float32 `[s, 2048]`, one row per window."""
        rows = list(self.stream(frames))
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def stream(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The rows of `__call__` one by one; one window of reduced frames is held at a time."""
        frames = iter(frames)
        while window := [_reduce(frame) for frame in islice(frames, self.window_frames)]:
            sampled = np.stack(spread(window))
            change = np.abs(np.diff(sampled, axis=0)).mean(axis=0)
            yield np.concatenate([sampled.mean(axis=0).ravel(), change.ravel()])

    def num_steps(self, num_frames: int) -> int:
        """One per window, the last of which may be shorter."""
        return -(-num_frames // self.window_frames)

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": None,
            "dim": self.dim,
            "rate_hz": self.rate_hz,
            "frame_height": self.frame_height,
            "frames_hz": self.frames_hz,
            "window_frames": self.window_frames,
        }


def _reduce(frame: np.ndarray) -> np.ndarray:
    """Grey values in 0 .. 1 of the centre crop, averaged over 7 x 7 cells: float32 `[32, 32]`."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = SHORTER_SIDE / min(height, width)
    size = (max(CROP, round(width * scale)), max(CROP, round(height * scale)))
    scaled = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
    top, left = (scaled.shape[0] - CROP) // 2, (scaled.shape[1] - CROP) // 2
    grey = scaled[top : top + CROP, left : left + CROP].astype(np.float32) @ _LUMA / 255
    side = CROP // GRID
    return grey.reshape(GRID, side, GRID, side).mean(axis=(1, 3))
