"""Which step t a sample is trained at: uniform (Algorithm 1) or by importance (released code)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class StepSampler(nn.Module):
    """Draws t and remembers the size of the loss at each step.

    Importance sampling draws t in proportion to sqrt(E[L_t^2]) once every step was seen more than
    `warmup_count` times, as Nichol & Dhariwal (2021) and the released code do; uniform until then.
    The history is part of the training state: buffers, saved and resumed.
    """

    def __init__(
        self,
        num_steps: int,
        kind: Literal["importance", "uniform"],
        warmup_count: int = 10,
        history_decay: float = 0.9,
    ) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.kind = kind
        self.warmup_count = warmup_count
        self.history_decay = history_decay
        self.square: Tensor
        self.count: Tensor
        self.register_buffer("square", torch.zeros(num_steps))
        self.register_buffer("count", torch.zeros(num_steps))

    def probabilities(self) -> Tensor:
        """P(t), float [T], entry i for step i + 1."""
        uniform = torch.full_like(self.square, 1 / self.num_steps)
        if self.kind == "uniform":
            return uniform
        weight = (self.square + 1e-10).sqrt() + 1e-4
        # The decoder term at t = 1 is of another kind; it takes its neighbour's weight.
        weight = torch.cat([weight[1:2], weight[1:]])
        ready = (self.count > self.warmup_count).all()
        return torch.where(ready, weight / weight.sum(), uniform)

    def sample(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw steps, int64 [num] in 1..T, and their probabilities, float [num]."""
        p = self.probabilities()
        index = torch.multinomial(p, num, replacement=True, generator=generator)
        return index + 1, p[index]

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record per-sample losses [b] at steps t [b]; only training calls this."""
        if self.kind == "uniform":
            return
        square = loss.detach().float().square()
        index = t - 1
        old = self.square[index]
        self.square[index] = (1 - self.history_decay) * square + self.history_decay * old
        self.count.index_add_(0, index, torch.ones_like(square))
