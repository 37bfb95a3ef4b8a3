from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.statistics import (
    Interval,
    bootstrap_intervals,
    bootstrap_means,
    mean_over_seeds,
    paired_differences,
    summarise,
    wilson_interval,
)

OPTIONS = {"num_resamples": 2000, "seed": 0}


def named(values) -> dict[str, float]:
    return {f"k{i:03d}": float(value) for i, value in enumerate(values)}


def bootstrap_interval(scores, **options) -> Interval:
    (found,) = bootstrap_intervals([scores], **options)
    return found


def slow_means(scores, num_resamples, seed, clusters=None) -> np.ndarray:
    """One resample after the other, unit by unit: the definition."""
    generator = np.random.default_rng(seed)
    members: dict[str, list[float]] = {}
    for key in sorted(scores):
        members.setdefault(clusters[key] if clusters else key, []).append(scores[key])
    names = sorted(members)
    means = []
    for _ in range(num_resamples):
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        means.append(np.mean([value for name in drawn for value in members[name]]))
    return np.array(means)


@pytest.mark.parametrize("clustered", [False, True])
def test_draws_are_those_of_the_direct_bootstrap(clustered):
    scores = named(np.random.default_rng(8).random(37))
    clusters = {key: f"s{int(key[1:]) % 5 % 4}" for key in scores} if clustered else None
    options = {"num_resamples": 200, "seed": 3, "clusters": clusters}
    found = bootstrap_means([scores], **options)
    np.testing.assert_allclose(found[:, 0], slow_means(scores, **options), rtol=1e-12)
    low, high = np.quantile(slow_means(scores, **options), [0.025, 0.975])
    interval = bootstrap_interval(scores, **options)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.mean == pytest.approx(np.mean(list(scores.values())))


def test_columns_do_not_touch_each_other():
    """Whatever stands beside a score, of the same keys, of some of them or of others."""
    generator = np.random.default_rng(9)
    first, second = named(generator.random(20)), named(generator.random(20))
    some = {key: first[key] for key in list(first)[:7]}
    other = {f"x{key}": value for key, value in second.items()}
    together = bootstrap_means([first, some, second, other], **OPTIONS)
    alone = [bootstrap_means([one], **OPTIONS)[:, 0] for one in (first, some, second, other)]
    np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-12)
    with pytest.raises(ValueError, match="at least one score"):
        bootstrap_means([first, {}], **OPTIONS)
    assert bootstrap_intervals([], **OPTIONS) == []


def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        found = bootstrap_interval(
            named(generator.normal(3.0, 2.0, 40)), num_resamples=400, seed=trial
        )
        covered += found.low <= 3.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_spread_and_width_follow_the_standard_error():
    values = np.random.default_rng(2).normal(0, 1, 400)
    options = {"num_resamples": 10_000, "seed": 0}
    standard_error = values.std() / np.sqrt(400)
    drawn = bootstrap_means([named(values)], **options)
    # The spread of R draws is off by 1 / sqrt(2 R), or 0.7 %, and their mean by 1 % of it.
    assert drawn.std() == pytest.approx(standard_error, rel=0.03)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.04 * standard_error)
    found = bootstrap_interval(named(values), **options)
    assert found.high - found.low == pytest.approx(2 * 1.96 * standard_error, rel=0.05)


def test_same_seed_same_draws_other_seed_other_draws():
    scores = named(np.random.default_rng(3).random(30))
    first, again, other = (
        bootstrap_means([scores], num_resamples=100, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("clustered", [False, True])
def test_order_of_clips_changes_nothing(clustered):
    scores = named(np.random.default_rng(4).random(30))
    clusters = {key: f"s{int(key[1:]) % 4}" for key in scores} if clustered else None
    turned = dict(reversed(scores.items()))
    np.testing.assert_allclose(
        bootstrap_means([scores], clusters=clusters, **OPTIONS),
        bootstrap_means([turned], clusters=clusters, **OPTIONS),
        rtol=1e-12,
    )


def test_blocks_change_nothing(monkeypatch):
    scores = named(np.random.default_rng(10).random(9))
    whole = bootstrap_means([scores], num_resamples=100, seed=0)
    for block in (1, 70):
        monkeypatch.setattr("cdcd.evaluation.statistics._BLOCK", block)
        blocks = bootstrap_means([scores], num_resamples=100, seed=0)
        np.testing.assert_allclose(blocks, whole, rtol=1e-12)


def test_equal_clips_of_a_song_count_as_one_draw():
    song_means = np.random.default_rng(5).normal(0, 1, 12)
    scores = {f"{song:02d}-{i}": song_means[song] for song in range(12) for i in range(20)}
    songs = {key: key[:2] for key in scores}
    by_song = bootstrap_interval(scores, clusters=songs, **OPTIONS)
    by_key = bootstrap_interval(scores, **OPTIONS)
    ratio = (by_song.high - by_song.low) / (by_key.high - by_key.low)
    assert ratio == pytest.approx(np.sqrt(20), rel=0.2)
    single = bootstrap_interval(named(song_means), **OPTIONS)
    assert by_song.low == pytest.approx(single.low, abs=0.1)


def test_clusters_of_one_equal_no_clusters():
    scores = named(np.random.default_rng(6).random(25))
    own = {key: key for key in scores}
    assert bootstrap_interval(scores, clusters=own, **OPTIONS) == bootstrap_interval(
        scores, **OPTIONS
    )


def test_pairing_cancels_what_is_hard_for_both():
    generator = np.random.default_rng(7)
    hardness = generator.normal(0, 5, 60)
    first, second = (named(hardness + shift + generator.normal(0, 0.1, 60)) for shift in (1, 0))
    found = bootstrap_interval(paired_differences(first, second), **OPTIONS)
    assert 0.9 < found.low < found.mean < found.high < 1.1
    reverse = bootstrap_interval(paired_differences(second, first), **OPTIONS)
    assert reverse.mean == pytest.approx(-found.mean)


def test_only_common_clips_are_compared():
    assert paired_differences({"a": 3.0, "b": 9.0}, {"a": 1.0, "c": 0.0}) == {"a": 2.0}
    assert bootstrap_interval({"a": 2.0}, **OPTIONS) == Interval(2.0, 2.0, 2.0)
    assert paired_differences({"a": 1.0}, {"b": 1.0}) == {}


def test_summary_over_seeds():
    runs = [{"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    found, missing, again = summarise(
        [runs, [{}, {}], [*runs, {}]], clusters={"a": "s", "b": "t"}, **OPTIONS
    )
    assert found is not None
    assert found.mean == pytest.approx(0.75)
    assert found.std_seeds == pytest.approx(0.25)  # ddof 1 of 0.5, 0.75, 1.0
    assert (found.n, found.num_seeds) == (2, 3)
    assert found.ci_low == found.ci_group_low == 0.5  # the worse clip twice
    assert found.as_dict("song")["ci_song_low"] == 0.5
    assert missing is None
    assert again == found  # a seed without a score counts for nothing


def test_seeds_of_a_key_stay_together():
    """The interval is that of the keys' means over seeds, however far apart the seeds are."""
    generator = np.random.default_rng(11)
    mean, spread = generator.random(50), generator.normal(0, 100, 50)
    (found,) = summarise([[named(mean + spread), named(mean - spread)]], **OPTIONS)
    assert found is not None
    single = bootstrap_interval(mean_over_seeds([named(mean)]), **OPTIONS)
    assert (found.ci_low, found.ci_high) == (pytest.approx(single.low), pytest.approx(single.high))


def test_one_seed_has_no_spread():
    (found,) = summarise([[{"a": 1.0}]], **OPTIONS)
    assert found is not None
    assert found.std_seeds is None
    assert found.ci_group_low is None


def test_wilson_interval():
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson_interval(0.0, 20)[0] == 0.0
    assert wilson_interval(0.0, 20)[1] == pytest.approx(0.16113, abs=1e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0.5, 0)
