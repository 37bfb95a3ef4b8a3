"""What every metric returns: a value, how many clips it rests on, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric on one set of clips; nothing is dropped silently.

    Attributes:
        value: the set score as a fraction or in the metric's unit; None when no clip was scored.
        n: number of clips scored.
        per_sample: score of every scored clip by key.
        config: every choice that changes the value.
        warnings: one line each.
        skipped: reason by key; `n + len(skipped)` is the size of the set.
        extra: further set-level numbers, e.g. a confusion matrix.
    """

    value: float | None
    n: int
    per_sample: Mapping[str, float]
    config: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skipped clips by reason."""
        return dict(sorted(Counter(self.skipped.values()).items()))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "value": self.value,
            "n": self.n,
            "n_skipped": len(self.skipped),
            "n_total": self.n + len(self.skipped),
            "per_sample": dict(self.per_sample),
            "skipped": dict(self.skipped),
            "config": dict(self.config),
            "warnings": list(self.warnings),
            **self.extra,
        }


def mean_metric(
    scores: Mapping[str, float | str],
    config: Mapping[str, Any],
    warnings: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> Metric:
    """Make the metric whose value is the mean of per-clip scores.

    Args:
        scores: by key, the clip's score or, as text, the reason why it has none.
        config: see `Metric`.
        warnings: see `Metric`.
        extra: see `Metric`.
    """
    scored = {key: score for key, score in scores.items() if not isinstance(score, str)}
    skipped = {key: score for key, score in scores.items() if isinstance(score, str)}
    value = sum(scored.values()) / len(scored) if scored else None
    return Metric(value, len(scored), scored, config, warnings, skipped, extra or {})
