"""What the kernels are compared with in `kernels.bench`, and in tests: never what the project runs.

`published` is the loss as published implementations compute it, written here from the paper's
equations: logarithms of K + 1 wide posteriors, built again for every negative. `closed_form` is the
mathematics of `kernels.posterior_loss` as one expression that autograd differentiates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.posterior_loss import PosteriorTerms, StepCoefficients
from kernels.posterior_loss.reference import LOG_FLOOR, TINY, floored_log, wide
from kernels.reverse_step import truncate


def _log(x: Tensor) -> Tensor:
    return x.clamp_min(TINY).log()


def _log_posterior(log_x0: Tensor, z_t: Tensor, q: StepCoefficients) -> Tensor:
    """Log q(z_{t-1} | z_t, z_0 ~ exp log_x0), `[b, l, K + 1]`, by Bayes' rule in log space."""
    K = log_x0.shape[-1]
    a, b, c, A, B, C, A_prev, B_prev, C_prev = (x.to(log_x0)[:, None, None] for x in q[:9])
    one_hot = F.one_hot(z_t, K + 1).to(log_x0)
    is_mask = (z_t == K)[..., None]
    tokens, mask = one_hot[..., :K], one_hot[..., K:]
    # log q(z_t | z_{t-1} = .) and log q(z_t | z_0 = .), both over tokens.
    step = torch.where(is_mask, _log(c), torch.logaddexp(_log(a) + _log(tokens), _log(b)))
    jump = torch.where(is_mask, _log(C), torch.logaddexp(_log(A) + _log(tokens), _log(B)))
    ratio = log_x0 - jump
    total = torch.logsumexp(ratio, dim=-1, keepdim=True)
    normed = ratio - total
    before = torch.logaddexp(normed + _log(A_prev), _log(B_prev))
    masked = _log(C_prev).expand_as(total)
    from_mask = _log(mask)  # [MASK] is absorbing: z_{t-1} = [MASK] only if z_t is
    out = torch.cat([before + step + total, masked + from_mask - _log(C)], dim=-1)
    return out.clamp(LOG_FLOOR, 0)


def _published_kl(log_true: Tensor, log_model: Tensor) -> Tensor:
    return (log_true.exp() * (log_true - log_model)).sum(-1)


def published(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: StepCoefficients,
    negatives: Tensor | None,
) -> PosteriorTerms:
    """The terms of `kernels.posterior_loss`, one K-wide posterior for the positive and each x^n."""
    K = logits.shape[-1]
    log_p = torch.log_softmax(wide(logits), dim=-1).clamp(LOG_FLOOR, 0)
    log_model = _log_posterior(log_p, z_t, q)
    first = q.is_first[:, None]

    def one(x: Tensor) -> tuple[Tensor, Tensor]:
        log_x = _log(F.one_hot(x, K).to(log_p))
        kl = _published_kl(_log_posterior(log_x, z_t, q), log_model)
        nll = -(log_x.exp() * log_p).sum(-1)
        return torch.where(first, nll, kl), nll

    kl, aux = one(z_0)
    if negatives is None:
        return PosteriorTerms(kl, aux, None, None)
    rest = [one(x) for x in negatives.unbind(1)]
    step, sample = (torch.stack(x, dim=1) for x in zip(*rest, strict=True))
    return PosteriorTerms(kl, aux, step, sample)


def closed_form(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: StepCoefficients,
    negatives: Tensor | None,
) -> PosteriorTerms:
    """The terms of `kernels.posterior_loss` as one differentiable expression."""
    K = logits.shape[-1]
    log_p = torch.log_softmax(wide(logits), dim=-1)
    p = log_p.exp()
    a, b, c, A, B, C, A_prev, B_prev, _ = (x.to(p)[:, None, None] for x in q[:9])
    is_mask = (z_t == K)[..., None]
    v = z_t.clamp_max(K - 1)[..., None]
    at_v = torch.zeros_like(p).scatter_(-1, v, 1.0)
    d = torch.where(is_mask, torch.ones_like(B), (B + A * at_v).clamp_min(TINY))
    pre = torch.where(is_mask, c / C.clamp_min(TINY), b + a * at_v)
    w = p / d
    log_theta = floored_log(pre * (B_prev * w.sum(-1, keepdim=True) + A_prev * w))
    R = log_theta.sum(-1)  # b l
    log_theta_v = log_theta.gather(-1, v).transpose(1, 2)  # b 1 l
    targets = z_0[:, None] if negatives is None else torch.cat([z_0[:, None], negatives], dim=1)
    mask_row, v_row = is_mask.transpose(1, 2), v.transpose(1, 2)
    is_v = (targets == v_row) & ~mask_row  # b n l
    # q(.|z_t, x) in its three values: at x, at v, elsewhere.
    pre_other = torch.where(mask_row, c / C.clamp_min(TINY), b)
    S = torch.where(mask_row, torch.ones_like(B), 1 / (B + A * is_v).clamp_min(TINY))
    q_other = pre_other * S * B_prev
    q_v = (a + b) * S * (B_prev + A_prev * is_v)
    q_x = torch.where(is_v, q_v, pre_other * S * (B_prev + A_prev))
    v_counts = (~mask_row & ~is_v).to(p)
    entropy = (K - 1 - v_counts) * q_other * floored_log(q_other) + q_x * floored_log(q_x)
    entropy = entropy + v_counts * q_v * floored_log(q_v)
    log_theta_x = log_theta.gather(-1, targets.transpose(1, 2)).transpose(1, 2)
    cross = q_other * R[:, None] + (q_x - q_other) * log_theta_x
    cross = cross + v_counts * (q_v - q_other) * log_theta_v
    nll = -log_p.gather(-1, targets.transpose(1, 2)).transpose(1, 2).clamp_min(LOG_FLOOR)
    kl = torch.where(q.is_first[:, None, None], nll, entropy - cross)
    if negatives is None:
        return PosteriorTerms(kl[:, 0], nll[:, 0], None, None)
    return PosteriorTerms(kl[:, 0], nll[:, 0], kl[:, 1:], nll[:, 1:])


def eager_step(
    logits: Tensor, z_t: Tensor, q: StepCoefficients, generator: torch.Generator, truncation: float
) -> Tensor:
    """A reverse step as published samplers take it: sorted truncation, posterior, Gumbel noise."""
    p = truncate(logits.float().softmax(-1), truncation)
    log_model = _log_posterior(_log(p).clamp(LOG_FLOOR, 0), z_t, q)
    u = torch.rand(log_model.shape, generator=generator, device=logits.device)
    gumbel = -_log(-_log(u))
    return (log_model + gumbel).argmax(-1)
