"""The training loss: variational bound, auxiliary x0 term and contrast (Eqs. 1 to 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from cdcd.diffusion.contrast import Contrast, contrast_terms
from kernels.posterior_loss import PosteriorTerms

Adaptive = Literal["increasing", "decreasing", "opposed", "none"]


@dataclass(frozen=True)
class LossTerms:
    """Scalars to log, the total to differentiate, and what the step sampler remembers."""

    total: Tensor
    bound: Tensor
    auxiliary: Tensor
    contrast: Tensor
    per_sample: Tensor
    """float [b]: the sample's bound summed over positions, in nats, before importance weights."""
    t: Tensor
    """int64 [b]: the steps the samples were noised to."""


class AdaptiveWeights(NamedTuple):
    """Weights over t, float [b] in 1..2."""

    auxiliary: Tensor
    contrast: Tensor


def adaptive_weights(t: Tensor, num_steps: int, direction: Adaptive) -> AdaptiveWeights:
    """Weights of the auxiliary and of the contrast term at steps t [b].

    With t0 = t - 1: `increasing` is 1 + t0 / T for both (released music code), `decreasing` is
    2 - t0 / T for both (the paper's text and VQ-Diffusion), `opposed` lets the auxiliary term
    decrease and the contrast increase (released image code), `none` is 1. See paper_vs_code D6.
    """
    share = (t - 1).float() / num_steps
    rising, falling, flat = 1 + share, 2 - share, share * 0 + 1
    match direction:
        case "increasing":
            return AdaptiveWeights(rising, rising)
        case "decreasing":
            return AdaptiveWeights(falling, falling)
        case "opposed":
            return AdaptiveWeights(falling, rising)
        case "none":
            return AdaptiveWeights(flat, flat)


def row_weights(
    t: Tensor,
    p_t: Tensor,
    length: int,
    num_steps: int,
    auxiliary_weight: float,
    adaptive: Adaptive,
    contrast: Contrast | None,
    num_negatives: int,
) -> dict[str, Tensor]:
    """Weights that make `weighted_posterior_loss` sum up to the total of `combine`.

    They exist where the loss is linear in its terms: without contrast or with its linear form.
    The arguments are those of `combine`.
    """
    scale = adaptive_weights(t, num_steps, adaptive)
    row = 1 / (p_t * (length * len(t)))
    weights = {"kl": row[:, None], "aux": (auxiliary_weight * scale.auxiliary * row)[:, None]}
    if contrast is not None:
        assert contrast.form == "linear"
        name = "neg_step" if contrast.mode == "step" else "neg_sample"
        share = -contrast.weight / num_negatives
        weights[name] = (share * scale.contrast * row)[:, None, None]
    return weights


def combine(
    terms: PosteriorTerms,
    t: Tensor,
    p_t: Tensor,
    num_steps: int,
    auxiliary_weight: float,
    adaptive: Adaptive,
    contrast: Contrast | None,
    chain_losses: Tensor | None = None,
) -> LossTerms:
    """Per-row terms to one loss: mean over samples and positions of `term / p_t`.

    Args:
        terms: what `posterior_loss` returned, rows [b, l].
        t: steps [b].
        p_t: the probabilities they were drawn with [b].
        num_steps: T.
        auxiliary_weight: weight of -log p(z_0 | z_t).
        adaptive: how auxiliary and contrast weights change over t.
        contrast: the contrastive term, or None for the vanilla loss.
        chain_losses: with parallel chains, each negative's own loss [b, n], summed over positions.
    """
    length = terms.kl.shape[-1]
    bound = terms.kl.sum(-1)
    scale = adaptive_weights(t, num_steps, adaptive)
    auxiliary = auxiliary_weight * scale.auxiliary * terms.aux.sum(-1)
    pull = bound * 0
    if contrast is not None:
        loss = contrast_terms(contrast, terms, length, num_steps, chain_losses)
        pull = scale.contrast * loss
    weight = 1 / (p_t * length)
    bound_mean, aux_mean, pull_mean = ((weight * x).mean() for x in (bound, auxiliary, pull))
    return LossTerms(
        bound_mean + aux_mean + pull_mean, bound_mean, aux_mean, pull_mean, bound.detach(), t
    )
