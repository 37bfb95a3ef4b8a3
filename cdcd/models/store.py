"""A trained model on disk: safetensors weights and a JSON of what rebuilds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cdcd.models.model import ConditionalDenoiser, ModelSpec


class ModelError(ValueError):
    """A model folder that cannot be loaded; the message is one line."""


def save_model(folder: Path, model: ConditionalDenoiser, facts: dict[str, Any]) -> None:
    """Write `model.safetensors` and `model.json` into an existing folder.

    Args:
        folder: written into as it is; the caller makes it atomic.
        model: the network to keep (the moving average, usually).
        facts: JSON-able facts beside the spec: diffusion, codec, features, training.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    text = json.dumps({"spec": model.spec.to_dict(), **facts}, indent=2, sort_keys=True)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path) -> tuple[ConditionalDenoiser, dict[str, Any]]:
    """Read a model folder, strictly: the network in evaluation mode on the CPU, and its facts.

    Raises:
        ModelError: a file is missing, cut short, does not fit its spec, or holds NaN.
    """
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} must hold model.json and model.safetensors: {error.filename or 'one'} is "
            "missing; train first (`dvc repro train`)"
        ) from None
    except (SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder} must hold a whole model: {reason}; train again") from None
    try:
        spec = ModelSpec.from_dict(facts.pop("spec", {}))
    except ValueError as error:
        raise ModelError(f"{folder / 'model.json'}: {error}") from None
    model = ConditionalDenoiser(spec)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: weights do not fit model.json: {reason}") from None
    broken = [name for name, x in tensors.items() if not torch.isfinite(x.float()).all()]
    if broken:
        raise ModelError(
            f"{folder}: weights must be finite: {broken[0]} is not; the training diverged, lower "
            "train.optimizer.learning_rate"
        )
    return model.eval().requires_grad_(False), facts
