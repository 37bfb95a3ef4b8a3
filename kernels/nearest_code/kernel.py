"""Codebook assignment as one Triton program.

How the work is cut: a program owns a block of rows, walks over the codebook in blocks, which the
second-level cache keeps, and holds the best code so far of each row in registers. Products are
float32 in full precision: TF32 would assign rows to the wrong one of two near codes. Counts and
sums are atomic additions while the rows are still at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile import Program, signature_of

_BLOCK_N, _BLOCK_K, _BLOCK_D = 64, 32, 32
_NUM_WARPS = 8  # with four, float32 rows spill registers


@triton.jit
def _assign(
    rows, rows_n, rows_d, codebook, norms, out, counts, sums,
    n, K, D,
    HAS_STATISTICS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    ns = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = ns < n
    best = tl.full([BLOCK_N], float("inf"), tl.float32)
    best_k = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, K, BLOCK_K):
        ks = first + tl.arange(0, BLOCK_K)
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        for start in range(0, D, BLOCK_D):
            ds = start + tl.arange(0, BLOCK_D)
            x = tl.load(
                rows + ns[:, None] * rows_n + ds[None, :] * rows_d,
                mask=real[:, None] & (ds < D)[None, :],
                other=0.0,
            ).to(tl.float32)
            e = tl.load(
                codebook + ks[None, :] * D + ds[:, None],
                mask=(ks < K)[None, :] & (ds < D)[:, None],
                other=0.0,
            )
            product = tl.dot(x, e, acc=product, input_precision="ieee")
        norm = tl.load(norms + ks, mask=ks < K, other=float("inf"))
        distance = norm[None, :] - 2.0 * product
        low = tl.min(distance, axis=1)
        # The lowest index among equals; a later block must be strictly nearer.
        low_k = tl.min(tl.where(distance == low[:, None], ks[None, :], K), axis=1)
        is_nearer = low < best
        best_k = tl.where(is_nearer, low_k, best_k)
        best = tl.where(is_nearer, low, best)
    tl.store(out + ns, best_k.to(tl.int64), mask=real)
    if HAS_STATISTICS:
        one = tl.full([BLOCK_N], 1.0, tl.float32)
        tl.atomic_add(counts + best_k, one, mask=real, sem="relaxed")
        for start in range(0, D, BLOCK_D):
            ds = start + tl.arange(0, BLOCK_D)
            mask = real[:, None] & (ds < D)[None, :]
            place = rows + ns[:, None] * rows_n + ds[None, :] * rows_d
            x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
            target = sums + best_k.to(tl.int64)[:, None] * D + ds[None, :]
            tl.atomic_add(target, x, mask=mask, sem="relaxed")


def run(
    rows: Tensor, codebook: Tensor, has_statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `kernels.nearest_code.nearest_code`."""
    n, d = rows.shape
    K = len(codebook)
    codebook = codebook.contiguous()
    codes = torch.empty(n, dtype=torch.int64, device=rows.device)
    counts = torch.zeros(K if has_statistics else 0, device=rows.device)
    sums = torch.zeros(K if has_statistics else 0, d, device=rows.device)
    if n:
        _assign[(triton.cdiv(n, _BLOCK_N),)](
            rows, *rows.stride(), codebook, codebook.square().sum(dim=1), codes, counts, sums,
            n, K, d, HAS_STATISTICS=has_statistics,
            BLOCK_N=_BLOCK_N, BLOCK_K=_BLOCK_K, BLOCK_D=_BLOCK_D, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return (codes, counts, sums) if has_statistics else (codes, None, None)


def programs() -> Iterator[Program]:
    """Specialisations to compile ahead of time; see `kernels.compile`."""
    for dtype in ("fp32", "bf16"):
        constants = {
            "HAS_STATISTICS": True, "BLOCK_N": _BLOCK_N, "BLOCK_K": _BLOCK_K, "BLOCK_D": _BLOCK_D,
        }  # fmt: skip
        types = {
            "rows": f"*{dtype}",
            "out": "*i64",
            **dict.fromkeys(("codebook", "norms", "counts", "sums"), "*fp32"),
        }
        signature = signature_of(_assign, types, constants)
        yield Program(f"nearest_code {dtype}", _assign, signature, constants, _NUM_WARPS)
