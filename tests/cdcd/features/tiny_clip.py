"""A tiny CLIP with drawn weights in the hub's layout; tiny pictures that captions describe."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cdcd.data.samples import Caption, Picture
from cdcd.features.clip import build_clip, save_clip, train_tokenizer
from cdcd.features.text import Preparation

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (30, 60, 220),
    "yellow": (230, 220, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
CAPTIONS = [f"a small {one} bird with {other} wings" for one in COLOURS for other in COLOURS]


def shape(**changes: Any) -> Any:
    """What `build_clip` reads of a section `codec.text`."""
    chosen = {"width": 16, "depth": 2, "num_heads": 2, "embed_width": 8, "patch_size": 8,
              "image_size": 32} | changes  # fmt: skip
    return SimpleNamespace(**chosen)


def write_clip(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a CLIP with drawn weights; its vectors are of about equal importance."""
    chosen = shape(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(CAPTIONS, 560)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(chosen, tokenizer)
        for value in model.parameters():
            value.data += 0.1 * torch.randn_like(value)
    save_clip(folder, model, tokenizer, Preparation(chosen.image_size, chosen.image_size))
    return folder


def pictures(
    num_train: int = 24, num_test: int = 12, side: int = 36, is_labelled: bool = True
) -> list[Picture]:
    """Pictures whose upper half has one colour and whose lower half another, told by captions."""
    names = list(COLOURS)
    pairs = [(one, other) for one in names for other in names if one != other]
    made = []
    for number in range(num_train + num_test):
        upper, lower = pairs[number % len(pairs)]
        rng = np.random.default_rng(number)
        image = rng.integers(0, 20, (side, side + number % 3, 3))
        image[: side // 2] += np.array(COLOURS[upper]) * 9 // 10
        image[side // 2 :] += np.array(COLOURS[lower]) * 9 // 10
        captions = (
            Caption("0", f"a {upper} sky over {lower} land"),
            Caption("1", f"{lower} land, the sky is {upper}"),
        )
        split = "train" if number < num_train else "test"
        label = number % len(pairs) if is_labelled else None
        meta = {"class": f"{upper} over {lower}"} if is_labelled else {}
        key = f"p{number:03d}"
        made.append(Picture(key, split, image.clip(0, 255).astype(np.uint8), captions, label, meta))
    return made
