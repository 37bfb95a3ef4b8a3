"""VGGish embeddings from released weights given by path (torch layout, `vggish-10086976.pth`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcd.data.samples import SAMPLE_RATE_HZ

RATE_HZ = 16000
PATCH_FRAMES = 96
_WINDOW, _HOP, _FFT, _BANDS = 400, 160, 512, 64
_LOWEST_HZ, _HIGHEST_HZ = 125.0, 7500.0


class VGGish(nn.Module):
    """The network up to its 128 numbers; the PCA and quantising step behind it stays off."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, 128, (256, 256), (512, 512)):
            for out in width if isinstance(width, tuple) else (width,):
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, 128),
            nn.ReLU(),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed log-mel patches float32 `[b, 96, 64]` as `[b, 128]`."""
        hidden = self.features(patches[:, None])  # b 512 6 4
        # The weights come from a channels-last network, so channels vary fastest.
        return self.embeddings(hidden.permute(0, 2, 3, 1).flatten(1))


def load_vggish(path: str | Path) -> VGGish:
    """Load released weights, strictly.

    Raises:
        ValueError: the file is missing, no state dict, or of another layout.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"evaluate.vggish_weights must name a file: got {path}; mend the path or set "
            "evaluate.genre_feature: mfcc40"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"evaluate.vggish_weights must be a torch state dict: {path}: {reason}"
        ) from None
    with torch.device("meta"):
        network = VGGish()
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"evaluate.vggish_weights must have the layout of vggish-10086976.pth: {path}: {reason}"
        ) from None
    return network.float().eval().requires_grad_(False)


def mel_filters() -> NDArray[np.float64]:
    """Return triangles on the mel axis: float64 `[257, 64]`; the constant bin has no weight."""

    def mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins = mel(np.linspace(0, RATE_HZ / 2, _FFT // 2 + 1))[:, None]
    edges = np.linspace(mel(_LOWEST_HZ), mel(_HIGHEST_HZ), _BANDS + 2)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[0] = 0.0
    return filters


def log_mel_patches(audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Cut a clip into log-mel patches.

    Args:
        audio: float `[n]`, mono, 22,050 Hz; resampled to 16 kHz with soxr HQ.

    Returns:
        float32 `[patches, 96, 64]`: 25-ms Hann windows every 10 ms, magnitudes, `log(mel + 0.01)`,
        patches of 0.96 s without overlap. The rest is dropped; under 0.96 s there is no patch.
    """
    import soxr  # type: ignore[import-untyped]

    wave = soxr.resample(np.asarray(audio, np.float64), SAMPLE_RATE_HZ, RATE_HZ, quality="HQ")
    num_frames = max(0, 1 + (len(wave) - _WINDOW) // _HOP)
    num_patches = num_frames // PATCH_FRAMES
    if not num_patches:
        return np.zeros((0, PATCH_FRAMES, _BANDS), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[::_HOP]
    frames = frames[: num_patches * PATCH_FRAMES]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    magnitudes = np.abs(np.fft.rfft(frames * hann, _FFT))
    log_mel = np.log(magnitudes @ mel_filters() + 0.01)
    return log_mel.reshape(num_patches, PATCH_FRAMES, _BANDS).astype(np.float32)


def embed(network: VGGish, audio: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the patches' embeddings, float32 `[patches, 128]`; a 2-s clip has two."""
    patches = torch.from_numpy(log_mel_patches(audio))
    if not len(patches):
        return np.zeros((0, 128), np.float32)
    with torch.no_grad():
        return network(patches).numpy()
