"""Conditions of a dance: motion, video and genre to the sequence the denoiser attends to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.models.inputs import ConditionInputs


@dataclass(frozen=True)
class DanceSpec:
    """Shape of the dance conditioner.

    Attributes:
        kind: `sequence` keeps time, `single_token` is the released code's.
        token_rate_hz: tokens a second.
        width: channels of the encoders.
        depth: residual blocks of each encoder.
        is_frozen: the single-token encoders stay as initialised.
        motion_dim: numbers per motion frame, or None without a motion encoder.
        motion_rate_hz: motion frames a second.
        motion_frames: motion frames of a window.
        video_dim: numbers per video feature, or None without a video encoder.
        video_rate_hz: video features a second.
        num_genres: with a genre input, else 0.
    """

    kind: Literal["sequence", "single_token"]
    token_rate_hz: float
    width: int
    depth: int
    is_frozen: bool
    motion_dim: int | None
    motion_rate_hz: float
    motion_frames: int
    video_dim: int | None
    video_rate_hz: float
    num_genres: int


@dataclass(frozen=True)
class Condition:
    """What the denoiser sees of a condition; every part may be absent, but not all.

    Attributes:
        sequence: what is attended to, float [b, s, d].
        positions: where each entry lies in time, float [s], in units of tokens; None where the
            sequence has no place in time and attention uses no rotary angles.
        aligned: the condition resampled to the tokens, float [b, l, d].
        mask: bool [b, s], False where an entry must not be attended to.
        vector: one vector for the whole sample, float [b, dim], which modulates every norm.
        label: class, int64 [b], where blocks look it up in tables of their own (num_classes stands
            for no class).
    """

    sequence: Tensor | None = None
    positions: Tensor | None = None
    aligned: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    label: Tensor | None = None

    def joined(self, other: Condition) -> Condition:
        """Both batches one after the other; `other` comes from the same conditioner."""

        def join(name: str) -> Tensor | None:
            mine, theirs = getattr(self, name), getattr(other, name)
            return None if mine is None or theirs is None else torch.cat([mine, theirs])

        names = ("sequence", "aligned", "mask", "vector", "label")
        return replace(self, **{name: join(name) for name in names})


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(norm(x)))) over time, kernel 5 then 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.wide = nn.Conv1d(width, 2 * width, 5, padding=2)
        self.narrow = nn.Conv1d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, d, s] -> [b, d, s]."""
        return x + self.narrow(F.gelu(self.wide(self.norm(x))))


class SequenceEncoder(nn.Module):
    """Features over time to a sequence of the same duration, one entry per `stride` frames.

    Values and their frame-to-frame change enter side by side: onsets live in the change. Inputs are
    standardised by buffers that training fills from its split.
    """

    mean: Tensor
    std: Tensor
    delta_std: Tensor

    def __init__(self, dim: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        for name, value in (("mean", 0.0), ("std", 1.0), ("delta_std", 1.0)):
            self.register_buffer(name, torch.full((dim,), value))
        self.enter = nn.Conv1d(2 * dim, width, 2 * stride + 1, stride=stride, padding=stride)
        self.blocks = nn.ModuleList(ResidualConv(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.absent = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, x: Tensor, is_present: Tensor) -> Tensor:
        """[b, s, dim], bool [b] -> [b, ceil(s / stride), width]."""
        delta = torch.diff(x, dim=1, prepend=x[:, :1]) / self.delta_std
        y = torch.cat([(x - self.mean) / self.std, delta], dim=-1).clamp(-8, 8)
        y = self.enter(y.transpose(1, 2))
        for block in self.blocks:
            y = block(y)
        y = self.norm(y.transpose(1, 2))
        return torch.where(is_present[:, None, None], y, self.absent.to(y.dtype))


class SequenceConditioner(nn.Module):
    """Conditioning that keeps time: motion and video encoders that emit sequences.

    Both sequences are attended to, and their sum, resampled to the tokens, is added to the token
    embeddings. A modality that is absent becomes one learned vector, so the same network serves
    motion and video, video alone, and no condition at all.

    Args:
        width: channels of the denoiser.
        num_tokens: tokens of the window.
        token_rate_hz: tokens a second.
        motion_dim: numbers per motion frame, or None without a motion encoder.
        motion_rate_hz: motion frames a second.
        video_dim: numbers per video feature, or None without a video encoder.
        video_rate_hz: video features a second.
        encoder_width: channels of the encoders.
        depth: residual blocks of each encoder.
        num_genres: with a genre input (it leaks the label that genre accuracy scores), else 0.
    """

    def __init__(
        self,
        width: int,
        num_tokens: int,
        token_rate_hz: float,
        motion_dim: int | None,
        motion_rate_hz: float,
        video_dim: int | None,
        video_rate_hz: float,
        encoder_width: int,
        depth: int,
        num_genres: int = 0,
    ) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.token_rate_hz = token_rate_hz
        self.motion_rate_hz = motion_rate_hz
        self.video_rate_hz = video_rate_hz
        # Motion at 60 Hz is read in pairs: 30 positions a second are enough for 50 ms onsets.
        stride = 2 if motion_rate_hz >= 60 else 1
        self.motion = (
            SequenceEncoder(motion_dim, encoder_width, depth, stride) if motion_dim else None
        )
        self.video = SequenceEncoder(video_dim, encoder_width, depth, 1) if video_dim else None
        self.motion_out = nn.Linear(encoder_width, width) if motion_dim else None
        self.video_out = nn.Linear(encoder_width, width) if video_dim else None
        self.aligned_out = nn.Linear(encoder_width, width)
        self.genre = nn.Embedding(num_genres + 1, width) if num_genres else None
        if self.motion is None and self.video is None:
            raise ValueError("a conditioner needs motion, video or both: got neither")

    def _positions(self, num: int, rate_hz: float, device: torch.device) -> Tensor:
        return torch.arange(num, device=device) * (self.token_rate_hz / rate_hz)

    def _to_tokens(self, y: Tensor, rate_hz: float) -> Tensor:
        """Linear interpolation of y [b, s, d] at the times of the tokens -> [b, l, d]."""
        where = torch.arange(self.num_tokens, device=y.device) * (rate_hz / self.token_rate_hz)
        low = where.floor().long().clamp_max(y.shape[1] - 1)
        high = (low + 1).clamp_max(y.shape[1] - 1)
        share = (where - low).to(y.dtype)[None, :, None]
        return y[:, low] * (1 - share) + y[:, high] * share

    def forward(self, inputs: ConditionInputs) -> Condition:
        """Encode a batch; see `Condition` for shapes."""
        sequences, positions, aligned = [], [], []
        if self.motion is not None and self.motion_out is not None:
            motion = inputs.motion
            if motion is None:
                length = round(self.num_tokens / self.token_rate_hz * self.motion_rate_hz)
                motion = self.motion.mean.expand(len(inputs), length, -1)
            y = self.motion(motion, inputs.has_motion)
            rate = self.motion_rate_hz / self.motion.stride
            sequences.append(self.motion_out(y))
            positions.append(self._positions(y.shape[1], rate, y.device))
            aligned.append(self._to_tokens(y, rate))
        if self.video is not None and self.video_out is not None:
            video = inputs.video
            if video is None:
                length = round(self.num_tokens / self.token_rate_hz * self.video_rate_hz)
                video = self.video.mean.expand(len(inputs), length, -1)
            y = self.video(video, inputs.has_video)
            sequences.append(self.video_out(y))
            positions.append(self._positions(y.shape[1], self.video_rate_hz, y.device))
            aligned.append(self._to_tokens(y, self.video_rate_hz))
        if self.genre is not None:
            unknown = self.genre.num_embeddings - 1
            index = inputs.genre
            if index is None:
                index = torch.full_like(inputs.has_motion, unknown, dtype=torch.long)
            sequences.append(self.genre(index)[:, None])
            positions.append(torch.zeros(1, device=index.device))
        total = self.aligned_out(torch.stack(aligned).sum(0))
        return Condition(torch.cat(sequences, dim=1), torch.cat(positions), total)


class SingleTokenConditioner(nn.Module):
    """The released code's conditioner: the whole clip becomes one token (paper_vs_code D4, D5).

    Frames are channels and the convolutions run over the features, so nothing in it knows when a
    movement happens; kept for comparison. The motion stack is 219 -> 800, kernels 6, 4, 4, 4, then
    786 -> 1024 (D34), the video is averaged over time, and all is mixed by one linear layer.

    Args:
        width: channels of the denoiser.
        motion_frames: frames of the clip.
        motion_dim: numbers per motion frame.
        video_dim: numbers per video feature, or None.
        num_genres: with a genre input, else 0.
        motion_width: channels of the motion code (1024 as released).
    """

    def __init__(
        self,
        width: int,
        motion_frames: int,
        motion_dim: int,
        video_dim: int | None,
        num_genres: int = 0,
        motion_width: int = 1024,
    ) -> None:
        super().__init__()
        half = motion_width // 2
        self.motion_frames = motion_frames
        self.motion_dim = motion_dim
        self.motion = nn.Sequential(
            nn.Linear(motion_dim, 800),
            nn.Conv1d(motion_frames, half, 6),
            nn.LeakyReLU(0.2),
            nn.Conv1d(half, half, 4),
            nn.LeakyReLU(0.2),
            nn.Conv1d(half, motion_width, 4),
            nn.LeakyReLU(0.2),
            nn.Conv1d(motion_width, 1, 4),
            nn.Linear(786, motion_width),
        )
        self.video_dim = video_dim
        self.genre = nn.Embedding(num_genres, 256) if num_genres else None
        total = motion_width + (video_dim or 0) + (256 if num_genres else 0)
        self.mix = nn.Linear(total, width)
        self.absent = nn.Parameter(torch.randn(width) * 0.02)

    def freeze(self) -> None:
        """Leave the encoders at their random start, as the released code does; `mix` trains."""
        self.motion.requires_grad_(False)
        if self.genre is not None:
            self.genre.requires_grad_(False)

    def forward(self, inputs: ConditionInputs) -> Condition:
        """Encode a batch into a sequence of one token."""
        b = len(inputs)
        device = self.absent.device
        motion = inputs.motion
        if motion is None:
            motion = torch.zeros(b, self.motion_frames, self.motion_dim, device=device)
        motion = motion * inputs.has_motion[:, None, None]
        parts = [self.motion(motion)[:, 0]]
        if self.video_dim:
            video = inputs.video
            pooled = torch.zeros(b, self.video_dim, device=device)
            if video is not None:
                pooled = video.mean(1) * inputs.has_video[:, None]
            parts.append(pooled)
        if self.genre is not None:
            parts.append(
                torch.zeros(b, 256, device=device)
                if inputs.genre is None
                else self.genre(inputs.genre)
            )
        token = self.mix(torch.cat(parts, dim=-1))
        known = inputs.has_motion | inputs.has_video
        token = torch.where(known[:, None], token, self.absent.to(token.dtype))
        return Condition(token[:, None], torch.zeros(1, device=device), None)
