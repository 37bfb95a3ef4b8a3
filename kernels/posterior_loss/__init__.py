r"""The categorical posterior's losses: KL of the reverse step, its negatives and the x0 terms.

With `p = softmax(logits)` the prediction of `z_0` and `v = z_t`, the model's posterior is

    d_k = 1 if v is [MASK] else B_t + A_t [k = v]         w_k = p_k / d_k      S = sum_k w_k
    pre_j = c_t / C_t if v is [MASK] else b_t + a_t [j = v]
    p_theta(z_{t-1} = j | z_t) = pre_j (B_{t-1} S + A_{t-1} w_j)             for a token j
    p_theta([MASK] | [MASK]) = C_{t-1} / C_t,   p_theta([MASK] | token) = 0

and the same formula with `p = onehot(x)` is the true posterior `q(z_{t-1} | z_t, z_0 = x)`. It
takes at most three values over `j`, so that with `R = sum_j log p_theta(j)` every further target
costs O(1) rather than O(K). Log-probabilities are floored at -70, as in the published loss; a
floored entry has no gradient. At t = 1 the KL is the decoder's `-log p_{z_0}` (Eq. 1, L_0).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kernels.posterior_loss.reference import LOG_FLOOR, posterior_log_probs, posterior_terms

__all__ = [
    "LOG_FLOOR",
    "PosteriorTerms",
    "StepCoefficients",
    "posterior_log_probs",
    "posterior_loss",
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
        logits: the denoiser's scores of z_0, [b, l, K]; half precision is accumulated in float32.
        z_t: noised tokens, int64 [b, l] in 0..K, where K is [MASK].
        z_0: clean tokens, int64 [b, l] in 0..K-1.
        coefficients: the schedule at each sample's step.
        negatives: tokens of negatives that share the row's z_t, int64 [b, n, l] in 0..K-1.

    Raises:
        ValueError: a shape does not fit the others.
    """
    b, l, _ = logits.shape
    if z_t.shape != (b, l) or z_0.shape != (b, l):
        raise ValueError(
            f"z_t and z_0 must have the shape {(b, l)} of the logits' rows: got "
            f"{tuple(z_t.shape)} and {tuple(z_0.shape)}"
        )
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != (b, l)):
        raise ValueError(
            f"negatives must have the shape [{b}, n, {l}]: got {tuple(negatives.shape)}"
        )
    return PosteriorTerms(*posterior_terms(logits, z_t, z_0, coefficients, negatives))
