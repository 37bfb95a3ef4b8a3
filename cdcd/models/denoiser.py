"""The denoising network p_theta(z_0 | z_t, t, c): a transformer over the token sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdcd.models.blocks import AdaLayerNorm, Block, rotary_tables, sinusoidal
from cdcd.models.conditioner import Condition


class Denoiser(nn.Module):
    """Scores of the clean tokens given noised ones, a step and a condition.

    The paper's network: 19 blocks of width 1024, each self-attention, cross-attention and
    feed-forward with AdaLN on t (Sec. 4.1). Positions enter as rotary angles in token units, for
    tokens and condition alike, so that attention can find "the same moment" at once.

    Args:
        num_codes: K; the input vocabulary is K + 1 with [MASK].
        num_steps: T.
        num_tokens: tokens of the trained window.
        width: channels of every block.
        depth: blocks.
        num_heads: attention heads; width must be a multiple of twice as many.
        feedforward_multiple: hidden width of the feed-forward part over `width`.
        dropout: on every residual branch while training.
        checkpoint_blocks: recompute each block in the backward pass to save memory.
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
    ) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.num_steps = num_steps
        self.num_tokens = num_tokens
        self.width = width
        self.head_width = width // num_heads
        self.checkpoint_blocks = checkpoint_blocks
        self.tokens = nn.Embedding(num_codes + 1, width)
        self.positions = nn.Parameter(torch.zeros(num_tokens, width))
        self.step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, feedforward_multiple, dropout) for _ in range(depth)
        )
        self.norm_out = AdaLayerNorm(width)
        self.head = nn.Linear(width, num_codes)
        self.apply(_initialise)
        # Residual branches start small: the sum over depth keeps the scale of one.
        for name, weight in self.blocks.named_parameters():
            if name.endswith((".out.weight", "feedforward.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Tokens int64 [b, l] at steps int64 [b] -> logits [b, l, K]."""
        return self.head(self.hidden(z_t, t, condition))

    def hidden(self, z_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What `head` turns into logits, [b, l, d]."""
        length = z_t.shape[1]
        x = self.tokens(z_t) + self.positions[:length]
        if condition.aligned is not None:
            x = x + condition.aligned
        # Steps are spread over 0..4000 so that neighbours differ at every T.
        step = self.step(sinusoidal(t * (4000.0 / self.num_steps), self.width).to(x.dtype))
        where = torch.arange(length, device=z_t.device, dtype=torch.float32)
        token_rotation = rotary_tables(where, self.head_width)
        condition_rotation = rotary_tables(condition.positions, self.head_width)
        for block in self.blocks:
            arguments = (x, step, condition.sequence, token_rotation, condition_rotation)
            if self.checkpoint_blocks and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return self.norm_out(x, step)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, AdaLayerNorm):
        nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(module.modulation.bias)
