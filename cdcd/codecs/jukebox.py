"""Jukebox's VQ-VAE: strided convolutions with dilated residual stacks around a codebook.

The architecture is that of Dhariwal et al. (2020), one level of it: `JukeboxVQVAE()` with the
defaults is numerically the released top level (hop 128, 2048 codes). Two choices make it cheap
enough to train on a CPU: channels that grow as the rate falls, and no residual blocks at the
highest rates, where they cost most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdcd.codecs.codebook import Codebook
from kernels.nearest_code import nearest_code


class ResidualBlock(nn.Module):
    """x + conv1(relu(conv3(relu(x)))), the first convolution dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.point = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width, l]` to the same shape."""
        return x + self.point(torch.relu(self.wide(torch.relu(x))))


def _residual_stack(width: int, dilations: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width, dilation) for dilation in dilations))


class Down(nn.Module):
    """Halve the rate, then a residual stack whose dilation grows."""

    def __init__(self, width_in: int, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width_in, width, 4, stride=2, padding=1)
        self.stack = _residual_stack(width, dilations)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width_in, 2 l]` to `[b, width, l]`."""
        return self.stack(self.conv(x))


class Up(nn.Module):
    """A residual stack whose dilation shrinks, then twice the rate."""

    def __init__(self, width: int, width_out: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.dilations = tuple(reversed(dilations))
        self.stack = _residual_stack(width, self.dilations)
        self.conv = nn.ConvTranspose1d(width, width_out, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, width, l]` to `[b, width_out, 2 l]`."""
        return self.conv(self.stack(x))


@dataclass(frozen=True)
class Reconstruction:
    """One pass through the whole codec in training.

    Attributes:
        audio: float32 `[b, n]`.
        tokens: int64 `[b, n // hop]`.
        commitment: scalar, see `Codebook`.
    """

    audio: Tensor
    tokens: Tensor
    commitment: Tensor


class JukeboxVQVAE(nn.Module):
    """One level of Jukebox's VQ-VAE.

    Args:
        groups: halvings of the rate between projections to `code_width`, from the sound inwards;
            the hop is `2 ** sum(groups)`. Jukebox's three levels share this cut: (3, 2, 2).
        width: channels after the first halving.
        max_width: channels double with every further halving up to this; None keeps `width`.
        depth: residual blocks at each rate.
        num_plain: how many of the highest rates go without residual blocks.
        dilation_growth: block i of a stack has dilation `dilation_growth ** i`.
        code_width: size of a code.
        edge_width: channels before the last convolution to sound; None is `code_width`.
        num_codes: size of the codebook.
        sample_rate_hz: of the mono sound.
        ema_decay: see `Codebook`.
        restart_threshold: see `Codebook`.

    Raises:
        ValueError: groups are empty or not positive.
    """

    def __init__(
        self,
        *,
        groups: Sequence[int] = (3, 2, 2),
        width: int = 32,
        max_width: int | None = None,
        depth: int = 4,
        num_plain: int = 0,
        dilation_growth: int = 3,
        code_width: int = 64,
        edge_width: int | None = None,
        num_codes: int = 2048,
        sample_rate_hz: int = 22050,
        ema_decay: float = 0.99,
        restart_threshold: float = 1.0,
    ) -> None:
        super().__init__()
        if not groups or min(groups) < 1:
            raise ValueError(f"groups must be positive numbers of halvings: got {tuple(groups)}")
        edge_width = edge_width or code_width
        max_width = max_width or width
        self.arguments: dict[str, Any] = {
            "groups": list(groups),
            "width": width,
            "max_width": max_width,
            "depth": depth,
            "num_plain": num_plain,
            "dilation_growth": dilation_growth,
            "code_width": code_width,
            "edge_width": edge_width,
            "num_codes": num_codes,
            "sample_rate_hz": sample_rate_hz,
        }
        self.sample_rate_hz = sample_rate_hz
        self.hop = 2 ** sum(groups)
        self.num_codes = num_codes

        widths = [min(width * 2**rate, max(width, max_width)) for rate in range(sum(groups))]
        dilations = [dilation_growth**block for block in range(depth)]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []  # from the sound inwards; reversed below
        rate = 0
        for group, num_halvings in enumerate(groups):
            outer_in = code_width if group else 1
            outer_out = code_width if group else edge_width
            first = rate
            for rate in range(first, first + num_halvings):
                here = dilations if rate >= num_plain else []
                is_first = rate == first
                encoder.append(Down(outer_in if is_first else widths[rate - 1], widths[rate], here))
                decoder.append(Up(widths[rate], outer_out if is_first else widths[rate - 1], here))
            encoder.append(nn.Conv1d(widths[rate], code_width, 3, padding=1))
            decoder.append(nn.Conv1d(code_width, widths[rate], 3, padding=1))
            rate += 1
        self.encoder = nn.Sequential(*encoder)
        self.codebook = Codebook(
            num_codes, code_width, decay=ema_decay, restart_threshold=restart_threshold
        )
        self.decoder = nn.Sequential(*reversed(decoder))
        self.out = nn.Conv1d(edge_width, 1, 3, padding=1)
        self.apply(_keep_variance)

    @property
    def context_tokens(self) -> int:
        """Tokens to either side that a token's sound depends on, from the layers themselves."""
        low, high = 0, self.hop - 1  # samples of token 0, followed back to tokens
        low, high = low - 1, high + 1
        for layer in reversed(self.decoder):
            if isinstance(layer, Up):
                # A transposed convolution of kernel 4, stride 2, padding 1 writes sample o from
                # positions (o + 1 - k) / 2, k = 0..3.
                low, high = -((2 - low) // 2), (high + 1) // 2
                low, high = low - sum(layer.dilations), high + sum(layer.dilations)
            else:
                low, high = low - 1, high + 1
        return max(-low, high)

    def forward(self, audio: Tensor) -> Reconstruction:
        """Encode, quantise and decode `[b, n]`, n a multiple of the hop; gradient passes through.

        In training mode the codebook follows the batch.
        """
        quantized = self.codebook(self.encoder(audio[:, None]))
        sound = self.out(self.decoder(quantized.vectors))[:, 0]
        return Reconstruction(sound.float(), quantized.tokens, quantized.commitment)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Sound float32 `[b, n]` to tokens int64 `[b, n // hop]`."""
        b, length = len(audio), audio.shape[1] // self.hop
        if b == 0 or length == 0:
            return torch.empty(b, length, dtype=torch.int64, device=audio.device)
        vectors = self.encoder(audio[:, None, : length * self.hop])  # b d l
        rows = vectors.transpose(1, 2).reshape(b * length, -1)
        return nearest_code(rows, self.codebook.codes).codes.reshape(b, length)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens `[b, l]` to sound float32 `[b, l * hop]`.

        Raises:
            ValueError: a token lies outside `0 .. num_codes - 1`, e.g. a [MASK] that was left.
        """
        b, length = tokens.shape
        if b == 0 or length == 0:
            return torch.empty(b, length * self.hop, device=tokens.device)
        if tokens.min() < 0 or tokens.max() >= self.num_codes:
            raise ValueError(
                f"tokens must lie in 0..{self.num_codes - 1} to be decoded: got "
                f"{int(tokens.min())}..{int(tokens.max())}; sample until no [MASK] is left"
            )
        return self.out(self.decoder(self.codebook.look_up(tokens)))[:, 0]


def _keep_variance(module: nn.Module) -> None:
    # PyTorch's own start shrinks a signal by sqrt(3) in each strided convolution and by sqrt(6) in
    # each transposed one: a thousandfold over eight halvings, which a short training never mends.
    # Residual blocks start as the identity.
    if isinstance(module, ResidualBlock):
        nn.init.kaiming_normal_(module.wide.weight, nonlinearity="relu")
        nn.init.zeros_(module.point.weight)
    elif isinstance(module, nn.ConvTranspose1d):
        # Kernel 4 at stride 2: two taps of every input channel meet in an output.
        nn.init.normal_(module.weight, std=(2 * module.in_channels) ** -0.5)
    elif isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def groups_of_hop(hop: int) -> tuple[int, ...]:
    """Cut a hop of 2^n into Jukebox's groups: three halvings, then two at a time.

    128 gives (3, 2, 2), as released; an odd remainder joins the last group.

    Raises:
        ValueError: the hop is not a power of two of at least 8.
    """
    halvings = hop.bit_length() - 1
    if hop != 2**halvings or halvings < 3:
        raise ValueError(f"codec.hop must be a power of two of at least 8: got {hop}")
    groups = [3] + [2] * ((halvings - 3) // 2)
    if (halvings - 3) % 2:
        groups[-1] += 1
    return tuple(groups)
