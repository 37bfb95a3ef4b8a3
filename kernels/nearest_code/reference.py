"""Codebook assignment in plain PyTorch: the specification, and the path of every CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 8192
"""Rows compared at a time: no n x K matrix exists for a long input."""


def run(
    rows: Tensor, codebook: Tensor, has_statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `kernels.nearest_code.nearest_code`."""
    K = len(codebook)
    norms = codebook.square().sum(dim=1)
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK].float()
        codes[start : start + _CHUNK] = torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1)
    if not has_statistics:
        return codes, None, None
    counts = torch.bincount(codes, minlength=K).float()
    return codes, counts, torch.zeros_like(codebook).index_add_(0, codes, rows.float())
