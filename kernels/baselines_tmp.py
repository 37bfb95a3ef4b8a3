"""The posterior's losses in plain PyTorch: the specification, and the path of every CPU."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.posterior_loss import StepCoefficients

LOG_FLOOR = -70.0
"""Log-probabilities are floored here, as the published loss does."""
_FLOOR = math.exp(LOG_FLOOR)
_TINY_DENOMINATOR = 1e-30
"""Stands for q(z_t | z_0 = k) = 0, so that B_t = 0 divides by no zero; float32 can hold it."""


def floored_log(p: Tensor) -> Tensor:
    """Log p, floored at `LOG_FLOOR`, with a zero gradient where it is floored.

    Clamping before the logarithm keeps the backward pass free of 0 * inf.
    """
    return p.clamp_min(_FLOOR).log()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _posterior(
    logits: Tensor, z_t: Tensor, q: StepCoefficients
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """P [b l K], p_theta over tokens [b l K], v = z_t made a valid index, is_mask, and log p."""
    K = logits.shape[-1]
    log_p = torch.log_softmax(_wide(logits), dim=-1)
    p = log_p.exp()
    row = [x.to(p.dtype)[:, None, None] for x in q[:9]]
    a, b, c, A, B, C, A_prev, B_prev, _ = row
    is_mask = (z_t == K)[..., None]
    v = z_t.clamp_max(K - 1)[..., None]
    # d and pre are constant over k except at v; scatter_add writes that one entry.
    at_v = torch.zeros_like(p).scatter_(-1, v, 1.0)
    d = torch.where(is_mask, torch.ones_like(B), (B + A * at_v).clamp_min(_TINY_DENOMINATOR))
    pre = torch.where(is_mask, c / C.clamp_min(_TINY_DENOMINATOR), b + a * at_v)
    w = p / d
    S = w.sum(-1, keepdim=True)
    return p, pre * (B_prev * S + A_prev * w), v, is_mask, log_p


def posterior_log_probs(logits: Tensor, z_t: Tensor, coefficients: StepCoefficients) -> Tensor:
    """Log p_theta(z_{t-1} = . | z_t), floored, [b, l, K + 1] with [MASK] last."""
    p, token, _, is_mask, _ = _posterior(logits, z_t, coefficients)
    C = coefficients.C.to(p.dtype)[:, None, None].clamp_min(_TINY_DENOMINATOR)
    stay = coefficients.C_prev.to(p.dtype)[:, None, None] / C
    first = coefficients.is_first[:, None, None]
    token = torch.where(first, p, token)
    mask = torch.where(is_mask & ~first, stay, torch.zeros_like(stay))
    return floored_log(torch.cat([token, mask], dim=-1))


def _entropy_term(q: Tensor) -> Tensor:
    return torch.where(q > 0, q * floored_log(q), torch.zeros_like(q))


def posterior_terms(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    coefficients: StepCoefficients,
    negatives: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `kernels.posterior_loss.posterior_loss`."""
    K = logits.shape[-1]
    p, token, v, is_mask, log_p_z0 = _posterior(logits, z_t, coefficients)
    log_theta = floored_log(token)
    R = log_theta.sum(-1)  # b l
    log_theta_v = log_theta.gather(-1, v)  # b l 1

    def gather(values: Tensor, targets: Tensor) -> Tensor:
        """Values [b l K] at targets [b n l] -> [b n l]."""
        return values.gather(-1, targets.transpose(1, 2)).transpose(1, 2)

    targets = z_0[:, None] if negatives is None else torch.cat([z_0[:, None], negatives], dim=1)
    a, b, c, A, B, C, A_prev, B_prev, _ = (x.to(p.dtype)[:, None, None] for x in coefficients[:9])
    mask_row = is_mask.transpose(1, 2)  # b 1 l
    v_row = v.transpose(1, 2)
    is_v = (targets == v_row) & ~mask_row  # b n l
    # q(.|z_t, x) in its three values: at x, at v, elsewhere.
    pre_other = torch.where(mask_row, c / C.clamp_min(_TINY_DENOMINATOR), b)
    pre_v = b + a
    S = torch.where(mask_row, torch.ones_like(B), 1 / (B + A * is_v).clamp_min(_TINY_DENOMINATOR))
    q_other = pre_other * S * B_prev
    q_v = pre_v * S * (B_prev + A_prev * is_v)
    q_x = torch.where(is_v, q_v, pre_other * S * (B_prev + A_prev))
    # Entries: x once; v once when it is a token other than x; the rest are "other".
    v_counts = ~mask_row & ~is_v
    num_other = K - 1 - v_counts.to(p.dtype)
    negative_entropy = (
        num_other * _entropy_term(q_other)
        + _entropy_term(q_x)
        + torch.where(v_counts, _entropy_term(q_v), torch.zeros_like(q_v))
    )
    log_theta_x = gather(log_theta, targets)
    cross = q_other * R[:, None] + (q_x - q_other) * log_theta_x
    cross = cross + torch.where(
        v_counts, (q_v - q_other) * log_theta_v.transpose(1, 2), torch.zeros_like(cross)
    )
    kl = negative_entropy - cross
    nll = -gather(log_p_z0, targets).clamp_min(LOG_FLOOR)
    kl = torch.where(coefficients.is_first[:, None, None], nll, kl)
    if negatives is None:
        return kl[:, 0], nll[:, 0], None, None
    return kl[:, 0], nll[:, 0], kl[:, 1:], nll[:, 1:]
