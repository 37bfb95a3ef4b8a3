"""The contrastive term: step-wise or sample-wise (Eqs. 3 and 4), linear or bounded (Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.posterior_loss import PosteriorTerms


@dataclass(frozen=True)
class Contrast:
    """What is contrasted, how, and how strongly.

    `step` compares KL terms of whole chains (Eq. 3), `sample` compares -log p(z_0^j | z_t) given
    the positive z_t (Eq. 4). `linear` is Algorithm 1: minus the mean over negatives, unbounded
    below. `infonce` is Eq. 2 with -loss / length as the log-density: log(1 + sum_j exp(L - L^j)),
    never negative, so no negative can be pushed away without end.
    """

    mode: Literal["step", "sample"]
    form: Literal["linear", "infonce"]
    weight: float


def contrast_terms(
    contrast: Contrast,
    terms: PosteriorTerms,
    length: int,
    num_steps: int,
    chain_losses: Tensor | None,
) -> Tensor:
    """The weighted contrastive term of each sample in units of the summed bound, float [b].

    Args:
        contrast: mode, form and weight.
        terms: per-row losses of the positive and of negatives that share its z_t.
        length: tokens a sample.
        num_steps: T.
        chain_losses: losses of negatives on chains of their own, [b, n]; replaces `neg_step`.
    """
    if chain_losses is not None:
        negative = chain_losses
    else:
        rows = terms.neg_step if contrast.mode == "step" else terms.neg_sample
        assert rows is not None, "contrast without negatives"
        negative = rows.sum(-1)
    if contrast.form == "linear":
        return -contrast.weight * negative.mean(1)
    positive = (terms.kl if contrast.mode == "step" else terms.aux).sum(-1)
    gap = (positive[:, None] - negative) / length
    bounded = torch.nn.functional.softplus(torch.logsumexp(gap, dim=1))
    # `combine` divides by p_t * length; the bounded form is a plain mean over t instead.
    return contrast.weight * bounded * length / num_steps
