from __future__ import annotations

import numpy as np
import pytest

from cdcd.evaluation.fad import audio_distance
from cdcd.evaluation.frechet import (
    Gaussian,
    frechet_between,
    frechet_distance,
    gaussian_distance,
)


def rows(seed: int = 0, num: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((num, 8))
    return x, 1.5 * generator.standard_normal((num, 8)) + 0.5


def test_golden_gaussians():
    assert gaussian_distance([0, 0], np.eye(2), [1, 2], [[2, 0.5], [0.5, 1]]) == pytest.approx(
        5.247842043422971, rel=1e-12
    )
    assert gaussian_distance([1], [[4]], [3], [[9]]) == pytest.approx(5.0, rel=1e-12)


def test_golden_samples():
    assert frechet_distance(*rows()).value == pytest.approx(4.079209372442, abs=1e-9)


def test_equal_sets_and_permuted_rows():
    x, y = rows()
    assert abs(frechet_distance(x, x).value) < 1e-8
    assert frechet_distance(x, y[::-1]).value == pytest.approx(frechet_distance(x, y).value)
    assert frechet_distance(y, x).value == pytest.approx(frechet_distance(x, y).value)


def test_a_shift_changes_the_mean_term_alone():
    x, y = rows()
    shift = np.arange(8.0)
    gap = y.mean(axis=0) - x.mean(axis=0)
    moved = frechet_distance(x, y + shift).value - frechet_distance(x, y).value
    assert moved == pytest.approx(((gap + shift) ** 2).sum() - (gap**2).sum())


def test_few_rows_warn_and_too_few_are_refused():
    x, y = rows(num=8)
    found = frechet_distance(x, y)
    assert found.warnings[0].startswith("rank_deficient")
    assert np.isfinite(found.value)
    assert not frechet_distance(*rows(num=20)).warnings
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(x[:1], y)
    with pytest.raises(ValueError, match="one network"):
        frechet_distance(x[:, :3], y)


def test_audio_distance_pools_patches_and_grows_with_noise():
    generator = np.random.default_rng(0)
    reference = {f"k{i}": generator.standard_normal((2, 4)) for i in range(40)}
    noisier = [
        {
            key: patches + scale * generator.standard_normal(patches.shape)
            for key, patches in reference.items()
        }
        for scale in (0.5, 1.0, 2.0)
    ]
    distances = [audio_distance(reference, one).value for one in (reference, *noisier)]
    assert abs(distances[0]) < 1e-8
    assert distances == sorted(distances)
    found = audio_distance(reference | {"short": np.zeros((0, 4))}, noisier[0])
    assert found.skipped == {"reference:short": "too_short"}
    assert found.extra["n_reference"] == 80


def test_streamed_rows_equal_rows_in_memory():
    x, y = rows()
    streamed = Gaussian(8)
    for part in np.array_split(x + 1e4, 7):  # far from the origin, where squares cancel
        streamed.add(part)
    np.testing.assert_allclose(streamed.covariance(), np.cov(x, rowvar=False), atol=1e-7)
    whole, found = Gaussian.of(y + 1e4), Gaussian(8)
    for part in np.array_split((y + 1e4)[::-1], 3):
        found.add(part)
    assert frechet_between(streamed, found).value == pytest.approx(4.079209372442, abs=1e-6)
    assert abs(frechet_between(whole, found).value) < 1e-6


def test_streamed_rows_of_another_width_or_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"must be \[n, 3\]: got \[2, 4\]"):
        Gaussian(3).add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="must be finite"):
        Gaussian(1).add(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="got widths 2 and 3"):
        frechet_between(Gaussian(2), Gaussian(3))


def test_distance_grows_with_noise():
    generator = np.random.default_rng(0)
    x, _ = rows()
    values = [
        frechet_distance(x, x + scale * generator.standard_normal(x.shape)).value
        for scale in (0.0, 0.5, 1.0, 2.0)
    ]
    assert abs(values[0]) < 1e-8
    assert values == sorted(values)
