import torch

from cdcd.diffusion.timesteps import StepSampler


def test_uniform_until_every_step_was_seen_often_enough():
    sampler = StepSampler(4, "importance", warmup_count=2)
    torch.testing.assert_close(sampler.probabilities(), torch.full((4,), 0.25))
    for _ in range(3):
        sampler.update(torch.arange(1, 5), torch.tensor([0.0, 1.0, 2.0, 7.0]))
    p = sampler.probabilities()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    assert p[3] > p[2] > p[1]
    torch.testing.assert_close(p[0], p[1])


def test_uniform_stays_uniform_and_has_no_history():
    sampler = StepSampler(4, "uniform")
    for _ in range(20):
        sampler.update(torch.arange(1, 5), torch.rand(4))
    assert float(sampler.count.sum()) == 0
    torch.testing.assert_close(sampler.probabilities(), torch.full((4,), 0.25))


def test_draws_carry_their_probability():
    sampler = StepSampler(3, "importance", warmup_count=0)
    sampler.update(torch.arange(1, 4), torch.tensor([1.0, 1.0, 8.0]))
    t, p = sampler.sample(5000, torch.Generator().manual_seed(0))
    assert int(t.min()) == 1
    assert int(t.max()) == 3
    torch.testing.assert_close(p, sampler.probabilities()[t - 1])
    assert abs(float((t == 3).float().mean()) - float(sampler.probabilities()[2])) < 0.03
