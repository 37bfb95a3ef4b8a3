"""Is what was asked for in the picture: top-k accuracy of classes, accuracy of told attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdcd.evaluation.result import Metric, mean_metric

NOT_GENERATED = "not_generated"
NOT_TOLD = "not_told"


def top_classes(logits: ArrayLike, k: int) -> NDArray[np.int64]:
    """Return the k classes of the largest logits, best first: `[n, classes]` to int64 `[n, k]`.

    Of equal logits the lower index comes first.

    Raises:
        ValueError: a logit is NaN, there are fewer than k classes, or logits are no matrix.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 2:
        raise ValueError(f"logits must be [n, classes]: got {list(scores.shape)}")
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(
            f"k must be 1 to {scores.shape[1]}, the number of classes: got {k}; lower it"
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"logits must be numbers: got NaN in {int(np.isnan(scores).any(axis=1).sum())} of "
            f"{len(scores)} rows; check the pictures and the weights"
        )
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def class_accuracy(
    top: Mapping[str, NDArray[np.int64] | str],
    labels: Mapping[str, int | None],
    k: int,
    names: Mapping[int, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Metric:
    """Score pictures by the classes seen in them.

    Args:
        top: by condition, the likeliest classes, best first, at least k; or why there are none.
        labels: the class asked for.
        k: how many of them count.
        names: of the classes by label, for the table by class.
        config: what looked at the pictures.

    Returns:
        The metric; `extra["per_class"]` holds share and number of pictures by class.
    """
    scores: dict[str, float | str] = {}
    for key, label in labels.items():
        row = top.get(key, NOT_GENERATED)
        if label is None:
            scores[key] = "no_label"
        else:
            scores[key] = row if isinstance(row, str) else float(label in row[:k])
    hits: dict[int, list[float]] = {}
    for key, score in scores.items():
        label = labels[key]
        if label is not None and not isinstance(score, str):
            hits.setdefault(label, []).append(score)
    called = names or {}
    per_class = {
        f"{label} {called[label]}" if label in called else str(label): {
            "accuracy": sum(mine) / len(mine),
            "n": len(mine),
        }
        for label, mine in sorted(hits.items())
    }
    settings = {"metric": f"top{k}_accuracy", "ties": "lower index first", **(config or {})}
    return mean_metric(scores, settings, extra={"per_class": per_class})


def attribute_scores(
    told: Mapping[str, Mapping[str, str]],
    seen: Mapping[str, Mapping[str, str] | str],
    families: Mapping[str, str],
    config: Mapping[str, Any],
) -> dict[str, Metric]:
    """Score pictures by the attributes that their captions tell.

    Args:
        told: by condition, the values told; attributes that a caption leaves open are not scored.
        seen: by condition, the values seen of every attribute; or why none are.
        families: column of each attribute.
        config: what looked at the pictures.

    Returns:
        `attribute_accuracy`: the mean over the attributes told, then over pictures;
        `all_attributes`: whether all of them are there; `attributes.<family>`: those of a family.
    """
    means: dict[str, float | str] = {}
    alls: dict[str, float | str] = {}
    apart: dict[str, dict[str, float | str]] = {
        family: {} for family in dict.fromkeys(families.values())
    }
    wrong: Counter[str] = Counter()
    for key, asked in told.items():
        found = seen.get(key, NOT_GENERATED)
        known = {name: value for name, value in asked.items() if name in families}
        if isinstance(found, str) or not known:
            reason = found if isinstance(found, str) else NOT_TOLD
            means[key] = alls[key] = reason
            for mine in apart.values():
                mine[key] = reason
            continue
        hits = {name: float(found[name] == value) for name, value in known.items()}
        wrong.update(
            f"{name}: {value} seen as {found[name]}"
            for name, value in known.items()
            if not hits[name]
        )
        means[key] = sum(hits.values()) / len(hits)
        alls[key] = float(all(hits.values()))
        for family, mine in apart.items():
            own = [hit for name, hit in hits.items() if families[name] == family]
            mine[key] = sum(own) / len(own) if own else NOT_TOLD
    extra = {"most_frequent_errors": dict(wrong.most_common(20))}
    settings = {"metric": "attribute_accuracy", **config}
    return {
        "attribute_accuracy": mean_metric(means, settings, extra=extra),
        "all_attributes": mean_metric(alls, settings | {"metric": "all_attributes"}),
        **{
            f"attributes.{family}": mean_metric(mine, settings | {"attribute": family})
            for family, mine in apart.items()
        },
    }
