"""The forward chain q(z_t | z_0); no network, no loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdcd.diffusion.schedule import Schedule
from cdcd.diffusion.share import Share
from kernels.forward_noise import forward_noise


@dataclass(frozen=True)
class Noised:
    """A noised batch: tokens int64 in 0..K (K is [MASK]) at steps t, int64 [b] in 1..T."""

    z_t: Tensor
    """[b, l]."""
    negatives: Tensor | None
    """[b, n, l] on chains of their own, where parallel chains were asked for."""
    t: Tensor


def noise(
    z_0: Tensor,
    t: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    negatives: Tensor | None = None,
    share: Share | None = None,
) -> Noised:
    """Draw z_t ~ q(. | z_0): [MASK] with C_t, a uniform token with K B_t, else z_0.

    The generator gives one seed; everything else is counted from it (`kernels.forward_noise`).

    Args:
        z_0: clean tokens, int64 [b, l] in 0..K-1.
        t: steps, int64 [b] in 1..T.
        schedule: the chain.
        generator: source of the seed, on the tokens' device.
        negatives: clean tokens of parallel chains at the same steps, int64 [b, n, l].
        share: which samples of a larger batch these are; None for a whole one.
    """
    _, B, C = schedule.at(t)[3:]
    seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=z_0.device)
    ids = None if share is None else share.ids(z_0.device)
    return Noised(*forward_noise(z_0, B, C, schedule.num_codes, seed, negatives, ids), t)


def transition_matrix(schedule: Schedule, t: int) -> Tensor:
    """Q_t, float64 [K + 1, K + 1]: row i is q(z_t | z_{t-1} = i). For tests and study only."""
    K = schedule.num_codes
    a, b, c = schedule.tables[:3, t]
    Q = torch.zeros(K + 1, K + 1, dtype=torch.float64)
    Q[:K, :K] = b + a * torch.eye(K, dtype=torch.float64)
    Q[:K, K] = c
    Q[K, K] = 1
    return Q
