"""The VQ-GAN: a convolutional encoder and decoder of pictures around a codebook.

The architecture is that of Esser et al. (2021), "Taming Transformers for High-Resolution Image
Synthesis". Modules are named as in the released state dicts, so that those load strictly, see
`cdcd.codecs.taming`. Two codebooks exist: the nearest code of `Codebook`, which is also the one
trained here, and for released weights the categorical one, argmax of a 1 x 1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.codecs.codebook import Codebook
from kernels.nearest_code import nearest_code

Quantizer = Literal["nearest", "gumbel"]


def group_norm(width: int) -> nn.GroupNorm:
    """Four channels a group, at most 32 groups, as many as divide the width; eps 1e-6."""
    most = min(32, max(1, width // 4))
    groups = next(groups for groups in range(most, 0, -1) if width % groups == 0)
    return nn.GroupNorm(groups, width, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv2(swish(norm2(conv1(swish(norm1(x)))))), x by a 1 x 1 where the width changes."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width_in, h, w]` to `[b, width, h, w]`."""
        residual = self.conv1(F.silu(self.norm1(x)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """x + self-attention over all places, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, d, h, w]` to the same shape."""
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).mT for part in (self.q, self.k, self.v))  # b (h w) d
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(found.mT.reshape(x.shape))


class Downsample(nn.Module):
    """Half the side: a convolution of stride 2, padded to the right and below only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, d, 2 h, 2 w]` to `[b, d, h, w]`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: every value repeated, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, d, h, w]` to `[b, d, 2 h, 2 w]`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention or none, then perhaps a resampling."""

    downsample: Downsample | None
    upsample: Upsample | None

    def __init__(
        self,
        width_in: int,
        width: int,
        num_blocks: int,
        *,
        has_attention: bool,
        resample: Literal["down", "up", "none"],
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(width_in if block == 0 else width, width) for block in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(width) for _ in range(num_blocks if has_attention else 0)
        )
        self.downsample = Downsample(width) if resample == "down" else None
        self.upsample = Upsample(width) if resample == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width_in, h, w]` to `[b, width, h', w']`, the sides halved, doubled or kept."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """A residual block, attention and another residual block at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width, h, w]` to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures in [-1, 1] to latents: `[b, 3, h, w]` to `[b, latent_width, h / f, w / f]`."""

    def __init__(
        self, widths: Sequence[int], num_res_blocks: int, attention: Sequence[bool], latent: int
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[max(0, i - 1)],
                widths[i],
                num_res_blocks,
                has_attention=attention[i],
                resample="none" if i == last else "down",
            )
            for i in range(len(widths))
        )
        self.mid = Middle(widths[last])
        self.norm_out = group_norm(widths[last])
        self.conv_out = nn.Conv2d(widths[last], latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `[b, 3, h, w]`."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to pictures about [-1, 1]: the encoder backwards, one more block at each level."""

    def __init__(
        self, widths: Sequence[int], num_res_blocks: int, attention: Sequence[bool], latent: int
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(latent, widths[last], 3, padding=1)
        self.mid = Middle(widths[last])
        # Level i works at the same resolution as the encoder's; the last is the first to run.
        self.up = nn.ModuleList(
            Level(
                widths[min(last, i + 1)],
                widths[i],
                num_res_blocks + 1,
                has_attention=attention[i],
                resample="none" if i == 0 else "up",
            )
            for i in range(len(widths))
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Decode `[b, latent_width, h / f, w / f]` to `[b, 3, h, w]`."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class GumbelCodebook(nn.Module):
    """The codebook of released Gumbel-softmax codecs: a code is the argmax of a 1 x 1 convolution.

    It is read, not trained here.
    """

    codes: Tensor

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, num_codes, 1)
        self.register_buffer("codes", torch.zeros(num_codes, width))

    def assign(self, rows: Tensor) -> Tensor:
        """Codes int64 `[n]` of encoder outputs `[n, d]`."""
        tokens = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            logits = F.linear(part, self.proj.weight[:, :, 0, 0], self.proj.bias)
            tokens[start : start + _ROWS] = logits.argmax(dim=1)
        return tokens

    def look_up(self, tokens: Tensor) -> Tensor:
        """Codes `[b, d, l]` of tokens `[b, l]`."""
        return F.embedding(tokens.long(), self.codes).mT


_ROWS = 8192
"""Rows compared with all codes at a time."""


@dataclass(frozen=True)
class Reconstruction:
    """One pass through the whole codec in training.

    Attributes:
        pictures: float32 `[b, 3, h, w]` about [-1, 1].
        tokens: int64 `[b, l]`.
        commitment: scalar, see `Codebook`.
    """

    pictures: Tensor
    tokens: Tensor
    commitment: Tensor


class VQGAN(nn.Module):
    """A codec of pictures: uint8 RGB to a raster of tokens and back.

    Args:
        image_size: pixels per side that `attention_sizes` refers to, and that it is made for.
        channels: width of the highest resolution.
        multiples: width at each resolution over `channels`, from the picture inwards; each after
            the first halves the side, so that the factor is `2 ** (len(multiples) - 1)`.
        num_res_blocks: residual blocks per resolution of the encoder; the decoder has one more.
        attention_sizes: sides of the feature maps with attention after each residual block.
        latent_width: channels of the encoder's output and the decoder's input.
        code_width: size of a code.
        num_codes: size of the codebook.
        quantizer: nearest code, or for released weights the argmax of logits.
        num_used: how many tokens there are where the codebook's codes are remapped to fewer, see
            `remap`; None where they are not.
        ema_decay: see `Codebook`.
        restart_threshold: see `Codebook`.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    mapping: Tensor
    full_codes: Tensor

    def __init__(
        self,
        *,
        image_size: int = 64,
        channels: int = 32,
        multiples: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 1,
        attention_sizes: Sequence[int] = (8,),
        latent_width: int = 64,
        code_width: int = 64,
        num_codes: int = 512,
        quantizer: Quantizer = "nearest",
        num_used: int | None = None,
        ema_decay: float = 0.99,
        restart_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(multiples) - 1)
        if not multiples or min(multiples) < 1 or num_res_blocks < 1:
            raise ValueError(
                "multiples must be positive widths, and num_res_blocks at least 1: got "
                f"{list(multiples)} and {num_res_blocks}"
            )
        check_grid(image_size, self.factor, "image_size")
        sides = [image_size // 2**level for level in range(len(multiples))]
        unknown = sorted(set(attention_sizes) - set(sides))
        if unknown:
            raise ValueError(
                f"attention_sizes must be sides of feature maps, {sides} for image_size "
                f"{image_size}: got {unknown}; use some of those, or []"
            )
        self.arguments: dict[str, Any] = {
            "image_size": image_size,
            "channels": channels,
            "multiples": list(multiples),
            "num_res_blocks": num_res_blocks,
            "attention_sizes": list(attention_sizes),
            "latent_width": latent_width,
            "code_width": code_width,
            "num_codes": num_codes,
            "quantizer": quantizer,
            "num_used": num_used,
        }
        self.image_size = image_size
        self.num_codes = num_codes if num_used is None else num_used
        widths = [channels * multiple for multiple in multiples]
        attention = [side in attention_sizes for side in sides]
        self.encoder = Encoder(widths, num_res_blocks, attention, latent_width)
        self.decoder = Decoder(widths, num_res_blocks, attention, latent_width)
        self.quant_conv = nn.Conv2d(latent_width, code_width, 1)
        self.post_quant_conv = nn.Conv2d(code_width, latent_width, 1)
        self.codebook: Codebook | GumbelCodebook
        if quantizer == "nearest":
            self.codebook = Codebook(
                num_codes, code_width, decay=ema_decay, restart_threshold=restart_threshold
            )
        else:
            self.codebook = GumbelCodebook(num_codes, code_width)
        if num_used is not None:
            # Token of each code of the codebook, and a code of each token.
            self.register_buffer("mapping", torch.zeros(num_codes, dtype=torch.int64))
            self.register_buffer("full_codes", torch.zeros(num_used, dtype=torch.int64))
        self.apply(_start)

    @property
    def is_remapped(self) -> bool:
        """Whether tokens are numbers of used codes rather than of all codes."""
        return self.arguments["num_used"] is not None

    def remap(self, mapping: Tensor) -> None:
        """Set the token of each code of the codebook; a token stands for the first of its codes.

        Args:
            mapping: int64 `[codes of the codebook]`, every value of `0 .. num_used - 1` in it.
        """
        assert self.is_remapped
        assert mapping.shape == self.mapping.shape
        self.mapping.copy_(mapping)
        places = torch.arange(len(mapping), device=mapping.device)
        first = torch.full_like(self.full_codes, len(mapping))
        self.full_codes.copy_(first.scatter_reduce(0, mapping, places, "amin"))

    def forward(self, pictures: Tensor, is_quantized: bool = True) -> Reconstruction:
        """Encode, quantise and decode `[b, 3, h, w]` in [-1, 1]; gradient passes through.

        In training mode the codebook follows the batch. Without quantisation the decoder reads the
        latents as they are, the codebook is left alone, and there are no tokens.
        """
        assert isinstance(self.codebook, Codebook), "a Gumbel codebook is not trained"
        latents = self.quant_conv(self.encoder(pictures))  # b d h/f w/f
        if not is_quantized:
            decoded = self.decoder(self.post_quant_conv(latents)).float()
            tokens = torch.empty(len(pictures), 0, dtype=torch.int64, device=pictures.device)
            return Reconstruction(decoded, tokens, decoded.new_zeros(()))
        quantized = self.codebook(latents.flatten(2))
        vectors = quantized.vectors.reshape(latents.shape)
        decoded = self.decoder(self.post_quant_conv(vectors))
        return Reconstruction(decoded.float(), quantized.tokens, quantized.commitment)

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 `[b, 3, h, w]` to tokens int64 `[b, (h / f) (w / f)]`, row by row.

        Raises:
            ValueError: no uint8 RGB pictures, or sides that are no multiples of the factor.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.dtype != torch.uint8:
            raise ValueError(
                "pictures must be uint8 [b, 3, h, w] to be encoded: got "
                f"{str(pictures.dtype).removeprefix('torch.')} {list(pictures.shape)}"
            )
        b, _, height, width = pictures.shape
        for side in (height, width):
            check_grid(side, self.factor, "a picture's side")
        length = height * width // self.factor**2
        if b == 0:
            return torch.empty(b, length, dtype=torch.int64, device=pictures.device)
        latents = self.quant_conv(self.encoder(to_unit(pictures)))  # b d h/f w/f
        rows = latents.flatten(2).mT.reshape(b * length, -1)
        if isinstance(self.codebook, Codebook):
            tokens = nearest_code(rows, self.codebook.codes).codes
        else:
            tokens = self.codebook.assign(rows)
        if self.is_remapped:
            tokens = self.mapping[tokens]
        return tokens.reshape(b, length)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens `[b, l]` of a square grid to pictures uint8 `[b, 3, h, w]`.

        Raises:
            ValueError: l is no square, or a token lies outside `0 .. num_codes - 1`, e.g. a [MASK]
                that was left.
        """
        b, length = tokens.shape
        side = math.isqrt(length)
        if side**2 != length or side == 0:
            raise ValueError(
                f"tokens must fill a square grid to be decoded: got {length} per picture; use "
                "as many rows as columns"
            )
        if b == 0:
            pixels = side * self.factor
            return torch.empty(b, 3, pixels, pixels, dtype=torch.uint8, device=tokens.device)
        if tokens.min() < 0 or tokens.max() >= self.num_codes:
            raise ValueError(
                f"tokens must lie in 0..{self.num_codes - 1} to be decoded: got "
                f"{int(tokens.min())}..{int(tokens.max())}; sample until no [MASK] is left"
            )
        if self.is_remapped:
            tokens = self.full_codes[tokens.long()]
        vectors = self.codebook.look_up(tokens).reshape(b, -1, side, side)
        return to_bytes(self.decoder(self.post_quant_conv(vectors)))


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """Float [-1, 1], clipped, to uint8 0 .. 255."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_grid(side: int, factor: int, name: str) -> None:
    """Refuse a side that is not a whole number of tokens.

    Raises:
        ValueError: as said.
    """
    if side < factor or side % factor:
        raise ValueError(
            f"{name} must be a multiple of the codec's factor {factor}: got {side} pixels; use "
            f"{max(1, round(side / factor)) * factor}"
        )


def _start(module: nn.Module) -> None:
    # Blocks start as the identity and convolutions keep the variance: a training of a few minutes
    # has no time to mend what PyTorch's own start shrinks.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        nn.init.zeros_(module.conv2.weight)
    elif isinstance(module, AttentionBlock):
        nn.init.zeros_(module.proj_out.weight)
