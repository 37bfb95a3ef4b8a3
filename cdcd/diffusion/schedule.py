"""The noise schedule: keep / replace / mask probabilities, per step and cumulative."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kernels.dispatch import checks_values
from kernels.posterior_loss import StepCoefficients

ScheduleName = Literal["absorbing_uniform", "alpha1", "official"]


@dataclass(frozen=True)
class Schedule:
    """Tables over t = 0..T of the mask-and-replace chain.

    `tables` is float64 [6, T + 1] with rows a, b, c (one step) and A, B, C (cumulative); column 0
    holds A = 1 and zeros elsewhere. For each token: `a + K b + c = 1` and `A + K B + C = 1`
    (`official` divides the replacement mass by K + 1 and misses at most 1e-6 / K of it).
    """

    num_codes: int
    num_steps: int
    tables: Tensor
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def at(self, t: Tensor) -> Tensor:
        """The tables' columns at steps `t`, int64 [b] in 0..T, float64 [6, b] on t's device."""
        # One copy for each device: a transfer in every step would make the host wait.
        if t.device not in self._copies:
            self._copies[t.device] = self.tables.to(t.device)
        return self._copies[t.device][:, t]

    def coefficients(self, t: Tensor, dtype: torch.dtype = torch.float32) -> StepCoefficients:
        """The kernel's coefficients at steps `t`, int64 [b] in 1..T, on t's device.

        Raises:
            ValueError: a step outside 1..T (on a GPU only under `CDCD_CHECKS=1`).
        """
        if checks_values(t) and t.numel():
            low, high = (int(x) for x in t.aminmax())
            if low < 1 or high > self.num_steps:
                raise ValueError(
                    f"t must lie in 1..{self.num_steps}: got {low if low < 1 else high}"
                )
        now = self.at(t).to(dtype)
        before = self.at(t - 1)[3:].to(dtype)
        a, b, c, A, B, C = now
        A_prev, B_prev, C_prev = before
        return StepCoefficients(a, b, c, A, B, C, A_prev, B_prev, C_prev, t == 1)


def skipped(schedule: Schedule, t: Tensor, previous: Tensor) -> StepCoefficients:
    """Coefficients of one jump from step `t` to step `previous` < t (both int64 [b]).

    The jump of a Markov chain with cumulative A, C has a = A_t / A_s, c = 1 - (1-C_t) / (1-C_s).
    """
    A, B, C = schedule.at(t)[3:]
    A_s, B_s, C_s = schedule.at(previous)[3:]
    a = A / A_s
    c = 1 - (1 - C) / (1 - C_s)
    b = ((1 - a - c) / schedule.num_codes).clamp_min(0)
    a, b, c, A, B, C, A_s, B_s, C_s = (x.float() for x in (a, b, c, A, B, C, A_s, B_s, C_s))
    return StepCoefficients(a, b, c, A, B, C, A_s, B_s, C_s, previous == 0)


def make_schedule(
    name: ScheduleName, num_codes: int, num_steps: int, uniform_mass: float = 0.1
) -> Schedule:
    """Build a schedule.

    `alpha1` is the paper's: A linear from 0.99999 to 9e-6 and C from 9e-6 to 0.99999, so that
    uniform replacement has a mass of at most 1e-6 (paper_vs_code D16). `official` is alpha1 with
    the replacement mass divided by K + 1 (D17). `absorbing_uniform` ends with `uniform_mass` of
    the tokens replaced and the rest masked, so the network also meets wrong tokens.

    Raises:
        ValueError: `num_steps` < 2 or `num_codes` < 1.
    """
    if num_steps < 2 or num_codes < 1:
        raise ValueError(
            f"num_steps must be at least 2 and num_codes at least 1: got {num_steps}, {num_codes}"
        )
    kept = torch.linspace(0.99999, 0.000009, num_steps, dtype=torch.float64)
    masked = torch.linspace(0.000009, 0.99999, num_steps, dtype=torch.float64)
    if name == "absorbing_uniform":
        masked = (1 - kept) * (1 - uniform_mass)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    A, C = torch.cat([one, kept]), torch.cat([zero, masked])
    a = torch.cat([one, A[1:] / A[:-1]])
    c = torch.cat([zero, 1 - (1 - C[1:]) / (1 - C[:-1])])
    share = num_codes + 1 if name == "official" else num_codes
    b, B = (1 - a - c).clamp_min(0) / share, (1 - A - C).clamp_min(0) / share
    return Schedule(num_codes, num_steps, torch.stack([a, b, c, A, B, C]))
