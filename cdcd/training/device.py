"""Where the network runs and in which precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def pick_device() -> torch.device:
    """The CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def make_autocast(
    device: torch.device, precision: Precision
) -> Callable[[], AbstractContextManager[object]]:
    """A factory of contexts in which matrix products run in bfloat16, or in float32 as they are.

    Losses and probabilities stay in float32 either way.
    """
    wide = precision == "float32" or (precision == "auto" and not has_fast_bfloat16(device))
    if wide:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
