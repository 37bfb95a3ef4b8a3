"""Counter-based noising as one Triton program: tokens of all chains, each read and written once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile import Program, signature_of

_BLOCK = 512


@triton.jit
def _noise(
    chains, chains_b, chains_n, chains_l, thresholds, key, sample_ids, out,
    num_tokens, n, L, K, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = place < num_tokens
    l = place % L
    chain = (place // L) % n
    b = place // L // n
    x = tl.load(chains + b * chains_b + chain * chains_n + l * chains_l, mask=real, other=0)
    sample = tl.load(sample_ids + b, mask=real, other=0)
    mask = tl.load(thresholds + 2 * b, mask=real, other=0)
    replaced = tl.load(thresholds + 2 * b + 1, mask=real, other=0)
    c0, c1, c2 = l.to(tl.uint32), chain.to(tl.uint32), sample.to(tl.uint32)
    case, other, _, _ = tl.philox(tl.load(key), c0, c1, c2, c2 * 0)
    case, other = case.to(tl.int64), other.to(tl.int64)
    z = tl.where(case < replaced, (other * K) >> 32, x)
    tl.store(out + place, tl.where(case < mask, K, z), mask=real)


def run(
    chains: Tensor, thresholds: Tensor, num_codes: int, key: Tensor, sample_ids: Tensor
) -> Tensor:
    """See `kernels.forward_noise.reference.run`."""
    out = torch.empty(chains.shape, dtype=torch.int64, device=chains.device)
    _, n, l = chains.shape
    if out.numel():
        _noise[(triton.cdiv(out.numel(), _BLOCK),)](
            chains, *chains.stride(), thresholds.contiguous(), key, sample_ids.contiguous(), out,
            out.numel(), n, l, num_codes, BLOCK=_BLOCK,
        )  # fmt: skip
    return out


def programs() -> Iterator[Program]:
    """Specialisations to compile ahead of time; see `kernels.compile`."""
    constants = {"BLOCK": _BLOCK}
    names = ("chains", "thresholds", "key", "sample_ids", "out")
    signature = signature_of(_noise, dict.fromkeys(names, "*i64"), constants)
    yield Program("forward_noise", _noise, signature, constants, 4)
