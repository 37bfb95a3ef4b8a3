"""Counter-based noising in plain PyTorch: the specification, and the path of every CPU."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _multiply(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low half of a product of 32-bit numbers held in int64."""
    # The product wraps around at 2^64, which leaves its bits as they are.
    product = x * constant
    return (product >> 32) & _LOW, product & _LOW


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """First two of the four 32-bit numbers of Philox4x32-10, as int64.

    Args:
        key: one int64.
        counter: the first three words in 0..2^32-1, broadcastable; the fourth is zero.
    """
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    c0, c1, c2 = torch.broadcast_tensors(*counter)
    c3 = torch.zeros_like(c0)
    for _ in range(10):
        high_0, low_0 = _multiply(c0, 0xD2511F53)
        high_2, low_2 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1


def run(
    chains: Tensor, thresholds: Tensor, num_codes: int, key: Tensor, sample_ids: Tensor
) -> Tensor:
    """Noise `[b, 1 + n, l]` tokens under thresholds `[b, 2]`; see the package."""
    _, n, l = chains.shape
    position = torch.arange(l, device=chains.device)
    chain = torch.arange(n, device=chains.device)[:, None]
    case, other = philox(key, (position, chain, sample_ids[:, None, None]))
    mask, replaced = thresholds[:, None, None].unbind(-1)
    z_t = torch.where(case < replaced, (other * num_codes) >> 32, chains)
    return torch.where(case < mask, num_codes, z_t)
