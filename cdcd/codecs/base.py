"""What every codec offers, and decoding that needs only a part of the tokens at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor


class Codec(Protocol):
    """Sound to tokens and back; frozen, on one device, without gradient.

    Attributes:
        sample_rate_hz: of the mono sound it reads and writes.
        hop: samples per token.
        num_codes: tokens lie in `0 .. num_codes - 1`.
        context_tokens: a decoded sample depends on no token further than this from its own.
    """

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second."""
        ...

    @property
    def hop(self) -> int:
        """Samples per token."""
        ...

    @property
    def num_codes(self) -> int:
        """Size of the codebook."""
        ...

    @property
    def context_tokens(self) -> int:
        """Reach of the decoder, in tokens, to either side."""
        ...

    def encode(self, audio: Tensor) -> Tensor:
        """Sound float32 `[b, n]` in [-1, 1] to tokens int64 `[b, n // hop]`, the rest dropped."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens `[b, l]` of any integer type to sound float32 `[b, l * hop]`."""
        ...


class PictureCodec(Protocol):
    """Pictures to tokens and back; frozen, on one device, without gradient.

    Attributes:
        factor: pixels per token, along each side.
        num_codes: tokens lie in `0 .. num_codes - 1`.
        image_size: pixels per side of the pictures it was made for.
    """

    @property
    def factor(self) -> int:
        """Pixels per token, along each side."""
        ...

    @property
    def num_codes(self) -> int:
        """Number of different tokens."""
        ...

    @property
    def image_size(self) -> int:
        """Pixels per side."""
        ...

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 `[b, 3, h, w]` to tokens int64 `[b, (h / factor) (w / factor)]` by rows.

        Raises:
            ValueError: a side is no multiple of the factor.
        """
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens `[b, l]` of a square grid, of any integer type, to pictures uint8 `[b, 3, h, w]`.

        Raises:
            ValueError: l is no square, or a token is out of range.
        """
        ...


def decode_stream(
    codec: Codec, chunks: Iterable[Tensor], *, block_tokens: int = 1024
) -> Iterator[Tensor]:
    """Decode tokens that arrive in pieces, in bounded memory, as if decoded all at once.

    A sample is given out once the tokens it depends on have arrived, so the pieces of sound lag
    behind the pieces of tokens and have other lengths; their sum is exact.

    Args:
        codec: its `context_tokens` says how much to remember.
        chunks: integer tensors `[l]` or `[b, l]`, any lengths, one b throughout.
        block_tokens: tokens gathered before a decoder call, so that small chunks do not decode
            their context again and again.

    Yields:
        Sound float32 `[l' * hop]` or `[b, l' * hop]`, joined equal to one decode of all tokens.
    """
    context = codec.context_tokens
    held: Tensor | None = None  # tokens [b, left + waiting]
    left = 0  # of them already given out, kept as context
    is_flat = False

    def decode(tokens: Tensor, start: int, stop: int) -> Tensor:
        audio = codec.decode(tokens)[:, start * codec.hop : stop * codec.hop]
        return audio[0] if is_flat else audio

    for chunk in chunks:
        is_flat = chunk.ndim == 1
        piece = chunk[None] if is_flat else chunk
        held = piece if held is None else torch.cat([held, piece], dim=1)
        ready = held.shape[1] - context  # tokens whose right context is complete
        if ready - left >= block_tokens:
            yield decode(held, left, ready)
            drop = max(0, ready - context)
            held, left = held[:, drop:], ready - drop
    if held is not None and held.shape[1] > left:
        yield decode(held, left, held.shape[1])


def decode_batches(codec: Codec, tokens: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Decode `[n, l]` tokens a few rows at a time, yielding float32 `[<= batch_size, l * hop]`."""
    for rows in tokens.split(batch_size):
        yield codec.decode(rows)
