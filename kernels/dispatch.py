"""Triton or reference: chosen from the device and the shape, with one override.

`CDCD_KERNELS=auto` (the default) takes the Triton programs for CUDA tensors of a shape that they
support and the reference for everything else; `reference` turns every program off; `triton` asks
for them and is an error where they cannot run. On a CPU they run under Triton's interpreter if
`TRITON_INTERPRET=1` was set before Python started: for tests, not for work.

`CDCD_CHECKS=1` turns on the checks of values that would make the host wait for a GPU: tokens in
range and finite logits. On a CPU the tokens are always checked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "reference"]
MAX_CODES = 16384
"""A row of this many entries still fits into one program's registers."""


class KernelUnavailableError(ValueError):
    """`CDCD_KERNELS=triton` where Triton cannot run; the message says what is missing."""


def asked() -> str:
    """The value of `CDCD_KERNELS`.

    Raises:
        ValueError: it is none of auto, triton and reference.
    """
    choice = os.environ.get("CDCD_KERNELS", "auto")
    if choice not in ("auto", "triton", "reference"):
        raise ValueError(f"CDCD_KERNELS must be auto, triton or reference: got {choice!r}")
    return choice


@functools.cache
def has_triton() -> bool:
    """Whether the package is installed; it is imported by whoever uses it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """Whether Triton programs run under its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def explain(device: torch.device, num_codes: int | None = None) -> tuple[Backend, str]:
    """What runs on `device` for rows of `num_codes` entries, and why.

    Raises:
        KernelUnavailableError: Triton is asked for and cannot run there.
        ValueError: `CDCD_KERNELS` has no such value.
    """
    choice = asked()
    if choice == "reference":
        return "reference", "CDCD_KERNELS=reference"
    obstacle = _obstacle(device, num_codes)
    if choice == "triton":
        if obstacle:
            raise KernelUnavailableError(
                f"CDCD_KERNELS=triton cannot be had: {obstacle}; set CDCD_KERNELS=auto"
            )
        return "triton", "CDCD_KERNELS=triton"
    if obstacle:
        return "reference", obstacle
    if device.type != "cuda":
        return "reference", "Triton's interpreter is slow; CDCD_KERNELS=triton asks for it"
    return "triton", "a CUDA device and Triton are there"


def _obstacle(device: torch.device, num_codes: int | None) -> str | None:
    if not has_triton():
        return "the package triton is not installed (pip install triton)"
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreting()):
        return f"Triton needs a CUDA device, the tensors are on {device.type}"
    if num_codes is not None and num_codes > MAX_CODES:
        return f"the Triton programs take at most {MAX_CODES} codes, got {num_codes}"
    return None


def choose(tensor: Tensor, num_codes: int | None = None) -> Backend:
    """What runs for a tensor; see `explain`."""
    return explain(tensor.device, num_codes)[0]


def checks_values(tensor: Tensor) -> bool:
    """Whether values may be looked at: always on a CPU, elsewhere under `CDCD_CHECKS=1`."""
    if torch.compiler.is_compiling():
        return False
    return checks_everything() or tensor.device.type == "cpu"


def checks_everything() -> bool:
    """Whether the K-wide checks are on, which read the logits once more."""
    if torch.compiler.is_compiling():
        return False
    return os.environ.get("CDCD_CHECKS") == "1"


def check_tokens(name: str, tokens: Tensor, num_codes: int, may_be_mask: bool = False) -> None:
    """Refuse tokens out of range.

    Raises:
        ValueError: one of them is; nothing is looked at where that would wait for a GPU.
    """
    if tokens.dtype != torch.int64:
        raise ValueError(f"{name} must be int64: got {tokens.dtype}; use .long()")
    if not checks_values(tokens) or not tokens.numel():
        return
    last = num_codes if may_be_mask else num_codes - 1
    low, high = (int(x) for x in tokens.aminmax())
    if low < 0 or high > last:
        what = "K is [MASK]" if may_be_mask else "[MASK] is no target"
        raise ValueError(
            f"{name} must lie in 0..{last} for {num_codes} codes ({what}): "
            f"got {low if low < 0 else high}"
        )


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinities, under `CDCD_CHECKS=1`.

    Raises:
        ValueError: there are some.
    """
    if checks_everything() and not bool(torch.isfinite(values).all()):
        raise ValueError(
            f"{name} must be finite: got NaN or infinite entries; "
            "lower the learning rate or use float32"
        )
