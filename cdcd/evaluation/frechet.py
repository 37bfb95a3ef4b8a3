"""The Fréchet distance between Gaussians fitted to two sets of features."""

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
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"a Fréchet distance needs at least 2 rows a side: got {len(x)} and {len(y)}; add clips"
        )
    width = x.shape[1]
    value = gaussian_distance(
        x.mean(axis=0),
        np.cov(x, rowvar=False, ddof=1).reshape(width, width),
        y.mean(axis=0),
        np.cov(y, rowvar=False, ddof=1).reshape(width, width),
    )
    warnings: tuple[str, ...] = ()
    if min(len(x), len(y)) <= width:
        warnings = (
            f"rank_deficient: {len(x)} and {len(y)} rows for {width} dimensions; the value "
            "depends on the number of rows",
        )
    config = {"metric": "frechet", "ddof": 1, "dimensions": width}
    return Metric(value, len(x), {}, config, warnings, extra={"n_reference": len(y)})
