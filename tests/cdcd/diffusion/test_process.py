import torch

from cdcd.diffusion.process import noise, transition_matrix
from cdcd.diffusion.schedule import make_schedule


def test_marginal_frequencies():
    K, T, n = 5, 10, 200_000
    schedule = make_schedule("absorbing_uniform", K, T, 0.4)
    g = torch.Generator().manual_seed(0)
    for t in (1, 4, 10):
        noised = noise(torch.full((1, n), 2), torch.tensor([t]), schedule, g)
        got = torch.bincount(noised.z_t[0], minlength=K + 1).double() / n
        expected = torch.eye(K + 1, dtype=torch.float64)[2]
        for step in range(1, t + 1):
            expected = expected @ transition_matrix(schedule, step)
        torch.testing.assert_close(got, expected, atol=6e-3, rtol=0)


def test_rows_of_the_transition_sum_to_one():
    schedule = make_schedule("absorbing_uniform", 6, 9)
    for t in range(1, 10):
        total = transition_matrix(schedule, t).sum(1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_reproducible_from_the_generator():
    schedule = make_schedule("alpha1", 6, 9)
    z_0, t = torch.randint(6, (3, 8)), torch.tensor([1, 5, 9])
    first = noise(z_0, t, schedule, torch.Generator().manual_seed(3)).z_t
    assert torch.equal(first, noise(z_0, t, schedule, torch.Generator().manual_seed(3)).z_t)
