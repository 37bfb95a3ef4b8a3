import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcd.diffusion.negatives import derangements, shuffled_chunks


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
