"""CLIPScore on two scales: of Hessel et al. 2021, and a hundred times the cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cdcd.evaluation.result import Metric, mean_metric

if TYPE_CHECKING:
    from torch import Tensor

    from cdcd.features.text import TextEncoder

PREFIX = "A photo depicts "
"""Put before each caption by `clip_s`, as in `CLIPScore: A Reference-free Evaluation Metric`."""

CLIP_S_SCALE, CLIP_COS_SCALE = 2.5, 100.0

_ZERO = "zero_norm: a vector of an image or a text must have a length: got 0"


def cosines(images: np.ndarray | Tensor, texts: np.ndarray | Tensor) -> np.ndarray:
    """Cosine of each row with the same row of the other.

    Args:
        images: `[n, e]`, of any length.
        texts: `[n, e]`, of any length.

    Returns:
        float64 `[n]` in -1 .. 1.

    Raises:
        ValueError: a row is zero (`zero_norm`) or not finite, or the shapes differ.
    """
    left, right = (np.asarray(rows, dtype=np.float64) for rows in (images, texts))
    if left.shape != right.shape or left.ndim != 2:
        raise ValueError(
            f"images and texts must be [n, e], row by row: got {list(left.shape)} and "
            f"{list(right.shape)}; give one text for each image"
        )
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    if not np.isfinite(norms).all():
        raise ValueError("vectors of images and texts must be finite: got nan or inf")
    if (norms == 0).any():
        raise ValueError(f"{_ZERO} in pair {int((norms == 0).argmax())}; use an encoder that works")
    return np.asarray(np.clip((left * right).sum(axis=1) / norms, -1.0, 1.0))


def clip_s(
    images: np.ndarray | Tensor,
    texts: np.ndarray | Tensor,
    keys: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Metric:
    """`2.5 max(cos, 0)`, the mean over pairs; tables show it times 100.

    Args:
        images: vectors `[n, e]`.
        texts: vectors `[n, e]` of `PREFIX` and the caption.
        keys: of the pairs; numbers where there are none.
        config: of the encoder, see `score_pictures`.

    Raises:
        ValueError: see `cosines`.
    """
    return _metric(cosines(images, texts), CLIP_S_SCALE, keys, config)


def clip_cos100(
    images: np.ndarray | Tensor,
    texts: np.ndarray | Tensor,
    keys: Sequence[str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Metric:
    """`100 max(cos, 0)`, the mean over pairs; otherwise as `clip_s`, without the prefix."""
    return _metric(cosines(images, texts), CLIP_COS_SCALE, keys, config)


def score_pictures(
    encoder: TextEncoder,
    images: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[str],
    keys: Sequence[str] | None = None,
) -> dict[str, Metric]:
    """Score pictures against their captions on both scales.

    Args:
        encoder: of pictures and texts; `config` of the metrics names it.
        images: uint8 `[h, w, 3]` each.
        captions: one for each picture, cut to the encoder's context.
        keys: of the pairs; numbers where there are none.

    Returns:
        `clip_s` and `clip_cos100`; each warns of captions that were cut.

    Raises:
        ValueError: numbers of pictures, captions and keys differ, or a vector has no length.
    """
    if not len(images) == len(captions) == len(captions if keys is None else keys):
        raise ValueError(
            "each picture must have one caption and one key: got "
            f"{len(images)} pictures, {len(captions)} captions and "
            f"{'no' if keys is None else len(keys)} keys"
        )
    vectors = encoder.image_features(images)
    metrics = {}
    for name, score, prefix in (("clip_s", clip_s, PREFIX), ("clip_cos100", clip_cos100, "")):
        texts = [prefix + caption for caption in captions]
        num_cut = int(encoder.tokenize(texts).truncated.sum())
        config = {"encoder": encoder.identity(), "prefix": prefix}
        metric = score(vectors, encoder.text_features(texts), keys, config)
        if num_cut:
            told = f"{num_cut} of {len(texts)} texts were cut to {encoder.context_length} tokens"
            metric = mean_metric(metric.per_sample, metric.config, (told,))
        metrics[name] = metric
    return metrics


def _metric(
    values: np.ndarray,
    scale: float,
    keys: Sequence[str] | None,
    config: Mapping[str, Any] | None,
) -> Metric:
    names = keys if keys is not None else [f"{row:06d}" for row in range(len(values))]
    if len(set(names)) != len(values):
        raise ValueError(
            f"each pair must have a key of its own: got {len(set(names))} keys for {len(values)} "
            "pairs"
        )
    scores = {
        key: scale * max(float(cosine), 0.0) for key, cosine in zip(names, values, strict=True)
    }
    return mean_metric(scores, {"scale": scale, **(config or {})})
