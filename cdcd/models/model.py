"""The trained thing: conditioner and denoiser, joined, and the facts that rebuild them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from cdcd.models.conditioner import (
    Condition,
    ConditionInputs,
    SequenceConditioner,
    SingleTokenConditioner,
)
from cdcd.models.denoiser import Denoiser


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes the network's shape; stored beside the weights."""

    num_codes: int
    num_steps: int
    num_tokens: int
    token_rate_hz: float
    width: int
    depth: int
    num_heads: int
    feedforward_multiple: int
    dropout: float
    checkpoint_blocks: bool
    conditioner: str
    encoder_width: int
    encoder_depth: int
    encoders_frozen: bool
    motion_dim: int | None
    motion_rate_hz: float
    motion_frames: int
    video_dim: int | None
    video_rate_hz: float
    num_genres: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class ConditionalDenoiser(nn.Module):
    """Conditioner and denoiser as one module, so that one optimiser trains both."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.denoiser = Denoiser(
            spec.num_codes,
            spec.num_steps,
            spec.num_tokens,
            spec.width,
            spec.depth,
            spec.num_heads,
            spec.feedforward_multiple,
            spec.dropout,
            spec.checkpoint_blocks,
        )
        self.conditioner: SequenceConditioner | SingleTokenConditioner
        if spec.conditioner == "sequence":
            self.conditioner = SequenceConditioner(
                spec.width,
                spec.num_tokens,
                spec.token_rate_hz,
                spec.motion_dim,
                spec.motion_rate_hz,
                spec.video_dim,
                spec.video_rate_hz,
                spec.encoder_width,
                spec.encoder_depth,
                spec.num_genres,
            )
        else:
            self.conditioner = SingleTokenConditioner(
                spec.width,
                spec.motion_frames,
                spec.motion_dim or 219,
                spec.video_dim,
                spec.num_genres,
            )
            if spec.encoders_frozen:
                self.conditioner.freeze()

    def encode(self, inputs: ConditionInputs) -> Condition:
        """Features to the condition; once per batch, however many denoiser calls follow."""
        return self.conditioner(inputs)

    def forward(
        self, z_t: Tensor, t: Tensor, inputs: ConditionInputs, has_head: bool = True
    ) -> Tensor:
        """Tokens [b, l] at steps [b] -> logits [b, l, K]; without its head what that would see."""
        condition = self.conditioner(inputs)
        if has_head:
            return self.denoiser(z_t, t, condition)
        return self.denoiser.hidden(z_t, t, condition)
