"""Genre features of clips: MFCC statistics already heard, or VGGish embeddings made here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.evaluation.listening import Clip, Heard, prepare
from cdcd.evaluation.scoring import Feature


class GenreFeatures:
    """One feature per clip for genre accuracy.

    Attributes:
        network: VGGish, or None for `mfcc40`.
        patches: VGGish patches `[p, 128]` by system, seed and key, for the Fréchet audio distance.
    """

    def __init__(self, feature: str, weights: str | Path | None) -> None:
        self.network: Any = None
        self.patches: dict[str, dict[int, dict[str, NDArray[np.float32]]]] = {}
        if feature != "vggish":
            return
        from cdcd.evaluation.vggish import load_vggish

        if weights is None:
            raise ValueError(
                "evaluate.vggish_weights must name vggish-10086976.pth when "
                "evaluate.genre_feature is vggish: got null; give the path or set mfcc40"
            )
        self.network = load_vggish(weights)

    def of_clip(self, clip: Clip, heard: Heard | str) -> NDArray[np.float32] | str:
        """Return the feature of one original, float32 `[d]`, or the reason why it has none."""
        if self.network is None or isinstance(heard, str):
            return heard if isinstance(heard, str) else heard.mfcc
        patches = self._embed(clip)
        return patches if isinstance(patches, str) else patches.mean(axis=0)

    def of_set(
        self, system: str, seed: int, clips: Mapping[str, Clip], heard: Mapping[str, Heard | str]
    ) -> Feature:
        """Return the feature of every clip of a set by key, and keep its patches."""
        if self.network is None:
            return {key: self.of_clip(clips[key], found) for key, found in heard.items()}
        kept = self.patches.setdefault(system, {}).setdefault(seed, {})
        found: dict[str, NDArray[np.float32] | str] = {}
        for key, clip in clips.items():
            patches = self._embed(clip)
            if isinstance(patches, str):
                found[key] = patches
            else:
                kept[key], found[key] = patches, patches.mean(axis=0)
        return found

    def _embed(self, clip: Clip) -> NDArray[np.float32] | str:
        from cdcd.evaluation.vggish import embed

        audio = prepare(clip)
        if isinstance(audio, str):
            return audio
        patches = embed(self.network, audio)
        return patches if len(patches) else "too_short"
