"""ResNet-101 in torchvision's layout: the classifier behind the top-5 accuracy of ImageNet.

He et al. 2016; as in torchvision, the 3 x 3 convolution of a block carries its stride.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cdcd.evaluation.networks.weights import load_strictly

NUM_CLASSES = 1000
PRESET = "resnet101/IMAGENET1K_V1"
"""Shorter side 256 bilinear, centre 224; torchvision's second weight set resizes to 232."""

_RESIZE, _CROP = 256, 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXPANSION = 4


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolution beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[b, c, h, w]` to `[b, c', h', w']`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Four stages of bottlenecks; ResNet-101 has 3, 4, 23 and 3.

    Args:
        depths: blocks of each stage.
        num_classes: logits.
    """

    def __init__(
        self, depths: tuple[int, ...] = (3, 4, 23, 3), num_classes: int = NUM_CLASSES
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        self.num_stages = len(depths)
        for stage, depth in enumerate(depths):
            width = 64 << stage
            blocks = []
            for block in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not block else 1))
                inputs = _EXPANSION * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures float `[b, 3, h, w]` to logits `[b, classes]`."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in range(self.num_stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def preprocess(pictures: NDArray[np.uint8]) -> Tensor:
    """Prepare pictures uint8 `[b, h, w, 3]` as float32 `[b, 3, 224, 224]`."""
    from PIL import Image

    ready = np.empty((len(pictures), _CROP, _CROP, 3), dtype=np.uint8)
    for place, pixels in zip(ready, pictures, strict=True):
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        # As there, the longer side is cut to whole pixels, not rounded.
        size = (_RESIZE * width // shorter, _RESIZE * height // shorter)
        picture = Image.fromarray(np.ascontiguousarray(pixels), "RGB")
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - _CROP) / 2), round((size[1] - _CROP) / 2)
        place[:] = np.asarray(picture)[top : top + _CROP, left : left + _CROP]
    x = torch.from_numpy(ready).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    return (x - mean) / std


def load_resnet101(path: str | Path) -> ResNet:
    """Load torchvision's ResNet-101 weights, strictly.

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """
    network = ResNet()
    load_strictly(network, path, "ResNet-101 weights in torchvision's layout")
    return network
