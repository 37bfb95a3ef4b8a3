"""Transformer parts: AdaLN on t, rotary attention over physical time, feed-forward."""

from __future__ import annotations

import math
from contextlib import nullcontext

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


def rotary_tables(positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary angles at real-valued positions [l] -> two of [l, head_width / 2].

    Periods run from 4 to 4,000 positions: short enough to point at one token, long enough for the
    whole window.
    """
    half = head_width // 2
    ramp = torch.arange(half, device=positions.device, dtype=torch.float32) / max(half - 1, 1)
    angle = positions.float()[:, None] * (2 * math.pi / (4.0 * 1000.0**ramp))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of x [b, h, l, d] by the angles of `rotary_tables`."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift are a function of the step's embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """X [b, l, d], step [b, d] -> [b, l, d]."""
        scale, shift = self.modulation(F.silu(step))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention of x on itself or on a condition, with rotary positions."""

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
        query_rotation: tuple[Tensor, Tensor],
        key_rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        """X [b, l, d] attends to context [b, s, c] -> [b, l, d]."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b h l d

        key, value = self.key_value(context).chunk(2, dim=-1)
        # PyTorch's fused CPU kernel has a slow backward pass in bfloat16 (2.5 times the plain
        # products at 172 tokens); on other devices it chooses best by itself.
        plain = x.device.type == "cpu" and torch.is_grad_enabled()
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            mixed = F.scaled_dot_product_attention(
                rotate(heads(self.query(x)), query_rotation),
                rotate(heads(key), key_rotation),
                heads(value),
            )
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind AdaLN on t."""

    def __init__(
        self, width: int, num_heads: int, feedforward_multiple: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_self = AdaLayerNorm(width)
        self.attend_self = Attention(width, num_heads)
        self.norm_cross = AdaLayerNorm(width)
        self.attend_cross = Attention(width, num_heads, width)
        self.norm_feedforward = AdaLayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward_multiple * width),
            nn.GELU(),
            nn.Linear(feedforward_multiple * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        condition: Tensor,
        token_rotation: tuple[Tensor, Tensor],
        condition_rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        """X [b, l, d], step [b, d], condition [b, s, d] -> [b, l, d]."""
        y = self.norm_self(x, step)
        x = x + self.dropout(self.attend_self(y, y, token_rotation, token_rotation))
        y = self.norm_cross(x, step)
        x = x + self.dropout(self.attend_cross(y, condition, token_rotation, condition_rotation))
        return x + self.dropout(self.feedforward(self.norm_feedforward(x, step)))
