r"""The last linear layer and the posterior's losses together, without ever holding all logits.

    logits = hidden W^T + bias,   then the terms of `kernels.posterior_loss`

in chunks of rows: a chunk's logits are made, read and dropped. The backward pass makes them again,
has their gradient G written by `kernels.posterior_loss`, and adds up

    d hidden = G W      dW = sum over chunks of G^T hidden      d bias = sum of G

One matrix product more than with stored logits, for `[b, l, K]` less memory twice over (logits and
gradient): at 64 x 1024 tokens of 2887 codes in float32 that is 2 x 0.76 GB.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import check_finite
from kernels.posterior_loss import PosteriorTerms, StepCoefficients, check_rows, pack_coefficients
from kernels.posterior_loss.ops import run

__all__ = ["linear_posterior_loss"]

_CHUNK_BYTES = 1 << 26


def linear_posterior_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z_t: Tensor,
    z_0: Tensor,
    coefficients: StepCoefficients,
    negatives: Tensor | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> PosteriorTerms:
    """`posterior_loss` of `F.linear(hidden, weight, bias)`, differentiable in those three.

    Args:
        hidden: what the last layer would see, [b, l, d]; under autocast it and the layer are cast
            as `F.linear` would cast them.
        weight: [K, d].
        bias: [K] or None.
        z_t: as of `posterior_loss`, like the arguments that follow.
        z_0: clean tokens.
        coefficients: the schedule at each sample's step.
        negatives: tokens of negatives.
        chunk_bytes: about what one chunk's logits may take in memory.

    Raises:
        ValueError: as `posterior_loss`, and for a weight that does not fit `hidden`.
    """
    if hidden.ndim != 3 or weight.ndim != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            "hidden must be [b, l, d] and weight [K, d] with the same d: got "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    b, l, _ = hidden.shape
    K = len(weight)
    check_finite("hidden", hidden)
    check_rows(hidden.new_zeros(1).expand(b, l, K), z_t, z_0, coefficients, negatives)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    width = max(1, chunk_bytes // (max(b, 1) * K * hidden.element_size()))
    q = pack_coefficients(coefficients, hidden)
    kl, aux, step, sample = _LinearTerms.apply(hidden, weight, bias, z_t, z_0, q, negatives, width)
    if negatives is None:
        return PosteriorTerms(kl, aux, None, None)
    return PosteriorTerms(kl, aux, step, sample)


def _slices(length: int, width: int) -> list[slice]:
    return [slice(start, start + width) for start in range(0, length, width)]


def _cut(x: Tensor | None, part: slice) -> Tensor | None:
    return None if x is None else x[..., part]


class _LinearTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        z_t: Tensor,
        z_0: Tensor,
        q: Tensor,
        negatives: Tensor | None,
        width: int,
    ) -> tuple[Tensor, ...]:
        parts = []
        with torch.autocast(hidden.device.type, enabled=False):
            # Without positions one empty chunk still gives the results their shapes.
            for part in _slices(hidden.shape[1], width) or [slice(0, 0)]:
                logits = F.linear(hidden[:, part], weight, bias)
                cut = _cut(negatives, part)
                parts.append(run(logits, z_t[:, part], z_0[:, part], q, cut, None, True)[:4])
        ctx.save_for_backward(hidden, weight, bias, z_t, z_0, q, negatives)
        ctx.width = width
        ctx.set_materialize_grads(False)
        return tuple(torch.cat(term, dim=-1) for term in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, z_t, z_0, q, negatives = ctx.saved_tensors
        if negatives is None:
            upstream = (*upstream[:2], None, None)
        K, d = weight.shape
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        d_hidden = torch.empty_like(hidden)
        # Summed over chunks in float32, whatever the layer's precision.
        d_weight = torch.zeros(K, d, dtype=wide, device=hidden.device)
        d_bias = torch.zeros(K, dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _slices(hidden.shape[1], ctx.width):
                x = hidden[:, part]
                logits = F.linear(x, weight, bias)
                weights = tuple(_cut(term, part) for term in upstream)
                cut = _cut(negatives, part)
                G = run(logits, z_t[:, part], z_0[:, part], q, cut, weights, False)[4]
                d_hidden[:, part] = G @ weight
                rows = G.flatten(0, 1)
                d_weight += rows.T @ x.flatten(0, 1)
                d_bias += rows.sum(0, dtype=wide)
        of_bias = None if bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight.to(weight.dtype), of_bias, None, None, None, None, None
