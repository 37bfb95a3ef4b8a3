"""Read a file of tensors that somebody else wrote, without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from cdcd.codecs.openai import WeightsError


class _LeftOut:
    """Stands for classes that checkpoints of Lightning name and that nobody needs here."""


_LEFT_OUT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
)


def read_file(path: str | Path, key: str) -> Any:
    """What a file saved by torch or safetensors holds: tensors and plain values.

    Args:
        path: ends in .safetensors, or was saved by torch.
        key: the parameter that names the file, for messages.

    Raises:
        WeightsError: no such file, cut short, or it asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{key} must name a file: got {path}; give its path, or null")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, key, error) from None
    try:
        with torch.serialization.safe_globals([(_LeftOut, name) for name in _LEFT_OUT]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged or foreign files
        raise _damaged(path, key, error) from None


def read_state(path: str | Path, key: str) -> dict[str, Tensor]:
    """The state dict in a file, perhaps under the name `state_dict`.

    Raises:
        WeightsError: as `read_file`, or there is no state dict.
    """
    content = read_file(path, key)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f"{key} must hold names and tensors: {path} does not; give a state dict, or a "
            "checkpoint with one under state_dict"
        )
    return state


def compare_shapes(given: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> str:
    """Say in a few words how the tensors differ from the expected ones; empty if not at all."""
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} is {list(found[name])}, not {list(expected[name])}"
            for name in sorted(expected.keys() & found.keys())
            if found[name] != expected[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    )


def _damaged(path: Path, key: str, error: Exception) -> WeightsError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:160]
    return WeightsError(
        f"{key} must be a whole file of tensors and plain values: {path}: {reason}; fetch it "
        "again, or save its state dict alone"
    )
