"""What is scored: generated pictures on disk, and what each of them was asked to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.cache import Split
from cdcd.data.samples import Picture
from cdcd.evaluation.systems import GeneratedError, check_known, stored_sets

Pixels = NDArray[np.uint8]

ORDER = ("real", "codec_reconstruction", "model", "unconditioned", "shuffled")
"""Rows in reading order."""

BATCH = 64
"""Pictures in memory at a time, for each set."""


@dataclass(frozen=True)
class Condition:
    """What one generated picture was made from.

    Attributes:
        key: pair key of a caption, or key of the picture whose class was asked for.
        picture_key: the held-out picture it comes from.
        caption: None where a class is asked for.
        label: class; None where unknown.
    """

    key: str
    picture_key: str
    caption: str | None
    label: int | None

    @property
    def group(self) -> str:
        """The class or species, or else the picture: conditions of a group are not independent."""
        return self.picture_key if self.label is None else f"class {self.label}"


@dataclass(frozen=True, eq=False)
class PictureSet:
    """One system's pictures at one seed.

    Attributes:
        system: name of the row.
        seed: what its sampling was seeded with.
        conditions: in the order of `images`.
        images: uint8 `[n, s, s, 3]`, mapped, not read.
        info: the facts written beside it.
        path: the file, for messages.
    """

    system: str
    seed: int
    conditions: tuple[Condition, ...]
    images: NDArray[np.uint8]
    info: Mapping[str, Any]
    path: Path

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each condition's picture, by condition key."""
        return {condition.key: row for row, condition in enumerate(self.conditions)}

    def batches(self) -> Iterator[Pixels]:
        """Yield the pictures, a few at a time."""
        for start in range(0, len(self.images), BATCH):
            yield np.array(self.images[start : start + BATCH])


def read_generated(folder: str | Path, picture_keys: Sequence[str], split: str) -> list[PictureSet]:
    """Read every `<system>-seed<k>` set of pictures in a folder.

    Args:
        folder: written by the generate stage.
        picture_keys: keys of the held-out pictures.
        split: their split, for messages.

    Raises:
        GeneratedError: see `stored_sets`; also for a set whose arrays are of another kind or size,
            or that was made from unknown pictures.
        CacheError: a file is cut short or damaged.
    """
    known = set(picture_keys)
    sets = [
        PictureSet(
            system,
            seed,
            _conditions(path, stored, known, split),
            stored.arrays["images"],
            stored.info,
            path,
        )
        for system, seed, path, stored in stored_sets(folder)
    ]
    sides = {str(one.path): one.images.shape[1] for one in sets}
    if len(set(sides.values())) > 1:
        listed = ", ".join(f"{path} {side}" for path, side in sides.items())
        raise GeneratedError(
            f"all sets must have pictures of one size: got {listed}; run `generate` again"
        )
    _check_same_conditions(sets)
    return sets


def _conditions(path: Path, stored: Split, known: set[str], split: str) -> tuple[Condition, ...]:
    info, again = stored.info, "run `generate` again"
    images = stored.arrays.get("images")
    if images is None:
        raise GeneratedError(
            f"{path} must hold an array images: got {sorted(stored.arrays)}; {again}"
        )
    size = info.get("image_size", images.shape[1] if images.ndim > 1 else None)
    if images.dtype != np.uint8 or images.shape != (len(images), size, size, 3) or not images.size:
        raise GeneratedError(
            f"{path}: images must be uint8 [n, {size}, {size}, 3], at least one: got "
            f"{images.dtype} {list(images.shape)}; {again}"
        )
    tokens = stored.arrays.get("tokens")
    if tokens is not None and (tokens.dtype.kind not in "iu" or int(tokens.min(initial=0)) < 0):
        raise GeneratedError(
            f"{path}: tokens must be integers from 0 on: got {tokens.dtype}, lowest "
            f"{tokens.min()}; {again}"
        )
    try:
        keys, picture_keys = list(info["keys"]), list(info["picture_keys"])
        captions = info.get("captions") or [None] * len(keys)
        labels = info.get("labels") or [-1] * len(keys)
    except (KeyError, TypeError) as error:
        raise GeneratedError(
            f"{path.with_suffix('.json')} must name keys and picture_keys: {error!r}; {again}"
        ) from None
    lengths = {
        "keys": len(keys),
        "picture_keys": len(picture_keys),
        "captions": len(captions),
        "labels": len(labels),
    }
    if set(lengths.values()) != {len(images)}:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise GeneratedError(
            f"{path}: every list must have one entry for each of {len(images)} pictures: got "
            f"{listed}; {again}"
        )
    check_known(path, "picture_keys", picture_keys, known, split)
    return tuple(
        Condition(key, picture, caption, None if label is None or label < 0 else int(label))
        for key, picture, caption, label in zip(keys, picture_keys, captions, labels, strict=True)
    )


def _check_same_conditions(sets: Sequence[PictureSet]) -> None:
    """Refuse sets that mean different things by one key."""
    seen: dict[str, tuple[Condition, Path]] = {}
    for one in sets:
        for condition in one.conditions:
            first, path = seen.setdefault(condition.key, (condition, one.path))
            if first != condition:
                raise GeneratedError(
                    f"{one.path} and {path.name} must come from the same held-out conditions: "
                    f"{condition.key} differs; run `generate` again"
                )


def first_seeds(sets: Sequence[PictureSet]) -> dict[str, PictureSet]:
    """Return each system's set of the lowest seed, by system."""
    first: dict[str, PictureSet] = {}
    for one in sorted(sets, key=lambda one: one.seed):
        first.setdefault(one.system, one)
    return first


def all_conditions(sets: Sequence[PictureSet]) -> list[Condition]:
    """Return the distinct conditions of the sets, sorted by key."""
    found = {condition.key: condition for one in sets for condition in one.conditions}
    return [found[key] for key in sorted(found)]


def check_against(
    picture: Picture, conditions: Sequence[Condition], shards_dir: str | Path
) -> None:
    """Refuse conditions that are not those of a held-out picture.

    Raises:
        GeneratedError: a caption or a class differs from the picture's own.
    """
    pairs = dict(picture.pairs())
    for condition in conditions:
        asked, has = (
            (condition.label, picture.label)
            if condition.caption is None
            else (condition.caption, pairs.get(condition.key))
        )
        if asked != has:
            raise GeneratedError(
                f"{condition.key} must be a condition of the pictures in {shards_dir}: asked for "
                f"{str(asked)[:60]!r} where the picture has {str(has)[:60]!r}; featurize and "
                "generate again"
            )
