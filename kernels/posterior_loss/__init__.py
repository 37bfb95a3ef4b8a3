r"""The categorical posterior's losses: KL of the reverse step, its negatives and the x0 terms.

With `p = softmax(logits)` the prediction of `z_0` and `v = z_t`, the model's posterior is

    d_k = 1 if v is [MASK] else B_t + A_t [k = v]         w_k = p_k / d_k      S = sum_k w_k
    pre_j = c_t / C_t if v is [MASK] else b_t + a_t [j = v]          u_j = B_{t-1} S + A_{t-1} w_j
    p_theta(z_{t-1} = j | z_t) = pre_j u_j                           for a token j
    p_theta([MASK] | [MASK]) = C_{t-1} / C_t,   p_theta([MASK] | token) = 0

and the same formula with `p = onehot(x)` is the true posterior `q(z_{t-1} | z_t, z_0 = x)`. It
takes at most three values over `j`, so that with `R = sum_j log p_theta(j)`

    KL(q(.|z_t, x) || p_theta) = -H(q) - q_other R - (q_v - q_other) log p_theta(v)
                                       - (q_x - q_other) log p_theta(x)

and every further target costs O(1) rather than O(K). Log-probabilities are floored at -70, as in
the published loss; a floored entry has no gradient. At t = 1 the KL is the decoder's `-log p_{z_0}`
(Eq. 1, L_0).

The gradient of `L = sum_x m_x KL_x + sum_x e_x (-log p_x)`:

    g_j = -sum_x m_x q^x_j      h_j = g_j / u_j      H = sum_j h_j      P = sum_j g_j
    dL/ds_k = w_k (B_{t-1} H + A_{t-1} h_k) - p_k P + sum_x e_x (p_k - [k = x])

(`P` is `sum_m p_m dL/dp_m`, because `B_{t-1} S + A_{t-1} w_j = u_j`). `g` is one constant but for
`v` and the targets.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import check_finite, check_tokens
from kernels.posterior_loss import reference
from kernels.posterior_loss.ops import Terms, WeightedSum
from kernels.posterior_loss.reference import LOG_FLOOR

__all__ = [
    "LOG_FLOOR",
    "PosteriorTerms",
    "StepCoefficients",
    "check_rows",
    "pack_coefficients",
    "posterior_log_probs",
    "posterior_loss",
    "weighted_posterior_loss",
]


class StepCoefficients(NamedTuple):
    """The schedule at each sample's step t, every field float [b].

    `a, b, c` are the one-step probabilities to stay, to be replaced by one given token and to be
    masked; `A, B, C` the same from step 0 to t, and `A_prev, B_prev, C_prev` from step 0 to t - 1.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    A_prev: Tensor
    B_prev: Tensor
    C_prev: Tensor
    is_first: Tensor
    """bool [b]: t = 1, where the bound is the decoder's log-likelihood."""


class PosteriorTerms(NamedTuple):
    """Per-row losses in nats."""

    kl: Tensor
    """[b, l]: KL(q(.|z_t, z_0) || p_theta); -log p_{z_0} at t = 1."""
    aux: Tensor
    """[b, l]: -log p_{z_0}."""
    neg_step: Tensor | None
    """[b, n, l]: KL(q(.|z_t, z_0^n) || p_theta); -log p_{z_0^n} at t = 1."""
    neg_sample: Tensor | None
    """[b, n, l]: -log p_{z_0^n}."""


def posterior_loss(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    coefficients: StepCoefficients,
    negatives: Tensor | None = None,
) -> PosteriorTerms:
    """All per-row terms of Eqs. 1, 3 and 4, differentiable in `logits`.

    Args:
        logits: the denoiser's scores of z_0, [b, l, K], 2 <= K; half precision is computed in
            float32.
        z_t: noised tokens, int64 [b, l] in 0..K, where K is [MASK].
        z_0: clean tokens, int64 [b, l] in 0..K-1.
        coefficients: the schedule at each sample's step.
        negatives: tokens of negatives that share the row's z_t, int64 [b, n, l] in 0..K-1. With
            parallel chains each negative is a row of its own instead.

    Raises:
        ValueError: a shape, device or token does not fit; see `kernels.dispatch` for the checks.
    """
    check_rows(logits, z_t, z_0, coefficients, negatives)
    kl, aux, step, sample = Terms.apply(
        logits, z_t, z_0, pack_coefficients(coefficients, logits), negatives
    )
    if negatives is None:
        return PosteriorTerms(kl, aux, None, None)
    return PosteriorTerms(kl, aux, step, sample)


def weighted_posterior_loss(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    coefficients: StepCoefficients,
    negatives: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    aux: Tensor | None = None,
    neg_step: Tensor | None = None,
    neg_sample: Tensor | None = None,
) -> tuple[Tensor, PosteriorTerms]:
    """A weighted sum of the terms, with its gradient from the same read of the logits.

    For losses that are linear in the terms: values and gradient then cost one read and one write
    of a K-wide array, half of what `posterior_loss` and its backward pass move.

    Args:
        logits: as of `posterior_loss`, like the four arguments that follow.
        z_t: noised tokens.
        z_0: clean tokens.
        coefficients: the schedule at each sample's step.
        negatives: tokens of negatives.
        kl: weight of the term of this name, broadcastable to [b, l]; None for zero. No gradient
            flows to weights.
        aux: the same.
        neg_step: signed weights, broadcastable to [b, n, l]; they need negatives.
        neg_sample: the same.

    Returns:
        the loss [b, l], differentiable in `logits`, once; and the terms, without gradient.

    Raises:
        ValueError: as `posterior_loss`, and for weights that fit no negatives.
    """
    check_rows(logits, z_t, z_0, coefficients, negatives)
    b, l, _ = logits.shape
    n = 0 if negatives is None else negatives.shape[1]
    for name, weight in (("neg_step", neg_step), ("neg_sample", neg_sample)):
        if weight is not None and n == 0:
            raise ValueError(
                f"the weight {name} needs negatives: got N = 0; pass negatives or no weight"
            )
    shapes = [(b, l), (b, l), (b, n, l), (b, n, l)]
    weights = [
        None if w is None else w.detach().to(_dtype(logits)).expand(shape)
        for w, shape in zip((kl, aux, neg_step, neg_sample), shapes, strict=True)
    ]
    loss, *terms = WeightedSum.apply(
        logits, z_t, z_0, pack_coefficients(coefficients, logits), negatives, *weights
    )
    if negatives is None:
        return loss, PosteriorTerms(terms[0], terms[1], None, None)
    return loss, PosteriorTerms(*terms)


def posterior_log_probs(logits: Tensor, z_t: Tensor, coefficients: StepCoefficients) -> Tensor:
    """Log p_theta(z_{t-1} = . | z_t), floored, [b, l, K + 1] with [MASK] last; for study."""
    return reference.posterior_log_probs(logits, z_t, pack_coefficients(coefficients, logits))


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def pack_coefficients(coefficients: StepCoefficients, logits: Tensor) -> Tensor:
    """The ten fields side by side, [b, 10], in the precision that `logits` are computed in."""
    return torch.stack([x.to(_dtype(logits)) for x in coefficients], dim=1)


def check_rows(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    coefficients: StepCoefficients,
    negatives: Tensor | None,
) -> None:
    """Refuse arguments that do not fit each other; see `posterior_loss`."""
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating-point [b, l, K]: got {logits.dtype} {list(logits.shape)}"
        )
    b, l, K = logits.shape
    if K < 2:
        raise ValueError(f"logits must score at least 2 codes: got K = {K}")
    if z_t.shape != (b, l) or z_0.shape != (b, l):
        raise ValueError(
            f"z_t and z_0 must have the shape {(b, l)} of the logits' rows: got "
            f"{tuple(z_t.shape)} and {tuple(z_0.shape)}"
        )
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != (b, l)):
        raise ValueError(
            f"negatives must have the shape [{b}, n, {l}]: got {tuple(negatives.shape)}"
        )
    if any(x.shape != (b,) for x in coefficients):
        raise ValueError(
            f"coefficients must be [{b}], as the batch: got {list(coefficients.a.shape)}"
        )
    named = {"z_t": z_t, "z_0": z_0, "coefficients": coefficients.a, "negatives": negatives}
    for name, tensor in named.items():
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(
                f"{name} must be on the logits' device {logits.device}: got {tensor.device}"
            )
    check_tokens("z_t", z_t, K, may_be_mask=True)
    check_tokens("z_0", z_0, K)
    if negatives is not None:
        check_tokens("negatives", negatives, K)
    check_finite("logits", logits)
