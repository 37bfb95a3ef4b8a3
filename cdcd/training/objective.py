"""One batch to one loss: noise, predict, and score against the positive and its negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from cdcd.diffusion.contrast import Contrast
from cdcd.diffusion.losses import Adaptive, LossTerms, combine, row_weights
from cdcd.diffusion.negatives import shuffled_chunks, shuffled_patches
from cdcd.diffusion.process import Noised, noise
from cdcd.diffusion.schedule import Schedule
from cdcd.diffusion.share import Share
from cdcd.diffusion.timesteps import StepSampler
from cdcd.models.inputs import DropRates, Inputs
from cdcd.models.model import ConditionalDenoiser
from kernels.linear_posterior_loss import linear_posterior_loss
from kernels.posterior_loss import PosteriorTerms, posterior_loss, weighted_posterior_loss


@dataclass(frozen=True)
class Batch:
    """Cached tokens and features of some clips or pictures.

    Attributes:
        z_0: tokens, int64 [b, l].
        inputs: the condition features.
        labels: class of each sample (genre, or song where there is none), int64 [b].
        waveform_negatives: tokens of shuffled waveforms, int64 [b, n, l], where they were stored.
        inter_negatives: tokens of samples of another class, int64 [b, n, l], where they are used.
        share: which samples of a larger batch these are; None for a whole one.
    """

    z_0: Tensor
    inputs: Inputs
    labels: Tensor
    waveform_negatives: Tensor | None = None
    inter_negatives: Tensor | None = None
    share: Share | None = None


@dataclass(frozen=True)
class Objective:
    """The training loss as a function of model and batch; every choice of the paper is a field.

    Attributes:
        schedule: the chain.
        contrast: the contrastive term, or None for the vanilla loss.
        negatives: where negatives come from.
        num_negatives: N.
        num_chunks: pieces that intra-negatives shuffle.
        intra_unit: shuffle chunks of the token sequence (bands of a picture), use stored tokens of
            shuffled waveforms, or shuffle square patches of a picture's `grid`.
        has_parallel_chains: each negative is noised and denoised on its own (Algorithm 1) instead
            of sharing the positive's z_t (released code; one network call instead of N + 1).
        auxiliary_weight: of -log p(z_0 | z_t).
        adaptive: direction of the weights over t.
        chunks_logits: never hold all logits (`kernels.linear_posterior_loss`): less memory, one
            more matrix product.
        drop: how often a sample trains without a part of its condition, or all of it.
        grid: rows and columns of a picture's tokens; None for sound.
    """

    schedule: Schedule
    contrast: Contrast | None
    negatives: Literal["intra", "inter"]
    num_negatives: int
    num_chunks: int
    intra_unit: Literal["tokens", "waveform", "patches"]
    has_parallel_chains: bool
    auxiliary_weight: float
    adaptive: Adaptive
    chunks_logits: bool
    drop: DropRates
    grid: tuple[int, int] | None = None

    def __call__(
        self,
        model: ConditionalDenoiser,
        batch: Batch,
        steps: StepSampler,
        generator: torch.Generator,
    ) -> LossTerms:
        """Loss of a training batch, or of a share of one; `steps` is read, not updated.

        Equal shares have losses and gradients whose mean is that of the whole batch.
        """
        share = batch.share
        t, p_t = steps.sample(share.total if share else len(batch.z_0), generator)
        if share is not None:
            t, p_t = share.cut(t), share.cut(p_t)
        inputs = batch.inputs.dropped(self.drop, generator, share)
        negatives = self.draw_negatives(batch, generator) if self.contrast else None
        parallel = negatives if self.has_parallel_chains else None
        noised = noise(batch.z_0, t, self.schedule, generator, parallel, share)
        choices = (self.schedule.num_steps, self.auxiliary_weight, self.adaptive, self.contrast)
        is_linear = self.contrast is None or self.contrast.form == "linear"
        if is_linear and noised.negatives is None and not self.chunks_logits:
            # Linear in its terms: values and gradient in one read of the logits.
            weights = row_weights(t, p_t, batch.z_0.shape[1], *choices, self.num_negatives)
            q = self.schedule.coefficients(t)
            logits = model(noised.z_t, t, inputs)
            rows, terms = weighted_posterior_loss(
                logits, noised.z_t, batch.z_0, q, negatives, **weights
            )
            return replace(combine(terms, t, p_t, *choices), total=rows.sum())
        shared = None if self.has_parallel_chains else negatives
        terms = self.terms(model, noised.z_t, t, inputs, batch.z_0, shared)
        chain_losses = None
        if noised.negatives is not None:
            assert negatives is not None
            chain_losses = self.chain_losses(model, noised, negatives, inputs)
        return combine(terms, t, p_t, *choices, chain_losses)

    def terms(
        self,
        model: ConditionalDenoiser,
        z_t: Tensor,
        t: Tensor,
        inputs: Inputs,
        z_0: Tensor,
        negatives: Tensor | None,
    ) -> PosteriorTerms:
        """Predict, and score every row."""
        q = self.schedule.coefficients(t)
        if not self.chunks_logits:
            return posterior_loss(model(z_t, t, inputs), z_t, z_0, q, negatives)
        hidden = model(z_t, t, inputs, has_head=False)
        head = model.denoiser.head
        return linear_posterior_loss(hidden, head.weight, head.bias, z_t, z_0, q, negatives)

    def draw_negatives(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """N negative token sequences a clip, int64 [b, n, l]."""
        if self.negatives == "inter":
            assert batch.inter_negatives is not None, "the batches draw them"
            return batch.inter_negatives
        if self.intra_unit == "waveform":
            stored = batch.waveform_negatives
            assert stored is not None, "config requires stored waveform negatives"
            return stored[:, : self.num_negatives]
        if self.intra_unit == "patches":
            assert self.grid is not None, "only pictures have patches"
            return shuffled_patches(
                batch.z_0, self.num_negatives, self.grid, self.num_chunks, generator, batch.share
            )
        return shuffled_chunks(
            batch.z_0, self.num_negatives, self.num_chunks, generator, batch.share
        )

    def chain_losses(
        self, model: ConditionalDenoiser, noised: Noised, negatives: Tensor, inputs: Inputs
    ) -> Tensor:
        """Bound of each negative on its own chain z_t^j ~ q(. | z_0^j), float [b, n]."""
        assert noised.negatives is not None
        b, n, l = negatives.shape
        z_t = noised.negatives.reshape(b * n, l)
        t = noised.t.repeat_interleave(n)
        z_0 = negatives.reshape(b * n, l)
        terms = self.terms(model, z_t, t, inputs.repeat(n), z_0, None)
        return terms.kl.sum(-1).view(b, n)


@torch.no_grad()
def bound_per_clip(
    model: ConditionalDenoiser,
    z_0: Tensor,
    inputs: Inputs,
    schedule: Schedule,
    generator: torch.Generator,
    num_draws: int,
) -> Tensor:
    """Estimate of the negative variational bound of each clip in nats, float [b].

    sum_t KL_t + L_T, with the steps drawn in `num_draws` equal strata of 1..T for each clip and
    scaled up; unbiased, and exact in t when num_draws is T. Uses no importance history.
    """
    b, l = z_0.shape
    T = schedule.num_steps
    edges = torch.linspace(0, T, num_draws + 1, device=z_0.device)
    condition = model.encode(inputs)
    total = torch.zeros(b, device=z_0.device)
    for low, high in pairwise(edges):
        u = torch.rand(b, generator=generator, device=z_0.device)
        t = (low + u * (high - low)).floor().long().clamp_max(T - 1) + 1
        noised = noise(z_0, t, schedule, generator)
        logits = model.denoiser(noised.z_t, t, condition)
        terms = posterior_loss(logits, noised.z_t, z_0, schedule.coefficients(t))
        total += terms.kl.sum(-1) * (T / num_draws)
    A, B, C = schedule.tables[3:, T].tolist()
    # L_T: KL of q(z_T | z_0) to the stationary distribution (the same C and K B + A spread evenly).
    K = schedule.num_codes
    rest = max(1 - C, 1e-30) / K
    kept, other = B + A, B
    prior = kept * _log(kept / rest) + (K - 1) * other * _log(other / rest)
    return total + l * prior


def _log(x: float) -> float:
    """Natural logarithm for terms p log p, which vanish with p."""
    return math.log(x) if x > 0 else 0.0
