"""Counter-based noise: known answers, its distribution, and what it may depend on."""

import pytest
import torch

from kernels.forward_noise import forward_noise
from kernels.forward_noise.reference import philox


def test_known_answers_of_philox():
    """Test vectors published with Random123 (kat_vectors, philox4x32 10)."""
    ones = torch.tensor([0xFFFFFFFF])
    # The fourth word of the counter is zero here, so that only the first vector applies whole.
    zero = torch.tensor([0])
    assert [hex(int(x)) for x in philox(zero, (zero, zero, zero))] == ["0x6627e8d5", "0xe169c58d"]
    assert [hex(int(x)) for x in philox(-ones, (ones, ones, ones))] != ["0x6627e8d5", "0xe169c58d"]


def tokens(b=3, l=40, n=4, K=50):
    g = torch.Generator().manual_seed(0)
    z_0 = torch.randint(K, (b, l), generator=g)
    return z_0, torch.randint(K, (b, n, l), generator=g)


B, C = torch.tensor([2e-3, 5e-10, 0.0]), torch.tensor([0.5, 0.99, 0.2])


def test_both_backends_agree_to_the_bit(monkeypatch):
    z_0, negatives = tokens(l=700)
    out = []
    for name in ("reference", "triton"):
        monkeypatch.setenv("CDCD_KERNELS", name)
        seed = torch.tensor(-(2**62) - 12345)
        ids = torch.tensor([5, 2**32 - 1, 9])
        out.append(forward_noise(z_0, B, C, 50, seed, negatives, ids))
    assert torch.equal(out[0].z_t, out[1].z_t)
    assert torch.equal(out[0].negatives, out[1].negatives)


def test_frequencies(backend):
    K, n = 5, 60_000
    z_0 = torch.full((1, n), 2)
    noised = forward_noise(z_0, torch.tensor([0.06]), torch.tensor([0.4]), K, 7, z_0[:, None]).z_t
    got = torch.bincount(noised[0], minlength=K + 1).double() / n
    want = torch.tensor([0.06, 0.06, 0.36, 0.06, 0.06, 0.4], dtype=torch.float64)
    torch.testing.assert_close(got, want, atol=0.01, rtol=0)


def test_a_split_batch_is_noised_like_the_whole(backend):
    z_0, negatives = tokens()
    whole = forward_noise(z_0, B, C, 50, 11, negatives)
    for i in range(3):
        part = slice(i, i + 1)
        one = forward_noise(z_0[part], B[part], C[part], 50, 11, negatives[part], torch.tensor([i]))
        assert torch.equal(one.z_t, whole.z_t[part])
        assert torch.equal(one.negatives, whole.negatives[part])


def test_more_chains_do_not_move_the_others(backend):
    z_0, negatives = tokens()
    assert torch.equal(
        forward_noise(z_0, B, C, 50, 11).z_t, forward_noise(z_0, B, C, 50, 11, negatives).z_t
    )


def test_chains_samples_positions_and_seeds_differ(backend):
    z = torch.zeros(2, 64, dtype=torch.int64)
    half, none = torch.full((2,), 0.5), torch.zeros(2)
    first = forward_noise(z, none, half, 9, 1, z[:, None])
    assert not torch.equal(first.z_t[0], first.z_t[1])
    assert not torch.equal(first.z_t, first.negatives[:, 0])
    assert not torch.equal(first.z_t[:, :32], first.z_t[:, 32:])
    assert not torch.equal(first.z_t, forward_noise(z, none, half, 9, 2).z_t)


@pytest.mark.parametrize(("mask", "expected"), [(0.0, 3), (1.0, 9)])
def test_certainty_is_certain(backend, mask, expected):
    z_0 = torch.full((1, 4000), 3)
    z_t = forward_noise(z_0, torch.zeros(1), torch.tensor([mask]), 9, 0).z_t
    assert (z_t == expected).all()


def test_empty_batch(backend):
    assert forward_noise(torch.zeros(0, 4).long(), B[:0], C[:0], 9, 0).z_t.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z_0": torch.full((3, 40), 50)}, r"z_0 must lie in 0\.\.49 .*got 50"),
        ({"num_codes": 1}, "got K = 1"),
        ({"B": B[:2]}, r"\[3\] of the batch"),
        ({"negatives": torch.zeros(3, 40).long()}, r"shape \[3, n, 40\]"),
    ],
)
def test_bad_input(backend, change, message):
    z_0, _ = tokens()
    arguments = {"z_0": z_0, "B": B, "C": C, "num_codes": 50, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        forward_noise(**arguments)
