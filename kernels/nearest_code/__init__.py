r"""Codebook assignment `argmin_k |x - e_k|^2`, and the sums that move a codebook.

`|x|^2` is the same for all codes, so that `|e_k|^2 - 2 x.e_k` decides; ties go to the lowest index.
The n x K matrix of distances is never written. For an exponential-moving-average codebook the same
pass counts the rows of each code and sums them: `counts_k = #{i: a_i = k}`,
`sums_k = sum_{i: a_i = k} x_i`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kernels.dispatch import check_finite, choose
from kernels.nearest_code import reference

__all__ = ["Assignment", "nearest_code"]


class Assignment(NamedTuple):
    """Where each row belongs; no gradient flows."""

    codes: Tensor
    """int64 [n] in 0..K-1."""
    counts: Tensor | None
    """float32 [K]: rows of each code."""
    sums: Tensor | None
    """float32 [K, d]: their sum."""


def nearest_code(rows: Tensor, codebook: Tensor, has_statistics: bool = False) -> Assignment:
    """Assign each row to its nearest code.

    Args:
        rows: [n, d], any floating-point type; distances are computed in float32.
        codebook: [K, d], K at least 1.
        has_statistics: also count and sum the rows of each code. On a GPU the sums are in no
            fixed order, hence equal only to rounding from run to run.

    Raises:
        ValueError: shapes or devices that do not fit each other.
    """
    if rows.ndim != 2 or codebook.ndim != 2 or rows.shape[1] != codebook.shape[1]:
        raise ValueError(
            "rows must be [n, d] and codebook [K, d] with the same d: got "
            f"{list(rows.shape)} and {list(codebook.shape)}"
        )
    if len(codebook) == 0 or codebook.device != rows.device:
        raise ValueError(
            f"codebook must hold codes on the rows' device {rows.device}: got "
            f"{len(codebook)} codes on {codebook.device}"
        )
    check_finite("rows", rows)
    rows, codebook = rows.detach(), codebook.detach().float()
    if choose(rows) == "triton":
        from kernels.nearest_code import kernel

        return Assignment(*kernel.run(rows, codebook, has_statistics))
    return Assignment(*reference.run(rows, codebook, has_statistics))
