"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    """Keeps `model`, a frozen copy whose weights trail the trained ones.

    The decay rises from 0.1 to its final value, `min(decay, (1 + step) / (10 + step))`, so that a
    short run does not average in the random start.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model: M = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` after optimiser step `step` (1-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine: list[torch.Tensor] = [p for p in self.model.parameters() if p.is_floating_point()]
        theirs = [p.detach() for p in model.parameters() if p.is_floating_point()]
        torch._foreach_lerp_(mine, theirs, 1 - decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)
