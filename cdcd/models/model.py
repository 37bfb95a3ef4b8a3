"""The trained thing: conditioner and denoiser, joined, and the facts that rebuild them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from cdcd.models.conditioner import (
    Condition,
    DanceSpec,
    SequenceConditioner,
    SingleTokenConditioner,
)
from cdcd.models.denoiser import Denoiser
from cdcd.models.inputs import Inputs
from cdcd.models.picture_conditioner import (
    ClassConditioner,
    ClassSpec,
    TextConditioner,
    TextSpec,
)

ConditionerSpec = DanceSpec | TextSpec | ClassSpec


@dataclass(frozen=True)
class ModelSpec:
    """Everything that fixes the network's shape; stored beside the weights.

    Attributes:
        num_codes: K.
        num_steps: T.
        num_tokens: tokens of a window or picture.
        grid: rows and columns of a picture's tokens, in raster order; None for sound.
        width: channels of every block.
        depth: blocks.
        num_heads: attention heads.
        feedforward_multiple: hidden width of the feed-forward part over `width`.
        feedforward: `linear`, or `conv`: 3 x 3 convolutions over the grid.
        modulation: `shared` makes scales and shifts from one embedding of the step; `tables` is the
            released layout, a table over steps for each norm.
        dropout: on every residual branch while training.
        checkpoint_blocks: recompute each block in the backward pass to save memory.
        conditioner: what the network is told, and how.
    """

    num_codes: int
    num_steps: int
    num_tokens: int
    grid: tuple[int, int] | None
    width: int
    depth: int
    num_heads: int
    feedforward_multiple: int
    feedforward: Literal["linear", "conv"]
    modulation: Literal["shared", "tables"]
    dropout: float
    checkpoint_blocks: bool
    conditioner: ConditionerSpec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        tree = asdict(self)
        tree["grid"] = None if self.grid is None else list(self.grid)
        return tree

    @staticmethod
    def from_dict(tree: dict[str, Any]) -> ModelSpec:
        """What `to_dict` gave, read back.

        Raises:
            ValueError: the tree has other fields, as models of earlier versions do; one line.
        """
        try:
            fields = dict(tree)
            grid = fields.pop("grid")
            told = dict(fields.pop("conditioner"))
            conditioner: ConditionerSpec
            match told["kind"]:
                case "text":
                    conditioner = TextSpec(**told)
                case "class":
                    conditioner = ClassSpec(**told)
                case "sequence" | "single_token":
                    conditioner = DanceSpec(**told)
                case other:
                    raise ValueError(f"unknown conditioner {other}")
            return ModelSpec(grid=grid and tuple(grid), conditioner=conditioner, **fields)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"spec must be what this version writes: {' '.join(str(error).split())}; train "
                "again, or load it with the version that trained it"
            ) from None


class ConditionalDenoiser(nn.Module):
    """Conditioner and denoiser as one module, so that one optimiser trains both."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        told = spec.conditioner
        has_tables = spec.modulation == "tables"
        context_width: int | None = spec.width
        vector_width = num_labels = None
        match told:
            case TextSpec():
                context_width = told.dim
                vector_width = None if has_tables else told.dim
            case ClassSpec(mode="cross_attention"):
                context_width = told.dim
            case ClassSpec():
                context_width = None
                vector_width = told.dim
                num_labels = told.num_classes + 1 if has_tables else None
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
            grid=spec.grid,
            feedforward=spec.feedforward,
            modulation=spec.modulation,
            context_width=context_width,
            vector_width=vector_width,
            num_labels=num_labels,
        )
        self.conditioner: nn.Module
        match told:
            case TextSpec():
                self.conditioner = TextConditioner(told.dim, told.num_positions, not has_tables)
            case ClassSpec(mode=mode):
                by_tables = has_tables and mode == "adaln"
                self.conditioner = ClassConditioner(
                    told.num_classes, None if by_tables else told.dim, mode == "cross_attention"
                )
            case DanceSpec(kind="sequence"):
                self.conditioner = SequenceConditioner(
                    spec.width,
                    spec.num_tokens,
                    told.token_rate_hz,
                    told.motion_dim,
                    told.motion_rate_hz,
                    told.video_dim,
                    told.video_rate_hz,
                    told.width,
                    told.depth,
                    told.num_genres,
                )
            case DanceSpec():
                self.conditioner = SingleTokenConditioner(
                    spec.width,
                    told.motion_frames,
                    told.motion_dim or 219,
                    told.video_dim,
                    told.num_genres,
                )
                if told.is_frozen:
                    self.conditioner.freeze()

    def encode(self, inputs: Inputs) -> Condition:
        """Features to the condition; once per batch, however many denoiser calls follow."""
        condition: Condition = self.conditioner(inputs)
        return condition

    def forward(self, z_t: Tensor, t: Tensor, inputs: Inputs, has_head: bool = True) -> Tensor:
        """Tokens [b, l] at steps [b] -> logits [b, l, K]; without its head what that would see."""
        condition = self.encode(inputs)
        if has_head:
            logits: Tensor = self.denoiser(z_t, t, condition)
            return logits
        return self.denoiser.hidden(z_t, t, condition)
