"""Tiny models of all three tasks with drawn weights, in the folders of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import load_picture_codec, save_codec
from cdcd.codecs.vqgan import VQGAN
from cdcd.diffusion.schedule import make_schedule
from cdcd.features.text import TextEncoder
from cdcd.features.video import MotionEnergy
from cdcd.generation import PictureGenerator
from cdcd.models.conditioner import DanceSpec
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.picture_conditioner import ClassSpec, TextSpec
from cdcd.models.store import load_model, save_model
from tests.cdcd.features import tiny_clip

CLASS_NAMES = ["tench, Tinca tinca", "crane", "great grey owl", "crane"]
SIDE, FACTOR, NUM_CODES, NUM_STEPS = 16, 4, 24, 5
DIFFUSION = {"schedule": "absorbing_uniform", "uniform_mass": 0.1}


def write_models(data: Path, name: str, conditioner: TextSpec | ClassSpec | None = None) -> Path:
    """Write data/models, codecs and (for texts) encoders of `name`; returns data."""
    folders = {kind: data / kind / name for kind in ("models", "codecs", "encoders")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    facts: dict[str, Any] = {
        "task": "class2image",
        "sampler": {"truncation": 0.9, "guidance": 2.0, "stride": 1},
        "diffusion": DIFFUSION,
        "codec": {
            "image_size": SIDE,
            "grid": [SIDE // FACTOR] * 2,
            "num_codes": NUM_CODES,
        },
        "encoder": None,
        "class_names": None,
    }
    if isinstance(conditioner, ClassSpec):
        facts["class_names"] = CLASS_NAMES
    else:
        tiny_clip.write_clip(folders["encoders"] / "text")
        encoder = TextEncoder.load(folders["encoders"] / "text")
        facts |= {"task": "text2image", "encoder": encoder.identity()}
        conditioner = conditioner or TextSpec(encoder.width, encoder.context_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        codec = VQGAN(
            image_size=SIDE,
            channels=8,
            multiples=(1, 1, 2),
            attention_sizes=(),
            latent_width=8,
            code_width=8,
            num_codes=NUM_CODES,
        )
        model = ConditionalDenoiser(spec(conditioner))
        for value in (*model.parameters(), *codec.parameters()):
            value.data += 0.3 * torch.randn_like(value)
        for value in codec.buffers():
            if value.is_floating_point():
                value += torch.randn_like(value)
    save_codec(codec.eval(), folders["codecs"], {})
    save_model(folders["models"], model, facts)
    return data


def write_music_model(data: Path, name: str = "aist") -> Path:
    """Write data/models and codecs of a model that sees videos; returns data."""
    folders = {kind: data / kind / name for kind in ("models", "codecs")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        codec = JukeboxVQVAE(
            groups=[8], width=4, depth=1, num_plain=4, code_width=8, edge_width=4, num_codes=16
        )
        feature = MotionEnergy(2, 15, 48)
        conditioner = DanceSpec(
            kind="sequence", token_rate_hz=codec.sample_rate_hz / codec.hop, width=8, depth=1,
            is_frozen=False, motion_dim=None, motion_rate_hz=60.0, motion_frames=60,
            video_dim=feature.dim, video_rate_hz=feature.rate_hz, num_genres=0,
        )  # fmt: skip
        network = ModelSpec(
            num_codes=16, num_steps=4, num_tokens=86, grid=None, width=16, depth=1, num_heads=2,
            feedforward_multiple=2, feedforward="linear", modulation="shared", dropout=0.0,
            checkpoint_blocks=False, conditioner=conditioner,
        )  # fmt: skip
        model = ConditionalDenoiser(network)
        for value in model.parameters():
            value.data += 0.3 * torch.randn_like(value)
    save_codec(codec.eval(), folders["codecs"], {})
    facts = {
        "task": "dance2music",
        "diffusion": DIFFUSION,
        "codec": {key: getattr(codec, key) for key in ("sample_rate_hz", "hop", "num_codes")},
        "video_feature": feature.identity(),
        "segment_seconds": 1,
    }
    save_model(folders["models"], model, facts)
    return data


def spec(conditioner: TextSpec | ClassSpec) -> ModelSpec:
    """The shape of a tiny network."""
    return ModelSpec(
        num_codes=NUM_CODES,
        num_steps=NUM_STEPS,
        num_tokens=(SIDE // FACTOR) ** 2,
        grid=(SIDE // FACTOR, SIDE // FACTOR),
        width=16,
        depth=1,
        num_heads=2,
        feedforward_multiple=2,
        feedforward="linear",
        modulation="shared",
        dropout=0.0,
        checkpoint_blocks=False,
        conditioner=conditioner,
    )


def load(data: Path, name: str) -> PictureGenerator:
    """The generator of what `write_models` wrote."""
    model, facts = load_model(data / "models" / name)
    codec = load_picture_codec(data / "codecs" / name)
    schedule = make_schedule("absorbing_uniform", NUM_CODES, NUM_STEPS, 0.1)
    encoder = None
    if facts["task"] == "text2image":
        encoder = TextEncoder.load(data / "encoders" / name)
    return PictureGenerator(model, codec, schedule, facts, torch.device("cpu"), encoder)


def watch_batches(generator: PictureGenerator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives the size of each batch the generator draws from now on."""
    sizes: list[int] = []
    original = generator.sample_tokens

    def spy(inputs: Any, *rest: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(inputs))
        return original(inputs, *rest, **options)

    monkeypatch.setattr(generator, "sample_tokens", spy)
    return sizes
