"""The inputs that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.posterior_loss import StepCoefficients


@dataclass(frozen=True)
class Problem:
    """Arguments of `kernels.posterior_loss.posterior_loss`; see there."""

    logits: Tensor
    z_t: Tensor
    z_0: Tensor
    q: StepCoefficients
    negatives: Tensor | None


def coefficients(
    share: Tensor, K: int, num_steps: int = 100, uniform_mass: float = 0.1
) -> StepCoefficients:
    """Coefficients of a linear mask-and-replace schedule at steps `1 + share (T - 1)`.

    Args:
        share: [b] in [0, 1]; 0 is t = 1.
        K: codes.
        num_steps: T.
        uniform_mass: share of what is not kept that is replaced rather than masked; may be 0.
    """
    t = (1 + share.double() * (num_steps - 1)).round()

    def at(step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = torch.where(step > 0, 0.99999 - 0.99998 * (step - 1) / (num_steps - 1), 1.0)
        return kept, (1 - kept) * uniform_mass / K, (1 - kept) * (1 - uniform_mass)

    A, B, C = at(t)
    A_prev, B_prev, C_prev = at(t - 1)
    a, c = A / A_prev, 1 - (1 - C) / (1 - C_prev)
    b = ((1 - a - c) / K).clamp_min(0) if uniform_mass else torch.zeros_like(a)
    return StepCoefficients(a, b, c, A, B, C, A_prev, B_prev, C_prev, t == 1)


def problem(
    b: int,
    l: int,
    K: int,
    n: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    uniform_mass: float = 0.1,
    scale: float = 3.0,
    seed: int = 0,
) -> Problem:
    """A batch from t = 1 to t = T whose rows are masked, kept and replaced in equal parts.

    Where n allows it the first negative is the positive and the last repeats the one before it.
    """
    g = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(b, l, K, generator=g)
    z_0 = torch.randint(K, (b, l), generator=g)
    case = torch.randint(3, (b, l), generator=g)
    z_t = torch.where(
        case == 0, K, torch.where(case == 1, z_0, torch.randint(K, (b, l), generator=g))
    )
    negatives = torch.randint(K, (b, n, l), generator=g)
    if n >= 3:
        negatives[:, 0], negatives[:, -1] = z_0, negatives[:, -2]
    q = coefficients(torch.linspace(0, 1, b) if b > 1 else torch.tensor([0.5])[:b], K,
                     uniform_mass=uniform_mass)  # fmt: skip
    return Problem(
        logits.to(device, dtype),
        z_t.to(device),
        z_0.to(device),
        StepCoefficients(*(x.to(device) for x in q)),
        negatives.to(device) if n else None,
    )
