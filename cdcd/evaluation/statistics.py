"""Means with their uncertainty: spread over seeds, bootstrap over clips, bootstrap over songs.

Clips of one song share tempo, timbre and genre, so they are not independent draws. The bootstrap
over keys (as usually reported) is therefore too sure of itself; the bootstrap over songs draws
whole songs with all their clips and is reported beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4_000_000  # drawn counts held in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean or a difference with its 95 % percentile bootstrap interval, `low <= high`."""

    mean: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Tell whether two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Summary:
    """One score of one system over seeds and clips.

    Attributes:
        mean: mean over seeds of the set means.
        std_seeds: standard deviation (ddof 1) of the set means over seeds; None with one seed.
        ci_low: lower end of the 95 % interval over keys.
        ci_high: its upper end.
        ci_song_low: lower end of the 95 % interval over songs; None without songs.
        ci_song_high: its upper end.
        n: number of clips.
        num_seeds: number of seeds.
    """

    mean: float
    std_seeds: float | None
    ci_low: float
    ci_high: float
    ci_song_low: float | None
    ci_song_high: float | None
    n: int
    num_seeds: int

    def as_dict(self, group: str = "song") -> dict[str, float | int | None]:
        """Return plain values for JSON; `group` is what the clusters are, as in `ci_song_low`."""
        return {name.replace("song", group): value for name, value in asdict(self).items()}

    @property
    def interval(self) -> Interval:
        """The interval over keys."""
        return Interval(self.mean, self.ci_low, self.ci_high)

    @property
    def song_interval(self) -> Interval | None:
        """The interval over songs."""
        if self.ci_song_low is None or self.ci_song_high is None:
            return None
        return Interval(self.mean, self.ci_song_low, self.ci_song_high)


def bootstrap_means(
    scores: Mapping[str, float],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> NDArray[np.float64]:
    """Draw the mean of resampled clips, or of resampled clusters of clips.

    The order of the mapping does not matter: units are sorted by name before anything is drawn.

    Args:
        scores: score by key, at least one.
        num_resamples: number of draws.
        seed: of the draws.
        clusters: cluster of each key, e.g. its song; None resamples single keys.

    Returns:
        float64 `[num_resamples]`. With clusters a draw is the mean over all clips of the drawn
        clusters, so a cluster counts by its size.

    Raises:
        ValueError: there is no score.
    """
    if not scores:
        raise ValueError("a bootstrap needs at least one score: got none; score some clips first")
    unit_of = {key: clusters[key] if clusters else key for key in scores}
    units = {name: i for i, name in enumerate(sorted(set(unit_of.values())))}
    sums, sizes = np.zeros(len(units)), np.zeros(len(units))
    for key in sorted(scores):
        sums[units[unit_of[key]]] += scores[key]
        sizes[units[unit_of[key]]] += 1
    # Scores of one set of clips share their draws: made once where they fit in memory.
    draws = _draw if num_resamples * len(units) > _BLOCK else _draw_once
    return np.concatenate(
        [(c @ sums) / (c @ sizes) for c in draws(len(units), num_resamples, seed)]
    )


def _draw(num_units: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each unit is drawn in each resample, `[some, num_units]`."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_units, 1 / num_units)
    block = max(1, _BLOCK // num_units)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        yield generator.multinomial(num_units, shares, size=size).astype(np.float64)


@lru_cache(maxsize=4)
def _draw_once(num_units: int, num_resamples: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    return tuple(_draw(num_units, num_resamples, seed))


def bootstrap_interval(
    scores: Mapping[str, float],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> Interval:
    """Return the mean and its 95 % percentile bootstrap interval; see `bootstrap_means`."""
    means = bootstrap_means(scores, num_resamples=num_resamples, seed=seed, clusters=clusters)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(math.fsum(scores.values()) / len(scores), float(low), float(high))


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> Interval:
    """Return the mean of `first - second` over common keys with its bootstrap interval.

    Each resample draws the same keys for both systems, so what makes a clip hard for both cancels.

    Raises:
        ValueError: the systems share no key.
    """
    common = {key: first[key] - second[key] for key in first if key in second}
    if not common:
        raise ValueError(
            "a paired difference needs clips scored for both systems: got none in common; "
            "score the same keys"
        )
    return bootstrap_interval(common, num_resamples=num_resamples, seed=seed, clusters=clusters)


def mean_over_seeds(per_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each key's mean over the seeds that scored it."""
    gathered: dict[str, list[float]] = {}
    for scores in per_seed:
        for key, score in scores.items():
            gathered.setdefault(key, []).append(score)
    return {key: math.fsum(values) / len(values) for key, values in sorted(gathered.items())}


def summarise(
    per_seed: Sequence[Mapping[str, float]],
    *,
    num_resamples: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> Summary | None:
    """Summarise one score over seeds and clips; None when no clip was scored.

    The intervals resample clips (and songs) of the per-clip means over seeds; the seeds' own spread
    is `std_seeds`.
    """
    per_seed = [scores for scores in per_seed if scores]
    if not per_seed:
        return None
    set_means = [math.fsum(scores.values()) / len(scores) for scores in per_seed]
    scores = mean_over_seeds(per_seed)
    over_keys = bootstrap_interval(scores, num_resamples=num_resamples, seed=seed)
    over_songs = (
        bootstrap_interval(scores, num_resamples=num_resamples, seed=seed, clusters=clusters)
        if clusters
        else None
    )
    return Summary(
        mean=math.fsum(set_means) / len(set_means),
        std_seeds=float(np.std(set_means, ddof=1)) if len(set_means) > 1 else None,
        ci_low=over_keys.low,
        ci_high=over_keys.high,
        ci_song_low=over_songs.low if over_songs else None,
        ci_song_high=over_songs.high if over_songs else None,
        n=len(scores),
        num_seeds=len(set_means),
    )


def wilson_interval(share: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a share of n trials (95 % by default)."""
    if n < 1:
        raise ValueError(f"a Wilson interval needs at least one trial: got {n}; score some clips")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
