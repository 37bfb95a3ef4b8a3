"""What one prepared example is, of dance and music or of a picture with its words or class."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SAMPLE_RATE_HZ = 22050


@dataclass(frozen=True)
class MotionKind:
    """What a row of a motion is: its name, numbers per frame and frames per second."""

    name: str
    dim: int
    rate_hz: int

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers."""
        return {"name": self.name, "version": "1", "dim": self.dim, "rate_hz": float(self.rate_hz)}


SMPL = MotionKind("smpl_219", 219, 60)
"""Root position over the body's scale, then 24 joint rotations as 3 x 3 matrices, by rows."""
BODY_25 = MotionKind("body_25", 75, 30)
"""25 OpenPose points as x, y in pixels and confidence."""
MOTIONS = {"aist": SMPL, "tiktok": BODY_25}
"""The motion of each dance dataset."""
TASKS = {
    "aist": "dance2music",
    "tiktok": "dance2music",
    "cub200": "text2image",
    "coco": "text2image",
    "imagenet": "class2image",
}
"""What is generated from what with each dataset."""
MOTION_RATE_HZ = SMPL.rate_hz
MOTION_DIM = SMPL.dim

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


def safe_key(name: str) -> str:
    """Turn a name below a dataset's root into a key: slashes and dots become `~`.

    Other characters that a key may not hold (blanks, line breaks, letters beyond ASCII) become `~`
    too, followed by eight digits of the name's hash, because different names must not meet.
    """
    key = re.sub(r"[/.]", "~", name)
    cleaned = re.sub(r"[^A-Za-z0-9_~-]", "~", key)
    if cleaned == key and key:
        return key
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{cleaned}~{digest[:8]}"


def check_key(key: str, split: str) -> None:
    """Refuse what cannot name a tar member or is no split.

    Raises:
        ValueError: the key has other characters, or the split is unknown.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"a sample's key must be letters, digits, _, ~ and -: got {key!r}; "
            "replace other characters by ~"
        )
    if split not in SPLITS:
        raise ValueError(f"a sample's split must be one of {SPLITS}: got {split!r}")


@dataclass(frozen=True, eq=False)
class Sample:
    """One segment of a dance with its music.

    Attributes:
        key: stable name, without dots and slashes (they would split a tar member's name).
        split: `train`, `val` or `test`.
        audio: float32 `[22050 * seconds]`, mono, within [-1, 1].
        motion: float32 `[rate * seconds, dim]`, one of `SMPL` and `BODY_25`, or None.
        video: an mp4 clip (H.264, no sound) at a constant frame rate that starts at the segment's
            start and lasts exactly as long, or None.
        meta: JSON-able facts: genre, song, sequence, segment, bpm, pad counts, sources, decoders.
        video_feature: float32 `[s, dim]`, features that came with the download in place of its
            video, or None.
    """

    key: str
    split: str
    audio: NDArray[np.float32]
    motion: NDArray[np.float32] | None
    video: bytes | None
    meta: dict[str, Any] = field(default_factory=dict)
    video_feature: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check_key(self.key, self.split)
        if self.audio.ndim != 1 or self.audio.dtype != np.float32:
            raise ValueError(
                f"{self.key}: audio must be float32 [n]: got {self.audio.dtype} "
                f"{list(self.audio.shape)}"
            )
        motion, feature = self.motion, self.video_feature
        dims = [kind.dim for kind in MOTIONS.values()]
        if motion is not None and (
            motion.ndim != 2 or motion.shape[1] not in dims or motion.dtype != np.float32
        ):
            raise ValueError(
                f"{self.key}: motion must be float32 [n, {' or '.join(map(str, dims))}]: got "
                f"{motion.dtype} {list(motion.shape)}"
            )
        if feature is not None and (feature.ndim != 2 or feature.dtype != np.float32):
            raise ValueError(
                f"{self.key}: a video feature must be float32 [s, dim]: got {feature.dtype} "
                f"{list(feature.shape)}"
            )


@dataclass(frozen=True)
class Caption:
    """One description of a picture; `name` is unique within the picture."""

    name: str
    text: str


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture with its captions or its class.

    A picture is stored once however many captions it has, so that statistics over pictures need
    no weeding; `pairs` gives the samples of training and evaluation.

    Attributes:
        key: stable name, as in `Sample`.
        split: `train`, `val` or `test`.
        image: uint8 `[h, w, 3]` RGB in 0 .. 255, in the picture's own proportions.
        captions: lower-cased, on one line each; empty where the dataset has none.
        label: the class from 0 on, or None where the dataset has none.
        meta: JSON-able facts: class name, sizes, sources, decoders, terms.
    """

    key: str
    split: str
    image: NDArray[np.uint8]
    captions: tuple[Caption, ...] = ()
    label: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_key(self.key, self.split)
        image = self.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"{self.key}: an image must be uint8 [h, w, 3]: got {image.dtype} "
                f"{list(image.shape)}"
            )
        names = [caption.name for caption in self.captions]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.key}: captions must have names of their own: got {names}")

    def pairs(self) -> list[tuple[str, str]]:
        """Return key and text of every (picture, caption) pair, `<key>_<caption name>`."""
        return [(f"{self.key}_{caption.name}", caption.text) for caption in self.captions]


def sample_generator(seed: int, epoch: int, key: str) -> np.random.Generator:
    """Return the only source of randomness of one sample in one epoch (crop, caption, gain)."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng([seed, epoch, int.from_bytes(digest[:8], "big")])


def genre_label(meta: Mapping[str, Any]) -> int:
    """Return a sample's genre as an index into `GENRES`, -1 where its dataset has none."""
    genre = meta.get("genre")
    return -1 if genre is None else int(genre)


def genre_one_hot(genre: int) -> NDArray[np.float32]:
    """Return the label as float32 `[10]` with a single one at index `genre`."""
    one_hot = np.zeros(len(GENRES), dtype=np.float32)
    one_hot[genre] = 1.0
    return one_hot
