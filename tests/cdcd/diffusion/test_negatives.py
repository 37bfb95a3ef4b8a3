import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcd.diffusion.negatives import derangements, shuffled_chunks, shuffled_patches


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 20), seed=st.integers(0, 99))
def test_derangements_move_everything(size, seed):
    order = derangements(50, size, torch.Generator().manual_seed(seed))
    assert torch.equal(order.sort(1).values, torch.arange(size).expand(50, size))
    assert not bool((order == torch.arange(size)).any())


@settings(max_examples=30, deadline=None)
@given(l=st.integers(8, 345), chunks=st.integers(2, 8), seed=st.integers(0, 99))
def test_shuffling_keeps_every_token_and_every_chunk(l, chunks, seed):
    z_0 = torch.arange(2 * l).view(2, l)
    negatives = shuffled_chunks(z_0, 3, chunks, torch.Generator().manual_seed(seed))
    assert torch.equal(negatives.sort(-1).values, z_0[:, None].expand(2, 3, l))
    assert not bool((negatives == z_0[:, None]).all(-1).any())
    # Inside a chunk neighbours stay neighbours: at most chunks - 1 breaks.
    assert int((negatives.diff(dim=-1) != 1).sum(-1).max()) <= chunks - 1


def test_each_sample_has_its_own_order():
    z_0 = torch.arange(344).expand(4, 344)
    negatives = shuffled_chunks(z_0, 2, 8, torch.Generator().manual_seed(0))
    assert len({tuple(row.tolist()) for row in negatives.view(8, 344)}) > 4


def test_too_many_chunks():
    with pytest.raises(ValueError, match="num_chunks must lie between 2 and the token length 6"):
        shuffled_chunks(torch.zeros(1, 6).long(), 1, 7, torch.Generator())


@pytest.mark.parametrize(("grid", "num"), [((8, 8), 16), ((32, 32), 16), ((4, 6), 4), ((2, 2), 4)])
def test_patches_move_whole_and_none_stays(grid, num):
    rows, columns = grid
    k = math.isqrt(num)
    z_0 = torch.arange(rows * columns).repeat(3, 1)
    negatives = shuffled_patches(z_0, 5, grid, num, torch.Generator().manual_seed(0))
    assert negatives.shape == (3, 5, rows * columns)
    assert torch.equal(negatives.sort(-1).values, z_0[:, None].expand_as(negatives))

    def patches(x):
        y = x.unflatten(-1, (k, rows // k, k, columns // k)).transpose(-3, -2)
        return y.flatten(-2).flatten(-3, -2)  # ... patch token

    original, moved = patches(z_0)[:, None], patches(negatives)
    source = (moved[..., None, :] == original[..., None, :, :]).all(-1)  # b n patch patch
    assert torch.equal(source.sum(-1), torch.ones(3, 5, num, dtype=torch.long))  # whole
    assert not bool(source.diagonal(dim1=-2, dim2=-1).any())  # deranged
    if num > 4:
        assert len(negatives.flatten(0, 1).unique(dim=0)) == 15  # an order of its own for each


def test_patches_and_bands_are_drawn_from_a_seed():
    z_0 = torch.arange(64)[None]
    first, again, other = (
        shuffled_patches(z_0, 2, (8, 8), 16, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("grid", "num", "remedy"),
    [((8, 8), 8, "use 4 or 16 or 64"), ((8, 8), 9, "use 4 or 16 or 64"), ((8, 8), 1, "use 4"),
     ((6, 9), 4, "use 9"), ((3, 4), 4, "set intra_unit: tokens")],
)  # fmt: skip
def test_patches_that_do_not_fit_are_one_line(grid, num, remedy):
    z_0 = torch.zeros(1, grid[0] * grid[1], dtype=torch.long)
    with pytest.raises(ValueError, match=f"{grid[0]} x {grid[1]}: got {num}; {remedy}"):
        shuffled_patches(z_0, 1, grid, num, torch.Generator())
