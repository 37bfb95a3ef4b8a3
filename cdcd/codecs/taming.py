"""Read VQ-GANs released with taming-transformers, and the tables of their codes in use.

The paper's text-to-image codec is the Gumbel f8 one (8192 codes, 32 x 32 tokens at 256 pixels), its
class-to-image codec the f16 one (16384 codes, 16 x 16 tokens). Few of the codes ever occur; a table
maps the others onto one, which leaves 2887 (the paper counts 2886) and 974 tokens.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdcd.codecs.codebook import Codebook
from cdcd.codecs.openai import WeightsError
from cdcd.codecs.vqgan import VQGAN
from cdcd.codecs.weights import compare_shapes, read_file, read_state

logger = logging.getLogger(__name__)

GUMBEL_F8: dict[str, Any] = {
    "image_size": 256,
    "channels": 128,
    "multiples": (1, 1, 2, 4),
    "num_res_blocks": 2,
    "attention_sizes": (32,),
    "latent_width": 256,
    "code_width": 256,
    "num_codes": 8192,
    "quantizer": "gumbel",
}
"""Arguments of `VQGAN` for the released Gumbel codec of factor 8."""
F16: dict[str, Any] = GUMBEL_F8 | {
    "multiples": (1, 1, 2, 2, 4),
    "attention_sizes": (16,),
    "num_codes": 16384,
    "quantizer": "nearest",
}
"""Arguments of `VQGAN` for the released codec of factor 16 with 16384 codes."""

_TRAINING = "loss."
"""Names of the discriminator and the perceptual network, which a checkpoint carries along."""
_WEIGHTS, _MAPPING = "codec.image.weights", "codec.image.mapping"


def load_taming(
    path: str | Path, mapping: str | Path | None = None, image_size: int = 256
) -> VQGAN:
    """Build a codec from a checkpoint of taming-transformers, strictly.

    The shape is read off the tensors; a Lightning checkpoint and a bare state dict both serve.
    Tensors of the training losses are passed over, and said so.

    Args:
        path: the checkpoint.
        mapping: table from its codes to those in use, see `read_mapping`; None keeps all codes.
        image_size: pixels per side of the pictures it will read; attention stays at its level.

    Raises:
        WeightsError: no such file, another architecture, or a table that does not fit.
        ValueError: image_size is no multiple of the codec's factor.
    """
    state = read_state(path, _WEIGHTS)
    left_out = sorted(name for name in state if name.startswith(_TRAINING))
    if left_out:
        logger.info("%s: %d tensors of the training losses are left out", path, len(left_out))
    state = {name: tensor for name, tensor in state.items() if name not in set(left_out)}
    arguments = _arguments(state, Path(path), image_size)
    table = None
    if mapping is not None:
        table = read_mapping(mapping, arguments["num_codes"])
        arguments["num_used"] = int(table.max()) + 1
    with torch.device("meta"):
        expected = taming_shapes(VQGAN(**arguments))
    differences = compare_shapes(state, expected)
    if differences:
        raise _foreign(Path(path), differences)
    codec = VQGAN(**arguments)
    own = {ours: state[theirs].float() for ours, theirs in taming_names(codec).items()}
    missing = codec.load_state_dict(own, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"mapping", "full_codes"}
    if table is not None:
        codec.remap(table)
    if isinstance(codec.codebook, Codebook):
        codec.codebook.adopt()
    return codec.eval().requires_grad_(False)


def taming_names(codec: VQGAN) -> dict[str, str]:
    """Name in our state dict -> name in a released one, for every tensor that is released."""
    codes = "embedding" if isinstance(codec.codebook, Codebook) else "embed"
    renamed = {"codebook.codes": f"quantize.{codes}.weight"}
    return {
        name: renamed.get(name, name.replace("codebook.", "quantize."))
        for name in codec.state_dict()
        if name not in ("mapping", "full_codes")
    }


def taming_shapes(codec: VQGAN) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the released layout for a codec of these arguments."""
    state = codec.state_dict()
    return {theirs: tuple(state[ours].shape) for ours, theirs in taming_names(codec).items()}


def read_mapping(path: str | Path, num_codes: int) -> Tensor:
    """Read the token of each code of a codebook.

    Args:
        path: a one-dimensional array of integers in .pt (saved by torch), .npy or .safetensors.
        num_codes: size of the codebook.

    Returns:
        int64 `[num_codes]`; every number from 0 to the largest occurs.

    Raises:
        WeightsError: no such file, or the table breaks a rule.
    """
    path = Path(path)
    table = _read_table(path)
    kind = str(table.dtype).removeprefix("torch.")
    is_whole = not (table.is_floating_point() or table.is_complex() or table.dtype == torch.bool)
    if table.ndim != 1 or not is_whole:
        raise WeightsError(
            f"{_MAPPING} must be a list of integers, one for each code: {path} holds {kind} "
            f"{list(table.shape)}; give the table that goes with {_WEIGHTS}"
        )
    if len(table) != num_codes:
        raise WeightsError(
            f"{_MAPPING} must have one entry for each of the {num_codes} codes of {_WEIGHTS}: "
            f"{path} has {len(table)}; give the table that goes with that checkpoint"
        )
    table = table.long()
    low, high = int(table.min()), int(table.max())
    if low < 0 or high >= num_codes:
        raise WeightsError(
            f"{_MAPPING} must hold tokens of 0..{num_codes - 1}: {path} has {low}..{high}; give "
            f"the table that goes with {_WEIGHTS}"
        )
    unused = torch.nonzero(torch.bincount(table) == 0).flatten().tolist()
    if unused:
        raise WeightsError(
            f"{_MAPPING} must use every token from 0 to its largest, {high}: {path} leaves out "
            f"{len(unused)}, the first {unused[0]}; number the codes in use without gaps"
        )
    return table


def _read_table(path: Path) -> Tensor:
    if path.suffix == ".npy" and path.is_file():
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise WeightsError(
                f"{_MAPPING} must be a whole array of numbers: {path}: {reason}; fetch it again"
            ) from None
        if array.dtype.kind not in "iu":
            raise WeightsError(
                f"{_MAPPING} must be a list of integers, one for each code: {path} holds "
                f"{array.dtype} {list(array.shape)}; give the table that goes with {_WEIGHTS}"
            )
        return torch.from_numpy(array.astype(np.int64))
    content = read_file(path, _MAPPING)
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise WeightsError(
            f"{_MAPPING} must hold one tensor: {path} holds {type(content).__name__}; save the "
            "table alone"
        )
    return content


def _arguments(state: dict[str, Tensor], path: Path, image_size: int) -> dict[str, Any]:
    """What the tensors say about the shape of the codec."""

    def shape(name: str, num_axes: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != num_axes:
            raise _foreign(path, f"no {name}")
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in state)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    channels = shape("encoder.conv_in.weight", 4)[0]
    levels = range(count(r"encoder\.down\.(\d+)\."))
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in levels]
    if not widths or any(width % channels for width in widths):
        raise _foreign(path, f"widths {widths} of its levels for {channels} channels")
    is_gumbel = "quantize.proj.weight" in state
    codes = shape(f"quantize.{'embed' if is_gumbel else 'embedding'}.weight", 2)
    return {
        "image_size": image_size,
        "channels": channels,
        "multiples": [width // channels for width in widths],
        "num_res_blocks": count(r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_sizes": [
            image_size // 2**i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state
        ],
        "latent_width": shape("encoder.conv_out.weight", 4)[0],
        "code_width": codes[1],
        "num_codes": codes[0],
        "quantizer": "gumbel" if is_gumbel else "nearest",
        "num_used": None,
    }


def _foreign(path: Path, difference: str) -> WeightsError:
    return WeightsError(
        f"{_WEIGHTS} must be a VQ-GAN of taming-transformers (Gumbel f8 or f16): {path} has "
        f"{difference}; give such a checkpoint, or null to train a codec"
    )
