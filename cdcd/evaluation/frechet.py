"""The Fréchet distance between Gaussians fitted to two sets of features, held or streamed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cdcd.evaluation.result import Metric


def gaussian_distance(
    mean_x: ArrayLike, cov_x: ArrayLike, mean_y: ArrayLike, cov_y: ArrayLike
) -> float:
    """Return `|mean_x - mean_y|^2 + Tr cov_x + Tr cov_y - 2 Tr (cov_x cov_y)^(1/2)`.

    The trace of the root is the sum of the roots of the product's eigenvalues: the product of two
    positive semi-definite matrices has real eigenvalues of at least zero, so imaginary and negative
    parts are rounding and are dropped.

    Args:
        mean_x: float `[d]`.
        cov_x: float `[d, d]`, symmetric, positive semi-definite.
        mean_y: float `[d]`.
        cov_y: float `[d, d]`, likewise.
    """
    mean_x, cov_x, mean_y, cov_y = (
        np.asarray(value, dtype=np.float64) for value in (mean_x, cov_x, mean_y, cov_y)
    )
    eigenvalues = np.linalg.eigvals(cov_x @ cov_y).real
    root_trace = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    shift = mean_x - mean_y
    return float(shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2 * root_trace)


class Gaussian:
    """Mean and covariance of rows that come batch by batch; no row is kept.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which does not
    subtract large numbers. float64.

    Attributes:
        n: rows so far.
        mean: `[d]`.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.n = 0
        self.mean = np.zeros(width)
        self._scatter = np.zeros((width, width))

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> Gaussian:
        """Return that of rows `[n, d]` in memory."""
        found = cls(rows.shape[1])
        found.add(rows)
        return found

    def add(self, rows: NDArray[np.floating]) -> None:
        """Take more rows `[m, d]`.

        Raises:
            ValueError: another width, or a number that is not finite.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(
                f"features must be [n, {self.width}]: got {list(rows.shape)}; extract all with "
                "one network"
            )
        if not np.isfinite(rows).all():
            raise ValueError("features must be finite: got NaN or infinity; check the weights")
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        total, shift = self.n + len(rows), mean - self.mean
        weight = self.n * len(rows) / total
        self._scatter += centred.T @ centred + weight * np.outer(shift, shift)
        self.mean = self.mean + shift * (len(rows) / total)
        self.n = total

    def covariance(self) -> NDArray[np.float64]:
        """Return `[d, d]` with ddof 1."""
        return self._scatter / (self.n - 1)


def frechet_distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> Metric:
    """Compare two sets of features `[n, d]` and `[m, d]`; the order of rows does not matter.

    The value may be a rounding error below zero for equal sets; it is not clipped.

    Returns:
        The metric; `n` is the number of rows of x and `extra["n_reference"]` that of y. The warning
        `rank_deficient` says that a covariance is singular (n <= d).

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features must be [n, d] and [m, d]: got {list(x.shape)} and {list(y.shape)}; "
            "extract both with one network"
        )
    return frechet_between(Gaussian.of(x), Gaussian.of(y))


def frechet_between(x: Gaussian, y: Gaussian) -> Metric:
    """Compare two streamed sets; see `frechet_distance`.

    Raises:
        ValueError: fewer than two rows, or different widths.
    """
    if x.width != y.width:
        raise ValueError(
            f"features must be [n, d] and [m, d]: got widths {x.width} and {y.width}; "
            "extract both with one network"
        )
    if min(x.n, y.n) < 2:
        raise ValueError(
            f"a Fréchet distance needs at least 2 rows a side: got {x.n} and {y.n}; add clips"
        )
    value = gaussian_distance(x.mean, x.covariance(), y.mean, y.covariance())
    warnings: tuple[str, ...] = ()
    if min(x.n, y.n) <= x.width:
        warnings = (
            f"rank_deficient: {x.n} and {y.n} rows for {x.width} dimensions; the value "
            "depends on the number of rows",
        )
    config = {"metric": "frechet", "ddof": 1, "dimensions": x.width}
    return Metric(value, x.n, {}, config, warnings, extra={"n_reference": y.n})
