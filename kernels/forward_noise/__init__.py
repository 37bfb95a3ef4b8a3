r"""The forward chain in one jump, for a sample and all its negative chains at once.

    z_t = [MASK] with probability C_t, a uniform token with K B_t, else z_0           O(1) a token

Two 32-bit numbers of a counter decide a token: `r_0 < 2^32 C_t` masks it, else
`r_0 < 2^32 (C_t + K B_t)` replaces it, and the replacement is `floor(r_1 K / 2^32)`. The numbers
are Philox4x32-10 (Salmon et al., SC 2011) of the key `seed` and the counter (position, chain,
sample), chain 0 being the positive. So a token's noise depends on the seed and on which sample it
belongs to, and on nothing else: not on the batch, the device or how a batch is split over devices.
All integers; reference and kernel agree to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import check_tokens, choose
from kernels.forward_noise import reference

__all__ = ["NoisedTokens", "forward_noise"]


class NoisedTokens(NamedTuple):
    """Noised tokens, int64 in 0..K, where K is [MASK]."""

    z_t: Tensor
    """[b, l]."""
    negatives: Tensor | None
    """[b, n, l]: each negative on a chain of its own."""


def forward_noise(
    z_0: Tensor,
    B: Tensor,
    C: Tensor,
    num_codes: int,
    seed: Tensor | int,
    negatives: Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> NoisedTokens:
    """Draw z_t ~ q(. | z_0), and z_t^n ~ q(. | z_0^n) for negatives, in one launch.

    Args:
        z_0: clean tokens, int64 [b, l] in 0..K-1.
        B: cumulative probability of one given replacement, [b].
        C: cumulative probability of [MASK], [b].
        num_codes: K, at least 2.
        seed: 64 bits; a tensor of one int64 on the tokens' device spares a wait for it.
        negatives: clean tokens of the negative chains, int64 [b, n, l].
        sample_ids: number of each sample in 0..2^32-1, int64 [b]; 0, 1, ... if left out. Give the
            numbers in the whole batch where it is split over devices.

    Raises:
        ValueError: a shape or a token that does not fit.
    """
    if z_0.ndim != 2:
        raise ValueError(f"z_0 must be [b, l]: got {list(z_0.shape)}")
    b, l = z_0.shape
    if num_codes < 2:
        raise ValueError(f"num_codes must be at least 2: got K = {num_codes}")
    if B.shape != (b,) or C.shape != (b,):
        raise ValueError(
            f"B and C must have the shape [{b}] of the batch: got {list(B.shape)}, {list(C.shape)}"
        )
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != (b, l)):
        raise ValueError(
            f"negatives must have the shape [{b}, n, {l}]: got {tuple(negatives.shape)}"
        )
    check_tokens("z_0", z_0, num_codes)
    if negatives is not None:
        check_tokens("negatives", negatives, num_codes)
    if sample_ids is None:
        sample_ids = torch.arange(b, device=z_0.device)
    chains = z_0[:, None] if negatives is None else torch.cat([z_0[:, None], negatives], dim=1)
    key = torch.as_tensor(seed, device=z_0.device).reshape(1)
    mask = (C.double() * 2**32).round().long()
    replaced = ((C.double() + num_codes * B.double()) * 2**32).round().long()
    thresholds = torch.stack([mask, replaced], dim=1)
    if choose(z_0, None) == "triton":
        from kernels.forward_noise import kernel

        noised = kernel.run(chains, thresholds, num_codes, key, sample_ids)
    else:
        noised = reference.run(chains, thresholds, num_codes, key, sample_ids)
    return NoisedTokens(noised[:, 0], None if negatives is None else noised[:, 1:])
