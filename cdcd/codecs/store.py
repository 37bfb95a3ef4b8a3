"""A codec on disk: weights in safetensors, constructor arguments and training facts in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cdcd.codecs.codebook import Codebook
from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.vqgan import VQGAN
from cdcd.data.files import sha256_file

WEIGHTS, FACTS = "codec.safetensors", "codec.json"
_KINDS: dict[str, type[JukeboxVQVAE] | type[VQGAN]] = {"jukebox": JukeboxVQVAE, "vqgan": VQGAN}
_MEDIA = {"jukebox": "sound", "vqgan": "pictures"}


class CodecError(ValueError):
    """A folder that holds no usable codec; the message is one line."""


def save_codec(codec: JukeboxVQVAE | VQGAN, folder: str | Path, facts: dict[str, Any]) -> None:
    """Write `codec.safetensors` and `codec.json` into a folder that its caller renames when whole.

    Args:
        codec: its persistent tensors and arguments are written.
        folder: must exist.
        facts: how it was trained; JSON-able.
    """
    folder = Path(folder)
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in codec.state_dict().items()
    }
    save_file(state, folder / WEIGHTS)
    content = {
        "kind": next(kind for kind, cls in _KINDS.items() if isinstance(codec, cls)),
        "arguments": codec.arguments,
        "weights_sha256": sha256_file(folder / WEIGHTS),
        "facts": facts,
    }
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / FACTS).write_text(text + "\n", encoding="utf-8")


def load_codec(folder: str | Path, device: str | torch.device = "cpu") -> JukeboxVQVAE:
    """Read a codec of sound, frozen and in evaluation mode.

    Raises:
        CodecError: a file is missing, cut short, not the partner of the other, or of pictures.
    """
    codec = _load(Path(folder), "jukebox", device)
    assert isinstance(codec, JukeboxVQVAE)
    return codec


def load_picture_codec(folder: str | Path, device: str | torch.device = "cpu") -> VQGAN:
    """Read a codec of pictures, frozen and in evaluation mode.

    Raises:
        CodecError: a file is missing, cut short, not the partner of the other, or of sound.
    """
    codec = _load(Path(folder), "vqgan", device)
    assert isinstance(codec, VQGAN)
    return codec


def _load(folder: Path, kind: str, device: str | torch.device) -> JukeboxVQVAE | VQGAN:
    content = read_facts(folder)
    found = content.get("kind")
    if found != kind:
        raise CodecError(
            f"{folder} must hold a codec of {_MEDIA[kind]}: got one of "
            f"{_MEDIA.get(str(found), repr(found))}; name the folder of the right dataset's codec"
        )
    try:
        codec = _KINDS[kind](**content["arguments"])
        codec.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CodecError(
            f"{folder}: the codec's weights do not fit its description ({reason}); "
            "run the codec stage again"
        ) from None
    if isinstance(codec.codebook, Codebook):
        codec.codebook.adopt()
    return codec.to(device).eval().requires_grad_(False)


def read_facts(folder: str | Path) -> dict[str, Any]:
    """The content of `codec.json`, checked against the weights beside it.

    Raises:
        CodecError: a file is missing, cut short, or not the partner of the other.
    """
    folder = Path(folder)
    for name in (WEIGHTS, FACTS):
        if not (folder / name).is_file():
            raise CodecError(
                f"{folder / name} must exist: run the codec stage first (`make run`), or name "
                "the folder of a codec"
            )
    try:
        content: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        expected = content["weights_sha256"], content["arguments"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise CodecError(f"{folder / FACTS} is not whole; run the codec stage again") from None
    if sha256_file(folder / WEIGHTS) != expected[0]:
        raise CodecError(
            f"{folder / WEIGHTS} must have the checksum in {FACTS}: it has another; "
            "run the codec stage again"
        )
    return content
