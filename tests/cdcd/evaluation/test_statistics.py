from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    bootstrap_means,
    paired_difference,
    summarise,
    wilson_interval,
)

OPTIONS = {"num_resamples": 2000, "seed": 0}


def named(values) -> dict[str, float]:
    return {f"k{i:03d}": float(value) for i, value in enumerate(values)}


def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        found = bootstrap_interval(
            named(generator.normal(3.0, 2.0, 40)), num_resamples=400, seed=trial
        )
        covered += found.low <= 3.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_width_follows_the_standard_error():
    values = np.random.default_rng(2).normal(0, 1, 400)
    found = bootstrap_interval(named(values), num_resamples=10_000, seed=0)
    expected = 2 * 1.96 * values.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(expected, rel=0.05)


def test_same_seed_same_draws_other_seed_other_draws():
    scores = named(np.random.default_rng(3).random(30))
    first, again, other = (
        bootstrap_means(scores, num_resamples=100, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("clustered", [False, True])
def test_order_of_clips_changes_nothing(clustered):
    scores = named(np.random.default_rng(4).random(30))
    clusters = {key: f"s{int(key[1:]) % 4}" for key in scores} if clustered else None
    turned = dict(reversed(scores.items()))
    np.testing.assert_allclose(
        bootstrap_means(scores, clusters=clusters, **OPTIONS),
        bootstrap_means(turned, clusters=clusters, **OPTIONS),
        rtol=1e-12,
    )


def test_blocks_give_every_resample(monkeypatch):
    monkeypatch.setattr("cdcd.evaluation.statistics._BLOCK", 70)
    assert bootstrap_means(named(range(10)), num_resamples=100, seed=0).shape == (100,)


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
    found = paired_difference(first, second, **OPTIONS)
    assert 0.9 < found.low < found.mean < found.high < 1.1
    reverse = paired_difference(second, first, **OPTIONS)
    assert reverse.mean == pytest.approx(-found.mean)


def test_only_common_clips_are_compared():
    found = paired_difference({"a": 3.0, "b": 9.0}, {"a": 1.0, "c": 0.0}, **OPTIONS)
    assert found == Interval(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="got none in common"):
        paired_difference({"a": 1.0}, {"b": 1.0}, **OPTIONS)


def test_summary_over_seeds():
    runs = [{"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.0}, {"a": 1.0, "b": 1.0}]
    found = summarise(runs, clusters={"a": "s", "b": "t"}, **OPTIONS)
    assert found is not None
    assert found.mean == pytest.approx(0.75)
    assert found.std_seeds == pytest.approx(0.25)  # ddof 1 of 0.5, 0.75, 1.0
    assert (found.n, found.num_seeds) == (2, 3)
    assert found.ci_low == found.ci_song_low == 0.5  # the worse clip twice


def test_one_seed_has_no_spread_and_no_clip_has_no_summary():
    found = summarise([{"a": 1.0}], **OPTIONS)
    assert found is not None
    assert found.std_seeds is None
    assert found.ci_song_low is None
    assert summarise([{}, {}], **OPTIONS) is None


def test_overlap():
    assert Interval(1, 0, 2).overlaps(Interval(3, 2, 4))
    assert not Interval(1, 0, 2).overlaps(Interval(3, 2.1, 4))


def test_wilson_interval():
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson_interval(0.0, 20)[0] == 0.0
    assert wilson_interval(0.0, 20)[1] == pytest.approx(0.16113, abs=1e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0.5, 0)
