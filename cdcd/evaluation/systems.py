"""What is scored: the originals of a split, the generated sets found on disk, and the controls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.cache import Split, read_split
from cdcd.data.samples import GENRES, SAMPLE_RATE_HZ, Sample

ORDER = (
    "ground_truth",
    "codec_reconstruction",
    "model",
    "motion_only",
    "video_only",
    "unconditioned",
    "shuffled",
    "white_noise",
    "silence",
)
"""Rows in reading order; systems with other names follow."""

_NAME = re.compile(r"([A-Za-z0-9_]+)-seed(\d+)")


class GeneratedError(ValueError):
    """Generated music or pictures that must not be scored; the message is one line."""


@dataclass(frozen=True, eq=False)
class Originals:
    """The held-out clips of a split, sorted by key.

    Attributes:
        audio: float32 `[n]` by key.
        genres: genre code by key; None where unknown.
        songs: song by key.
        bpm: annotated tempo by key; None where unknown.
    """

    audio: dict[str, NDArray[np.float32]]
    genres: dict[str, str | None]
    songs: dict[str, str]
    bpm: dict[str, float | None]

    @classmethod
    def collect(cls, samples: Iterable[Sample]) -> Originals:
        """Keep what scoring needs of each sample; motion and video are let go."""
        found = cls({}, {}, {}, {})
        for sample in samples:
            found.audio[sample.key] = sample.audio
            found.genres[sample.key] = genre_of(sample)
            found.songs[sample.key] = song_of(sample)
            bpm = sample.meta.get("bpm")
            found.bpm[sample.key] = float(bpm) if bpm else None
        return found


def genre_of(sample: Sample) -> str | None:
    """Return the genre code of a sample's dance, e.g. `BR`; None where unknown."""
    genre = sample.meta.get("genre")
    return None if genre is None else GENRES[int(genre)]


def song_of(sample: Sample) -> str:
    """Return the sample's song; a sample without one counts as a song of its own."""
    return str(sample.meta.get("song") or sample.key)


@dataclass(frozen=True, eq=False)
class GeneratedSet:
    """One system's clips at one seed.

    Attributes:
        system: name of the row.
        seed: what its sampling was seeded with.
        audio: float32 `[n]` in [-1, 1] by key.
        info: the facts written beside it.
    """

    system: str
    seed: int
    audio: Mapping[str, NDArray[np.float32]]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_generated(self) -> bool:
        """False for originals and controls."""
        return bool(self.info)


def read_generated(folder: str | Path, keys: Iterable[str], split: str) -> list[GeneratedSet]:
    """Read every `<system>-seed<k>` set of music in a folder.

    Args:
        folder: written by the generate stage.
        keys: the split's keys.
        split: its name, for messages.

    Raises:
        GeneratedError: see `stored_sets`; also for a set that was sampled at another rate, or holds
            a key that the split does not have.
    """
    known = set(keys)
    sets = []
    for system, seed, path, stored in stored_sets(folder):
        rate = stored.info.get("sample_rate_hz", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise GeneratedError(
                f"{path}: sample_rate_hz must be {SAMPLE_RATE_HZ}: got {rate}; run `generate` again"
            )
        check_known(path, "keys", stored.info["keys"], known, split)
        rows = stored.arrays["audio"]
        audio = {
            key: rows[i].astype(np.float32) / 32767 for i, key in enumerate(stored.info["keys"])
        }
        sets.append(GeneratedSet(system, seed, audio, stored.info))
    return sets


def stored_sets(folder: str | Path) -> list[tuple[str, int, Path, Split]]:
    """Open every `<system>-seed<k>` set of a folder: system, seed, file and what it holds.

    Raises:
        GeneratedError: there is no set of the model, or a set did not start from the full mask.
        CacheError: a file is cut short or damaged.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            continue
        stored = read_split(folder, path.stem)
        init = stored.info.get("init")
        if init != "mask":
            # A start from the noised reference has seen the target and says nothing about
            # generation.
            raise GeneratedError(
                f"{path}: init must be mask: got {json.dumps(init)}; results of reconstruction "
                "experiments cannot enter the main table, so generate from the full mask"
            )
        found.append((match[1], int(match[2]), path, stored))
    systems = sorted({system for system, *_ in found})
    if "model" not in systems:
        raise GeneratedError(
            f"{folder} must hold model-seed<k>.safetensors: got "
            f"{', '.join(systems) or 'no set'}; run `generate` again"
        )
    return found


def check_known(path: Path, name: str, keys: Iterable[str], known: set[str], split: str) -> None:
    """Refuse a set with keys that its split does not have.

    Args:
        path: the set's file, for messages.
        name: of the list of keys, for messages.
        keys: what the set was made from.
        known: the split's keys.
        split: its name, for messages.

    Raises:
        GeneratedError: a key is unknown.
    """
    strangers = [key for key in keys if key not in known]
    if strangers:
        raise GeneratedError(
            f"{path}: {name} must belong to split {split}: got {strangers[0]} and "
            f"{len(strangers) - 1} more; run `generate` again"
        )


def reading_order(systems: Iterable[str], order: Sequence[str] = ORDER) -> list[str]:
    """Sort row names as `order` has them, unknown ones last by name."""
    known = {name: i for i, name in enumerate(order)}
    return sorted(set(systems), key=lambda name: (known.get(name, len(order)), name))
