"""The reverse step in plain PyTorch: the specification, and the path of every CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.posterior_loss import StepCoefficients

_TINY = 1e-30


def truncate(p: Tensor, truncation: float) -> Tensor:
    """Zero the tail of probabilities p [..., K]: keep while the sum before an entry is < r.

    Ties keep the order of a stable descending sort, so the lowest index wins.
    """
    if truncation >= 1:
        return p
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(p).scatter_(-1, index, ordered * (before < truncation))


def draw_previous(
    logits: Tensor,
    z_t: Tensor,
    q: StepCoefficients,
    uniforms: Tensor,
    truncation: float,
    null_logits: Tensor | None,
    guidance: float,
) -> Tensor:
    """See `kernels.reverse_step.reverse_step`."""
    K = logits.shape[-1]
    row = z_t.shape
    is_mask = z_t == K
    stay = (q.C_prev / q.C.clamp_min(_TINY))[:, None].expand(row)
    # [MASK] comes first in the cumulative order, so a masked row below `stay` needs no K-wide work.
    active = ~is_mask | (uniforms >= stay)
    result = torch.full_like(z_t, K)
    if not bool(active.any()):
        return result
    scores = logits[active].float()
    if guidance != 1:
        assert null_logits is not None
        null = null_logits[active].float()
        scores = null + guidance * (scores - null)
    p = truncate(scores.softmax(-1), truncation)

    def rows(x: Tensor) -> Tensor:
        return x.float()[:, None].expand(row)[active][:, None]

    a, b, c, A, B, C, A_prev, B_prev = (rows(x) for x in q[:8])
    first = q.is_first[:, None].expand(row)[active][:, None]
    mask = is_mask[active][:, None]
    v = z_t[active].clamp_max(K - 1)[:, None]
    at_v = torch.zeros_like(p).scatter_(-1, v, 1.0)
    d = torch.where(mask, torch.ones_like(B), (B + A * at_v).clamp_min(_TINY))
    pre = torch.where(mask, c / C.clamp_min(_TINY), b + a * at_v)
    w = p / d
    token = pre * (B_prev * w.sum(-1, keepdim=True) + A_prev * w)
    token = torch.where(first, p, token)
    cumulative = token.cumsum(-1)
    total = cumulative[:, -1:]
    u = uniforms[active][:, None]
    base = stay[active][:, None]
    # A masked row's token mass is the cumulative sum itself (its complement stays masked); a token
    # row, and every row on its way to z_0, has no [MASK] to fall back to and is renormalised.
    must = ~mask | first
    target = torch.where(must, u * total, u - base)
    index = (cumulative <= target).sum(-1)
    last = (token > 0).long().mul(torch.arange(1, K + 1, device=p.device)).amax(-1) - 1
    fallback = torch.where(must[:, 0], last, torch.full_like(last, K))
    result[active] = torch.where(index < K, index, fallback)
    return result
