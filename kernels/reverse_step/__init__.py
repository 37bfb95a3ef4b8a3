"""One step of the reverse chain: guidance, truncation, posterior and draw."""

from __future__ import annotations

from torch import Tensor

from kernels.posterior_loss import StepCoefficients
from kernels.reverse_step.reference import draw_previous, truncate

__all__ = ["reverse_step", "truncate"]


def reverse_step(
    logits: Tensor,
    z_t: Tensor,
    coefficients: StepCoefficients,
    uniforms: Tensor,
    truncation: float = 1.0,
    null_logits: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    r"""Draw z_{t-1} ~ p_theta(. | z_t), int64 [b, l] in 0..K.

    Guidance mixes `null + guidance (logits - null)`. Truncation sorts p = softmax descending and
    keeps an entry while the cumulative sum before it is below `truncation`; nothing is
    renormalised, so what is dropped goes to staying masked. A draw to z_0 cannot stay masked and
    is renormalised.
    The draw inverts the cumulative distribution over ([MASK], 0, 1, ..., K - 1) at `uniforms`.

    Args:
        logits: conditional scores of z_0, [b, l, K].
        z_t: tokens, int64 [b, l] in 0..K, K being [MASK].
        coefficients: of the step (or of a longer jump).
        uniforms: numbers in [0, 1), [b, l].
        truncation: 0 < r <= 1.
        null_logits: scores without condition, [b, l, K]; needed when guidance is not 1.
        guidance: scale of the mix.

    Raises:
        ValueError: truncation outside (0, 1], or guidance without `null_logits`.
    """
    if not 0 < truncation <= 1:
        raise ValueError(f"truncation must lie in (0, 1]: got {truncation}; the paper uses 0.86")
    if guidance != 1 and null_logits is None:
        raise ValueError(f"guidance {guidance} needs null_logits: got none; pass them or use 1")
    return draw_previous(logits, z_t, coefficients, uniforms, truncation, null_logits, guidance)
