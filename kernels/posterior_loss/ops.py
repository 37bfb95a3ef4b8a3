"""Values and gradients as PyTorch operators that autograd, autocast and torch.compile know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import choose
from kernels.posterior_loss import reference


def run(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: Tensor,
    negatives: Tensor | None,
    weights: tuple[Tensor | None, ...] | None,
    has_terms: bool,
) -> list[Tensor]:
    """One pass over the logits.

    Args:
        logits: `[b, l, K]`.
        z_t: `[b, l]`.
        z_0: `[b, l]`.
        q: the ten fields of `StepCoefficients`, float `[b, 10]`.
        negatives: `[b, n, l]` or None.
        weights: of kl, aux `[b, l]`, neg_step and neg_sample `[b, n, l]` in the loss whose gradient
            is asked for (None: weight zero); None as a whole for values alone.
        has_terms: whether values are asked for.

    Returns:
        kl, aux `[b, l]`, neg_step, neg_sample `[b, n, l]` and the gradient `[b, l, K]`; what was
        not asked for is empty.
    """
    kl, aux, step, sample = weights or (None,) * 4
    out: list[Tensor] = _posterior_loss(
        logits, z_t, z_0, q, negatives, kl, aux, step, sample, weights is not None, has_terms
    )
    return out


@torch.library.custom_op("cdcd::posterior_loss", mutates_args=())
def _posterior_loss(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: Tensor,
    negatives: Tensor | None,
    kl: Tensor | None,
    aux: Tensor | None,
    step: Tensor | None,
    sample: Tensor | None,
    has_gradient: bool,
    has_terms: bool,
) -> list[Tensor]:
    weights = (kl, aux, step, sample) if has_gradient else None
    if choose(logits, logits.shape[-1]) == "triton":
        from kernels.posterior_loss import kernel

        return kernel.run(logits, z_t, z_0, q, negatives, weights, has_terms)
    with torch.autocast(logits.device.type, enabled=False):
        return reference.run(logits, z_t, z_0, q, negatives, weights, has_terms)


@_posterior_loss.register_fake
def _(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: Tensor,
    negatives: Tensor | None,
    kl: Tensor | None,
    aux: Tensor | None,
    step: Tensor | None,
    sample: Tensor | None,
    has_gradient: bool,
    has_terms: bool,
) -> list[Tensor]:
    b, l, _ = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    n = 0 if negatives is None else negatives.shape[1]
    shapes = [(b, l), (b, l), (b, n, l), (b, n, l)] if has_terms else [(0,)] * 4
    terms = [logits.new_empty(shape, dtype=dtype) for shape in shapes]
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return [*terms, gradient if has_gradient else logits.new_empty(0)]


class Terms(torch.autograd.Function):
    """Per-row terms; the backward pass reads the logits again and writes their gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, z_t: Tensor, z_0: Tensor, q: Tensor, negatives: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Values of kl, aux, neg_step and neg_sample."""
        *terms, _ = run(logits, z_t, z_0, q, negatives, None, True)
        ctx.save_for_backward(logits, z_t, z_0, q, negatives)
        ctx.set_materialize_grads(False)
        return tuple(terms)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        """The upstream gradients are the weights."""
        logits, z_t, z_0, q, negatives = ctx.saved_tensors
        if negatives is None:
            upstream = (*upstream[:2], None, None)
        *_, gradient = run(logits, z_t, z_0, q, negatives, upstream, False)
        return gradient, None, None, None, None


class WeightedSum(torch.autograd.Function):
    """Per-row weighted loss whose gradient is written while the logits are read for the values."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        z_t: Tensor,
        z_0: Tensor,
        q: Tensor,
        negatives: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """The loss `[b, l]`, then the terms, which carry no gradient."""
        wanted = weights if ctx.needs_input_grad[0] else None
        *terms, gradient = run(logits, z_t, z_0, q, negatives, wanted, True)
        loss = torch.zeros_like(terms[0])
        for weight, term in zip(weights, terms, strict=True):
            if weight is not None:
                product = weight * term
                loss = loss + (product.sum(1) if product.ndim == 3 else product)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*terms)
        return loss, *terms

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The saved gradient, scaled row by row in its own memory."""
        (gradient,) = ctx.saved_tensors
        scale_rows_(gradient, upstream[0].contiguous())
        return (gradient, *[None] * 8)


@torch.library.custom_op("cdcd::scale_rows_", mutates_args=("gradient",))
def scale_rows_(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply each row of `gradient` `[b, l, K]` by `upstream` `[b, l]`; rows of ones stay unread.

    In place: a second backward pass through the same graph is an error of autograd's, not a wrong
    gradient.
    """
    if choose(gradient, gradient.shape[-1]) == "triton":
        from kernels.posterior_loss import kernel

        kernel.scale_rows_(gradient, upstream)
    elif not bool((upstream == 1).all()):
        gradient.mul_(upstream[..., None].to(gradient.dtype))
