"""Released state dicts by path: read without unpickling code, matched key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_COUNTER = ".num_batches_tracked"
"""What batch normalisation counts in training; older files lack it, and nothing here reads it."""


class WeightsError(ValueError):
    """A weight file that is missing, damaged or of another network; the message is one line."""


def read_state_dict(path: str | Path, what: str) -> dict[str, Tensor]:
    """Read a state dict (`.safetensors`, or what `torch.save` writes) on the CPU.

    Args:
        path: the file.
        what: how messages call it, e.g. `the Inception weights`.

    Raises:
        WeightsError: there is no such file, or it holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} must hold {what}: no such file; check the path")
    loaded: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost anything
        told = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(
            f"{path} must hold {what} as plain tensors: {told}; download the file again"
        ) from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(
            f"{path} must hold {what} as tensors by name: got {type(loaded).__name__} with other "
            "things; save the network's state_dict()"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def load_strictly(network: nn.Module, path: str | Path, what: str) -> nn.Module:
    """Fill a network from a released file: every key there and of the right shape, none else.

    Returns:
        The network, in evaluation mode, without gradients.

    Raises:
        WeightsError: also for another architecture, naming the first key that differs.
    """
    found = {k: v for k, v in read_state_dict(path, what).items() if not k.endswith(_COUNTER)}
    state = network.state_dict()
    wanted = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [k for k in wanted if k in found and wanted[k].shape != found[k].shape]
    if missing or unknown:
        parts = [
            f"{len(keys)} {kind}, e.g. {keys[0]}"
            for kind, keys in (("missing", missing), ("unknown", unknown))
            if keys
        ]
        raise WeightsError(
            f"{path} must hold {what}, key by key: got {' and '.join(parts)}; it is another "
            "network, or another layout of it"
        )
    if shapes:
        name = shapes[0]
        raise WeightsError(
            f"{path} must hold {what}: {name} must be {list(wanted[name].shape)}: got "
            f"{list(found[name].shape)}; it is another network"
        )
    counters = {name: value for name, value in state.items() if name.endswith(_COUNTER)}
    network.load_state_dict(found | counters)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{path}: {name} must be finite: got NaN or infinity; download again"
            )
    return network.eval().requires_grad_(False)
