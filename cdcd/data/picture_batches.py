"""Cached tokens of pictures and what they are drawn from, to batches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcd.data.cache import read_split, release
from cdcd.data.negatives import NegativePool
from cdcd.models.inputs import PictureInputs
from cdcd.training.objective import Batch


@dataclass(frozen=True, eq=False)
class PictureConditions:
    """Captions or classes of one split; what a generator may see.

    Attributes:
        keys: of the conditions in order: a caption's, or a picture's where classes are asked for.
        info: facts written beside the features.
        picture_keys: of the pictures in order.
        picture: row of each condition's picture, int64 [m].
        text: encoded captions, float16 [m, s, d], memory-mapped; None with classes.
        length: valid entries of each, int64 [m]; None with classes.
        label: class asked for, int64 [m]; None with captions.
    """

    keys: list[str]
    info: dict[str, Any]
    picture_keys: list[str]
    picture: np.ndarray
    text: np.ndarray | None
    length: np.ndarray | None
    label: np.ndarray | None

    def __len__(self) -> int:
        """Number of conditions."""
        return len(self.keys)

    @property
    def captions(self) -> list[str] | None:
        """Text of each condition; None with classes."""
        return self.info.get("captions")

    def inputs(self, rows: np.ndarray, device: torch.device) -> PictureInputs:
        """The given conditions on a device."""
        text = length = label = None
        if self.text is not None and self.length is not None:
            longest = int(self.length[rows].max(initial=1))
            # What lies beyond the longest caption of the batch would only be masked.
            read = np.asarray(self.text[rows, :longest], dtype=np.float32)
            text = torch.from_numpy(read).to(device)
            length = torch.from_numpy(self.length[rows]).to(device)
        if self.label is not None:
            label = torch.from_numpy(self.label[rows]).to(device)
        yes = torch.ones(len(rows), dtype=torch.bool, device=device)
        return PictureInputs(text, length, label, yes)


def read_conditions(folder: Path, split: str) -> PictureConditions:
    """Open the features of a split of pictures.

    Raises:
        CacheError: see `cdcd.data.cache.read_split`.
    """
    stored = read_split(folder, split)
    keys, info = list(stored.info["keys"]), stored.info
    if info["kind"] == "text":
        picture = np.asarray(stored.arrays["picture"], dtype=np.int64)
        length = np.asarray(stored.arrays["length"], dtype=np.int64)
        text = stored.arrays["text"]
        return PictureConditions(keys, info, info["picture_keys"], picture, text, length, None)
    label = np.asarray(stored.arrays["label"], dtype=np.int64)
    return PictureConditions(keys, info, keys, np.arange(len(keys)), None, None, label)


@dataclass(frozen=True, eq=False)
class PicturePairs:
    """Samples of training: a condition with the tokens of its picture, once for every crop.

    A caption of a picture meets one of the picture's crops, another caption the next one; a class
    meets all of them.

    Attributes:
        features: the conditions.
        tokens: int32 [n, c, l] of n pictures and c crops.
        condition: row of each sample's condition, int64 [m].
        crop: crop of each sample, int64 [m].
        picture_labels: class of each picture, or -1; int64 [n].
        label_sets: categories of each picture where it has no class, or None.
        info: facts written beside the tokens.
        inter_rows: rows of each picture's inter-negatives, int64 [n, N], where they were drawn.
    """

    features: PictureConditions
    tokens: np.ndarray
    condition: np.ndarray
    crop: np.ndarray
    picture_labels: np.ndarray
    label_sets: list[list[str]] | None
    info: dict[str, Any]
    inter_rows: np.ndarray | None = None

    waveform_negatives = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.condition)

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that are read for a sample."""
        text = self.features.text
        read = 0 if text is None else text.nbytes // max(len(text), 1)
        return read + self.tokens.nbytes // max(len(self.tokens), 1)

    def release(self) -> None:
        """Give back the memory of the rows that were read; see `cdcd.data.cache.release`."""
        for array in (self.tokens, self.features.text):
            if array is not None:
                release(array)

    def with_inter_negatives(self, seed: int, num: int) -> PicturePairs:
        """Draw `num` distinct pictures of another class for each, the same for a seed and a key.

        Raises:
            ValueError: there are too few of another class.
        """
        keys = self.features.picture_keys
        labels: Sequence[Hashable] | None = self.picture_labels.tolist()
        if self.label_sets is not None:
            labels = [frozenset(names) for names in self.label_sets]
        elif bool((self.picture_labels < 0).all()):
            labels = None  # nothing is known of the pictures: any other will do
        pool = NegativePool(keys, labels)
        places = {key: row for row, key in enumerate(keys)}
        drawn = [
            [places[other] for other in pool.draw(seed, key, label, num)]
            for key, label in zip(keys, labels or [None] * len(keys), strict=True)
        ]
        return replace(self, inter_rows=np.array(drawn, dtype=np.int64).reshape(len(keys), num))

    def batch(self, rows: np.ndarray, device: torch.device) -> Batch:
        """The given samples as a batch on a device."""
        condition, crop = self.condition[rows], self.crop[rows]
        picture = self.features.picture[condition]

        def take(pictures: np.ndarray, crops: np.ndarray) -> Tensor:
            return torch.from_numpy(self.tokens[pictures, crops].astype(np.int64)).to(device)

        inter = None
        if self.inter_rows is not None:
            inter = take(self.inter_rows[picture], crop[:, None])
        return Batch(
            take(picture, crop),
            self.features.inputs(condition, device),
            torch.from_numpy(self.picture_labels[picture]).to(device),
            None,
            inter,
        )


def read_picture_pairs(tokens_dir: Path, features_dir: Path, split: str) -> PicturePairs:
    """Open tokens and conditions of a split and check that they belong together.

    Raises:
        ValueError: the two folders hold different pictures, or the split is empty.
    """
    stored = read_split(tokens_dir, split)
    features = read_conditions(features_dir, split)
    if stored.info["keys"] != features.picture_keys:
        raise ValueError(
            f"{tokens_dir} and {features_dir} must hold the same {split} pictures: got "
            f"{len(stored)} and {len(features.picture_keys)}, or other keys; run "
            "`dvc repro encode featurize`"
        )
    if len(features) == 0:
        raise ValueError(
            f"{tokens_dir}: the {split} split must have pictures with a caption or a class: got "
            "0; see the manifest of the shard stage for what was skipped and why"
        )
    tokens = stored.arrays["tokens"]
    num_crops = tokens.shape[1]
    if features.text is None:
        condition = np.repeat(np.arange(len(features)), num_crops)
        crop = np.tile(np.arange(num_crops), len(features))
    else:
        condition = np.arange(len(features))
        # The rank of a caption among those of its picture.
        first = {row: index for index, row in reversed(list(enumerate(features.picture.tolist())))}
        starts = np.array([first[row] for row in features.picture.tolist()], dtype=np.int64)
        crop = (condition - starts) % num_crops
    return PicturePairs(
        features,
        tokens,
        condition,
        crop,
        np.asarray(stored.info["labels"], dtype=np.int64),
        stored.info.get("label_sets"),
        stored.info,
    )
