"""The reverse step as one Triton program: logits in, one token a row out.

How the work is cut: a program owns a row and holds it in registers from the guidance mix to the
draw; nothing K-wide is written. A masked row whose uniform says that it stays masked is never read.
Truncation needs no sort: the threshold of the kept set is the smallest float p* for which the
entries above it sum to less than r. Non-negative floats are ordered like their bit patterns, so
bisection over the bits finds it in 31 sums over registers; entries equal to p* are then kept in
the order of their index. The draw is a prefix sum over the row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile import Program, signature_of
from kernels.posterior_loss.kernel import num_warps

_TINY = tl.constexpr(1e-30)


@triton.jit
def _rows(
    logits, logits_b, logits_l,
    null, null_b, null_l,
    z_t, coefficients, uniforms,
    out, out_probability, out_entropy,
    guidance, truncation,
    L, K,
    HAS_NULL: tl.constexpr, TRUNCATES: tl.constexpr, RENORMALIZES: tl.constexpr,
    HAS_CONFIDENCE: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
    BITS: tl.constexpr, NUM_BITS: tl.constexpr,
):  # fmt: skip
    r = tl.program_id(0).to(tl.int64)
    b, l = r // L, r % L
    z = tl.load(z_t + r)
    u = tl.load(uniforms + r)
    q = coefficients + b * 10
    is_first = tl.load(q + 9) > 0
    is_token = z < K
    stay = tl.where(is_token, 0.0, tl.load(q + 8) / tl.maximum(tl.load(q + 5), _TINY))
    stays = u < stay
    if stays and not HAS_CONFIDENCE:
        tl.store(out + r, tl.cast(K, tl.int64))
    else:
        ks = tl.arange(0, BLOCK_K)
        inside = ks < K
        s = tl.load(logits + b * logits_b + l * logits_l + ks, mask=inside, other=float("-inf"))
        s = s.to(WIDE)
        if HAS_NULL:
            place = null + b * null_b + l * null_l + ks
            without = tl.load(place, mask=inside, other=0.0).to(WIDE)
            s = tl.where(inside, without + guidance * (s - without), float("-inf"))
        highest = tl.max(s, axis=0)
        p = tl.exp(s - highest)
        Z = tl.sum(p, axis=0)
        p = p / Z
        if HAS_CONFIDENCE:
            log_p = s - highest - tl.log(Z)
            tl.store(out_entropy + r, -tl.sum(tl.where(p > 0, p * log_p, 0.0), axis=0))
        if TRUNCATES:
            bits = p.to(BITS, bitcast=True)
            low = tl.zeros([], BITS)
            high = tl.max(bits, axis=0)
            # Invariant: the sum above `high` is less than r; `low` is where the answer may start.
            for _ in range(NUM_BITS):
                middle = low + (high - low) // 2
                above = tl.sum(tl.where(bits > middle, p, 0.0), axis=0)
                is_enough = above < truncation
                high = tl.where(is_enough, middle, high)
                low = tl.where(is_enough, low, tl.minimum(middle + 1, high))
            above = tl.sum(tl.where(bits > high, p, 0.0), axis=0)
            is_tie = (bits == high) & inside
            rank = tl.cumsum(is_tie.to(tl.int32), axis=0) - 1
            edge = tl.max(tl.where(is_tie, p, 0.0), axis=0)
            is_kept = (bits > high) | (is_tie & (above + rank.to(WIDE) * edge < truncation))
            p = tl.where(is_kept, p, 0.0)
            if RENORMALIZES:
                p = p / tl.sum(p, axis=0)
        a_t, b_t, c_t = tl.load(q), tl.load(q + 1), tl.load(q + 2)
        A_t, B_t, C_t = tl.load(q + 3), tl.load(q + 4), tl.load(q + 5)
        A_prev, B_prev = tl.load(q + 6), tl.load(q + 7)
        at_v = (ks == z) & is_token
        inv_d = tl.where(is_token, 1.0 / tl.maximum(B_t, _TINY), 1.0)
        w = p * tl.where(at_v, 1.0 / tl.maximum(B_t + A_t, _TINY), inv_d)
        pre = tl.where(is_token, b_t, c_t / tl.maximum(C_t, _TINY))
        pre = tl.where(at_v, a_t + b_t, pre)
        token = pre * (B_prev * tl.sum(w, axis=0) + A_prev * w)
        token = tl.where(inside, tl.where(is_first, p, token), 0.0)
        cumulative = tl.cumsum(token, axis=0)
        total = tl.max(cumulative, axis=0)
        must = is_token | is_first
        target = tl.where(must, u * total, u - stay)
        index = tl.sum(((cumulative <= target) & inside).to(tl.int32), axis=0)
        last = tl.max(tl.where(token > 0, ks, -1), axis=0)
        index = tl.where(index < K, index, tl.where(must, last, K))
        index = tl.where(stays & ~must, K, index)
        tl.store(out + r, index.to(tl.int64))
        if HAS_CONFIDENCE:
            chosen = tl.sum(tl.where(ks == index, token, 0.0), axis=0) / tl.where(must, total, 1.0)
            tl.store(out_probability + r, tl.where(index < K, chosen, 1.0 - total))


def run(
    logits: Tensor,
    z_t: Tensor,
    q: Tensor,
    uniforms: Tensor,
    truncation: float,
    null_logits: Tensor | None,
    guidance: float,
    has_confidence: bool,
    renormalize: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """See `kernels.reverse_step.reverse_step`."""
    b, l, K = logits.shape
    if logits.stride(2) != 1:
        logits = logits.contiguous()
    if null_logits is not None and null_logits.stride(2) != 1:
        null_logits = null_logits.contiguous()
    is_double = logits.dtype == torch.float64
    z = torch.empty((b, l), dtype=torch.int64, device=logits.device)
    shape = (b, l) if has_confidence else (0,)
    probability, entropy = (
        torch.empty(shape, dtype=torch.float32, device=logits.device) for _ in range(2)
    )
    block = triton.next_power_of_2(K)
    null = logits if null_logits is None else null_logits
    if b * l:
        _rows[(b * l,)](
            logits, logits.stride(0), logits.stride(1),
            null, null.stride(0), null.stride(1),
            z_t.contiguous(), q.contiguous(), uniforms.to(q.dtype).contiguous(),
            z, probability, entropy, guidance, truncation, l, K,
            HAS_NULL=null_logits is not None, TRUNCATES=truncation < 1,
            RENORMALIZES=renormalize, HAS_CONFIDENCE=has_confidence,
            BLOCK_K=block, num_warps=num_warps(block),
            WIDE=tl.float64 if is_double else tl.float32,
            BITS=tl.int64 if is_double else tl.int32, NUM_BITS=63 if is_double else 31,
        )  # fmt: skip
    return (z, probability, entropy) if has_confidence else (z, None, None)


def programs() -> Iterator[Program]:
    """Specialisations to compile ahead of time; see `kernels.compile`."""
    sizes = (
        (2048, "fp32", False),
        (2048, "bf16", True),
        (4096, "fp32", True),
        (16384, "fp32", True),
    )
    for K, dtype, has_confidence in sizes:
        block = triton.next_power_of_2(K)
        constants = {
            "HAS_NULL": True,
            "TRUNCATES": True,
            "RENORMALIZES": False,
            "HAS_CONFIDENCE": has_confidence,
            "BLOCK_K": block,
            "WIDE": tl.float32,
            "BITS": tl.int32,
            "NUM_BITS": 31,
        }
        narrow = ("coefficients", "uniforms", "out_probability", "out_entropy")
        types = {
            **dict.fromkeys(("logits", "null"), f"*{dtype}"),
            **dict.fromkeys(("z_t", "out"), "*i64"),
            **dict.fromkeys(narrow, "*fp32"),
            **dict.fromkeys(("guidance", "truncation"), "fp32"),
        }
        signature = signature_of(_rows, types, constants)
        name = f"reverse_step K={K} {dtype}"
        yield Program(name, _rows, signature, constants, num_warps(block), K)
