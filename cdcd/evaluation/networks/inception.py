"""The Inception-v3 of the Fréchet inception distance, in the layout of its public PyTorch port.

It is TensorFlow's network of 2015 (`pt_inception-2015-12-05-6726825d.pth`), not the one of
torchvision: average pooling leaves padding out of its count, the last block pools by maximum, and
there are 1008 classes. Layout after Szegedy et al. 2016 ("Rethinking the Inception Architecture").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.evaluation.networks.weights import load_strictly

SIZE = 299
WIDTH = 2048
NUM_CLASSES = 1008
PRESET = "fid/torch-fidelity-compatible"
"""Pictures as uint8 RGB, TensorFlow 1's bilinear scaling to 299 x 299, then (x - 128) / 128."""

PUBLIC_SHA256_PREFIX = "6726825d"
"""Of the public file, as its name says."""


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35: 1 x 1, 5 x 5, twice 3 x 3, pooling; 224 channels and those of the pooling."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1 = Conv(inputs, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean_pool(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17 with 7 x 7 convolutions cut into rows and columns; 768 channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        row: tuple[Any, ...] = ((1, 7), 1, (0, 3))
        column: tuple[Any, ...] = ((7, 1), 1, (3, 0))
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, width, 1)
        self.branch7x7_2 = Conv(width, width, *row)
        self.branch7x7_3 = Conv(width, 192, *column)
        self.branch7x7dbl_1 = Conv(inputs, width, 1)
        self.branch7x7dbl_2 = Conv(width, width, *column)
        self.branch7x7dbl_3 = Conv(width, width, *row)
        self.branch7x7dbl_4 = Conv(width, width, *column)
        self.branch7x7dbl_5 = Conv(width, 192, *row)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(inputs, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(inputs, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(seven))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8 with branches that fork once more; 2048 channels."""

    def __init__(self, inputs: int, pool: str) -> None:
        super().__init__()
        assert pool in ("mean", "max")
        self.pool = pool
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _mean_pool(x) if self.pool == "mean" else F.max_pool2d(x, 3, 1, padding=1)
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    """The network up to its third pooling; `fc` is there because the file has it."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, "mean")
        self.Mixed_7c = BlockE(WIDTH, "max")
        self.fc = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 or float in 0 .. 255, `[b, 3, h, w]`, to pool3 float32 `[b, 2048]`."""
        x = (resize_tensorflow(pictures.float(), SIZE) - 128) / 128  # b 3 299 299
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = F.max_pool2d(x, 3, stride=2)  # b 192 35 35
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # b 2048 8 8
        return x.mean(dim=(2, 3))


def resize_tensorflow(pictures: Tensor, size: int) -> Tensor:
    """Scale as TensorFlow 1 did: bilinear between the pixels at `i * h / size`, no anti-aliasing.

    Pixel i of the result lies at `i * h / size` of the source (corners not aligned, no half-pixel
    shift); beyond the last pixel its value is repeated.

    Args:
        pictures: float `[b, c, h, w]`.
        size: pixels per side of the result.

    Returns:
        float `[b, c, size, size]`.
    """
    rows = _interpolation(pictures.shape[2], size).to(pictures)
    columns = _interpolation(pictures.shape[3], size).to(pictures)
    return rows @ pictures @ columns.T


def _interpolation(source: int, size: int) -> Tensor:
    """Weights of the source's pixels in each pixel of the result, float32 `[size, source]`."""
    # In float32, as TensorFlow computes the places.
    places = np.arange(size, dtype=np.float32) * np.float32(source / size)
    low = places.astype(np.int64)
    high = np.minimum(low + 1, source - 1)
    share = places - low.astype(np.float32)
    weights = np.zeros((size, source), dtype=np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - share)
    np.add.at(weights, (np.arange(size), high), share)
    return torch.from_numpy(weights)


def load_inception(path: str | Path) -> Inception:
    """Load the public weights, strictly.

    Raises:
        WeightsError: the file is missing, damaged or of another network (torchvision's included).
    """
    network = Inception()
    load_strictly(network, path, "the FID Inception-v3 weights (pt_inception-2015-12-05)")
    return network
