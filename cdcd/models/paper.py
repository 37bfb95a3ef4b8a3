"""Shapes of the published networks, for parameter counts and measurements at paper scale."""

from __future__ import annotations

from typing import Literal

from cdcd.models.conditioner import DanceSpec
from cdcd.models.model import ConditionerSpec, ModelSpec
from cdcd.models.picture_conditioner import ClassSpec, TextSpec

PaperNetwork = Literal["dance2music", "text2image", "class2image", "class2image_370m"]


def paper_spec(name: PaperNetwork, checkpoint_blocks: bool = False) -> ModelSpec:
    """The shape of a published network in the released layout (`modulation: tables`).

    `dance2music`: 19 blocks of 1024 over 344 tokens (2 s) of 2048 codes (Sec. 4.1; D36: 406.5 M).
    `text2image`: 18 blocks of 192 over 32 x 32 tokens of 2887 codes (C.2; D38: 35.8 M).
    `class2image`: 24 blocks of 512 over 16 x 16 tokens of 974 codes (released; D37: 517.8 M).
    `class2image_370m`: the paper counts 370 M for this task and states no width or depth; "other
    parameters as in text-to-image" (C.3) would give 20 times fewer. The released kind of block
    (width 512, which is also the embedding C.3 states, fourfold convolutions, AdaLN of the class)
    comes nearest at 17 blocks: 367.1 M; 16 and 18 blocks have 345.5 M and 388.6 M.

    Args:
        name: which network.
        checkpoint_blocks: recompute each block in the backward pass to save memory.
    """

    def spec(
        num_codes: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        multiple: int,
        conditioner: ConditionerSpec,
    ) -> ModelSpec:
        return ModelSpec(
            num_codes=num_codes,
            num_steps=80,
            num_tokens=grid[0] * grid[1],
            grid=grid,
            width=width,
            depth=depth,
            num_heads=16,
            feedforward_multiple=multiple,
            feedforward="conv",
            modulation="tables",
            dropout=0.0,
            checkpoint_blocks=checkpoint_blocks,
            conditioner=conditioner,
        )

    match name:
        case "text2image":
            return spec(2887, (32, 32), 192, 18, 2, TextSpec(512, 77))
        case "class2image":
            return spec(974, (16, 16), 512, 24, 4, ClassSpec(1000))
        case "class2image_370m":
            return spec(974, (16, 16), 512, 17, 4, ClassSpec(1000))
        case "dance2music":
            return ModelSpec(
                num_codes=2048,
                num_steps=80,
                num_tokens=344,
                grid=None,
                width=1024,
                depth=19,
                num_heads=16,
                feedforward_multiple=4,
                feedforward="linear",
                modulation="tables",
                dropout=0.0,
                checkpoint_blocks=checkpoint_blocks,
                conditioner=DanceSpec(
                    kind="single_token",
                    token_rate_hz=22050 / 128,
                    width=1024,
                    depth=1,
                    is_frozen=True,
                    motion_dim=219,
                    motion_rate_hz=60.0,
                    motion_frames=120,
                    video_dim=1024,
                    video_rate_hz=1.0,
                    num_genres=10,
                ),
            )
