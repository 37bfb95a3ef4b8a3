"""The network: gradients reach what should train, and time is kept where it should be."""

from dataclasses import replace

import pytest
import torch

from cdcd.models.conditioner import DanceSpec
from cdcd.models.inputs import ConditionInputs
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.store import ModelError, load_model, save_model

DANCE = DanceSpec(
    kind="sequence", token_rate_hz=12.0, width=16, depth=1, is_frozen=False, motion_dim=219,
    motion_rate_hz=60.0, motion_frames=120, video_dim=20, video_rate_hz=30.0, num_genres=0,
)  # fmt: skip
SPEC = ModelSpec(
    num_codes=32, num_steps=10, num_tokens=24, grid=None, width=32, depth=2, num_heads=2,
    feedforward_multiple=2, feedforward="linear", modulation="shared", dropout=0.0,
    checkpoint_blocks=False, conditioner=DANCE,
)  # fmt: skip
SINGLE = replace(
    SPEC, conditioner=replace(DANCE, kind="single_token", is_frozen=True, num_genres=10)
)
THAWED = replace(SINGLE, conditioner=replace(SINGLE.conditioner, is_frozen=False))


def inputs(b=3):
    g = torch.Generator().manual_seed(0)
    yes = torch.ones(b, dtype=torch.bool)
    return ConditionInputs(
        torch.randn(b, 120, 219, generator=g), torch.randn(b, 60, 20, generator=g),
        torch.arange(b), yes, yes,
    )  # fmt: skip


def run(spec, x, seed=0):
    torch.manual_seed(0)
    model = ConditionalDenoiser(spec)
    # Output and modulation start at zero or small; a nudge makes every path carry gradient.
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    z_t = torch.randint(33, (len(x.has_motion), 24), generator=torch.Generator().manual_seed(1))
    return model, z_t, torch.tensor([1, 5, 10])


def test_every_encoder_parameter_receives_gradient():
    x = inputs()
    x = replace(x, has_motion=torch.tensor([True, False, True]),
                has_video=torch.tensor([False, True, True]))  # fmt: skip
    model, z_t, t = run(SPEC, x)
    model(z_t, t, x).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert float(p.grad.abs().sum()) > 0, name


def test_frozen_single_token_encoders_receive_none_and_mix_does():
    x = inputs()
    model, z_t, t = run(SINGLE, x)
    model(z_t, t, x).square().sum().backward()
    for name, p in model.conditioner.named_parameters():
        frozen = name.startswith(("motion.", "genre."))
        assert (p.grad is None) == frozen, name
    model, z_t, t = run(THAWED, x)
    model(z_t, t, x).square().sum().backward()
    assert all(p.grad is not None for p in model.conditioner.motion.parameters())


def test_with_one_condition_token_attention_cannot_choose():
    """paper_vs_code D5: with a single key the query and key weights have no gradient."""
    x = inputs()
    model, z_t, t = run(THAWED, x)
    model(z_t, t, x).square().sum().backward()
    attention = model.denoiser.blocks[0].attend_cross
    assert float(attention.query.weight.grad.abs().max()) < 1e-6


def test_a_withheld_modality_cannot_be_seen():
    x = inputs()
    no = torch.zeros(3, dtype=torch.bool)
    model, z_t, t = run(SPEC, x)
    for field, flag in (("motion", "has_motion"), ("video", "has_video")):
        hidden = replace(x, **{flag: no})
        changed = replace(hidden, **{field: torch.randn_like(getattr(x, field))})
        torch.testing.assert_close(model(z_t, t, hidden), model(z_t, t, changed))
        absent = replace(hidden, **{field: None})
        torch.testing.assert_close(model(z_t, t, hidden), model(z_t, t, absent))
    torch.testing.assert_close(
        model(z_t, t, x.without()), model(z_t, t, replace(x, has_motion=no, has_video=no))
    )


def test_sequence_condition_keeps_time():
    """A change in the last frames changes the aligned condition there and not at the start."""
    x = inputs()
    model, *_ = run(SPEC, x)
    late = x.motion.clone()
    late[:, 110:] += 5
    before, after = model.encode(x).aligned, model.encode(replace(x, motion=late)).aligned
    difference = (before - after).abs().amax((0, 2)).detach()
    assert float(difference[-1]) > 1e-3
    assert float(difference[:8].max()) < float(difference[-1]) / 3


def test_checkpointed_blocks_give_the_same_gradient():
    x = inputs()
    grads = []
    for flag in (False, True):
        model, z_t, t = run(replace(SPEC, checkpoint_blocks=flag), x)
        model(z_t, t, x).square().sum().backward()
        grads.append(model.denoiser.head.weight.grad)
    torch.testing.assert_close(*grads)


def test_paper_scale_denoiser_size():
    """19 blocks of 1024 at 344 tokens of 2048 codes; the released one has 406.5 M (D36)."""
    spec = replace(
        SPEC, num_codes=2048, num_tokens=344, width=1024, depth=19, num_heads=16,
        feedforward_multiple=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = ConditionalDenoiser(spec)
    count = sum(p.numel() for p in model.denoiser.parameters())
    assert 395e6 < count < 450e6


def test_store_roundtrip_and_damage(tmp_path):
    model, z_t, t = run(SPEC, inputs())
    save_model(tmp_path, model, {"note": 1})
    loaded, facts = load_model(tmp_path)
    assert facts == {"note": 1}
    assert torch.equal(loaded(z_t, t, inputs()), model.eval()(z_t, t, inputs()))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="must hold a whole model"):
        load_model(tmp_path)
    model.denoiser.head.bias.data[0] = float("nan")
    save_model(tmp_path, model, {})
    with pytest.raises(ModelError, match="must be finite"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="is missing"):
        load_model(tmp_path / "nowhere")
