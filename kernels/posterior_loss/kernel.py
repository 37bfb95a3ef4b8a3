"""The posterior's losses and their gradient as one Triton program.

How the work is cut: a program owns one row at a time and holds its K logits in registers, so that
they are read from memory once and their gradient is written once. Everything that couples a row is
a scalar: the softmax's maximum and sum, S, R, H and P (names of the package). Values at v, at the
positive and at the negatives are gathered from the row that the cache has just delivered.

The gradient is one K-wide expression but for corrections at the negatives' tokens, which may
repeat. Up to `_FEW` negatives, each program sums the corrections of equal tokens in a small square
and overwrites those entries of the row it has written. For more, as many programs as the device
runs at once loop over the rows; each adds the corrections into a K-wide float32 buffer of its own,
which the second-level cache keeps, adds that buffer to the row on its way out and clears what it
touched. Both are O(K + N) in memory traffic; sums of repeated tokens in the second are in no fixed
order, hence equal only to rounding from run to run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.compile import Program, signature_of

_FEW = 32
_FLOOR = tl.constexpr(3.9754497359086468e-31)  # exp(-70)
_TINY = tl.constexpr(1e-30)
_LOG_FLOOR = tl.constexpr(-70.0)


@triton.jit
def _entropy(q):
    return tl.where(q > 0, q * tl.log(tl.maximum(q, _FLOOR)), 0.0)


@triton.jit
def _rows(
    logits, stride_b, stride_l,
    z_t, z_0, coefficients,
    negatives, neg_b, neg_n, neg_l,
    w_kl, w_aux,
    w_step, step_b, step_n, step_l,
    w_sample, sample_b, sample_n, sample_l,
    out_kl, out_aux, out_step, out_sample,
    gradient, scratch,
    num_rows, L, K, N,
    HAS_TERMS: tl.constexpr, HAS_GRADIENT: tl.constexpr,
    HAS_KL: tl.constexpr, HAS_AUX: tl.constexpr,
    HAS_STEP: tl.constexpr, HAS_SAMPLE: tl.constexpr,
    HAS_NEGATIVES: tl.constexpr, IS_FEW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    ks = tl.arange(0, BLOCK_K)
    inside = ks < K
    for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        r = tl.cast(row, tl.int64)
        b, l = r // L, r % L
        # int64 before the stride: rows x K may pass 2^31.
        source = logits + b * stride_b + l * stride_l
        z = tl.load(z_t + r)
        x_0 = tl.load(z_0 + r)
        q = coefficients + b * 10
        a_t, b_t, c_t = tl.load(q), tl.load(q + 1), tl.load(q + 2)
        A_t, B_t, C_t = tl.load(q + 3), tl.load(q + 4), tl.load(q + 5)
        A_prev, B_prev, is_first = tl.load(q + 6), tl.load(q + 7), tl.load(q + 9) > 0
        is_token = z < K
        v = tl.where(is_token, z, -1)

        inv_d = tl.where(is_token, 1.0 / tl.maximum(B_t, _TINY), 1.0)
        inv_d_v = 1.0 / tl.maximum(B_t + A_t, _TINY)
        pre = tl.where(is_token, b_t, c_t / tl.maximum(C_t, _TINY))
        pre_v = a_t + b_t

        # The row, once.
        s = tl.load(source + ks, mask=inside, other=float("-inf")).to(WIDE)
        highest = tl.max(s, axis=0)
        p = tl.exp(s - highest)
        others = tl.sum(tl.where(ks == v, 0.0, p), axis=0)
        e_v = tl.sum(tl.where(ks == v, p, 0.0), axis=0)
        e_0 = tl.sum(tl.where(ks == x_0, p, 0.0), axis=0)
        s_0 = tl.sum(tl.where(ks == x_0, s, 0.0), axis=0)
        Z = others + e_v
        log_Z = highest + tl.log(Z)
        p = p / Z
        p_v = e_v / Z
        w_v = p_v * inv_d_v
        S = others / Z * inv_d + w_v
        u_v = B_prev * S + A_prev * w_v
        theta_v = pre_v * u_v
        offset, factor = pre * B_prev * S, pre * A_prev * inv_d
        theta = offset + factor * p
        is_other = inside & (ks != v)
        token = tl.where(is_token, 1.0, 0.0).to(WIDE)
        log_theta_v = tl.log(tl.maximum(theta_v, _FLOOR))

        # KL(q(.|z_t, x) || p_theta) = base + slope log p_theta(x), x apart from v and x = v.
        q_other = pre * inv_d * B_prev
        q_at_v = pre_v * inv_d * B_prev
        q_at_x = pre * inv_d * (B_prev + A_prev)
        jump = token * (q_at_v - q_other)
        slope = q_other - q_at_x
        same_other = pre * inv_d_v * B_prev
        same_at_v = pre_v * inv_d_v * (B_prev + A_prev)
        same_slope = same_other - same_at_v
        base, same_base = slope * 0.0, slope * 0.0
        if HAS_TERMS:
            log_theta = tl.log(tl.maximum(theta, _FLOOR))
            R = tl.sum(tl.where(is_other, log_theta, 0.0), axis=0) + token * log_theta_v
            base = (
                (K - 1 - token) * _entropy(q_other)
                + _entropy(q_at_x)
                + token * _entropy(q_at_v)
                - q_other * R
                - jump * log_theta_v
            )
            same_base = (K - 1) * _entropy(same_other) + _entropy(same_at_v) - same_other * R

        # The positive.
        is_v = x_0 == v
        p_0 = e_0 / Z
        log_p_0 = tl.maximum(s_0 - log_Z, _LOG_FLOOR)
        theta_0 = offset + factor * p_0
        if HAS_TERMS:
            kl = tl.where(
                is_v,
                same_base + same_slope * log_theta_v,
                base + slope * tl.log(tl.maximum(theta_0, _FLOOR)),
            )
            tl.store(out_kl + r, tl.where(is_first, -log_p_0, kl))
            tl.store(out_aux + r, -log_p_0)

        m_0, e = slope * 0.0, slope * 0.0
        if HAS_GRADIENT:
            if HAS_KL:
                m_0 = tl.load(w_kl + r).to(WIDE)
            if HAS_AUX:
                e = tl.load(w_aux + r).to(WIDE)
        e = tl.where(log_p_0 > _LOG_FLOOR, tl.where(is_first, e + m_0, e), 0.0)
        m_0 = tl.where(is_first, 0.0, m_0)
        m_apart, m_same = tl.where(is_v, 0.0, m_0), tl.where(is_v, m_0, 0.0)
        g_0 = tl.where(theta_0 > _FLOOR, m_apart * slope, 0.0)
        inverse_0 = pre / tl.maximum(theta_0, _FLOOR)
        sum_h, sum_g, sum_e = g_0 * inverse_0, g_0, e
        at_0 = A_prev * inv_d * p_0 * g_0 * inverse_0 - e

        # The negatives: O(1) each.
        if HAS_NEGATIVES:
            # Up to `_FEW` the loop runs once, and its last values serve the gradient below.
            x = tl.zeros([BLOCK_N], tl.int64)
            lives = tl.zeros([BLOCK_N], tl.int1)
            p_x, inverse_x = tl.zeros([BLOCK_N], WIDE), tl.zeros([BLOCK_N], WIDE)
            at_x = tl.zeros([BLOCK_N], WIDE)
            for start in range(0, N, BLOCK_N):
                ns = start + tl.arange(0, BLOCK_N)
                real = ns < N
                n64 = ns.to(tl.int64)
                x = tl.load(negatives + b * neg_b + n64 * neg_n + l * neg_l, mask=real, other=0)
                s_x = tl.load(source + x, mask=real, other=0.0).to(WIDE)
                x_is_v = x == v
                log_p = s_x - log_Z
                p_x = tl.exp(log_p)
                log_p = tl.maximum(log_p, _LOG_FLOOR)
                theta_x = offset + factor * p_x
                if HAS_TERMS:
                    kl_x = tl.where(
                        x_is_v,
                        same_base + same_slope * log_theta_v,
                        base + slope * tl.log(tl.maximum(theta_x, _FLOOR)),
                    )
                    place = (b * N + n64) * L + l
                    tl.store(out_step + place, tl.where(is_first, -log_p, kl_x), mask=real)
                    tl.store(out_sample + place, -log_p, mask=real)
                if HAS_GRADIENT:
                    m_x, e_x = s_x * 0.0, s_x * 0.0
                    if HAS_STEP:
                        place = b * step_b + n64 * step_n + l * step_l
                        m_x = tl.load(w_step + place, mask=real, other=0.0).to(WIDE)
                    if HAS_SAMPLE:
                        place = b * sample_b + n64 * sample_n + l * sample_l
                        e_x = tl.load(w_sample + place, mask=real, other=0.0).to(WIDE)
                    e_x = tl.where(log_p > _LOG_FLOOR, tl.where(is_first, e_x + m_x, e_x), 0.0)
                    m_x = tl.where(is_first, 0.0, m_x)
                    m_apart += tl.sum(tl.where(x_is_v, 0.0, m_x), axis=0)
                    m_same += tl.sum(tl.where(x_is_v, m_x, 0.0), axis=0)
                    lives = (theta_x > _FLOOR) & (x != v)
                    g_x = tl.where(lives, m_x * slope, 0.0)
                    inverse_x = pre / tl.maximum(theta_x, _FLOOR)
                    sum_h += tl.sum(g_x * inverse_x, axis=0)
                    sum_g += tl.sum(g_x, axis=0)
                    sum_e += tl.sum(e_x, axis=0)
                    at_x = A_prev * inv_d * p_x * g_x * inverse_x - e_x
                    if not IS_FEW:
                        own = scratch + tl.program_id(0).to(tl.int64) * K
                        tl.atomic_add(own + x, at_x, mask=real, sem="relaxed", scope="cta")

        if HAS_GRADIENT:
            g = -(m_apart * q_other + m_same * same_other)
            g_v = token * (g - m_apart * jump + m_same * same_slope)
            g_v = tl.where(theta_v > _FLOOR, g_v, 0.0)
            inverse_v = 1.0 / tl.maximum(u_v, _TINY)
            alive = is_other & (theta > _FLOOR)
            inverse = tl.where(alive, 1.0 / tl.maximum(theta, _FLOOR), 0.0)
            H = g * pre * tl.sum(inverse, axis=0) + g_v * inverse_v + sum_h
            P = g * tl.sum(tl.where(alive, 1.0, 0.0).to(WIDE), axis=0) + g_v + sum_g
            straight = inv_d * B_prev * H + sum_e - P
            bent = g * factor
            at_v = w_v * (B_prev * H + A_prev * g_v * inverse_v) + p_v * (sum_e - P)
            value = p * (straight + bent * inverse)
            value = tl.where(ks == v, at_v, value) + tl.where(ks == x_0, at_0, 0.0)
            target = gradient + r * K
            if HAS_NEGATIVES:
                if IS_FEW:
                    tl.store(target + ks, value, mask=inside)
                    ns = tl.arange(0, BLOCK_N)
                    real = ns < N
                    total = tl.sum(tl.where((x[:, None] == x[None, :]) & real[None, :],
                                            at_x[None, :], 0.0), axis=1)  # fmt: skip
                    mine = tl.where(lives, inverse_x / pre, 0.0)
                    mine = p_x * (straight + bent * mine)
                    mine = tl.where(x == v, at_v, mine) + tl.where(x == x_0, at_0, 0.0) + total
                    # Other threads of this program wrote those entries just now.
                    tl.debug_barrier()
                    tl.store(target + x, mine, mask=real)
                else:
                    own = scratch + tl.program_id(0).to(tl.int64) * K
                    tl.debug_barrier()
                    # From the second-level cache: that is where the additions happened.
                    value += tl.load(own + ks, mask=inside, other=0.0, cache_modifier=".cg")
                    tl.store(target + ks, value, mask=inside)
                    tl.debug_barrier()
                    for start in range(0, N, BLOCK_N):
                        ns = start + tl.arange(0, BLOCK_N)
                        place = b * neg_b + ns.to(tl.int64) * neg_n + l * neg_l
                        x = tl.load(negatives + place, mask=ns < N, other=0)
                        tl.store(own + x, tl.zeros([BLOCK_N], WIDE), mask=ns < N)
                    tl.debug_barrier()
            else:
                tl.store(target + ks, value, mask=inside)


@triton.jit
def _scale(gradient, upstream, K, BLOCK_K: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(upstream + row)
    if scale != 1.0:
        ks = tl.arange(0, BLOCK_K)
        place = gradient + row * K + ks
        value = tl.load(place, mask=ks < K)
        tl.store(place, value * scale, mask=ks < K)


def num_warps(block_k: int) -> int:
    """Warps of one program: enough that a row of `block_k` float32 stays in registers."""
    return min(max(block_k // 512, 1), 16)


def launch_facts(K: int, N: int) -> dict[str, Any]:
    """Compile-time sizes of `_rows` for K codes and N negatives."""
    block_k = triton.next_power_of_2(K)
    is_few = N <= _FEW
    block_n = max(triton.next_power_of_2(N), 1) if is_few else 256
    return {"BLOCK_K": block_k, "BLOCK_N": block_n, "IS_FEW": is_few, "HAS_NEGATIVES": N > 0}


@functools.cache
def _resident_programs(device: torch.device, warps: int) -> int:
    if device.type != "cuda":
        return 2
    facts = torch.cuda.get_device_properties(device)
    # Half of a multiprocessor's threads: the registers of a row allow no more.
    each = facts.max_threads_per_multi_processor // 64 // warps
    return facts.multi_processor_count * max(each, 1)


def run(
    logits: Tensor,
    z_t: Tensor,
    z_0: Tensor,
    q: Tensor,
    negatives: Tensor | None,
    weights: tuple[Tensor | None, ...] | None,
    has_terms: bool,
) -> list[Tensor]:
    """See `kernels.posterior_loss.ops.run`."""
    b, l, K = logits.shape
    if logits.stride(2) != 1:
        logits = logits.contiguous()
    wide, tl_wide = torch.float32, tl.float32
    if logits.dtype == torch.float64:
        wide, tl_wide = torch.float64, tl.float64
    n = 0 if negatives is None else negatives.shape[1]
    kl, aux, step, sample = weights or (None,) * 4
    if n == 0:
        step = sample = None
    kl, aux = (None if x is None else x.contiguous() for x in (kl, aux))
    shapes = [(b, l), (b, l), (b, n, l), (b, n, l)] if has_terms else [(0,)] * 4
    terms = [logits.new_empty(shape, dtype=wide) for shape in shapes]
    gradient = logits.new_empty((b, l, K) if weights is not None else (0,))
    rows = b * l
    if rows == 0:
        return [*terms, gradient]
    facts = launch_facts(K, n)
    warps = num_warps(facts["BLOCK_K"])
    programs, scratch = rows, gradient
    if weights is not None and not facts["IS_FEW"]:
        programs = min(rows, _resident_programs(logits.device, warps))
        scratch = torch.zeros(programs, K, dtype=wide, device=logits.device)

    def strides(x: Tensor | None) -> tuple[int, ...]:
        return (0, 0, 0) if x is None else x.stride()

    def given(x: Tensor | None) -> Tensor:
        return gradient if x is None else x  # a pointer that is never followed

    _rows[(programs,)](
        logits, logits.stride(0), logits.stride(1),
        z_t.contiguous(), z_0.contiguous(), q.to(wide).contiguous(),
        given(negatives), *strides(negatives),
        given(kl), given(aux),
        given(step), *strides(step),
        given(sample), *strides(sample),
        *terms, gradient, scratch,
        rows, l, K, n,
        HAS_TERMS=has_terms, HAS_GRADIENT=weights is not None,
        HAS_KL=kl is not None, HAS_AUX=aux is not None,
        HAS_STEP=step is not None, HAS_SAMPLE=sample is not None,
        WIDE=tl_wide, num_warps=warps, **facts,
    )  # fmt: skip
    return [*terms, gradient]


def scale_rows_(gradient: Tensor, upstream: Tensor) -> None:
    """See `kernels.posterior_loss.ops.scale_rows_`."""
    b, l, K = gradient.shape
    if b * l:
        block = triton.next_power_of_2(K)
        _scale[(b * l,)](gradient, upstream, K, BLOCK_K=block, num_warps=num_warps(block))


def programs() -> Iterator[Program]:
    """Specialisations to compile ahead of time; see `kernels.compile`."""
    constants = {"BLOCK_K": 2048}
    types = {"gradient": "*fp32", "upstream": "*fp32"}
    yield Program("scale_rows", _scale, signature_of(_scale, types, constants), constants, 4, 2048)
    sizes = [(K, N, "fp32") for K in (2048, 4096, 16384) for N in (0, 10, 1000)]
    for K, N, dtype in [*sizes, (2048, 10, "bf16"), (2048, 10, "fp16")]:
        facts = launch_facts(K, N)
        constants = facts | {
            "HAS_TERMS": True, "HAS_GRADIENT": True, "HAS_KL": True, "HAS_AUX": True,
            "HAS_STEP": N > 0, "HAS_SAMPLE": N > 0, "WIDE": tl.float32,
        }  # fmt: skip
        narrow = (
            "coefficients w_kl w_aux w_step w_sample out_kl out_aux out_step out_sample scratch"
        )
        types = {
            **dict.fromkeys(("logits", "gradient"), f"*{dtype}"),
            **dict.fromkeys(("z_t", "z_0", "negatives"), "*i64"),
            **dict.fromkeys(narrow.split(), "*fp32"),
        }
        name = f"posterior_loss K={K} N={N} {dtype}"
        signature = signature_of(_rows, types, constants)
        yield Program(name, _rows, signature, constants, num_warps(facts["BLOCK_K"]), K)
