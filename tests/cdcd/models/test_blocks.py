"""Rotary positions: what attention sees of places is how far they are apart."""

import pytest
import torch

from cdcd.models.blocks import axial_tables, rotate
from cdcd.models.denoiser import Denoiser

CPU = torch.device("cpu")


def test_scores_over_a_grid_depend_on_the_offset_alone():
    rows, columns, width = 5, 7, 16
    g = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, width, generator=g)
    tables = axial_tables((rows, columns), width, CPU)

    def turned(x):
        everywhere = x.expand(1, 1, rows * columns, width)
        return rotate(everywhere, tables)[0, 0].view(rows, columns, width)

    q, k = turned(query), turned(key)

    def score(here, there):
        return float(q[here] @ k[there])

    for down, right in ((0, 1), (1, 0), (2, -3), (0, 0)):
        scores = [
            score((r, c), (r + down, c + right))
            for r in range(rows - 2)
            for c in range(3, columns - 1)
        ]
        assert max(scores) - min(scores) < 1e-4
    # Rows and columns are told apart, and so are left and right.
    assert abs(score((2, 3), (2, 4)) - score((2, 3), (3, 3))) > 1e-2
    assert abs(score((2, 3), (2, 4)) - score((2, 3), (2, 2))) > 1e-2


def test_heads_of_pictures_are_shared_by_rows_and_columns():
    with pytest.raises(ValueError, match=r"multiple of 4 \* num_heads .*got 12 for 2 heads"):
        Denoiser(8, 4, 4, 12, 1, 2, grid=(2, 2), context_width=4)
