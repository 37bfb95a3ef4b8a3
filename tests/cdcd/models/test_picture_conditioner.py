"""Pictures' networks: what is dropped or padded cannot be seen, and everything else is learned."""

from dataclasses import replace

import pytest
import torch

from cdcd.models.inputs import PictureInputs
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.picture_conditioner import ClassSpec, TextSpec
from cdcd.models.store import ModelError, load_model, save_model

TEXT = TextSpec(dim=12, num_positions=7)
ADALN = ClassSpec(num_classes=4, dim=10)
CROSS = ClassSpec(num_classes=4, dim=10, mode="cross_attention")
SPEC = ModelSpec(
    num_codes=16, num_steps=10, num_tokens=12, grid=(3, 4), width=16, depth=2, num_heads=2,
    feedforward_multiple=2, feedforward="conv", modulation="shared", dropout=0.0,
    checkpoint_blocks=False, conditioner=TEXT,
)  # fmt: skip
SPECS = {
    f"{conditioner.kind}-{getattr(conditioner, 'mode', '')}-{modulation}-{feedforward}": replace(
        SPEC, conditioner=conditioner, modulation=modulation, feedforward=feedforward
    )
    for conditioner in (TEXT, ADALN, CROSS)
    for modulation, feedforward in (("shared", "linear"), ("shared", "conv"), ("tables", "conv"))
}
ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def build(spec, seed=0):
    torch.manual_seed(seed)
    model = ConditionalDenoiser(spec)
    # Modulation starts at zero; a nudge makes every path carry gradient.
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def inputs(spec, b=4):
    g = torch.Generator().manual_seed(1)
    yes = torch.ones(b, dtype=torch.bool)
    if spec.conditioner.kind == "class":
        return PictureInputs(None, None, torch.arange(b) % 4, yes)
    text = torch.randn(b, 7, 12, generator=g)
    return PictureInputs(text, torch.tensor([7, 3, 5, 1])[:b], None, yes)


def tokens(b=4):
    g = torch.Generator().manual_seed(2)
    return torch.randint(17, (b, 12), generator=g), torch.tensor([1, 4, 9, 10])[:b]


def others(x):
    """The same batch with other texts and classes."""
    return replace(
        x,
        text=None if x.text is None else x.text.flip(0) + 1,
        length=None if x.length is None else x.length.flip(0),
        label=None if x.label is None else (x.label + 1) % 4,
    )


@ALL
def test_shape_and_a_condition_that_matters(spec):
    model, x = build(spec), inputs(spec)
    z_t, t = tokens()
    logits = model(z_t, t, x)
    assert logits.shape == (4, 12, 16)
    assert not torch.allclose(logits, model(z_t, t, others(x)), atol=1e-3)
    assert not torch.allclose(logits, model(z_t, t, x.without()), atol=1e-3)
    head = model.denoiser.head(model(z_t, t, x, has_head=False))
    torch.testing.assert_close(logits, head)


@ALL
def test_what_is_dropped_cannot_be_seen(spec):
    model, x = build(spec), inputs(spec)
    z_t, t = tokens()
    null = model(z_t, t, x.without())
    assert torch.equal(null, model(z_t, t, others(x).without()))
    nothing = PictureInputs(None, None, None, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(null, model(z_t, t, nothing))
    some = replace(x, has_condition=torch.tensor([True, False, True, False]))
    mixed = model(z_t, t, some)
    torch.testing.assert_close(mixed[1::2], null[1::2])
    torch.testing.assert_close(mixed[::2], model(z_t, t, x)[::2])


def test_a_dropped_text_has_no_gradient_and_the_null_has():
    model = build(SPEC)
    z_t, t = tokens()
    x = inputs(SPEC)
    some = replace(
        x, text=x.text.requires_grad_(), has_condition=torch.tensor([True, False, True, False])
    )
    model(z_t, t, some).square().sum().backward()
    size = x.text.grad.abs().sum((1, 2))
    assert bool((size[1::2] == 0).all())
    assert bool((size[::2] > 0).all())
    assert float(model.conditioner.absent.grad.abs().sum()) > 0


@pytest.mark.parametrize("modulation", ["shared", "tables"])
def test_what_lies_beyond_a_text_does_not_matter(modulation):
    spec = replace(SPEC, modulation=modulation)
    model, x = build(spec), inputs(spec)
    z_t, t = tokens()
    beyond = torch.arange(7) >= x.length[:, None]
    before = model(z_t, t, x)
    for value in (0.0, 1e4, float("nan")):
        text = x.text.masked_fill(beyond[..., None], value)
        torch.testing.assert_close(before, model(z_t, t, replace(x, text=text)))
    # Nor does how far the batch is padded.
    short = PictureInputs(x.text[1:2, :3], x.length[1:2], None, x.has_condition[:1])
    torch.testing.assert_close(before[1:2], model(z_t[1:2], t[1:2], short), atol=1e-5, rtol=1e-4)


def test_half_precision_texts_as_they_are_cached():
    model, x = build(SPEC), inputs(SPEC)
    z_t, t = tokens()
    half = model(z_t, t, replace(x, text=x.text.half()))
    torch.testing.assert_close(half, model(z_t, t, x), atol=1e-2, rtol=1e-2)


def test_a_text_that_is_too_long_is_one_line():
    x = PictureInputs(torch.zeros(1, 8, 12), torch.tensor([8]), None, torch.tensor([True]))
    with pytest.raises(ValueError, match="at most the 7 entries"):
        build(SPEC).encode(x)


@ALL
def test_every_parameter_receives_gradient(spec):
    """But what only feeds the query of a single entry: attention cannot choose (D5)."""
    model, x = build(spec), inputs(spec, 4)
    x = replace(x, has_condition=torch.tensor([True, True, True, False]))
    z_t, _ = tokens()
    weight = torch.randn(4, 12, 16, generator=torch.Generator().manual_seed(3))
    for t in (torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10, 1, 1])):
        (model(z_t, t, x) * weight).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        if spec.conditioner == CROSS and ("attend_cross.query" in name or "norm_cross" in name):
            assert float(p.grad.abs().max()) < 1e-4, name
        else:
            assert float(p.grad.abs().sum()) > 0, name


@ALL
def test_checkpointed_blocks_give_the_same_gradient(spec):
    z_t, t = tokens()
    x = inputs(spec)
    grads = []
    for flag in (False, True):
        model = build(replace(spec, checkpoint_blocks=flag))
        model(z_t, t, x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads)


@ALL
def test_guided_sampling_joins_both_cases(spec):
    model, x = build(spec).eval(), inputs(spec)
    z_t, t = tokens()
    condition, null = model.encode(x), model.encode(x.without())
    both = model.denoiser(z_t.repeat(2, 1), t.repeat(2), condition.joined(null))
    torch.testing.assert_close(both[:4], model(z_t, t, x))
    torch.testing.assert_close(both[4:], model(z_t, t, x.without()))


def test_convolutions_look_at_neighbours_on_the_grid():
    """The feed-forward part spreads a token by two rows and columns, and not around the edges."""
    spec = replace(SPEC, num_tokens=63, grid=(7, 9))
    feedforward = build(spec).denoiser.blocks[0].feedforward
    x = torch.zeros(1, 63, 16)
    changed = x.clone()
    changed[0, 3 * 9 + 8] = 1.0
    differs = (feedforward(x) != feedforward(changed)).any(-1).view(7, 9)
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1:6, 6:] = True
    assert torch.equal(differs, expected)


def test_the_position_is_that_of_the_grid():
    model = build(SPEC).denoiser
    where = model._where(12)
    torch.testing.assert_close(where[1 * 4 + 2], model.rows[1] + model.columns[2])


def test_branches_start_small_so_depth_does_not_scale_the_start():
    z_t, t = tokens()
    for spec in SPECS.values():
        deep = replace(spec, depth=12, width=32)
        torch.manual_seed(0)
        logits = ConditionalDenoiser(deep)(z_t, t, inputs(deep))
        assert float(logits.detach().std()) < 0.5  # near to uniform over the codes


def test_errors_are_one_line():
    with pytest.raises(ValueError, match="the grid must hold the 13 tokens: got 3 x 4"):
        ConditionalDenoiser(replace(SPEC, num_tokens=13))
    with pytest.raises(ValueError, match="conv needs a grid of tokens"):
        ConditionalDenoiser(replace(SPEC, grid=None))


@ALL
def test_store_roundtrip(spec, tmp_path):
    model, x = build(spec), inputs(spec)
    z_t, t = tokens()
    save_model(tmp_path, model, {})
    loaded, _ = load_model(tmp_path)
    assert loaded.spec == spec
    assert torch.equal(loaded(z_t, t, x), model.eval()(z_t, t, x))


def test_a_model_of_an_earlier_version_is_one_line(tmp_path):
    save_model(tmp_path, build(SPEC), {})
    path = tmp_path / "model.json"
    path.write_text('{"spec": {"num_codes": 16, "conditioner": "sequence"}}')
    with pytest.raises(ModelError, match=r"must be what this version writes.*train again"):
        load_model(tmp_path)
