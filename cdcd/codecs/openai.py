"""Read the top level of OpenAI's released Jukebox VQ-VAE (`vqvae.pth.tar`).

The release holds three levels (hops 8, 32, 128) trained side by side, each with an encoder and a
decoder of its own; CDCD works on the top one. Level n's encoder is a chain of n + 1 blocks, its
decoder the same chain backwards; the bottom level alone is twice as wide and as deep.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdcd.codecs.jukebox import Down, JukeboxVQVAE, Up

_HALVINGS = (3, 2, 2)
_MULTIPLIERS = (2, 1, 1)  # of width and depth, per level
_WIDTH, _DEPTH, _CODE_WIDTH, _NUM_CODES = 32, 4, 64, 2048
_TOP = 2


class WeightsError(ValueError):
    """A weights file that is not the released VQ-VAE; the message is one line."""


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the release, all three levels."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, *weight: int, is_transposed: bool = False) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (weight[1] if is_transposed else weight[0],)

    for level, multiplier in enumerate(_MULTIPLIERS):
        width, depth = _WIDTH * multiplier, _DEPTH * multiplier
        for block, halvings in enumerate(_HALVINGS[: level + 1]):
            encoder = f"encoders.{level}.level_blocks.{block}.model"
            decoder = f"decoders.{level}.level_blocks.{block}.model"
            convolution(f"{decoder}.0", width, _CODE_WIDTH, 3)
            for i in range(halvings):
                width_in = width if i else (_CODE_WIDTH if block else 1)
                width_out = width if i < halvings - 1 else _CODE_WIDTH
                convolution(f"{encoder}.{i}.0", width, width_in, 4)
                convolution(f"{decoder}.{i + 1}.1", width, width_out, 4, is_transposed=True)
                for stack in (f"{encoder}.{i}.1", f"{decoder}.{i + 1}.0"):
                    for j in range(depth):
                        convolution(f"{stack}.model.{j}.model.1", width, width, 3)
                        convolution(f"{stack}.model.{j}.model.3", width, width, 1)
            convolution(f"{encoder}.{halvings}", _CODE_WIDTH, width, 3)
        convolution(f"decoders.{level}.out", 1, _CODE_WIDTH, 3)
        shapes[f"bottleneck.level_blocks.{level}.k"] = (_NUM_CODES, _CODE_WIDTH)
    return shapes


def top_level_names() -> dict[str, str]:
    """Name in `JukeboxVQVAE()` -> name in the release, for every tensor of the top level."""
    codec = JukeboxVQVAE()
    modules: dict[str, str] = {"out": f"decoders.{_TOP}.out"}

    def stack(ours: str, theirs: str) -> None:
        for block in range(_DEPTH):
            modules[f"{ours}.{block}.wide"] = f"{theirs}.model.{block}.model.1"
            modules[f"{ours}.{block}.point"] = f"{theirs}.model.{block}.model.3"

    block, position = 0, 0
    for index, layer in enumerate(codec.encoder):
        theirs = f"encoders.{_TOP}.level_blocks.{block}.model.{position}"
        if isinstance(layer, Down):
            modules[f"encoder.{index}.conv"] = f"{theirs}.0"
            stack(f"encoder.{index}.stack", f"{theirs}.1")
            position += 1
        else:
            modules[f"encoder.{index}"] = theirs
            block, position = block + 1, 0

    block, position = len(_HALVINGS), 0  # the decoder starts at the innermost block
    for index, layer in enumerate(codec.decoder):
        if isinstance(layer, Up):
            position += 1
            theirs = f"decoders.{_TOP}.level_blocks.{block}.model.{position}"
            stack(f"decoder.{index}.stack", f"{theirs}.0")
            modules[f"decoder.{index}.conv"] = f"{theirs}.1"
        else:
            block, position = block - 1, 0
            modules[f"decoder.{index}"] = f"decoders.{_TOP}.level_blocks.{block}.model.0"

    names = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in modules.items()
        for kind in ("weight", "bias")
    }
    names["codebook.codes"] = f"bottleneck.level_blocks.{_TOP}.k"
    return names


def load_released(path: str | Path) -> JukeboxVQVAE:
    """Build the top-level codec from a released `vqvae.pth.tar`.

    The file is read with `weights_only=True`: tensors and plain values only, nothing is run.

    Raises:
        WeightsError: no such file, not a PyTorch file, or any of its tensors is missing, unexpected
            or of another shape.
    """
    path = Path(path)
    state = _read_state(path)
    expected = released_shapes()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shaped = sorted(
        f"{name} is {list(state[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    )
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shaped),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"codec.weights must be the released three-level vqvae.pth.tar: {path} has "
            f"{'; '.join(problems)}; give that file, or null to train a codec"
        )
    codec = JukeboxVQVAE()
    codec.load_state_dict(
        {ours: state[theirs].float() for ours, theirs in top_level_names().items()}, strict=True
    )
    codec.codebook.adopt()
    return codec.eval().requires_grad_(False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"codec.weights must name a file: got {path}; give the path of vqvae.pth.tar, or null "
            "to train a codec"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise WeightsError(
            f"codec.weights must be a whole PyTorch file of tensors: {path}: {reason}; "
            "fetch it again"
        ) from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"codec.weights must hold a state dict under the key 'model': {path} does not; "
            "give the released vqvae.pth.tar, or null to train a codec"
        )
    # A copy saved from a distributed run prefixes every name.
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
