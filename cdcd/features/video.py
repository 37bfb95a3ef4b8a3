"""Motion energy on a grid: a video feature that needs no weights.

A frame is reduced to a small square raster of grey values, whatever its size and aspect, so every
number lives in coordinates of the frame. Differences are divided by the contrast of the two frames
they come from, which is all the normalisation there is: nothing depends on later frames, so a
stream gives the numbers of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_RASTER = 64  # cells of the raster per side, at least; a multiple of the grid
_LUMA = (0.299 / 255, 0.587 / 255, 0.114 / 255)
_CONTRAST_FLOOR = 0.02  # of full scale: the noise of a black picture is not motion
_MOTION_GAIN = 20.0  # brings everyday motion to about 1 before the logarithm
_EDGE_GAIN = 5.0
_FLOW_NOISE = 1e-2  # squared gradient below which a cell says nothing of its direction
_NUM_GLOBAL = 12
_MAX_HELD = 2  # rows that repeats of one frame may repeat; a longer standstill is one


class MotionEnergy:
    """Where and how fast things move, one vector per frame.

    A vector holds, in this order, with g the grid and c = max(1, g // 2):

    * `g * g` motion: log of the mean absolute difference to the frame before, per cell;
    * `2 * c * c` flow: direction and rough speed right and down per coarse cell, in (-1, 1);
    * `g * g` appearance: log of the mean edge strength per cell, which shows posture;
    * 12 of the whole frame: log motion and its change; centre (x, y) and spread (x, y) of the
      motion; centre, spread and velocity (x, y) of the edges. Positions lie in [-1, 1].

    Row 0 has no frame before it and repeats the motion of row 1; a single frame has no motion.
    A repeated frame repeats its row: video of 10 frames per second and more, sampled at a higher
    rate, does not seem to stop between its frames.
    """

    name = "motion_energy"
    version = "1"

    def __init__(self, grid: int = 8, rate_hz: float = 30.0, frame_height: int = 96) -> None:
        """Args: grid: cells per side; rate_hz: of frames and vectors; frame_height: in pixels."""
        if not 1 <= grid <= 32:
            raise ValueError(f"grid must lie in 1 .. 32: got {grid}; use 8")
        if rate_hz <= 0:
            raise ValueError(f"rate_hz must be positive: got {rate_hz}; use shard.video_fps")
        self.grid = grid
        self.coarse = max(1, grid // 2)
        self.raster = grid * -(-_RASTER // grid)
        self.rate_hz = float(rate_hz)
        self.frames_hz = float(rate_hz)
        self.frame_height = frame_height
        self.dim = 2 * grid**2 + 2 * self.coarse**2 + _NUM_GLOBAL
        self._axis = (np.arange(self.raster, dtype=np.float32) + 0.5) * (2 / self.raster) - 1

    def __call__(self, frames: Iterator[np.ndarray]) -> np.ndarray:
        """Frames uint8 `[h, w, 3]` RGB at `frames_hz` to float32 `[s, dim]`, s of them."""
        rows = list(self.stream(frames))
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def stream(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The rows of `__call__` one by one, at most one frame behind the frames."""
        before: _Raster | None = None
        row: np.ndarray | None = None
        energy: float | None = None
        num_held = 0
        for pixels in frames:
            now = self._reduce(pixels)
            is_repeat = before is not None and np.array_equal(now.gray, before.gray)
            num_held = num_held + 1 if is_repeat else 0
            if is_repeat and row is not None and num_held <= _MAX_HELD:
                yield row
            elif before is not None:
                motion, level = self._motion(before, now)
                change = 0.0 if energy is None else level - energy
                energy = level
                if row is None:  # the first frame has waited for this
                    yield self._row(motion, 0.0, before, None)
                row = self._row(motion, change, now, before)
                yield row
            before = now
        if row is None and before is not None:
            still, _ = self._motion(before, before)
            yield self._row(still, 0.0, before, None)

    def num_steps(self, num_frames: int) -> int:
        """One per frame."""
        return num_frames

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": None,
            "dim": self.dim,
            "rate_hz": self.rate_hz,
            "frame_height": self.frame_height,
            "grid": self.grid,
        }

    def _reduce(self, pixels: np.ndarray) -> _Raster:
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"a frame must be [h, w, 3]: got {list(pixels.shape)}; pass RGB")
        red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
        gray = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]
        return _Raster(_area(_area(gray, self.raster).T, self.raster).T, self)

    def _motion(self, before: _Raster, now: _Raster) -> tuple[_Motion, float]:
        contrast = np.sqrt((before.variance + now.variance) / 2) + _CONTRAST_FLOOR
        change = now.gray - before.gray
        change = (change - change.mean()) / contrast  # a lamp switched on is not motion
        size = np.abs(change)
        grad_x = (before.grad_x + now.grad_x) / (2 * contrast)
        grad_y = (before.grad_y + now.grad_y) / (2 * contrast)
        strength = _cells(grad_x**2 + grad_y**2, self.coarse) + _FLOW_NOISE
        flow = [-_cells(change * grad, self.coarse) / strength for grad in (grad_x, grad_y)]
        level = float(np.log1p(_MOTION_GAIN * size.mean()))
        cells = np.log1p(_MOTION_GAIN * _cells(size, self.grid))
        # Squared, so that the centre is that of the mover and not of the noise around it.
        where = self.moments(size**2, 1e-2)
        return _Motion(cells, np.tanh(np.stack(flow)), level, where), level

    def moments(self, weight: np.ndarray, floor: float) -> np.ndarray:
        """Centre and spread `[cx, cy, sx, sy]`; towards 0 where there is less than `floor`."""
        across, down = weight.mean(axis=0), weight.mean(axis=1)
        total = float(weight.mean()) + floor
        centre = np.array([across @ self._axis, down @ self._axis]) / (self.raster * total)
        second = np.array([across @ self._axis**2, down @ self._axis**2]) / (self.raster * total)
        return np.concatenate([centre, np.sqrt(np.maximum(second - centre**2, 0))])

    def _row(
        self, motion: _Motion, change: float, now: _Raster, before: _Raster | None
    ) -> np.ndarray:
        drift = np.zeros(2) if before is None else now.place[:2] - before.place[:2]
        return np.concatenate(
            [
                motion.cells.ravel(),
                motion.flow.ravel(),
                now.edges.ravel(),
                [motion.level, change],
                motion.where,
                now.place,
                drift * self.rate_hz,
            ]
        ).astype(np.float32)


class _Motion:
    """What two neighbouring frames say."""

    def __init__(
        self, cells: np.ndarray, flow: np.ndarray, level: float, where: np.ndarray
    ) -> None:
        self.cells, self.flow, self.level, self.where = cells, flow, level, where


class _Raster:
    """What one frame says: grey values `[r, r]` in 0 .. 1, gradients, edges per cell."""

    def __init__(self, gray: np.ndarray, owner: MotionEnergy) -> None:
        self.gray = gray
        self.variance = float(gray.var())
        self.grad_y, self.grad_x = np.gradient(gray)
        contrast = np.sqrt(self.variance) + _CONTRAST_FLOOR
        edges = np.hypot(self.grad_x, self.grad_y) / contrast
        self.edges = np.log1p(_EDGE_GAIN * _cells(edges, owner.grid))
        self.place = owner.moments(edges**2, 1e-2)


def _area(values: np.ndarray, cells: int) -> np.ndarray:
    """Average the first axis of `[n, ...]` into `cells` equal lengths, parts of pixels included."""
    # Differences of a running sum: one pass, and no matrix product, whose thread pool would fight
    # with the decoder's over the cores.
    total = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=total[1:])
    edges = np.linspace(0, len(values), cells + 1)
    below = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - below)[:, None]
    sums = total[below] * (1 - part) + total[below + 1] * part
    return np.diff(sums, axis=0) * (cells / len(values))


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    side = values.shape[0] // count
    whole = values[: side * count, : side * count]
    return whole.reshape(count, side, count, side).mean(axis=(1, 3))
