"""What a video feature is, and the check that one run never mixes two of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np


class FeatureError(ValueError):
    """Features that cannot be computed or do not belong together; one line."""


class VideoFeature(Protocol):
    """Frames to one vector per time step; deterministic."""

    @property
    def name(self) -> str:
        """Of the extractor."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever equal frames would give other numbers."""
        ...

    @property
    def dim(self) -> int:
        """Numbers per time step."""
        ...

    @property
    def rate_hz(self) -> float:
        """Time steps per second of video."""
        ...

    @property
    def frames_hz(self) -> float:
        """Rate of the frames it expects."""
        ...

    @property
    def frame_height(self) -> int:
        """Shorter side in pixels of the frames it is made for."""
        ...

    def __call__(self, frames: Iterator[np.ndarray]) -> np.ndarray:
        """All time steps of one clip: frames uint8 `[h, w, 3]` RGB to float32 `[s, dim]`."""
        ...

    def stream(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The rows of `__call__` one by one, float32 `[dim]`, in memory that does not grow."""
        ...

    def num_steps(self, num_frames: int) -> int:
        """Time steps s that come out of that many frames."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers: name, version, weights, settings."""
        ...


def check_identity(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Refuse features of another extractor than the one in use.

    Args:
        expected: `identity()` of the extractor in use, or that of a trained model's features.
        found: identity stored with the features at hand.
        where: their place, for the message.

    Raises:
        FeatureError: any fact differs; the message names the facts.
    """
    keys = sorted(set(expected) | set(found))
    differing = [key for key in keys if expected.get(key) != found.get(key)]
    if differing:
        told = ", ".join(
            f"{key} {found.get(key)!r} instead of {expected.get(key)!r}" for key in differing
        )
        raise FeatureError(
            f"{where}: all features of a run must come from one extractor: got {told}; "
            "run featurize and train again, or restore the parameters"
        )


PROVIDED = "provided"
"""Name of features that came with a download in place of its videos."""


def provided_identity(dim: int, rate_hz: float) -> dict[str, Any]:
    """Identity of features that came with a download; how they were computed is not known."""
    return {
        "name": PROVIDED,
        "version": "1",
        "weights_sha256": None,
        "dim": dim,
        "rate_hz": rate_hz,
    }
