"""What one prepared example of dance and music is: names, shapes, rates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SAMPLE_RATE_HZ = 22050
MOTION_RATE_HZ = 60
MOTION_DIM = 219

GENRES = ("BR", "PO", "LO", "MH", "LH", "HO", "WA", "KR", "JS", "JB")
"""Genre codes; the index of a code is the integer label of the published genre files."""

GENRE_NAMES = {
    "BR": "Break",
    "PO": "Pop",
    "LO": "Lock",
    "MH": "Middle Hip-hop",
    "LH": "LA-style Hip-hop",
    "HO": "House",
    "WA": "Waack",
    "KR": "Krump",
    "JS": "Street Jazz",
    "JB": "Ballet Jazz",
}

_KEY = re.compile(r"[A-Za-z0-9_~-]+")


@dataclass(frozen=True, eq=False)
class Sample:
    """One segment of a dance with its music.

    Attributes:
        key: stable name, without dots and slashes (they would split a tar member's name).
        split: `train`, `val` or `test`.
        audio: float32 `[22050 * seconds]`, mono, within [-1, 1].
        motion: float32 `[60 * seconds, 219]` (root position, then 24 rotation matrices), or None.
        video: an mp4 clip (H.264, no sound) at a constant frame rate that starts at the segment's
            start and lasts exactly as long, or None.
        meta: JSON-able facts: genre, song, sequence, segment, bpm, pad counts, sources, decoders.
    """

    key: str
    split: str
    audio: NDArray[np.float32]
    motion: NDArray[np.float32] | None
    video: bytes | None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"a sample's key must be letters, digits, _, ~ and -: got {self.key!r}; "
                "replace other characters by ~"
            )
        if self.split not in SPLITS:
            raise ValueError(f"a sample's split must be one of {SPLITS}: got {self.split!r}")
        if self.audio.ndim != 1 or self.audio.dtype != np.float32:
            raise ValueError(
                f"{self.key}: audio must be float32 [n]: got {self.audio.dtype} "
                f"{list(self.audio.shape)}"
            )
        motion = self.motion
        if motion is not None and (
            motion.ndim != 2 or motion.shape[1] != MOTION_DIM or motion.dtype != np.float32
        ):
            raise ValueError(
                f"{self.key}: motion must be float32 [n, {MOTION_DIM}]: got {motion.dtype} "
                f"{list(motion.shape)}"
            )


def genre_one_hot(genre: int) -> NDArray[np.float32]:
    """Return the label as float32 `[10]` with a single one at index `genre`."""
    one_hot = np.zeros(len(GENRES), dtype=np.float32)
    one_hot[genre] = 1.0
    return one_hot
