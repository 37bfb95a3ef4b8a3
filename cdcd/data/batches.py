"""Cached tokens and features to batches; the order is a function of seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from cdcd.data.cache import read_split, release
from cdcd.data.negatives import NegativePool
from cdcd.models.inputs import ConditionInputs
from cdcd.training.objective import Batch
from cdcd.training.ranks import ALONE, Ranks

_RELEASE_BYTES = 32 << 20
"""Mapped rows that may stay in memory; more of them would grow with the epoch."""


@dataclass(frozen=True, eq=False)
class FeatureSplit:
    """Condition features of one split, memory-mapped; what a generator may see.

    Attributes:
        keys: clip keys in order.
        genres: class of each clip, int64 [n].
        info: facts written beside the features.
        motion: float32 [n, s, motion_dim]; `has_motion` uint8 [n].
        video: float32 [n, r, video_dim]; `has_video` uint8 [n].
    """

    keys: list[str]
    genres: Tensor
    info: dict[str, Any]
    motion: np.ndarray
    has_motion: np.ndarray
    video: np.ndarray
    has_video: np.ndarray

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.keys)

    def inputs(self, rows: np.ndarray, device: torch.device) -> ConditionInputs:
        """Features of the given rows on a device."""

        def take(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array[rows])).to(device)

        return ConditionInputs(
            take(self.motion),
            take(self.video),
            self.genres[torch.from_numpy(rows)].to(device),
            take(self.has_motion).bool(),
            take(self.has_video).bool(),
        )


def read_features(folder: Path, split: str) -> FeatureSplit:
    """Open the features of a split.

    Raises:
        CacheError: see `cdcd.data.cache.read_split`.
    """
    stored = read_split(folder, split)
    arrays = stored.arrays
    return FeatureSplit(
        list(stored.info["keys"]),
        torch.tensor(stored.info["genres"], dtype=torch.long),
        stored.info,
        arrays["motion"],
        arrays["has_motion"],
        arrays["video"],
        arrays["has_video"],
    )


@dataclass(frozen=True, eq=False)
class PairedSplit:
    """Tokens and features of the same clips.

    Attributes:
        features: the condition side.
        tokens: int32 [n, l].
        waveform_negatives: int32 [n, N, l], where they were stored.
        labels: class of each clip for inter-negatives, int64 [n].
        info: facts written beside the tokens.
        inter_rows: rows of each clip's inter-negatives, int64 [n, N], where they were drawn.
    """

    features: FeatureSplit
    tokens: np.ndarray
    waveform_negatives: np.ndarray | None
    labels: Tensor
    info: dict[str, Any]
    inter_rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.features)

    def with_inter_negatives(self, seed: int, num: int) -> PairedSplit:
        """Draw `num` distinct clips of another class for each, the same for a seed and a key.

        Raises:
            ValueError: there are too few of another class.
        """
        keys = self.features.keys
        pool = NegativePool(keys, self.labels.tolist())
        places = {key: row for row, key in enumerate(keys)}
        drawn = [
            [places[other] for other in pool.draw(seed, key, label, num)]
            for key, label in zip(keys, self.labels.tolist(), strict=True)
        ]
        return replace(self, inter_rows=np.array(drawn, dtype=np.int64).reshape(len(keys), num))

    @property
    def _mapped(self) -> list[np.ndarray]:
        arrays = [self.tokens, self.features.motion, self.features.video]
        return arrays if self.waveform_negatives is None else [*arrays, self.waveform_negatives]

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that are read for a clip."""
        return sum(array.nbytes for array in self._mapped) // max(len(self), 1)

    def release(self) -> None:
        """Give back the memory of the rows that were read; see `cdcd.data.cache.release`."""
        for array in self._mapped:
            release(array)

    def batch(self, rows: np.ndarray, device: torch.device) -> Batch:
        """The given rows as a batch on a device."""

        def take(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[rows].astype(np.int64)).to(device)

        stored, inter = self.waveform_negatives, None
        if self.inter_rows is not None:
            others = np.asarray(self.tokens[self.inter_rows[rows]], dtype=np.int64)
            inter = torch.from_numpy(others).to(device)
        return Batch(
            take(self.tokens),
            self.features.inputs(rows, device),
            self.labels[torch.from_numpy(rows)].to(device),
            None if stored is None else take(stored),
            inter,
        )


def read_pairs(tokens_dir: Path, features_dir: Path, split: str) -> PairedSplit:
    """Open tokens and features of a split and check that they belong together.

    Raises:
        ValueError: the two folders hold different clips, or the split is empty.
    """
    stored = read_split(tokens_dir, split)
    features = read_features(features_dir, split)
    if stored.info["keys"] != features.keys:
        raise ValueError(
            f"{tokens_dir} and {features_dir} must hold the same {split} clips: got "
            f"{len(stored)} and {len(features)}, or other keys; run `dvc repro encode featurize`"
        )
    if len(features) == 0:
        raise ValueError(
            f"{tokens_dir}: the {split} split must have clips: got 0; see the manifest of the "
            "shard stage for what was skipped and why"
        )
    # Without genres (TikTok) another song is what makes a negative (paper_vs_code D12).
    labels = features.genres
    if bool((labels < 0).any()):
        songs = sorted(set(stored.info["songs"]))
        labels = torch.tensor([songs.index(song) for song in stored.info["songs"]])
    tokens = stored.arrays["tokens"]
    return PairedSplit(features, tokens, stored.arrays.get("intra"), labels, stored.info)


class Pairs(Protocol):
    """Tokens with their conditions, of one split, whatever is generated from what."""

    @property
    def info(self) -> dict[str, Any]:
        """Facts written beside the tokens."""
        ...

    @property
    def waveform_negatives(self) -> np.ndarray | None:
        """int32 [n, N, l], where they were stored."""
        ...

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that are read for a sample."""
        ...

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def with_inter_negatives(self, seed: int, num: int) -> Self:
        """Draw `num` others of another class for each sample."""
        ...

    def release(self) -> None:
        """Give back the memory of what was read."""
        ...

    def batch(self, rows: np.ndarray, device: torch.device) -> Batch:
        """The given samples as a batch."""
        ...


class ShuffledBatches:
    """Endless batches in a new seeded order each epoch; iteration starts after `step` batches.

    The order depends on (seed, epoch) and the position on the step, so a resumed run continues with
    exactly the batch an uninterrupted one would have drawn. The last partial batch of an epoch is
    dropped; a split smaller than one batch is used whole.

    Of several processes that train together each reads its own share of every batch.

    Raises:
        ValueError: a batch cannot be shared equally.
    """

    def __init__(
        self,
        split: Pairs,
        batch_size: int,
        seed: int,
        step: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.split = split
        self.batch_size = min(batch_size, len(split))
        # A split smaller than one batch is used whole, so its size is what is shared.
        name = "train.batch_size" if batch_size <= len(split) else "the number of train samples"
        self.share = ranks.share(self.batch_size, name)
        self.seed = seed
        self.step = step
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end."""
        per_epoch = len(self.split) // self.batch_size
        order, current, touched = np.zeros(0, np.int64), -1, 0
        while True:
            epoch, position = divmod(self.step, per_epoch)
            if epoch != current:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(self.split))
                current = epoch
            rows = order[position * self.batch_size : (position + 1) * self.batch_size]
            if self.share is not None:
                rows = rows[self.share.start : self.share.stop]
            self.step += 1
            yield replace(self.split.batch(rows, self.device), share=self.share)
            touched += self.split.bytes_per_sample * len(rows)
            if touched > _RELEASE_BYTES:
                self.split.release()
                touched = 0


def feature_statistics(array: np.ndarray, present: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and that of frame-to-frame change, float [dim], over given clips.

    At most 2,000 evenly spread clips are read. Channels that hardly vary get the scale of one, so
    that standardising does not blow up rounding noise.
    """
    rows = np.flatnonzero(present)
    rows = (
        rows[np.linspace(0, len(rows) - 1, min(len(rows), 2000)).astype(int)] if len(rows) else rows
    )
    if len(rows) == 0:
        dim = array.shape[-1]
        return torch.zeros(dim), torch.ones(dim), torch.ones(dim)
    x = np.asarray(array[rows], dtype=np.float64)
    std, delta = x.std(axis=(0, 1)), np.diff(x, axis=1).std(axis=(0, 1))
    std, delta = (np.where(s < 1e-5, 1.0, s) for s in (std, delta))
    mean = x.mean(axis=(0, 1))
    return tuple(torch.from_numpy(v.astype(np.float32)) for v in (mean, std, delta))  # type: ignore[return-value]
