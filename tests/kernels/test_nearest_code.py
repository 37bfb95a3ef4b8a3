"""Codebook assignment and its statistics."""

import pytest
import torch

from kernels.nearest_code import nearest_code, reference


@pytest.mark.parametrize(("n", "K", "d"), [(1, 1, 3), (70, 65, 40), (130, 200, 64), (40, 9, 5)])
def test_the_argmin_of_all_distances(backend, device, n, K, d):
    g = torch.Generator().manual_seed(n)
    rows, codes = torch.randn(n, d, generator=g), torch.randn(K, d, generator=g)
    got = nearest_code(rows.to(device), codes.to(device), has_statistics=True)
    expected = torch.cdist(rows.double(), codes.double()).argmin(1)
    assert torch.equal(got.codes.cpu(), expected)
    assert torch.equal(got.counts.cpu(), torch.bincount(expected, minlength=K).float())
    sums = torch.zeros(K, d).index_add_(0, expected, rows)
    torch.testing.assert_close(got.sums.cpu(), sums, atol=1e-5, rtol=1e-5)


def test_a_long_input_is_taken_in_chunks(monkeypatch):
    rows, codes = torch.randn(40, 5), torch.randn(9, 5)
    whole = nearest_code(rows, codes).codes
    for chunk in (1, 7, 40):
        monkeypatch.setattr(reference, "_CHUNK", chunk)
        assert torch.equal(nearest_code(rows, codes).codes, whole)


def test_ties_go_to_the_lowest_index(backend, device):
    codes = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]] + [[1.0, 0.0]] * 70)
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.5]])
    assert nearest_code(rows.to(device), codes.to(device)).codes.tolist() == [1, 1, 1]


def test_no_rows_and_half_precision_and_strides(backend, device):
    codes = torch.randn(3, 4, device=device)
    assert nearest_code(codes[:0], codes).codes.shape == (0,)
    empty = nearest_code(codes[:0], codes, has_statistics=True)
    assert not empty.counts.any()
    rows = (codes.half() + 0.001)[:, [3, 2, 1, 0]].t().contiguous().t()
    assert nearest_code(rows, codes[:, [3, 2, 1, 0]]).codes.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "codes", "message"),
    [((2, 3), (4, 5), "same d"), ((2,), (4, 2), "same d"), ((2, 3), (0, 3), "must hold codes")],
)
def test_bad_input(backend, rows, codes, message):
    with pytest.raises(ValueError, match=message):
        nearest_code(torch.zeros(rows), torch.zeros(codes))
