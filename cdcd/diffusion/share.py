"""Which samples of a batch one process computes, where several share its work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Samples `start` to `stop - 1` of a batch of `total`.

    Whoever draws random numbers for a share draws those of the whole batch and keeps its own, so
    that a sample meets the same numbers however many processes there are.
    """

    start: int
    stop: int
    total: int

    def cut(self, x: Tensor, dim: int = 0, per_sample: int = 1) -> Tensor:
        """The share's entries of `x`, which has `per_sample` for each sample along `dim`."""
        num = self.stop - self.start
        return x.narrow(dim, self.start * per_sample, num * per_sample)

    def ids(self, device: torch.device) -> Tensor:
        """Numbers of the share's samples in the whole batch, int64 [stop - start]."""
        return torch.arange(self.start, self.stop, device=device)
