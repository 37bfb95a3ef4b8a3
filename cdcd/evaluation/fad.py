"""Fréchet audio distance: generated against original music by VGGish patches, set against set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cdcd.evaluation.frechet import frechet_distance
from cdcd.evaluation.result import Metric


def audio_distance(
    reference: Mapping[str, NDArray[np.floating]], generated: Mapping[str, NDArray[np.floating]]
) -> Metric:
    """Pool the patches `[p, 128]` of each set and compare the sets; there is no pairing.

    Clips without a patch (under 0.96 s) are skipped as `too_short`.

    Raises:
        ValueError: fewer than two patches a side.
    """
    skipped = {
        f"{side}:{key}": "too_short"
        for side, clips in (("reference", reference), ("generated", generated))
        for key, patches in clips.items()
        if not len(patches)
    }
    pooled = [
        np.concatenate([clips[key] for key in sorted(clips)] or [np.zeros((0, 128))])
        for clips in (generated, reference)
    ]
    metric = frechet_distance(*pooled)
    config = {**metric.config, "metric": "fad", "patch_seconds": 0.96, "pca": False}
    return replace(metric, config=config, skipped=skipped)
