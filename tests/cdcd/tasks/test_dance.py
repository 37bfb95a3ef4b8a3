"""Generating a split: the reference music is out of the generator's reach (metrics.md 0)."""

import json

import numpy as np
import pytest
import torch

from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import save_codec
from cdcd.config import load_params
from cdcd.data.cache import read_split, write_split
from cdcd.data.samples import Sample
from cdcd.data.shards import write_shards
from cdcd.models.conditioner import DanceSpec
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.store import save_model
from cdcd.tasks import generate_split

KEYS = [f"gBR_sBM_c01_d04_mBR0_ch0{i}_seg1" for i in range(1, 4)]


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    codec = JukeboxVQVAE(groups=(8,), width=4, depth=1, code_width=4, num_codes=16)
    for folder in ("codec", "model"):
        (tmp_path / folder).mkdir()
    save_codec(codec.eval(), tmp_path / "codec", {})
    dance = DanceSpec(
        kind="sequence", token_rate_hz=22050 / 256, width=8, depth=1, is_frozen=False,
        motion_dim=219, motion_rate_hz=60.0, motion_frames=120, video_dim=3, video_rate_hz=30.0,
        num_genres=0,
    )  # fmt: skip
    spec = ModelSpec(
        num_codes=16, num_steps=4, num_tokens=172, grid=None, width=16, depth=1, num_heads=2,
        feedforward_multiple=2, feedforward="linear", modulation="shared", dropout=0.0,
        checkpoint_blocks=False, conditioner=dance,
    )  # fmt: skip
    model = ConditionalDenoiser(spec)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    save_model(
        tmp_path / "model", model,
        {
            "task": "dance2music",
            "diffusion": {"schedule": "absorbing_uniform", "uniform_mass": 0.1},
            "codec": {"sample_rate_hz": 22050, "hop": 256, "num_codes": 16},
            "video_feature": {"name": "test"},
        },
    )  # fmt: skip
    random = np.random.default_rng(0)
    write_split(
        tmp_path / "features", "test",
        {
            "motion": random.standard_normal((3, 120, 219)).astype(np.float32),
            "video": random.standard_normal((3, 60, 3)).astype(np.float32),
            "has_motion": np.ones(3, np.uint8), "has_video": np.ones(3, np.uint8),
        },
        {"keys": KEYS, "genres": [0, 0, 0], "video_feature": {"name": "test"}},
    )  # fmt: skip
    return tmp_path


def generate(root, name, audio, features="features"):
    samples = [Sample(key, "test", audio, None, None, {"genre": 0}) for key in KEYS]
    write_shards(root / f"shards-{name}", samples)
    params = load_params()
    params = params.model_copy(
        update={"generate": params.generate.model_copy(update={"seeds": [0, 1], "stride": 1})}
    )
    generate_split(
        params, model_dir=root / "model", codec_dir=root / "codec",
        encoder_dir=root / "none", features_dir=root / features, tokens_dir=root / "none",
        shards_dir=root / f"shards-{name}", out_dir=root / name,
    )  # fmt: skip
    return {
        path.stem: np.array(read_split(root / name, path.stem).arrays["tokens"])
        for path in sorted((root / name).glob("*.safetensors"))
    }


def test_noise_for_the_reference_leaves_every_token_as_it_was(trained):
    t = np.arange(44100, dtype=np.float32) / 22050
    music = generate(trained, "music", 0.5 * np.sin(2 * np.pi * 440 * t))
    noise = generate(
        trained, "noise", np.random.default_rng(1).uniform(-1, 1, 44100).astype(np.float32)
    )
    assert set(music) == {
        f"{system}-seed{seed}"
        for system in ("model", "video_only", "unconditioned")
        for seed in (0, 1)
    }
    for name, tokens in music.items():
        assert np.array_equal(tokens, noise[name]), name
        assert json.loads((trained / "music" / f"{name}.json").read_text())["init"] == "mask"


def test_the_condition_and_the_seed_do_change_them(trained):
    tokens = generate(trained, "music", np.zeros(44100, np.float32))
    assert not np.array_equal(tokens["model-seed0"], tokens["model-seed1"])
    assert not np.array_equal(tokens["model-seed0"], tokens["video_only-seed0"])
    assert not np.array_equal(tokens["model-seed0"], tokens["unconditioned-seed0"])


def test_unconditioned_music_does_not_depend_on_the_dance(trained):
    before = generate(trained, "music", np.zeros(44100, np.float32))
    stored = read_split(trained / "features", "test")
    arrays = {name: np.array(array) for name, array in stored.arrays.items()}
    arrays["motion"], arrays["video"] = arrays["motion"][::-1] * 2, arrays["video"][::-1] * 2
    write_split(trained / "other", "test", arrays, stored.info)
    after = generate(trained, "again", np.zeros(44100, np.float32), "other")
    assert np.array_equal(before["unconditioned-seed0"], after["unconditioned-seed0"])
    assert not np.array_equal(before["model-seed0"], after["model-seed0"])


def test_previews_are_playable_files(trained):
    generate(trained, "music", np.zeros(44100, np.float32))
    names = {path.suffix for path in (trained / "music" / "previews").iterdir()}
    assert names == {".wav", ".png"}
