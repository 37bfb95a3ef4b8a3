"""The reverse draw: its distribution, its truncation, and what may not move."""

import pytest
import torch

from cdcd.diffusion.schedule import make_schedule, skipped
from kernels.inputs import problem
from kernels.posterior_loss import posterior_log_probs
from kernels.reverse_step import reverse_step, truncate


def draw_many(logits, z_t, q, n=200_000, **options):
    g = torch.Generator().manual_seed(0)
    K = logits.shape[-1]
    u = torch.rand(1, n, generator=g)
    z = reverse_step(logits.expand(1, n, K), torch.full((1, n), z_t), q, u, **options).z
    return torch.bincount(z[0], minlength=K + 1).double() / n


@pytest.mark.parametrize("z_t", [5, 2])
@pytest.mark.parametrize("t", [1, 2, 7])
def test_draws_follow_the_posterior(z_t, t):
    K = 5
    schedule = make_schedule("absorbing_uniform", K, 8, 0.3)
    q = schedule.coefficients(torch.tensor([t]))
    logits = torch.tensor([[[0.0, 1.0, 2.0, -1.0, 0.5]]])
    expected = posterior_log_probs(logits, torch.tensor([[z_t]]), q)[0, 0].double().exp()
    got = draw_many(logits, z_t, q)
    torch.testing.assert_close(got, expected, atol=6e-3, rtol=0)


def test_truncation_keeps_while_the_sum_before_is_below_r():
    p = torch.tensor([0.1, 0.5, 0.1, 0.3])
    torch.testing.assert_close(truncate(p, 0.5), torch.tensor([0.0, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(truncate(p, 0.51), torch.tensor([0.0, 0.5, 0.0, 0.3]))
    # A tie goes to the lower index.
    torch.testing.assert_close(truncate(p, 0.85), torch.tensor([0.1, 0.5, 0.0, 0.3]))
    torch.testing.assert_close(truncate(p, 1.0), p)
    torch.testing.assert_close(truncate(p, 1e-9), torch.tensor([0.0, 0.5, 0.0, 0.0]))


def test_dropped_mass_stays_masked_but_not_at_the_end():
    K = 4
    schedule = make_schedule("alpha1", K, 10)
    logits = torch.tensor([[[0.1, 0.5, 0.1, 0.3]]]).log()
    t = torch.tensor([5])
    q = schedule.coefficients(t)
    stay = float(q.C_prev / q.C)
    got = draw_many(logits, K, q, truncation=0.6)
    assert abs(float(got[K]) - (stay + (1 - stay) * 0.2)) < 6e-3
    assert float(got[0]) == 0.0
    last = draw_many(logits, K, schedule.coefficients(torch.tensor([1])), truncation=0.6)
    assert float(last[K]) == 0.0
    torch.testing.assert_close(
        last[:4], torch.tensor([0, 0.625, 0, 0.375]).double(), atol=6e-3, rtol=0
    )


def test_guidance_mixes_scores():
    schedule = make_schedule("alpha1", 4, 10)
    q = schedule.coefficients(torch.tensor([1]))
    a, b = torch.randn(1, 6, 4), torch.randn(1, 6, 4)
    u = torch.rand(1, 6)
    z_t = torch.full((1, 6), 4)
    mixed = reverse_step(b + 2.5 * (a - b), z_t, q, u).z
    assert torch.equal(reverse_step(a, z_t, q, u, 1.0, b, 2.5).z, mixed)
    with pytest.raises(ValueError, match="null_logits"):
        reverse_step(a, z_t, q, u, guidance=2.0)
    with pytest.raises(ValueError, match=r"truncation must lie in \(0, 1\]"):
        reverse_step(a, z_t, q, u, truncation=0.0)


def test_uniform_of_almost_one_never_leaves_the_range():
    schedule = make_schedule("absorbing_uniform", 6, 4)
    for t in (1, 2, 4):
        q = schedule.coefficients(torch.tensor([t]))
        logits = torch.tensor([[[50.0, 0, 0, 0, 0, -50.0]] * 2])
        z = reverse_step(logits, torch.tensor([[6, 0]]), q, torch.full((1, 2), 1 - 2**-24)).z
        assert int(z.max()) <= 6
        if t == 1:
            assert int(z.max()) < 6


def test_two_single_steps_equal_one_jump():
    """Chapman-Kolmogorov for the forward coefficients of a jump."""
    schedule = make_schedule("absorbing_uniform", 5, 9)
    q = skipped(schedule, torch.tensor([6]), torch.tensor([4]))
    from cdcd.diffusion.process import transition_matrix

    Q = transition_matrix(schedule, 5) @ transition_matrix(schedule, 6)
    torch.testing.assert_close(float(q.a + q.b), float(Q[0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(float(q.b), float(Q[0, 1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(float(q.c), float(Q[0, 5]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("truncation", [1.0, 0.86, 0.3, 1e-6, 1e-300])
@pytest.mark.parametrize("K", [2, 7, 100, 2887])
def test_both_backends_draw_the_same_tokens(monkeypatch, K, truncation):
    x = problem(4, 4 if K < 1000 else 3, K, 0, dtype=torch.float64)
    u = torch.rand(x.z_t.shape, generator=torch.Generator().manual_seed(1))
    null = torch.randn(x.logits.shape, generator=torch.Generator().manual_seed(2)).to(x.logits)
    for options in (
        {},
        {"null_logits": null, "guidance": 1.7, "has_confidence": True},
        {"has_confidence": True, "renormalize": True},
    ):
        out = []
        for name in ("reference", "triton"):
            monkeypatch.setenv("CDCD_KERNELS", name)
            out.append(reverse_step(x.logits, x.z_t, x.q, u, truncation, **options))
        assert torch.equal(out[0].z, out[1].z)
        if "has_confidence" in options:
            torch.testing.assert_close(out[0].probability, out[1].probability)
            torch.testing.assert_close(out[0].entropy, out[1].entropy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_in_lower_precision(monkeypatch, dtype):
    """Sums in another order move a boundary by a rounding; uniforms hardly ever fall between."""
    x = problem(4, 20, 300, 0, dtype=dtype)
    u = torch.rand(x.z_t.shape, generator=torch.Generator().manual_seed(1))
    out = []
    for name in ("reference", "triton"):
        monkeypatch.setenv("CDCD_KERNELS", name)
        out.append(reverse_step(x.logits, x.z_t, x.q, u, 0.86).z)
    assert torch.equal(*out)


def test_truncation_of_ties_in_both_backends(backend):
    """Eight equal entries: exact sums, kept from the lowest index while the sum before is < r."""
    schedule = make_schedule("alpha1", 8, 10)
    q = schedule.coefficients(torch.tensor([1]))
    u = (torch.arange(32) + 0.5)[None] / 32
    logits, z_t = torch.zeros(1, 32, 8), torch.full((1, 32), 8)
    for r, kept in ((0.5, 4), (0.51, 5), (0.1, 1), (1.0, 8)):
        z = reverse_step(logits, z_t, q, u, r).z
        assert z.unique().tolist() == list(range(kept))


def test_confidence_of_a_draw_to_z_0(backend):
    schedule = make_schedule("alpha1", 4, 10)
    q = schedule.coefficients(torch.tensor([1]))
    p = torch.tensor([0.1, 0.5, 0.1, 0.3])
    draw = reverse_step(
        p.log().expand(1, 50, 4), torch.full((1, 50), 4), q, torch.rand(1, 50), 0.6,
        has_confidence=True,
    )  # fmt: skip
    share = torch.tensor([0.0, 0.625, 0.0, 0.375])
    torch.testing.assert_close(draw.probability, share[draw.z])
    torch.testing.assert_close(draw.entropy, torch.full((1, 50), float(-(p * p.log()).sum())))


def test_renormalised_truncation_drops_nothing(backend):
    schedule = make_schedule("alpha1", 4, 10)
    q = schedule.coefficients(torch.tensor([5]))
    logits = torch.tensor([0.1, 0.5, 0.1, 0.3]).log().expand(1, 200, 4)
    u = (torch.arange(200)[None] + 0.5) / 200
    z_t = torch.full((1, 200), 4)
    stay = float(q.C_prev / q.C)
    share = (reverse_step(logits, z_t, q, u, 0.6, renormalize=True).z == 4).float().mean()
    assert abs(float(share) - stay) < 5e-3
    share = (reverse_step(logits, z_t, q, u, 0.6).z == 4).float().mean()
    assert abs(float(share) - (stay + (1 - stay) * 0.2)) < 5e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_t": torch.full((1, 3), 6)}, r"z_t must lie in 0\.\.5"),
        ({"logits": torch.zeros(1, 3, 1)}, "at least 2 codes"),
        ({"uniforms": torch.zeros(1, 4)}, r"shape \(1, 3\)"),
        ({"null_logits": torch.zeros(1, 3, 4), "guidance": 2.0}, r"shape \(1, 3, 5\)"),
    ],
)
def test_bad_input(backend, change, message):
    q = make_schedule("alpha1", 5, 10).coefficients(torch.tensor([3]))
    arguments = {
        "logits": torch.zeros(1, 3, 5), "z_t": torch.zeros(1, 3).long(), "coefficients": q,
        "uniforms": torch.zeros(1, 3),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        reverse_step(**arguments)
