"""The posterior's losses in plain PyTorch: the specification, and the path of every CPU.

Rows are taken in chunks that stay in the processor's cache, so that the logits are read from memory
once; within a chunk each line below is one pass over `[r, K]`. Names are those of the package.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_FLOOR = -70.0
"""Log-probabilities are floored here, as the published loss does."""
FLOOR = math.exp(LOG_FLOOR)
TINY = 1e-30
"""Stands for q(z_t | z_0 = k) = 0, so that B_t = 0 divides by no zero; float32 can hold it."""
_CHUNK_BYTES = 1 << 21
"""Of one K-wide array: few enough for a processor's caches, and enough to outweigh the calls."""


class Row(NamedTuple):
    """What a row's coefficients and z_t fix, before any logit is read; every field `[r, 1]`."""

    inv_d: Tensor
    """1 / d_k for every k but v."""
    inv_d_v: Tensor
    pre: Tensor
    """pre_j for every j but v."""
    pre_v: Tensor
    A_prev: Tensor
    B_prev: Tensor
    is_token: Tensor
    """bool: z_t is no [MASK], so there is a v."""
    is_first: Tensor


class Divergence(NamedTuple):
    """KL(q(.|z_t, x) || p_theta) = base + slope log p_theta(x) for every target x of one kind."""

    q_other: Tensor
    """q(.|z_t, x) at each entry that is neither v nor x."""
    jump_v: Tensor
    """q at v minus `q_other`."""
    slope: Tensor
    """`q_other` minus q at x."""
    base: Tensor


def wide(x: Tensor) -> Tensor:
    """Float64 stays; everything else is computed in float32."""
    return x if x.dtype == torch.float64 else x.float()


def floored_log(p: Tensor) -> Tensor:
    """Log p, floored at `LOG_FLOOR`."""
    return p.clamp_min(FLOOR).log()


def row_facts(q: Tensor, is_token: Tensor) -> Row:
    """Coefficients `[r, 10]` (fields of `StepCoefficients`) to what the passes need."""
    a, b, c, A, B, C, A_prev, B_prev, _, first = q.unsqueeze(-1).unbind(1)
    token = is_token[:, None]
    one = torch.ones_like(B)
    return Row(
        inv_d=torch.where(token, 1 / B.clamp_min(TINY), one),
        inv_d_v=1 / (B + A).clamp_min(TINY),
        pre=torch.where(token, b, c / C.clamp_min(TINY)),
        pre_v=a + b,
        A_prev=A_prev,
        B_prev=B_prev,
        is_token=token,
        is_first=first > 0,
    )


def _entropy_term(q: Tensor) -> Tensor:
    return torch.where(q > 0, q * floored_log(q), torch.zeros_like(q))


def divergences(row: Row, R: Tensor, log_theta_v: Tensor, K: int) -> tuple[Divergence, Divergence]:
    """The two kinds of targets: x other than v, and x = v (only where z_t is a token)."""
    token = row.is_token.to(R.dtype)
    other = row.pre * row.inv_d * row.B_prev
    at_v = row.pre_v * row.inv_d * row.B_prev
    at_x = row.pre * row.inv_d * (row.B_prev + row.A_prev)
    entropy = (K - 1 - token) * _entropy_term(other) + _entropy_term(at_x)
    jump = token * (at_v - other)
    base = entropy + token * _entropy_term(at_v) - other * R - jump * log_theta_v
    apart = Divergence(other, jump, other - at_x, base)

    other = row.pre * row.inv_d_v * row.B_prev
    at_v = row.pre_v * row.inv_d_v * (row.B_prev + row.A_prev)
    entropy = (K - 1) * _entropy_term(other) + _entropy_term(at_v)
    same = Divergence(other, torch.zeros_like(jump), other - at_v, entropy - other * R)
    return apart, same


class Weights(NamedTuple):
    """Weights of the rows' terms in the loss, each `[r]` or `[r, n]`, or None for zeros."""

    kl: Tensor | None
    aux: Tensor | None
    step: Tensor | None
    sample: Tensor | None


def row_chunk(
    logits: Tensor,
    z_t: Tensor,
    targets: Tensor,
    q: Tensor,
    weights: Weights | None,
    has_terms: bool,
    scratch: Tensor,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Terms and gradient of some rows.

    Args:
        logits: `[r, K]`, float32 or float64.
        z_t: `[r]` in 0..K.
        targets: the positive, then the negatives, `[r, 1 + n]` in 0..K-1.
        q: coefficients `[r, 10]`.
        weights: of the terms in the loss whose gradient is asked for; None for values alone.
        has_terms: whether values are asked for.
        scratch: `[3, r, K]` of the logits' type to work in: allocating that much for every chunk
            would take longer than computing it.

    Returns:
        KL `[r, 1 + n]`, -log p `[r, 1 + n]`, gradient `[r, K]` (within `scratch`); None
        for what was not asked.
    """
    K = logits.shape[1]
    row = row_facts(q, z_t < K)
    token = row.is_token
    v = z_t.clamp_max(K - 1)[:, None]

    # p, with the entry at v set apart: its d and pre are its own.
    p, theta, log_theta = scratch
    torch.softmax(logits, 1, out=p)
    p_v = p.gather(1, v)
    p.scatter_(1, v, p_v.masked_fill(token, 0))
    p_v = p_v * token
    w_v = p_v * row.inv_d_v
    S = p.sum(1, keepdim=True) * row.inv_d + w_v
    u_v = row.B_prev * S + row.A_prev * w_v
    theta_v = row.pre_v * u_v
    # theta_j = pre (B_{t-1} S + A_{t-1} w_j) = offset + factor p_j
    # (at t = 1 it has no use, and any number that is not floored will do)
    offset = torch.where(row.is_first, 1.0, row.pre * row.B_prev * S)
    factor = torch.where(row.is_first, 0.0, row.pre * row.A_prev * row.inv_d)
    torch.mul(p, factor, out=theta).add_(offset)

    is_v = (targets == v) & token
    p_x = torch.where(is_v, p_v, p.gather(1, targets))
    theta_x = offset + factor * p_x
    # Masks are the dearest passes: made only where an entry is floored (always on a device that
    # the host would have to wait for).
    lowest = offset + factor * p.amin(1, keepdim=True)
    is_floored = logits.device.type != "cpu" or bool((lowest <= FLOOR).any())
    lives = theta > FLOOR if is_floored else None

    kl = nll = None
    R = log_theta_v = torch.zeros_like(S)
    if has_terms:
        torch.log(theta.clamp_min(FLOOR) if is_floored else theta, out=log_theta)
        log_theta_v = floored_log(theta_v)
        at_v = log_theta.gather(1, v)
        R = log_theta.sum(1, keepdim=True) + torch.where(token, log_theta_v - at_v, 0 * at_v)
    apart, same = divergences(row, R, log_theta_v, K)
    if has_terms:
        nll = -floored_log(p_x)
        kl = torch.where(
            is_v,
            same.base + same.slope * log_theta_v,
            apart.base + apart.slope * floored_log(theta_x),
        )
        kl = torch.where(row.is_first, nll, kl)
    if weights is None:
        return kl, nll, None

    m, e = _target_weights(weights, targets, logits.dtype)
    e = torch.where(row.is_first, e + m, e) * (p_x > FLOOR)
    m = torch.where(row.is_first, 0 * m, m)
    m_same = (m * is_v).sum(1, keepdim=True)
    m_apart = m.sum(1, keepdim=True) - m_same
    g = -(m_apart * apart.q_other + m_same * same.q_other)
    g_v = (g - m_apart * apart.jump_v + m_same * same.slope) * (theta_v > FLOOR) * token
    g_x = torch.where(is_v, 0 * m, m * apart.slope) * (theta_x > FLOOR)
    # 1 / u_j = pre / theta_j; nothing flows where theta is floored.
    inverse, num_live = theta.reciprocal_(), K - token.to(g.dtype)
    if lives is not None:
        inverse.masked_fill_(~lives, 0)
        num_live = lives.sum(1, keepdim=True) - (lives.gather(1, v) & token).to(g.dtype)
    inverse.scatter_(1, v, inverse.gather(1, v).masked_fill(token, 0))
    inverse_x = row.pre / theta_x.clamp_min(FLOOR)
    inverse_v = 1 / u_v.clamp_min(TINY)
    H = g * row.pre * inverse.sum(1, keepdim=True) + g_v * inverse_v
    H = H + (g_x * inverse_x).sum(1, keepdim=True)
    P = g * num_live + g_v + g_x.sum(1, keepdim=True)
    E = e.sum(1, keepdim=True)
    # dL/ds_k = w_k (B_{t-1} H + A_{t-1} h_k) + p_k (E - P), then what belongs to v and targets
    straight = row.inv_d * row.B_prev * H + E - P
    gradient = inverse.mul_(g * factor).add_(straight).mul_(p)
    at_v = w_v * (row.B_prev * H + row.A_prev * g_v * inverse_v) + p_v * (E - P)
    gradient.scatter_(1, v, torch.where(token, at_v, gradient.gather(1, v)))
    at_x = row.A_prev * row.inv_d * p_x * g_x * inverse_x - e
    return kl, nll, gradient.scatter_add_(1, targets, at_x)


def _target_weights(weights: Weights, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights `[r, 1 + n]` of KL and of -log p for the positive and the negatives."""
    shape = (len(targets), targets.shape[1] - 1)

    def join(one: Tensor | None, many: Tensor | None) -> Tensor:
        first = targets.new_zeros(shape[0], dtype=dtype) if one is None else one.to(dtype)
        rest = targets.new_zeros(shape, dtype=dtype) if many is None else many.to(dtype)
        return torch.cat([first[:, None], rest], dim=1)

    return join(weights.kl, weights.step), join(weights.aux, weights.sample)


def run(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: Tensor,
    negatives: Tensor | None,
    weights: tuple[Tensor | None, ...] | None,
    has_terms: bool,
) -> list[Tensor]:
    """All rows; see `kernels.posterior_loss.ops.run`."""
    b, l, K = logits.shape
    n = 0 if negatives is None else negatives.shape[1]
    flat = logits.reshape(b * l, K)
    targets = z_0.reshape(-1, 1)
    if negatives is not None:
        targets = torch.cat([targets, negatives.transpose(1, 2).reshape(b * l, n)], dim=1)
    tokens = z_t.reshape(-1)
    rows = q.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    rows = rows.repeat_interleave(l, dim=0)
    per_row = None
    if weights is not None:
        kl, aux, step, sample = weights
        per_row = Weights(
            *(None if x is None else x.reshape(-1) for x in (kl, aux)),
            *(None if x is None else x.transpose(1, 2).reshape(b * l, n) for x in (step, sample)),
        )
    values = wide(flat[:0]).new_empty(2, b * l, 1 + n) if has_terms else None
    gradient = None if weights is None else flat.new_empty(flat.shape)
    chunk = max(1, _CHUNK_BYTES // (4 * K)) if logits.device.type == "cpu" else max(b * l, 1)
    scratch = wide(flat[:0]).new_empty(3, min(chunk, b * l), K)
    for start in range(0, b * l, chunk):
        part = slice(start, start + chunk)
        mine = per_row and Weights(*(None if x is None else x[part] for x in per_row))
        kl, nll, grad = row_chunk(
            wide(flat[part]),
            tokens[part],
            targets[part],
            rows[part],
            mine,
            has_terms,
            scratch[:, : len(tokens[part])],
        )
        if values is not None:
            assert kl is not None
            assert nll is not None
            values[0, part], values[1, part] = kl, nll
        if gradient is not None:
            assert grad is not None
            gradient[part] = grad
    terms = [flat.new_empty(0) for _ in range(4)]
    if values is not None:
        kl, nll = values.view(2, b, l, 1 + n)
        terms = [kl[..., 0], nll[..., 0], kl[..., 1:].transpose(1, 2), nll[..., 1:].transpose(1, 2)]
        # Copies, because an operator's results may not share memory.
        terms = [x.clone(memory_format=torch.contiguous_format) for x in terms]
    return [*terms, logits.new_empty(0) if gradient is None else gradient.view(b, l, K)]


def posterior_log_probs(logits: Tensor, z_t: Tensor, q: Tensor) -> Tensor:
    """See `kernels.posterior_loss.posterior_log_probs`."""
    b, l, K = logits.shape
    p = wide(logits.reshape(b * l, K)).softmax(1)
    v = z_t.reshape(-1, 1).clamp_max(K - 1)
    coefficients = q.to(p.dtype).repeat_interleave(l, dim=0)
    row = row_facts(coefficients, z_t.reshape(-1) < K)
    at_v = torch.zeros_like(p).scatter_(1, v, row.is_token.to(p.dtype))
    w = p * torch.where(at_v > 0, row.inv_d_v, row.inv_d)
    pre = torch.where(at_v > 0, row.pre_v, row.pre)
    token = pre * (row.B_prev * w.sum(1, keepdim=True) + row.A_prev * w)
    token = torch.where(row.is_first, p, token)
    stay = (coefficients[:, 8] / coefficients[:, 5])[:, None]
    mask = torch.where(~row.is_token & ~row.is_first, stay, torch.zeros_like(stay))
    return floored_log(torch.cat([token, mask], dim=1)).view(b, l, K + 1)
