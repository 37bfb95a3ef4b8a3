r"""One step of the reverse chain: guidance, truncation, posterior and draw.

With `s = null + guidance (logits - null)` and `p = softmax(s)`, truncation sorts p descending
(ties: lowest index first), keeps an entry while the sum of those before it is below r, and zeroes
the rest, without renormalising unless asked to. `w`, `S` and `pre` are those of
`kernels.posterior_loss`:

    p_theta(z_{t-1} = j | z_t) = pre_j (B_{t-1} S + A_{t-1} w_j)

and what is missing to one stays masked, so dropped mass delays a token. A draw to z_0, and one from
a token, have no [MASK] to stay at: they are renormalised. The draw inverts the cumulative
distribution over ([MASK], 0, 1, ..., K - 1) at the given uniforms: an interval [0, C_{t-1} / C_t)
for staying masked, then the tokens, then what truncation dropped, which is [MASK] again.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kernels.dispatch import check_finite, check_tokens, choose
from kernels.posterior_loss import StepCoefficients, pack_coefficients
from kernels.reverse_step import reference
from kernels.reverse_step.reference import truncate

__all__ = ["Draw", "reverse_step", "truncate"]

SMALLEST = 2.0**-126
"""Of float32; truncation rates are raised to it: 0 would keep not even the likeliest code."""


class Draw(NamedTuple):
    """What a step drew, and how sure it was, for samplers that order positions by confidence."""

    z: Tensor
    """z_{t-1}, int64 [b, l] in 0..K."""
    probability: Tensor | None
    """Of what was drawn under the step's distribution, float32 [b, l]; for a draw to z_0 this is
    the prediction's (truncated, renormalised) probability of the token."""
    entropy: Tensor | None
    """Of the guided prediction p before truncation, nats, float32 [b, l]."""


def reverse_step(
    logits: Tensor,
    z_t: Tensor,
    coefficients: StepCoefficients,
    uniforms: Tensor,
    truncation: float = 1.0,
    null_logits: Tensor | None = None,
    guidance: float = 1.0,
    has_confidence: bool = False,
    renormalize: bool = False,
) -> Draw:
    """Draw z_{t-1} ~ p_theta(. | z_t).

    Args:
        logits: conditional scores of z_0, [b, l, K].
        z_t: tokens, int64 [b, l] in 0..K, K being [MASK].
        coefficients: of the step (or of a longer jump).
        uniforms: numbers in [0, 1), [b, l].
        truncation: 0 < r <= 1.
        null_logits: scores without condition, [b, l, K]; needed when guidance is not 1.
        guidance: scale of the mix.
        has_confidence: fill in `probability` and `entropy`; rows that stay masked are then read
            too.
        renormalize: divide the truncated prediction by its sum, so that no dropped mass stays
            masked.

    Raises:
        ValueError: truncation outside (0, 1], guidance without `null_logits`, a shape or a token
            that does not fit.
    """
    if not 0 < truncation <= 1:
        raise ValueError(f"truncation must lie in (0, 1]: got {truncation}; the paper uses 0.86")
    truncation = max(truncation, SMALLEST)
    if guidance != 1 and null_logits is None:
        raise ValueError(f"guidance {guidance} needs null_logits: got none; pass them or use 1")
    if logits.ndim != 3 or logits.shape[2] < 2:
        raise ValueError(
            f"logits must be [b, l, K] with at least 2 codes: got {list(logits.shape)}"
        )
    if z_t.shape != logits.shape[:2] or uniforms.shape != logits.shape[:2]:
        raise ValueError(
            f"z_t and uniforms must have the shape {tuple(logits.shape[:2])} of the logits' rows: "
            f"got {tuple(z_t.shape)} and {tuple(uniforms.shape)}"
        )
    if null_logits is not None and null_logits.shape != logits.shape:
        raise ValueError(
            f"null_logits must have the shape {tuple(logits.shape)} of logits: got "
            f"{tuple(null_logits.shape)}"
        )
    check_tokens("z_t", z_t, logits.shape[2], may_be_mask=True)
    check_finite("logits", logits)
    null = null_logits if guidance != 1 else None
    arguments = (
        logits, z_t, pack_coefficients(coefficients, logits), uniforms, truncation, null, guidance,
        has_confidence, renormalize,
    )  # fmt: skip
    if choose(logits, logits.shape[2]) == "triton":
        from kernels.reverse_step import kernel

        return Draw(*kernel.run(*arguments))
    return Draw(*reference.run(*arguments))
