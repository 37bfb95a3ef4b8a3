"""A small classifier of pictures: which class, colour or count is seen in them.

It measures correspondence offline: trained on real pictures of a stand-in, it says whether a
generated one shows what was asked for. Its accuracy on held-out real pictures stands beside every
score that rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

SIZE = 64
Logits = dict[str, NDArray[np.float32]]
UNKNOWN = -1
"""A label that is not known, or not asked for: left out of loss and accuracy."""


class AttributeNet(nn.Module):
    """Four convolution blocks on 64 x 64 pictures and one linear head for each attribute.

    Args:
        num_values: values of each attribute, by its name.
        width: channels of the first block; they double with each of the next two.
    """

    def __init__(self, num_values: Mapping[str, int], width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in (width, 2 * width, 4 * width, 4 * width):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            # Things are counted on an 8 x 8 map: on a coarser one neighbours melt together.
            if outputs != inputs:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.body = nn.Sequential(*layers)
        # Mean and maximum: a count is a sum over the picture, a colour may be a small spot.
        self.heads = nn.ModuleDict({n: nn.Linear(2 * inputs, v) for n, v in num_values.items()})

    def features(self, pictures: Tensor) -> Tensor:
        """uint8 `[b, 3, 64, 64]` to float32 `[b, 8 width]`."""
        x = self.body(pictures.float() / 127.5 - 1)
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """uint8 `[b, 3, 64, 64]` to logits `[b, values]` by attribute."""
        x = self.features(pictures)
        return {name: head(x) for name, head in self.heads.items()}


@dataclass(frozen=True, eq=False)
class AttributeClassifier:
    """A trained network.

    Attributes:
        net: in evaluation mode.
        num_values: values of each attribute, by its name.
    """

    net: AttributeNet
    num_values: dict[str, int]

    def look(self, pictures: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Logits]:
        """One batch uint8 `[b, 64, 64, 3]`: features `[b, d]`, logits `[b, values]` by name."""
        with torch.inference_mode():
            features = self.net.features(_channels_first(pictures))
            logits = {name: head(features).numpy() for name, head in self.net.heads.items()}
        return features.numpy(), logits

    def predict(
        self, pictures: NDArray[np.uint8], batch_size: int = 256
    ) -> dict[str, NDArray[np.int64]]:
        """Most likely value of each attribute: uint8 `[n, 64, 64, 3]` to int64 `[n]` by name."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.num_values}
        with torch.inference_mode():
            for start in range(0, len(pictures), batch_size):
                logits = self.net(_channels_first(pictures[start : start + batch_size]))
                for name, values in logits.items():
                    found[name].append(values.argmax(1))
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    def accuracy(
        self, pictures: NDArray[np.uint8], labels: Mapping[str, NDArray[np.int64]]
    ) -> dict[str, float]:
        """Share of known labels that are found, by attribute; NaN where none is known."""
        found = self.predict(pictures)
        shares = {}
        for name, true in labels.items():
            known = np.asarray(true) != UNKNOWN
            hits = found[name][known] == np.asarray(true)[known]
            shares[name] = float(hits.mean()) if known.any() else float("nan")
        return shares


def fit_classifier(
    pictures: NDArray[np.uint8],
    labels: Mapping[str, NDArray[np.int64]],
    *,
    seed: int = 0,
    num_epochs: int = 12,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    width: int = 24,
    mirror: bool = True,
    progress: str | None = None,
) -> AttributeClassifier:
    """Train a classifier; equal arguments give equal weights on one machine.

    Args:
        pictures: uint8 `[n, 64, 64, 3]` RGB.
        labels: int64 `[n]` by attribute, from 0 on; `UNKNOWN` where there is none.
        seed: of weights, order, shifts and mirroring.
        num_epochs: passes over the pictures.
        batch_size: pictures per step.
        learning_rate: the highest one, of a cosine schedule with warm-up.
        width: channels of the first block.
        mirror: whether pictures may be mirrored (not where left and right are asked for, nor with
            digits).
        progress: what a bar with the time left says; None shows none.

    Raises:
        ValueError: the shapes disagree.
    """
    if pictures.shape[1:] != (SIZE, SIZE, 3) or any(
        len(v) != len(pictures) for v in labels.values()
    ):
        raise ValueError(
            f"pictures must be [n, {SIZE}, {SIZE}, 3] with n labels of each attribute: got "
            f"{list(pictures.shape)} and {[len(v) for v in labels.values()]}"
        )
    from tqdm import tqdm

    num_values = {name: int(np.max(values)) + 1 for name, values in labels.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AttributeNet(num_values, width)
    for weight in net.parameters():
        if weight.ndim == 4:  # half the time on a CPU, the same sums
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    images = _channels_first(pictures)
    targets = {name: torch.from_numpy(np.asarray(v, np.int64)) for name, v in labels.items()}
    optimizer = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-2)
    num_steps = num_epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    net.train()
    bar = tqdm(total=num_steps, desc=progress, unit="step", disable=progress is None)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            logits = net(_moved(images[rows], generator, mirror))
            losses = [
                F.cross_entropy(logits[name], target[rows], ignore_index=UNKNOWN)
                for name, target in targets.items()
                if bool((target[rows] != UNKNOWN).any())
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
            bar.update()
    bar.close()
    return AttributeClassifier(net.eval(), num_values)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)


def _moved(images: Tensor, generator: torch.Generator, mirror: bool) -> Tensor:
    """Shift a batch by up to 3 pixels, and perhaps mirror it, so that places are not learnt."""
    rows, columns = torch.randint(0, 7, (2,), generator=generator).tolist()
    padded = F.pad(images.float(), (3, 3, 3, 3), mode="replicate")
    moved = padded[..., rows : rows + SIZE, columns : columns + SIZE]
    if mirror and bool(torch.rand((), generator=generator) < 0.5):
        moved = moved.flip(-1)
    return moved.contiguous(memory_format=torch.channels_last)
