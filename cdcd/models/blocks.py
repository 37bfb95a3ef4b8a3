"""Transformer parts: AdaLN, attention with and without rotary positions, feed-forward."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def sinusoidal(x: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sine and cosine features of positions x [...], float [..., width] (Vaswani et al., 2017)."""
    half = width // 2
    index = torch.arange(half, device=x.device, dtype=torch.float32)
    frequency = torch.exp(index * (-math.log(max_period) / half))
    angle = x.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def rotary_tables(
    positions: Tensor, head_width: int, longest: float = 4000.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary angles at real-valued positions [l] -> two of [l, head_width / 2].

    Periods run from 4 to `longest` positions: short enough to point at one token, long enough for
    the whole window.
    """
    half = head_width // 2
    ramp = torch.arange(half, device=positions.device, dtype=torch.float32) / max(half - 1, 1)
    angle = positions.float()[:, None] * (2 * math.pi / (4.0 * (longest / 4.0) ** ramp))
    return angle.cos(), angle.sin()


def axial_tables(
    grid: tuple[int, int], head_width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rotary angles of a grid in raster order -> two of [rows columns, head_width / 2].

    One half of the pairs turns with the row, the other with the column, with periods up to four
    times the longer side, so that attention can find "one to the left" at once.

    Args:
        grid: rows and columns.
        head_width: a multiple of 4.
        device: of the tables.
    """
    longest = 4.0 * max(*grid, 2)
    row, column = (
        rotary_tables(torch.arange(side, device=device), head_width // 2, longest) for side in grid
    )
    cos, sin = (
        torch.cat(
            [
                rows[:, None].expand(-1, grid[1], -1),
                columns[None].expand(grid[0], -1, -1),
            ],
            dim=-1,
        ).flatten(0, 1)
        for rows, columns in zip(row, column, strict=True)
    )
    return cos, sin


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of x [b, h, l, d] by the angles of `rotary_tables`."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift are a function of a vector, such as the step's embedding.

    Args:
        width: channels that are normalised.
        signal_width: width of the vector; None for `width`.
    """

    def __init__(self, width: int, signal_width: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(signal_width or width, 2 * width)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """X [b, l, d], signal [b, c] -> [b, l, d]."""
        scale, shift = self.modulation(F.silu(signal))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class TableLayerNorm(AdaLayerNorm):
    """The released layout of AdaLN: every norm looks its vector up in a table of its own.

    Args:
        num_entries: steps or classes.
        width: channels that are normalised.
        table_width: width of the table; None for `width`.
    """

    def __init__(self, num_entries: int, width: int, table_width: int | None = None) -> None:
        super().__init__(width, table_width)
        self.table = nn.Embedding(num_entries, table_width or width)

    def forward(self, x: Tensor, signal: Tensor) -> Tensor:
        """X [b, l, d], signal int64 [b] -> [b, l, d]."""
        return super().forward(x, self.table(signal))


Rotation = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention of x on itself or on a condition, with rotary positions if given."""

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        query_rotation: Rotation | None = None,
        key_rotation: Rotation | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """X [b, l, d] attends to context [b, s, c] where mask [b, s] holds -> [b, l, d]."""

        def heads(y: Tensor, rotation: Rotation | None) -> Tensor:
            y = y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b h l d
            return y if rotation is None else rotate(y, rotation)

        key, value = self.key_value(context).chunk(2, dim=-1)
        # PyTorch's fused CPU kernel has a slow backward pass in bfloat16 (2.5 times the plain
        # products at 172 tokens); on other devices it chooses best by itself.
        plain = x.device.type == "cpu" and torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            mixed = F.scaled_dot_product_attention(
                heads(self.query(x), query_rotation),
                heads(key, key_rotation),
                heads(value, None),
                attn_mask=None if mask is None else mask[:, None, None],
            )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class ConvFeedForward(nn.Sequential):
    """A feed-forward part that also looks at the neighbours: 3 x 3 convolutions over the grid."""

    def __init__(self, width: int, hidden_width: int, grid: tuple[int, int]) -> None:
        super().__init__(
            nn.Conv2d(width, hidden_width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden_width, width, 3, padding=1),
        )
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """[b, l, d] in raster order -> [b, l, d]."""
        # Channels lie last in memory already, so neither permutation copies.
        y = super().forward(x.unflatten(1, self.grid).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).flatten(1, 2)


class Surroundings(NamedTuple):
    """What every block sees besides x."""

    step: Tensor
    """float [b, d], or int64 [b] in 0..T-1 where norms hold tables."""
    label: Tensor | None
    """int64 [b]."""
    sequence: Tensor | None
    """[b, s, c]."""
    mask: Tensor | None
    """bool [b, s]."""
    token_rotation: Rotation | None
    condition_rotation: Rotation | None


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a norm that knows the step.

    With tables the norm before the feed-forward part is a plain one, or one of the class: the
    released layout. Without a context there is no cross-attention.

    Args:
        width: channels.
        num_heads: attention heads.
        feedforward_multiple: hidden width of the feed-forward part over `width`.
        dropout: on every residual branch while training.
        context_width: width of what is attended to, or None.
        num_steps: T, where norms hold tables of steps; None where all share one embedding.
        num_labels: entries of the class tables, or None without them.
        label_width: width of the class tables.
        grid: rows and columns of the tokens for a convolutional feed-forward part, or None.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        feedforward_multiple: int,
        dropout: float,
        *,
        context_width: int | None,
        num_steps: int | None = None,
        num_labels: int | None = None,
        label_width: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()

        def step_norm() -> AdaLayerNorm:
            return AdaLayerNorm(width) if num_steps is None else TableLayerNorm(num_steps, width)

        self.norm_self = step_norm()
        self.attend_self = Attention(width, num_heads)
        self.norm_cross = self.attend_cross = None
        if context_width is not None:
            self.norm_cross = step_norm()
            self.attend_cross = Attention(width, num_heads, context_width)
        self.norm_feedforward: AdaLayerNorm | nn.LayerNorm
        if num_steps is None:
            self.norm_feedforward = AdaLayerNorm(width)
        elif num_labels is not None:
            self.norm_feedforward = TableLayerNorm(num_labels, width, label_width)
        else:
            self.norm_feedforward = nn.LayerNorm(width)
        hidden = feedforward_multiple * width
        self.feedforward = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            if grid is None
            else ConvFeedForward(width, hidden, grid)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, around: Surroundings) -> Tensor:
        """[b, l, d] -> [b, l, d]."""
        rotation = around.token_rotation
        y = self.norm_self(x, around.step)
        x = x + self.dropout(self.attend_self(y, y, rotation, rotation))
        if self.norm_cross is not None and self.attend_cross is not None:
            y = self.norm_cross(x, around.step)
            # Without a place of its own a condition is met by queries that have none either.
            theirs = around.condition_rotation
            mine = None if theirs is None else rotation
            y = self.attend_cross(y, around.sequence, mine, theirs, around.mask)
            x = x + self.dropout(y)
        match self.norm_feedforward:
            case TableLayerNorm():
                y = self.norm_feedforward(x, around.label)
            case AdaLayerNorm():
                y = self.norm_feedforward(x, around.step)
            case _:
                y = self.norm_feedforward(x)
        return x + self.dropout(self.feedforward(y))
