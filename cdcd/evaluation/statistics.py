"""Means with their uncertainty: spread over seeds, bootstrap over keys, bootstrap over groups.

Clips of one song share tempo, timbre and genre, and captions of one picture share the picture, so
they are not independent draws. The bootstrap over keys (as usually reported) is therefore too sure
of itself; the bootstrap over groups draws whole songs, classes or pictures with all that belongs to
them and is reported beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1_000_000  # drawn units held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean or a difference with its 95 % percentile bootstrap interval, `low <= high`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One score of one system over seeds and keys.

    Attributes:
        mean: mean over seeds of the set means.
        std_seeds: standard deviation (ddof 1) of the set means over seeds; None with one seed.
        ci_low: lower end of the 95 % interval over keys.
        ci_high: its upper end.
        ci_group_low: lower end of the 95 % interval over groups; None without groups.
        ci_group_high: its upper end.
        n: number of keys.
        num_seeds: number of seeds.
    """

    mean: float
    std_seeds: float | None
    ci_low: float
    ci_high: float
    ci_group_low: float | None
    ci_group_high: float | None
    n: int
    num_seeds: int

    def as_dict(self, group: str = "group") -> dict[str, float | int | None]:
        """Return plain values for JSON; `group` is what the groups are, as in `ci_song_low`."""
        return {name.replace("group", group): value for name, value in asdict(self).items()}


def bootstrap_means(
    scores: Sequence[Mapping[str, float]],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> NDArray[np.float64]:
    """Draw the means of resampled keys, or of resampled clusters of keys.

    The order of a mapping does not matter: units are sorted by name before anything is drawn.
    Scores of the same keys share their draws, which are made once for all of them: what is slow
    with many keys is the drawing, so give all scores in one call.

    Args:
        scores: of each column the score by key, at least one.
        num_resamples: number of draws.
        seed: of the draws.
        clusters: cluster of each key, e.g. its song; None resamples single keys.

    Returns:
        float64 `[num_resamples, columns]`. With clusters a draw is the mean over all keys of the
        drawn clusters, so a cluster counts by its size.

    Raises:
        ValueError: a column has no score.
    """
    columns_of: dict[tuple[str, ...], list[int]] = {}
    for column, by_key in enumerate(scores):
        if not by_key:
            raise ValueError("a bootstrap needs at least one score: got none; score some first")
        columns_of.setdefault(tuple(sorted(by_key)), []).append(column)
    means = np.empty((num_resamples, len(scores)))
    for keys, columns in columns_of.items():
        names, units = np.unique(
            [clusters[key] if clusters else key for key in keys], return_inverse=True
        )
        # Sums of each unit, and in the last column its size.
        totals = np.zeros((len(names), len(columns) + 1))
        np.add.at(totals, units, [[*(scores[c][key] for c in columns), 1.0] for key in keys])
        start = 0
        for counts in _draw(len(names), num_resamples, seed):
            drawn = counts @ totals
            means[start : start + len(drawn), columns] = drawn[:, :-1] / drawn[:, -1:]
            start += len(drawn)
    return means


def _draw(num_units: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each unit is drawn in each resample, `[some, num_units]`."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // num_units)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        # Drawing units and counting them is ten times as fast as drawing multinomial counts.
        drawn = generator.integers(num_units, size=(size, num_units))
        drawn += num_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=drawn.size)
        yield counts.reshape(drawn.shape).astype(np.float64)


def bootstrap_intervals(
    scores: Sequence[Mapping[str, float]],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> list[Interval]:
    """Return each column's mean and 95 % percentile bootstrap interval; see `bootstrap_means`."""
    means = bootstrap_means(scores, num_resamples=num_resamples, seed=seed, clusters=clusters)
    low, high = np.quantile(means, [0.025, 0.975], axis=0).tolist()
    exact = [math.fsum(by_key.values()) / len(by_key) for by_key in scores]
    return [Interval(*ends) for ends in zip(exact, low, high, strict=True)]


def paired_differences(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Return `first - second` by common key; empty where there is none.

    Their bootstrap draws the same keys for both systems, so what makes a key hard for both cancels.
    """
    return {key: first[key] - second[key] for key in first if key in second}


def mean_over_seeds(per_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each key's mean over the seeds that scored it."""
    gathered: dict[str, list[float]] = {}
    for scores in per_seed:
        for key, score in scores.items():
            gathered.setdefault(key, []).append(score)
    return {key: math.fsum(values) / len(values) for key, values in sorted(gathered.items())}


def summarise(
    scores: Sequence[Sequence[Mapping[str, float]]],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> list[Summary | None]:
    """Summarise scores over seeds and keys.

    The intervals resample keys (and clusters of them) of the means over seeds, so the seeds of a
    key stay together; the seeds' own spread is `std_seeds`.

    Args:
        scores: of each score, for each seed, the score by key.
        num_resamples: see `bootstrap_means`.
        seed: likewise.
        clusters: likewise; without them there is no interval over groups.

    Returns:
        One summary for each score; None where no key was scored.
    """
    runs = [[by_key for by_key in per_seed if by_key] for per_seed in scores]
    means = [mean_over_seeds(per_seed) for per_seed in runs if per_seed]
    options: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    over_keys = bootstrap_intervals(means, **options)
    over_groups: Iterable[Interval | None] = itertools.repeat(None)
    if clusters:
        over_groups = bootstrap_intervals(means, **options, clusters=clusters)
    rest = zip(means, over_keys, over_groups, strict=False)
    found: list[Summary | None] = []
    for per_seed in runs:
        if not per_seed:
            found.append(None)
            continue
        mean, narrow, wide = next(rest)
        set_means = [math.fsum(by_key.values()) / len(by_key) for by_key in per_seed]
        found.append(
            Summary(
                mean=math.fsum(set_means) / len(set_means),
                std_seeds=float(np.std(set_means, ddof=1)) if len(set_means) > 1 else None,
                ci_low=narrow.low,
                ci_high=narrow.high,
                ci_group_low=wide.low if wide else None,
                ci_group_high=wide.high if wide else None,
                n=len(mean),
                num_seeds=len(set_means),
            )
        )
    return found


def wilson_interval(share: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a share of n trials (95 % by default)."""
    if n < 1:
        raise ValueError(f"a Wilson interval needs at least one trial: got {n}; score some clips")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
