"""How different two pictures look: LPIPS with weights by path, or structure and edges without.

LPIPS (Zhang et al., 2018) compares the features of a VGG16 that was trained on ImageNet, weighted
by human judgements. Without its weights a substitute serves: structural similarity (Wang et al.,
2004) of the colour channels and the differences of neighbouring pixels, both at several scales.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.codecs.openai import WeightsError
from cdcd.codecs.weights import compare_shapes, read_state

_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG16's convolutions in torchvision's `features`, between its halvings."""
_WIDTHS = (64, 128, 256, 512, 512)


class LPIPS(nn.Module):
    """Distance of VGG16's features after the five stages.

    Each feature vector is scaled to length 1; squared differences are weighted per channel, summed
    over the channels, averaged over the places and summed over the stages.
    """

    title = "lpips"
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *_WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(width_in if i == 0 else width, width, 3, padding=1)
                for i in range(len(numbers))
            )
            for width_in, width, numbers in zip(inputs, _WIDTHS, _STAGES, strict=True)
        )
        self.weights = nn.ParameterList(torch.zeros(width) for width in _WIDTHS)
        # ImageNet's mean and deviation, moved from [0, 1] to [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Mean distance of `[b, 3, h, w]` in [-1, 1], at least 16 pixels a side: a scalar."""
        b = len(pictures)
        x = (torch.cat([pictures, targets]) - self.shift) / self.scale
        total = pictures.new_zeros(())
        for number, (stage, weights) in enumerate(zip(self.stages, self.weights, strict=True)):
            if number:
                x = F.max_pool2d(x, 2)
            for layer in stage:  # type: ignore[attr-defined]
                x = F.relu(layer(x))
            features = x.float()
            length = features.square().sum(dim=1, keepdim=True).sqrt()
            features = features / (length + 1e-10)
            squared = (features[:b] - features[b:]).square()
            total = total + torch.einsum("bdhw,d->bhw", squared, weights).mean()
        return total


class StructuralLoss(nn.Module):
    """1 - SSIM and the mean difference of neighbouring pixels' differences, over four scales.

    The same number goes to each scale. SSIM is taken per colour channel in a Gaussian window with a
    deviation of 1.5 pixels, on values in [0, 1].
    """

    title = "ssim+gradient, no LPIPS weights given"

    def __init__(self, num_scales: int = 4) -> None:
        super().__init__()
        self.num_scales = num_scales

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of `[b, 3, h, w]` in [-1, 1]: a scalar, 0 for equal pictures."""
        x, y = (pictures.float() + 1) / 2, (targets.float() + 1) / 2
        total, num = x.new_zeros(()), 0
        while num < self.num_scales and min(x.shape[2:]) >= _WINDOW:
            total = total + (1 - ssim(x, y).mean()) + gradient_loss(x, y)
            x, y, num = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2), num + 1
        return total / max(1, num)


_WINDOW = 7
"""Side of SSIM's window: two deviations to either side."""


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, Wang et al. (2004), Eq. 13, at every place of a window.

    Args:
        x: `[b, c, h, w]` in [0, 1], at least 7 pixels a side.
        y: of the same shape.

    Returns:
        `[b, c, h - 6, w - 6]`, at most 1, which equal pictures have.
    """
    rows, columns = _bell(x.shape[2], x), _bell(x.shape[3], x)
    mean_x, mean_xx, mean_xy = rows @ torch.stack([x, x * x, x * y]) @ columns.mT
    mean_y, mean_yy = rows @ torch.stack([y, y * y]) @ columns.mT
    var_x, var_y = mean_xx - mean_x.square(), mean_yy - mean_y.square()
    covariance = mean_xy - mean_x * mean_y
    c_1, c_2 = 0.01**2, 0.03**2
    light = (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
    return light * (2 * covariance + c_2) / (var_x + var_y + c_2)


def _bell(side: int, like: Tensor) -> Tensor:
    """The window as a banded matrix `[side - 6, side]`: as a product much quicker than sliding."""
    places = torch.arange(side, dtype=like.dtype, device=like.device)
    centres = places[: side - _WINDOW + 1] + _WINDOW // 2
    apart = places - centres[:, None]
    weights = torch.exp(-apart.square() / (2 * 1.5**2)) * (apart.abs() <= _WINDOW // 2)
    return weights / weights.sum(dim=1, keepdim=True)


def gradient_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and of vertical pixel differences: a scalar."""
    error = x - y
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def load_lpips(vgg: str | Path, linear: str | Path) -> LPIPS:
    """Build LPIPS from a VGG16 in torchvision's layout and the linear layers of LPIPS 0.1.

    Args:
        vgg: state dict with `features.<number>.weight` and `.bias`; its classifier is not needed.
        linear: state dict with `lin0.model.1.weight` to `lin4.model.1.weight`.

    Raises:
        WeightsError: a file is missing, damaged, or of another layout.
    """
    model = LPIPS()
    names = {
        f"stages.{stage}.{i}.{kind}": f"features.{number}.{kind}"
        for stage, numbers in enumerate(_STAGES)
        for i, number in enumerate(numbers)
        for kind in ("weight", "bias")
    }
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = read_state(vgg, "codec.image.lpips_vgg")
    body = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    problem = compare_shapes(body, {theirs: own[ours] for ours, theirs in names.items()})
    if problem:
        raise WeightsError(
            f"codec.image.lpips_vgg must be torchvision's VGG16: {vgg} has {problem}; give that "
            "state dict, or null for both LPIPS files"
        )
    lines = {f"weights.{i}": f"lin{i}.model.1.weight" for i in range(len(_WIDTHS))}
    heads = read_state(linear, "codec.image.lpips_linear")
    problem = compare_shapes(heads, {name: (1, *own[o], 1, 1) for o, name in lines.items()})
    if problem:
        raise WeightsError(
            f"codec.image.lpips_linear must be LPIPS's linear layers for VGG: {linear} has "
            f"{problem}; give LPIPS 0.1's vgg.pth, or null for both LPIPS files"
        )
    weights = {ours: body[theirs].float() for ours, theirs in names.items()}
    weights |= {ours: heads[theirs].float().flatten() for ours, theirs in lines.items()}
    weights |= {"shift": model.shift, "scale": model.scale}
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def make_perceptual(vgg: str | Path | None, linear: str | Path | None) -> LPIPS | StructuralLoss:
    """LPIPS where its weights are given, else the substitute; `title` says which."""
    if vgg is None or linear is None:
        return StructuralLoss()
    return load_lpips(vgg, linear)
