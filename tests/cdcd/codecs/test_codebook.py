import pytest
import torch

from cdcd.codecs.codebook import Codebook
from kernels.nearest_code import Assignment, nearest_code


def make_codebook(num_codes=6, width=3, **settings):
    codebook = Codebook(num_codes, width, **({"restart_threshold": 0.0} | settings))
    generator = torch.Generator().manual_seed(0)
    codebook.start(torch.randn(50, width, generator=generator))
    return codebook


def assigned(rows, tokens, num_codes=6):
    counts = torch.bincount(tokens, minlength=num_codes).float()
    return Assignment(tokens, counts, torch.zeros(num_codes, 3).index_add_(0, tokens, rows))


def test_update_is_the_moving_average():
    codebook = make_codebook(decay=0.9)
    counts, sums = codebook.counts.clone(), codebook.sums.clone()
    rows, tokens = torch.randn(20, 3), torch.randint(0, 6, (20,))
    codebook.update(rows, assigned(rows, tokens))
    for code in range(6):
        mine = rows[tokens == code]
        count = 0.9 * counts[code] + 0.1 * len(mine)
        total = 0.9 * sums[code] + 0.1 * mine.sum(0)
        torch.testing.assert_close(codebook.counts[code], count)
        torch.testing.assert_close(codebook.codes[code], total / count)


def test_codes_move_to_the_mean_of_what_they_stand_for():
    codebook = make_codebook(num_codes=2, decay=0.5)
    rows = torch.cat([torch.full((10, 3), 4.0), torch.full((10, 3), -4.0)])
    tokens = torch.tensor([0] * 10 + [1] * 10)
    for _ in range(40):
        codebook.update(rows, assigned(rows, tokens, 2))
    torch.testing.assert_close(codebook.codes, torch.tensor([[4.0] * 3, [-4.0] * 3]))


def test_a_dead_code_restarts_on_the_batch_and_a_living_one_does_not():
    codebook = make_codebook(decay=0.5, restart_threshold=1.0)
    codebook.codes[5], codebook.counts[5] = 100.0, 1.2  # far from everything, hardly used
    codebook.sums[5] = codebook.codes[5] * 1.2
    rows = torch.randn(60, 3)
    tokens = torch.arange(60) % 5
    kept = codebook.sums[0] * 0.5 + 0.5 * rows[tokens == 0].sum(0)
    codebook.update(rows, assigned(rows, tokens))
    assert (rows == codebook.codes[5]).all(1).any()
    assert codebook.counts[5] == pytest.approx(10)  # the mean use, so that it can survive
    torch.testing.assert_close(codebook.codes[0], kept / codebook.counts[0])


def test_a_restarted_code_survives_the_next_update():
    codebook = make_codebook(num_codes=64, restart_threshold=1.0, decay=0.99)
    rows = torch.randn(128, 3)
    codebook.counts[7] = 0.0
    codebook.update(rows, nearest_code(rows, codebook.codes, has_statistics=True))
    restarted = codebook.codes[7].clone()
    codebook.update(rows + 100, assigned(rows + 100, torch.zeros(128, dtype=torch.int64), 64))
    torch.testing.assert_close(codebook.codes[7], restarted)


def test_fewer_rows_than_codes_start_distinct():
    codebook = Codebook(16, 3)
    codebook.start(torch.randn(5, 3))
    assert len(codebook.codes.unique(dim=0)) == 16


def test_gradient_goes_straight_through():
    codebook = make_codebook().eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    quantized = codebook(x)
    upstream = torch.randn(2, 3, 4)
    (gradient,) = torch.autograd.grad(quantized.vectors, x, upstream)
    torch.testing.assert_close(gradient, upstream)
    torch.testing.assert_close(quantized.vectors, codebook.look_up(quantized.tokens))


def test_commitment_pulls_the_output_to_its_code():
    codebook = make_codebook().eval()
    x = torch.randn(2, 3, 4, requires_grad=True)
    quantized = codebook(x)
    (gradient,) = torch.autograd.grad(quantized.commitment, x)
    expected = 2 * (x - codebook.look_up(quantized.tokens)) / x.numel()
    torch.testing.assert_close(gradient, expected)


def test_evaluation_moves_nothing():
    codebook = make_codebook().eval()
    before = [buffer.clone() for buffer in codebook.buffers()]
    codebook(torch.randn(2, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, codebook.buffers(), strict=True))
