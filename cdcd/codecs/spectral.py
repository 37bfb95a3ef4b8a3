"""How far apart two sounds are in spectrograms of several scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

WINDOWS = (2048, 1024, 512)
"""Window lengths of the spectrograms in samples; each hops by a quarter of itself."""

_LOG_FLOOR = 1e-5  # relative to a full-scale sine: -100 dB, what 16 bits can tell from silence


def magnitudes(audio: Tensor, window: int) -> Tensor:
    """Spectrogram of `[b, n]` sound: float32 `[b, window // 2 + 1, n // (window // 4) + 1]`."""
    hann = torch.hann_window(window, device=audio.device)
    spectrum = torch.stft(
        audio.float(), window, window // 4, window=hann, pad_mode="constant", return_complex=True
    )
    # The gradient of a complex magnitude is undefined at 0, which digital silence reaches.
    return (spectrum.real.square() + spectrum.imag.square()).add(1e-10).sqrt()


def spectral_convergence(audio: Tensor, target: Tensor, window: int = 2048) -> Tensor:
    """|S(audio) - S(target)| / |S(target)| for each of b sounds `[b, n]`: 0 equal, 1 silence."""
    wanted = magnitudes(target, window)
    apart = (magnitudes(audio, window) - wanted).flatten(1).norm(dim=1)
    return apart / wanted.flatten(1).norm(dim=1).clamp_min(1e-3)


def spectral_loss(
    audio: Tensor,
    target: Tensor,
    *,
    log_share: float = 0.5,
    sample_rate_hz: int = 22050,
    windows: Sequence[int] = WINDOWS,
) -> Tensor:
    """Mean over scales of Jukebox's spectral loss and of a logarithmic one.

    Jukebox's is the Euclidean distance of the magnitudes, here relative to the batch's own norm. It
    is blind to quiet bins, where the attack of a hi-hat lies. The mean absolute difference of log
    mel bands sees those, and a band averages over bins whose exact value no code can carry in
    noise.

    Args:
        audio: `[b, n]`.
        target: `[b, n]`.
        log_share: weight of the logarithmic term.
        sample_rate_hz: of both sounds.
        windows: scales in samples.
    """
    total = audio.new_zeros(())
    for window in windows:
        with torch.no_grad():
            wanted = magnitudes(target, window)
        given = magnitudes(audio, window)
        apart = (given - wanted).flatten(1).norm(dim=1).mean()
        total = total + apart / wanted.flatten(1).norm(dim=1).mean().clamp_min(1e-3)
        if log_share:
            bands = mel_bands(window, sample_rate_hz).to(audio.device)
            floor = _LOG_FLOOR * window / 4
            logs = ((bands @ given + floor) / (bands @ wanted + floor)).log()
            total = total + log_share * logs.abs().mean()
    return total / len(windows)


@lru_cache(maxsize=16)
def mel_bands(window: int, sample_rate_hz: int) -> Tensor:
    """Triangles evenly spaced in mel that average magnitudes: `[bands, window // 2 + 1]`.

    There are `window // 25` bands, few enough that even the lowest spans a bin; rows sum to one.
    """
    num_bands = window // 25
    top = 2595 * math.log10(1 + sample_rate_hz / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_bands + 2) / 2595) - 1)  # Hz
    bins = torch.linspace(0, sample_rate_hz / 2, window // 2 + 1)
    width = sample_rate_hz / window  # a triangle narrower than a bin could miss every bin
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2]).clamp_min(width)[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1]).clamp_min(width)[:, None]
    triangles = torch.minimum(rise, fall).clamp_min(0)
    used = triangles.sum(dim=1) > 0
    return triangles[used] / triangles[used].sum(dim=1, keepdim=True)
