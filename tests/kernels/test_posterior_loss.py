"""The closed form against brute-force transition matrices, against golden numbers, and its laws."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcd.diffusion.losses import adaptive_weights
from cdcd.diffusion.process import transition_matrix
from cdcd.diffusion.schedule import make_schedule
from kernels.posterior_loss import StepCoefficients, posterior_log_probs, posterior_loss

GOLDEN = Path(os.environ.get("CDCD_REAL_DATA", "/nonexistent")).parent / "specs/golden_losses.npz"


def brute_force(schedule, t, p_z0, z_t):
    """p_theta(z_{t-1} | z_t) in float64 from products of one-step matrices, [K + 1]."""
    K = schedule.num_codes
    before = torch.eye(K + 1, dtype=torch.float64)
    for step in range(1, t):
        before = before @ transition_matrix(schedule, step)
    Q = transition_matrix(schedule, t)
    joint = before[:K, :, None] * Q[None]  # z_0, z_{t-1}, z_t
    at = joint[:, :, z_t]
    total = at.sum(-1, keepdim=True)
    posterior = torch.where(total > 0, at / total.clamp_min(1e-300), torch.zeros_like(at))
    return p_z0 @ posterior


def problem(K, T, t, seed=0, l=9, name="absorbing_uniform"):
    g = torch.Generator().manual_seed(seed)
    schedule = make_schedule(name, K, T)
    b = len(t)
    logits = 3 * torch.randn(b, l, K, generator=g, dtype=torch.float64)
    z_0 = torch.randint(K, (b, l), generator=g)
    z_t = torch.where(torch.rand(b, l, generator=g) < 0.5, K, z_0)
    z_t[:, 0] = torch.randint(K, (b,), generator=g)
    negatives = torch.randint(K, (b, 3, l), generator=g)
    negatives[:, 0] = z_0
    q = schedule.coefficients(torch.tensor(t), torch.float64)
    return schedule, logits, z_t, z_0, negatives, q


@pytest.mark.parametrize("K", [2, 7, 50])
@pytest.mark.parametrize("name", ["absorbing_uniform", "alpha1"])
def test_posterior_equals_transition_matrices(K, name):
    T, steps = 6, [2, 3, 6]
    schedule, logits, z_t, _, _, q = problem(K, T, steps, name=name)
    ours = posterior_log_probs(logits, z_t, q).exp()
    p = logits.softmax(-1)
    for i, t in enumerate(steps):
        for j in range(logits.shape[1]):
            expected = brute_force(schedule, t, p[i, j], int(z_t[i, j]))
            torch.testing.assert_close(ours[i, j], expected, atol=1e-12, rtol=1e-7)


def test_kl_equals_brute_force_for_positive_and_negatives():
    K, T, steps = 7, 6, [2, 4, 6]
    schedule, logits, z_t, z_0, negatives, q = problem(K, T, steps)
    terms = posterior_loss(logits, z_t, z_0, q, negatives)
    p = logits.softmax(-1)
    targets = torch.cat([z_0[:, None], negatives], 1)
    ours = torch.cat([terms.kl[:, None], terms.neg_step], 1)
    for i, t in enumerate(steps):
        for n in range(4):
            for j in range(logits.shape[1]):
                onehot = torch.nn.functional.one_hot(targets[i, n, j], K).double()
                true = brute_force(schedule, t, onehot, int(z_t[i, j]))
                model = brute_force(schedule, t, p[i, j], int(z_t[i, j]))
                kl = torch.where(true > 0, true * (true.clamp_min(1e-300) / model).log(), 0 * true)
                torch.testing.assert_close(ours[i, n, j], kl.nansum(), atol=1e-9, rtol=1e-7)


def test_first_step_is_the_decoder_likelihood():
    _, logits, z_t, z_0, negatives, q = problem(7, 6, [1, 1])
    terms = posterior_loss(logits, z_t, z_0, q, negatives)
    nll = -logits.log_softmax(-1).gather(-1, z_0[..., None])[..., 0]
    torch.testing.assert_close(terms.kl, nll)
    torch.testing.assert_close(terms.neg_step, terms.neg_sample)


def test_a_negative_equal_to_the_positive_has_its_loss():
    _, logits, z_t, z_0, negatives, q = problem(7, 6, [2, 5])
    terms = posterior_loss(logits, z_t, z_0, q, negatives)
    torch.testing.assert_close(terms.neg_step[:, 0], terms.kl)
    torch.testing.assert_close(terms.neg_sample[:, 0], terms.aux)


def test_gradcheck():
    _, logits, z_t, z_0, negatives, q = problem(5, 6, [1, 3, 6], l=3)
    logits.requires_grad_()

    def function(x):
        terms = posterior_loss(x, z_t, z_0, q, negatives)
        return terms.kl, terms.aux, terms.neg_step, terms.neg_sample

    assert torch.autograd.gradcheck(function, (logits,))


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("name", ["alpha1", "official", "absorbing_uniform"])
def test_extreme_logits_stay_finite(scale, name):
    _, logits, z_t, z_0, negatives, q = problem(100, 80, [1, 2, 80], name=name)
    x = (logits.sign() * scale).float().requires_grad_()
    q = StepCoefficients(*(v.float() for v in q[:9]), q.is_first)
    terms = posterior_loss(x, z_t, z_0, q, negatives)
    total = sum(v.sum() for v in terms)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(x.grad).all()
    for v in (terms.kl, terms.aux):
        assert v.max() <= 71


def test_no_uniform_mass_stays_finite():
    schedule = make_schedule("absorbing_uniform", 9, 10, uniform_mass=0.0)
    assert float(schedule.tables[4].max()) < 1e-12
    z_0 = torch.arange(8)[None]
    z_t = torch.where(torch.arange(8)[None] % 2 == 0, 9, z_0)
    x = torch.randn(1, 8, 9, requires_grad=True)
    terms = posterior_loss(x, z_t, z_0, schedule.coefficients(torch.tensor([5])))
    terms.kl.sum().backward()
    assert torch.isfinite(x.grad).all()


@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 40), T=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_posterior_sums_to_one(K, T, share, seed):
    t = 1 + round(share * (T - 1))
    _, logits, z_t, *_, q = problem(K, T, [t], seed=seed)
    total = posterior_log_probs(logits, z_t, q).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-9, rtol=0)


@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 40), T=st.integers(2, 60), seed=st.integers(0, 999))
def test_kl_is_not_negative_and_vanishes_for_the_truth(K, T, seed):
    _, logits, z_t, z_0, negatives, q = problem(K, T, [T, 2], seed=seed)
    terms = posterior_loss(logits, z_t, z_0, q, negatives)
    assert float(terms.kl.min()) > -1e-9
    certain = 60 * torch.nn.functional.one_hot(z_0, K).double()
    # Where z_t contradicts z_0 the floor keeps a remainder; elsewhere the truth costs nothing.
    agrees = (z_t == K) | (z_t == z_0)
    assert float(posterior_loss(certain, z_t, z_0, q).kl[agrees].abs().max()) < 1e-6


def test_shape_errors_name_the_argument():
    _, logits, z_t, z_0, negatives, q = problem(5, 6, [2])
    with pytest.raises(ValueError, match="z_t and z_0"):
        posterior_loss(logits, z_t[:, :3], z_0, q)
    with pytest.raises(ValueError, match="negatives"):
        posterior_loss(logits, z_t, z_0, q, negatives[:, :, :2])


LOSSES = ["vanilla", "aux", "aux_adaptive", "step_intra", "sample_intra", "step_inter",
          "sample_inter", "step_intra_full", "sample_inter_full"]  # fmt: skip
VARIANTS = ["music", "image"]
# The interpreter takes a second for a hundred rows, and what follows the kernel is the same code:
# every loss once, every term and every weight with both schedules.
OF_MUSIC = {"vanilla", "aux_adaptive", "step_intra", "sample_inter", "sample_inter_full"}
GOLDEN_CASES = [
    *(
        ("reference", size, variant, case)
        for size in ("small", "paper")
        for case in LOSSES
        for variant in VARIANTS
    ),
    *(("triton", "small", "music" if case in OF_MUSIC else "image", case) for case in LOSSES),
    *(("triton", "paper", variant, "step_intra_full") for variant in VARIANTS),
]


@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs the golden losses (CDCD_REAL_DATA)")
class TestGolden:
    """Parity with the released code's numbers, relative 2e-5 for values, 1e-5 for gradients."""

    @pytest.fixture(scope="class")
    def golden(self):
        with np.load(GOLDEN) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}

    def setup_problem(self, golden, size, variant):
        K, T = (int(x) for x in golden[f"{size}/K_T"])
        schedule = make_schedule("official" if variant == "music" else "alpha1", K, T)
        names = ("logits", "z_t", "z_0", "t", "p_t")
        return (schedule, *(golden[f"{size}/{name}"] for name in names))

    @pytest.mark.parametrize("size", ["small", "paper"])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_schedule(self, golden, size, variant):
        schedule, *_ = self.setup_problem(golden, size, variant)
        for row, letter in enumerate("abcABC"):
            expected = golden[f"{size}/{variant}/schedule_{letter}"].double()
            got = schedule.tables[row, 1:]
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-9)

    @pytest.mark.parametrize(("name", "size", "variant", "case"), GOLDEN_CASES)
    def test_loss_and_gradient(self, golden, monkeypatch, name, size, variant, case):
        monkeypatch.setenv("CDCD_KERNELS", name)
        schedule, logits, z_t, z_0, t, p_t = self.setup_problem(golden, size, variant)
        T = schedule.num_steps
        # The released float32 tables are part of its numbers.
        tables = [golden[f"{size}/{variant}/schedule_{letter}"].float() for letter in "abcABC"]
        index = t.long() - 1
        before = [torch.where(index > 0, x[index - 1], 0.0) for x in tables[3:]]
        before[0] = torch.where(index > 0, before[0], 1.0)
        q = StepCoefficients(*(x[index] for x in tables), *before, index == 0)
        kind = "inter" if "inter" in case else "intra"
        negatives = golden[f"{size}/neg_{kind}"].long()
        x = logits.clone().requires_grad_()
        terms = posterior_loss(x, z_t.long(), z_0.long(), q, negatives)
        full, aux = case.endswith("full"), "aux" in case or case.endswith("full")
        adaptive = full or case == "aux_adaptive"
        falling, rising = adaptive_weights(t.long(), T, "opposed")
        one = torch.ones_like(rising)
        loss = terms.kl.sum(1)
        if aux:
            direction = rising if variant == "music" else falling
            loss = loss + 5e-4 * (direction if adaptive else one) * terms.aux.sum(1)
        if "step" in case or "sample" in case:
            rows = terms.neg_step if "step" in case else terms.neg_sample
            weight = 5e-5 * rising if full else 0.5 * one
            loss = loss - weight * rows.sum(2).mean(1)
        loss = loss / p_t
        torch.testing.assert_close(loss, golden[f"{size}/{variant}/{case}/loss"], rtol=2e-5, atol=0)
        if size == "small":
            (loss.sum() / z_0.numel()).backward()
            torch.testing.assert_close(
                x.grad, golden[f"small/{variant}/{case}/grad"], rtol=0, atol=1e-5
            )

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_log_posterior_of_tokens(self, golden, variant):
        schedule, logits, z_t, _, t, _ = self.setup_problem(golden, "small", variant)
        ours = posterior_log_probs(logits, z_t.long(), schedule.coefficients(t.long()))
        expected = golden[f"small/{variant}/log_posterior"]
        K = schedule.num_codes
        later = t > 1
        torch.testing.assert_close(
            ours[later][..., :K], expected[later][..., :K], atol=2e-3, rtol=2e-5
        )
