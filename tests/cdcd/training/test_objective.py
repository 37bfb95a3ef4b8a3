"""The training loss on pictures: the released image code's numbers, and what a condition is for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cdcd.diffusion.contrast import Contrast
from cdcd.diffusion.process import Noised
from cdcd.diffusion.schedule import Schedule, make_schedule
from cdcd.diffusion.timesteps import StepSampler
from cdcd.models.inputs import DropRates, PictureInputs
from cdcd.models.model import ConditionalDenoiser, ModelSpec
from cdcd.models.picture_conditioner import ClassSpec, TextSpec
from cdcd.training import objective as module
from cdcd.training.objective import Batch, Objective, bound_per_clip

NEVER = DropRates(0.0, 0.0, 0.0)


def make_objective(schedule, contrast=None, **changes):
    options = {
        "schedule": schedule, "contrast": contrast, "negatives": "intra", "num_negatives": 3,
        "num_chunks": 4, "intra_unit": "patches", "has_parallel_chains": False,
        "auxiliary_weight": 0.0, "adaptive": "opposed", "chunks_logits": False, "drop": NEVER,
        "grid": (4, 6),
    }  # fmt: skip
    return Objective(**(options | changes))


CASES = ["vanilla", "aux", "aux_adaptive", "step_intra", "sample_intra", "step_inter",
         "sample_inter", "step_intra_full", "sample_inter_full"]  # fmt: skip


class Given(torch.nn.Module):
    """Stands in for the network: returns logits that were given, whatever the condition is."""

    def __init__(self, logits):
        super().__init__()
        K = logits.shape[-1]
        self.logits = torch.nn.Parameter(logits.clone())
        self.denoiser = torch.nn.Module()
        self.denoiser.head = torch.nn.Linear(K, K)
        torch.nn.init.eye_(self.denoiser.head.weight)
        torch.nn.init.zeros_(self.denoiser.head.bias)

    def forward(self, z_t, t, inputs, has_head=True):
        assert isinstance(inputs, PictureInputs)
        return self.logits  # with an identity for its head, hidden states are logits


class GivenSteps:
    """Stands in for the step sampler."""

    def __init__(self, t, p_t):
        self.t, self.p_t = t, p_t

    def sample(self, num, generator):
        assert num == len(self.t)
        return self.t, self.p_t


class TestGolden:
    """The `image` variant of golden_losses.md, relative 2e-5 for values, 1e-5 for gradients."""

    @pytest.fixture(scope="class")
    def golden(self, real_data):
        path = real_data.parent / "specs" / "golden_losses.npz"
        if not path.is_file():
            pytest.skip(f"the golden losses are not at {path} (CDCD_REAL_DATA)")
        with np.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}

    @pytest.mark.parametrize("chunks_logits", [False, True], ids=["weighted", "unweighted"])
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("size", ["small", "paper"])
    def test_loss_and_gradient(self, golden, monkeypatch, size, case, chunks_logits):
        def read(name):
            return golden[f"{size}/{name}"]

        # The image release spreads the replacement mass over K: the schedule named alpha1. Its
        # tables are the released ones in float32, whose rounding is part of the golden numbers.
        K, T = (int(x) for x in read("K_T"))
        schedule = make_schedule("alpha1", K, T)
        released = torch.stack([read(f"image/schedule_{letter}") for letter in "abcABC"]).double()
        torch.testing.assert_close(schedule.tables[:, 1:], released, rtol=2e-5, atol=1e-9)
        schedule = Schedule(K, T, torch.cat([schedule.tables[:, :1], released], dim=1))
        negatives = read("neg_inter" if "inter" in case else "neg_intra").long()
        is_full = case.endswith("full")
        contrast = None
        if "step" in case or "sample" in case:
            contrast = Contrast(case.split("_")[0], "linear", 5e-5 if is_full else 0.5)
        z_0, z_t, t, p_t = read("z_0").long(), read("z_t").long(), read("t").long(), read("p_t")
        monkeypatch.setattr(module, "noise", lambda *_: Noised(z_t, None, t))
        monkeypatch.setattr(module, "shuffled_patches", lambda *_: negatives)
        b, l = z_0.shape
        objective = make_objective(
            schedule,
            contrast,
            negatives="inter" if "inter" in case else "intra",
            num_negatives=negatives.shape[1],
            auxiliary_weight=5e-4 if "aux" in case or is_full else 0.0,
            adaptive="opposed" if is_full or case == "aux_adaptive" else "none",
            chunks_logits=chunks_logits,
        )
        label = torch.arange(b)
        inputs = PictureInputs(None, None, label, torch.ones(b, dtype=torch.bool))
        batch = Batch(z_0, inputs, label, inter_negatives=negatives)
        model = Given(read("logits"))
        generator = torch.Generator()
        loss = objective(model, batch, GivenSteps(t, p_t), generator)
        expected = read(f"image/{case}/loss")
        torch.testing.assert_close(loss.total, expected.sum() / (b * l), rtol=2e-5, atol=0)
        if size == "small":
            loss.total.backward()
            torch.testing.assert_close(
                model.logits.grad, read(f"image/{case}/grad"), rtol=0, atol=1e-5
            )
        # Sample by sample, so that no error hides in the sum.
        for i in range(b):
            row = slice(i, i + 1)
            monkeypatch.setattr(module, "noise", lambda *_, row=row: Noised(z_t[row], None, t[row]))
            monkeypatch.setattr(module, "shuffled_patches", lambda *_, row=row: negatives[row])
            one = PictureInputs(None, None, label[row], inputs.has_condition[row])
            batch = Batch(z_0[row], one, label[row], inter_negatives=negatives[row])
            model = Given(read("logits")[row])
            loss = objective(model, batch, GivenSteps(t[row], p_t[row]), generator)
            torch.testing.assert_close(loss.total * l, expected[i], rtol=2e-5, atol=0)


SPEC = ModelSpec(
    num_codes=8, num_steps=8, num_tokens=16, grid=(4, 4), width=32, depth=1, num_heads=2,
    feedforward_multiple=2, feedforward="conv", modulation="shared", dropout=0.0,
    checkpoint_blocks=False, conditioner=TextSpec(6, 5),
)  # fmt: skip


def pictures(spec, b, generator):
    """Two halves of a picture in codes that the condition tells."""
    label = torch.randint(4, (b,), generator=generator)
    z_0 = torch.stack([label, label + 4], 1).repeat_interleave(8, dim=1)
    yes = torch.ones(b, dtype=torch.bool)
    if isinstance(spec.conditioner, ClassSpec):
        return Batch(z_0, PictureInputs(None, None, label, yes), label)
    text = torch.zeros(b, 5, 6)
    text[:, :, 5] = 1
    text[torch.arange(b), 2, label] = 3.0  # what is told lies in one entry of the text
    length = torch.randint(3, 6, (b,), generator=generator)
    return Batch(z_0, PictureInputs(text, length, None, yes), label)


LEARNERS = {
    "text": SPEC,
    "text-tables": replace(SPEC, modulation="tables"),
    "class": replace(SPEC, conditioner=ClassSpec(4, 16)),
    "class-tables": replace(SPEC, conditioner=ClassSpec(4, 16), modulation="tables"),
    "class-attended": replace(SPEC, conditioner=ClassSpec(4, 16, "cross_attention")),
}


@pytest.mark.parametrize("spec", LEARNERS.values(), ids=LEARNERS)
def test_training_learns_what_the_condition_tells(spec):
    torch.manual_seed(0)
    model = ConditionalDenoiser(spec)
    schedule = make_schedule("absorbing_uniform", 8, 8)
    contrast = Contrast("step", "linear", 1e-3)
    objective = make_objective(schedule, contrast, grid=(4, 4), drop=DropRates(0, 0, 0.2))
    steps = StepSampler(8, "uniform")
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        loss = objective(model, pictures(spec, 32, generator), steps, generator)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    held_out = pictures(spec, 64, generator)
    told, untold = (
        float(bound_per_clip(model.eval(), held_out.z_0, x, schedule, generator, 8).mean())
        for x in (held_out.inputs, held_out.inputs.without())
    )
    # All is told by the condition; without it two bits a picture, 1.39 nats, are missing.
    assert untold - told > 0.7
    assert told < 5


def test_patches_reach_the_loss_and_parallel_chains_repeat_the_condition():
    torch.manual_seed(0)
    model = ConditionalDenoiser(SPEC)
    schedule = make_schedule("absorbing_uniform", 8, 8)
    batch = pictures(SPEC, 6, torch.Generator().manual_seed(0))
    for has_parallel_chains in (False, True):
        objective = make_objective(
            schedule, Contrast("step", "linear", 0.1), grid=(4, 4),
            has_parallel_chains=has_parallel_chains,
        )  # fmt: skip
        negatives = objective.draw_negatives(batch, torch.Generator().manual_seed(1))
        assert negatives.shape == (6, 3, 16)
        assert torch.equal(negatives.sort(-1).values[:, 0], batch.z_0.sort(-1).values)
        loss = objective(model, batch, StepSampler(8, "uniform"), torch.Generator().manual_seed(1))
        assert float(loss.contrast.detach()) < 0
        assert torch.isfinite(loss.total)
