"""The forward chain q(z_t | z_0); no network, no loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdcd.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Noised:
    """A noised batch: tokens int64 [b, l] in 0..K (K is [MASK]) at steps t, int64 [b] in 1..T."""

    z_t: Tensor
    t: Tensor


def noise(z_0: Tensor, t: Tensor, schedule: Schedule, generator: torch.Generator) -> Noised:
    """Draw z_t ~ q(. | z_0): [MASK] with C_t, a uniform token with K B_t, else z_0.

    O(1) a token: one uniform number decides the case, another the replacement.

    Args:
        z_0: clean tokens, int64 [b, l] in 0..K-1.
        t: steps, int64 [b] in 1..T.
        schedule: the chain.
        generator: source of the draws, on the tokens' device.
    """
    K = schedule.num_codes
    B, C = schedule.tables.to(t.device)[4:, t].float()[..., None]
    case = torch.rand(z_0.shape, generator=generator, device=z_0.device)
    replacement = torch.randint(K, z_0.shape, generator=generator, device=z_0.device)
    z_t = torch.where(case < C + K * B, replacement, z_0)
    return Noised(torch.where(case < C, K, z_t), t)


def transition_matrix(schedule: Schedule, t: int) -> Tensor:
    """Q_t, float64 [K + 1, K + 1]: row i is q(z_t | z_{t-1} = i). For tests and study only."""
    K = schedule.num_codes
    a, b, c = schedule.tables[:3, t]
    Q = torch.zeros(K + 1, K + 1, dtype=torch.float64)
    Q[:K, :K] = b + a * torch.eye(K, dtype=torch.float64)
    Q[:K, K] = c
    Q[K, K] = 1
    return Q
