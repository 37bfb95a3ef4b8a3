import pytest
import torch

from cdcd.diffusion.sampler import SamplerConfig, sample, step_pairs
from cdcd.diffusion.schedule import make_schedule


def perfect(target, K):
    def predict(z_t, t):
        return 50.0 * torch.nn.functional.one_hot(target, K).float(), None

    return predict


@pytest.mark.parametrize("stride", [1, 2, 7])
@pytest.mark.parametrize("name", ["absorbing_uniform", "alpha1"])
def test_a_perfect_network_gives_its_target_at_every_stride(stride, name):
    K = 9
    target = torch.randint(K, (2, 40))
    schedule = make_schedule(name, K, 20)
    config = SamplerConfig(0.86, 1.0, stride)
    z = sample(perfect(target, K), schedule, (2, 40), config, torch.Generator().manual_seed(0))
    assert torch.equal(z, target)


def test_starts_from_the_full_mask_and_ends_without_one():
    K, seen = 9, []

    def predict(z_t, t):
        seen.append((z_t.clone(), int(t[0])))
        return torch.randn(1, 30, K, generator=torch.Generator().manual_seed(int(t[0]))), None

    schedule = make_schedule("alpha1", K, 10)
    z = sample(predict, schedule, (1, 30), SamplerConfig(), torch.Generator().manual_seed(0))
    assert bool((seen[0][0] == K).all())
    assert [t for _, t in seen] == list(range(10, 0, -1))
    assert int(z.max()) < K


def test_kept_tokens_never_change():
    K, seen = 9, []
    kept = torch.full((1, 30), -1)
    kept[:, :12] = torch.randint(K, (1, 12))

    def predict(z_t, t):
        seen.append(z_t.clone())
        return torch.randn(1, 30, K), None

    schedule = make_schedule("absorbing_uniform", K, 10, 0.5)
    random = torch.Generator().manual_seed(0)
    z = sample(predict, schedule, (1, 30), SamplerConfig(), random, kept)
    for state in [*seen, z]:
        assert torch.equal(state[:, :12], kept[:, :12])


def test_same_seed_same_tokens():
    schedule = make_schedule("alpha1", 5, 6)
    logits = torch.randn(2, 8, 5)

    def run(seed):
        random = torch.Generator().manual_seed(seed)
        return sample(lambda z, t: (logits, None), schedule, (2, 8), SamplerConfig(), random)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_with_generators_of_their_own_rows_do_not_depend_on_their_neighbours():
    K, length = 9, 30
    schedule = make_schedule("absorbing_uniform", K, 10, 0.3)
    scores = torch.randn(5, length, K)

    def run(rows, kept=None):
        randoms = [torch.Generator().manual_seed(row) for row in rows]
        shape = (len(rows), length)
        return sample(
            lambda z, t: (scores[rows], None), schedule, shape, SamplerConfig(), randoms, kept
        )

    alone = torch.cat([run([row]) for row in range(5)])
    assert torch.equal(run([0, 1, 2, 3, 4]), alone)
    assert torch.equal(run([3, 0, 4]), alone[[3, 0, 4]])
    # A row by itself draws what a generator for the whole batch gives it.
    whole = sample(
        lambda z, t: (scores[:1], None), schedule, (1, length), SamplerConfig(),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(whole, alone[:1])


def test_generators_must_be_as_many_as_rows():
    schedule = make_schedule("alpha1", 5, 6)
    randoms = [torch.Generator()] * 2
    with pytest.raises(ValueError, match="generators must be one for each of the 3 rows: got 2"):
        sample(
            lambda z, t: (torch.zeros(3, 8, 5), None), schedule, (3, 8), SamplerConfig(), randoms
        )


def test_step_pairs():
    assert step_pairs(5, 2) == [(5, 3), (3, 1), (1, 0)]
    assert step_pairs(4, 1) == [(4, 3), (3, 2), (2, 1), (1, 0)]
    with pytest.raises(ValueError, match=r"stride must lie in 1..4"):
        step_pairs(4, 5)
