"""The optimiser and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, learning_rate: float, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over the parameters that train; biases, norms and vectors are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), foreach=True)


def rate_factor(
    step: int, num_steps: int, warmup_steps: int, decay: Literal["constant", "cosine"]
) -> float:
    """Share of the full learning rate at 1-based optimiser step `step`, in 0..1."""
    if step <= warmup_steps:
        return step / warmup_steps
    if decay == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
