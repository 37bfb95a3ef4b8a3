"""The patch discriminator: which parts of a picture look real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdcd.codecs.vqgan import group_norm


class PatchDiscriminator(nn.Module):
    """Strided convolutions to one logit for each patch, after Isola et al. (2017), section 3.2.2.

    Groups of channels are normalised in place of batches, so that a picture's logits do not depend
    on its company.

    Args:
        channels: width after the first halving; it doubles with each further one up to eightfold.
        image_size: pixels per side of the smallest picture, at least 8. From 32 on there are
            three halvings, and a logit sees 70 pixels.
    """

    def __init__(self, channels: int, image_size: int = 256) -> None:
        super().__init__()
        num_halvings = max(1, min(3, image_size.bit_length() - 3))
        widths = [channels * min(2**i, 8) for i in range(num_halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1)]
        for i in range(1, num_halvings + 1):
            stride = 2 if i < num_halvings else 1
            layers += [
                nn.LeakyReLU(0.2),
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, padding=1, bias=False),
                group_norm(widths[i]),
            ]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(widths[-1], 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map `[b, 3, h, w]` in [-1, 1] to logits `[b, 1, h', w']`, high where it looks real."""
        return self.layers(pictures)


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """Loss of the discriminator: half of mean(max(0, 1 - real)) + mean(max(0, 1 + made))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """How much the adversarial gradient weighs, after Esser et al. (2021), Eq. 7.

    Args:
        reconstruction: gradient of the other losses by the decoder's last layer.
        adversarial: gradient of the adversarial loss by the same weights.

    Returns:
        The ratio of their norms, at most 1e4.
    """
    return torch.clamp(reconstruction.norm() / (adversarial.norm() + 1e-4), 0.0, 1e4)
