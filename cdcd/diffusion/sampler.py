"""The reverse loop: from the full mask to tokens, with guidance, truncation and step skipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from cdcd.diffusion.schedule import Schedule, skipped
from kernels.reverse_step import reverse_step

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(z_t [b, l], t [b]) -> logits [b, l, K] and, for guidance, the unconditional logits."""


@dataclass(frozen=True)
class SamplerConfig:
    """How to walk back: truncation rate r, guidance scale, and diffusion steps per network call."""

    truncation: float = 0.86
    guidance: float = 1.0
    stride: int = 1


def step_pairs(num_steps: int, stride: int) -> list[tuple[int, int]]:
    """Visited jumps (t, previous) from T down to 0, e.g. T = 5, stride 2: (5,3) (3,1) (1,0).

    Raises:
        ValueError: stride outside 1..T.
    """
    if not 1 <= stride <= num_steps:
        raise ValueError(f"stride must lie in 1..{num_steps} diffusion steps: got {stride}")
    visited = [*range(num_steps, 0, -stride), 0]
    return list(pairwise(visited))


@torch.no_grad()
def sample(
    predict: Predict,
    schedule: Schedule,
    shape: tuple[int, int],
    config: SamplerConfig,
    generator: torch.Generator | Sequence[torch.Generator],
    kept: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draw z_0 ~ p_theta, int64 [b, l] in 0..K-1, from the fully masked sequence.

    Args:
        predict: the network as a callable.
        schedule: the chain.
        shape: (b, l).
        config: truncation, guidance, stride.
        generator: source of all draws, on the tokens' device; or one for each row, so that what a
            row draws does not depend on the rows beside it.
        kept: tokens that are given, int64 [b, l] with -1 where free; they enter every step
            unchanged and leave unchanged.
        on_step: called with (steps done, steps in all).

    Raises:
        ValueError: not as many generators as rows.
    """
    if not isinstance(generator, torch.Generator) and len(generator) != shape[0]:
        raise ValueError(
            f"generators must be one for each of the {shape[0]} rows: got {len(generator)}; pass a "
            "single one for all, or as many"
        )
    K = schedule.num_codes
    device = (generator if isinstance(generator, torch.Generator) else generator[0]).device
    z = torch.full(shape, K, dtype=torch.long, device=device)
    free = None if kept is None else kept < 0
    pairs = step_pairs(schedule.num_steps, config.stride)
    for done, (t, previous) in enumerate(pairs, start=1):
        if kept is not None and free is not None:
            z = torch.where(free, z, kept)
        at = torch.full(shape[:1], t, dtype=torch.long, device=device)
        logits, null_logits = predict(z, at)
        uniforms = _uniforms(shape, generator, device)
        q = skipped(schedule, at, torch.full_like(at, previous))
        z = reverse_step(logits, z, q, uniforms, config.truncation, null_logits, config.guidance).z
        if on_step is not None:
            on_step(done, len(pairs))
    return z if kept is None or free is None else torch.where(free, z, kept)


def _uniforms(
    shape: tuple[int, int],
    generator: torch.Generator | Sequence[torch.Generator],
    device: torch.device,
) -> Tensor:
    """Numbers in [0, 1) for one step, [b, l]."""
    if isinstance(generator, torch.Generator):
        return torch.rand(shape, generator=generator, device=device)
    uniforms = torch.empty(shape, device=device)
    # A call for each row of a step: microseconds beside the network, whatever the length.
    for row, own in zip(uniforms, generator, strict=True):
        row.uniform_(generator=own)
    return uniforms
