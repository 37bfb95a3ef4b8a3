"""Windows that join, lengths that fit, and a generator that cannot see its target."""

import numpy as np
import pytest
import torch

from cdcd.diffusion.sampler import SamplerConfig
from cdcd.diffusion.schedule import make_schedule
from cdcd.generation.music import MusicGenerator, _Reader
from cdcd.models.conditioner import DanceSpec
from cdcd.models.model import ConditionalDenoiser, ModelSpec

SPEC = ModelSpec(
    num_codes=16, num_steps=4, num_tokens=20, grid=None, width=16, depth=1, num_heads=2,
    feedforward_multiple=2, feedforward="linear", modulation="shared", dropout=0.0,
    checkpoint_blocks=False,
    conditioner=DanceSpec(
        kind="sequence", token_rate_hz=10.0, width=8, depth=1, is_frozen=False, motion_dim=219,
        motion_rate_hz=60.0, motion_frames=120, video_dim=3, video_rate_hz=30.0, num_genres=0,
    ),
)  # fmt: skip


class Codec:
    """A codec without a network: a token becomes `hop` equal samples."""

    sample_rate_hz, hop, num_codes, context_tokens = 22050, 2205, 16, 0

    def encode(self, audio):
        raise AssertionError("generation must never encode sound")

    def decode(self, tokens):
        return (tokens / 16).float().repeat_interleave(self.hop, dim=1)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    model = ConditionalDenoiser(SPEC)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    facts = {
        "sampler": {
            "truncation": 0.86, "guidance": 1.5, "stride": 1, "window_overlap_seconds": 0.5,
        },
        "video_feature": {"name": "test"},
    }  # fmt: skip
    schedule = make_schedule("absorbing_uniform", 16, 4)
    return MusicGenerator(model, Codec(), schedule, facts, torch.device("cpu"))


def features(n, seed=0):
    return iter(np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32))


@pytest.mark.parametrize("num_tokens", [1, 19, 20, 21, 35, 36, 137])
def test_any_length_comes_out_exactly(generator, num_tokens):
    pieces = list(generator.stream_tokens(features(500), num_tokens, SamplerConfig(), 0))
    assert sum(p.shape[1] for p in pieces) == num_tokens


def test_overlap_is_given_to_the_next_window_and_kept(generator, monkeypatch):
    windows = []
    original = generator.sample_tokens

    def spy(inputs, config, random, on_step=None, kept=None):
        tokens = original(inputs, config, random, on_step, kept)
        windows.append((kept.clone(), tokens.clone()))
        return tokens

    monkeypatch.setattr(generator, "sample_tokens", spy)
    whole = torch.cat(list(generator.stream_tokens(features(500), 65, SamplerConfig(), 0)), 1)
    assert len(windows) == 4
    assert bool((windows[0][0] == -1).all())
    for index, (kept, tokens) in enumerate(windows):
        start = 15 * index
        end = min(start + 20, 65)
        # What a window hands on is what the listener hears: nothing is ever rewritten.
        assert torch.equal(tokens[0, : end - start], whole[0, start:end])
        if index:
            assert torch.equal(kept[0, :5], whole[0, start : start + 5])
            assert bool((kept[0, 5:] == -1).all())


def test_a_short_video_is_enough(generator):
    pieces = list(generator.stream_tokens(features(1), 3, SamplerConfig(), 0))
    assert pieces[0].shape == (1, 3)
    with pytest.raises(ValueError, match="at least one frame"):
        list(generator.stream_tokens(features(0), 3, SamplerConfig(), 0))


def test_the_seed_decides(generator):
    def run(seed):
        return torch.cat(list(generator.stream_tokens(features(200), 40, SamplerConfig(), seed)), 1)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_reader_interpolates_and_forgets():
    rows = np.arange(100, dtype=np.float32)[:, None]
    reader = _Reader(iter(rows))
    np.testing.assert_allclose(reader.window(0.0, 4)[:, 0], [0, 1, 2, 3])
    np.testing.assert_allclose(reader.window(10.25, 3)[:, 0], [10.25, 11.25, 12.25])
    assert len(reader._held) <= 5
    np.testing.assert_allclose(reader.window(97.5, 4)[:, 0], [97.5, 98.5, 99, 99])
    np.testing.assert_allclose(reader.window(150.0, 2)[:, 0], [99, 99])


def test_features_of_another_extractor_are_refused(generator):
    generator.check_features({"video_feature": {"name": "test"}})
    with pytest.raises(ValueError, match="extractor the model was trained with"):
        generator.check_features({"video_feature": {"name": "i3d"}})
