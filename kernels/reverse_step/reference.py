"""The reverse step in plain PyTorch: the specification, and the path of every CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.posterior_loss.reference import row_facts, wide


def truncate(p: Tensor, truncation: float) -> Tensor:
    """Zero the tail of probabilities p [..., K]: keep while the sum before an entry is < r.

    Ties keep the order of a stable descending sort, so the lowest index wins.
    """
    if truncation >= 1:
        return p
    ordered, index = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(p).scatter_(-1, index, ordered * (before < truncation))


def run(
    logits: Tensor,
    z_t: Tensor,
    q: Tensor,
    uniforms: Tensor,
    truncation: float,
    null_logits: Tensor | None,
    guidance: float,
    has_confidence: bool,
    renormalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `kernels.reverse_step.reverse_step`; `q` holds the coefficients `[b, 10]`."""
    b, l, K = logits.shape
    is_mask = (z_t == K).reshape(-1)
    every = q.repeat_interleave(l, dim=0)
    u = uniforms.reshape(-1).to(q.dtype)
    stay = torch.where(is_mask, every[:, 8] / every[:, 5].clamp_min(1e-30), 0 * u)
    z = torch.full_like(is_mask, K, dtype=torch.int64)
    # [MASK] comes first in the cumulative order, so a masked row below `stay` needs no K-wide work.
    active = torch.ones_like(is_mask) if has_confidence else u >= stay
    probability, entropy = torch.empty_like(u), torch.empty_like(u)
    if bool(active.any()):
        scores = wide(logits.reshape(b * l, K)[active])
        if null_logits is not None:
            null = wide(null_logits.reshape(b * l, K)[active])
            scores = null + guidance * (scores - null)
        rows = (every[active], z_t.reshape(-1)[active], u[active], stay[active])
        z[active], probability[active], entropy[active] = _draw(
            scores, *rows, truncation, renormalize
        )
    if not has_confidence:
        return z.view(b, l), None, None
    return z.view(b, l), probability.float().view(b, l), entropy.float().view(b, l)


def _draw(
    scores: Tensor,
    q: Tensor,
    z_t: Tensor,
    u: Tensor,
    stay: Tensor,
    truncation: float,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their probabilities and entropies of rows: scores `[r, K]`, the others `[r]`."""
    K = scores.shape[1]
    row = row_facts(q, z_t < K)
    p = scores.softmax(1)
    entropy = -torch.xlogy(p, p).sum(1)
    p = truncate(p, truncation)
    if renormalize:
        p = p / p.sum(1, keepdim=True)
    v = z_t.clamp_max(K - 1)[:, None]
    at_v = torch.zeros_like(p).scatter_(1, v, row.is_token.to(p.dtype)) > 0
    w = p * torch.where(at_v, row.inv_d_v, row.inv_d)
    pre = torch.where(at_v, row.pre_v, row.pre)
    token = pre * (row.B_prev * w.sum(1, keepdim=True) + row.A_prev * w)
    token = torch.where(row.is_first, p, token)
    cumulative = token.cumsum(1)
    total = cumulative[:, -1:]
    # A masked row's token mass is the sum itself (its complement stays masked); a token row, and
    # every row on its way to z_0, has no [MASK] to fall back to and is renormalised.
    must = row.is_token | row.is_first
    u, stay = u[:, None], stay[:, None]
    target = torch.where(must, u * total, u - stay)
    index = (cumulative <= target).sum(1, keepdim=True)
    codes = torch.arange(1, K + 1, device=p.device)
    last = ((token > 0).long() * codes).amax(1, keepdim=True) - 1
    index = torch.where(index < K, index, torch.where(must, last, K))
    index = torch.where(must | (u >= stay), index, K)
    chosen = token.gather(1, index.clamp_max(K - 1)) / torch.where(must, total, 1.0)
    probability = torch.where(index < K, chosen, 1 - total)
    return index[:, 0], probability[:, 0], entropy
