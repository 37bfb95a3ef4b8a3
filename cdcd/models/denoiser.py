"""The denoising network p_theta(z_0 | z_t, t, c): a transformer over the tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdcd.models.blocks import (
    AdaLayerNorm,
    Block,
    Rotation,
    Surroundings,
    axial_tables,
    rotary_tables,
    sinusoidal,
)
from cdcd.models.conditioner import Condition


class Denoiser(nn.Module):
    """Scores of the clean tokens given noised ones, a step and a condition.

    The paper's networks: 19 blocks of width 1024 for sound (Sec. 4.1), 18 of width 192 for pictures
    from text (C.2), each self-attention, cross-attention and feed-forward with AdaLN on t.

    Positions of sound enter as rotary angles in token units, for tokens and condition alike, so
    that attention can find "the same moment" at once. Those of pictures are learned, a vector for
    each row and one for each column, added up; and, but for the released layout, rotary by row and
    by column, which finds neighbours many steps of training earlier.

    Args:
        num_codes: K; the input vocabulary is K + 1 with [MASK].
        num_steps: T.
        num_tokens: tokens of the trained window or picture.
        width: channels of every block.
        depth: blocks.
        num_heads: attention heads; width must be a multiple of 2 num_heads, for pictures of 4.
        feedforward_multiple: hidden width of the feed-forward part over `width`.
        dropout: on every residual branch while training.
        checkpoint_blocks: recompute each block in the backward pass to save memory.
        grid: rows and columns of a picture's tokens, in raster order; None for sound.
        feedforward: `linear`, or `conv`: 3 x 3 convolutions over the grid.
        modulation: `shared`: one embedding of the step for all norms; `tables`: a table over steps
            for each norm (the released layout).
        context_width: width of what is attended to; None without cross-attention.
        vector_width: width of the condition's vector, or None where it has none.
        num_labels: entries of the class tables of the `tables` modulation, or None.

    Raises:
        ValueError: the grid does not hold the tokens, or a convolution has none.
    """

    def __init__(
        self,
        num_codes: int,
        num_steps: int,
        num_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        feedforward_multiple: int = 4,
        dropout: float = 0.0,
        checkpoint_blocks: bool = False,
        *,
        grid: tuple[int, int] | None = None,
        feedforward: Literal["linear", "conv"] = "linear",
        modulation: Literal["shared", "tables"] = "shared",
        context_width: int | None,
        vector_width: int | None = None,
        num_labels: int | None = None,
    ) -> None:
        super().__init__()
        if grid is not None and grid[0] * grid[1] != num_tokens:
            raise ValueError(
                f"the grid must hold the {num_tokens} tokens: got {grid[0]} x {grid[1]}; "
                "run `dvc repro encode train`"
            )
        if feedforward == "conv" and grid is None:
            raise ValueError(
                "train.denoiser.feedforward: conv needs a grid of tokens: got a sequence; "
                "use linear"
            )
        has_tables = modulation == "tables"
        if grid is not None and not has_tables and width % (4 * num_heads):
            raise ValueError(
                "train.denoiser.width must be a multiple of 4 * num_heads for pictures, whose rows "
                f"and columns share each head: got {width} for {num_heads} heads; change one"
            )
        self.num_codes = num_codes
        self.num_steps = num_steps
        self.num_tokens = num_tokens
        self.width = width
        self.head_width = width // num_heads
        self.checkpoint_blocks = checkpoint_blocks
        self.grid = grid
        self.tokens = nn.Embedding(num_codes + 1, width)
        if grid is None:
            self.positions = nn.Parameter(torch.zeros(num_tokens, width))
        else:
            self.rows = nn.Parameter(torch.randn(grid[0], width) * 0.02)
            self.columns = nn.Parameter(torch.randn(grid[1], width) * 0.02)
        self.step = None
        if not has_tables:
            self.step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.vector = None
        if vector_width is not None and not has_tables:
            self.vector = nn.Linear(vector_width, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                num_heads,
                feedforward_multiple,
                dropout,
                context_width=context_width,
                num_steps=num_steps if has_tables else None,
                num_labels=num_labels,
                label_width=vector_width,
                grid=grid if feedforward == "conv" else None,
            )
            for _ in range(depth)
        )
        self.norm_out: AdaLayerNorm | nn.LayerNorm
        self.norm_out = nn.LayerNorm(width) if has_tables else AdaLayerNorm(width)
        self.head = nn.Linear(width, num_codes)
        self.apply(_initialise)
        # Residual branches start small: the sum over depth keeps the scale of one.
        for name, weight in self.blocks.named_parameters():
            if name.endswith((".out.weight", "feedforward.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Tokens int64 [b, l] at steps int64 [b] in 1..T -> logits [b, l, K]."""
        logits: Tensor = self.head(self.hidden(z_t, t, condition))
        return logits

    def hidden(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What `head` turns into logits, [b, l, d]."""
        length = z_t.shape[1]
        x = self.tokens(z_t) + self._where(length)
        if condition.aligned is not None:
            x = x + condition.aligned
        step = t - 1
        if self.step is not None:
            # Steps are spread over 0..4000 so that neighbours differ at every T.
            step = self.step(sinusoidal(t * (4000.0 / self.num_steps), self.width).to(x.dtype))
            if self.vector is not None:
                step = step + self.vector(condition.vector)
        around = Surroundings(
            step,
            condition.label,
            condition.sequence,
            condition.mask,
            self._rotation(length, z_t.device),
            None
            if condition.positions is None
            else rotary_tables(condition.positions, self.head_width),
        )
        for block in self.blocks:
            if self.checkpoint_blocks and self.training:
                x = checkpoint(block, x, around, use_reentrant=False)
            else:
                x = block(x, around)
        if isinstance(self.norm_out, AdaLayerNorm):
            return self.norm_out(x, step)
        return self.norm_out(x)

    def _where(self, length: int) -> Tensor:
        """Learned positions, [length, d]."""
        if self.grid is None:
            return self.positions[:length]
        return (self.rows[:, None] + self.columns).flatten(0, 1)[:length]

    def _rotation(self, length: int, device: torch.device) -> Rotation | None:
        """Rotary tables of the tokens; the released layout of pictures has none."""
        if self.grid is None:
            where = torch.arange(length, device=device, dtype=torch.float32)
            return rotary_tables(where, self.head_width)
        if self.step is None:
            return None
        return axial_tables(self.grid, self.head_width, device)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if not isinstance(module, nn.Embedding) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, AdaLayerNorm):
        nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(module.modulation.bias)
