"""Write a stand-in for an ImageNet download: the real layout, our own classes and pictures.

ImageNet may not be shipped, so pictures of twenty classes are made here: ten drawn patterns and
shapes, and the ten digits in scikit-learn's handwritten scans, which are real. The class is in the
form alone: every class comes in every colour.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded.music import generator
from cdcd.data.files import atomic_directory
from cdcd.data.parallel import ordered_map

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float64]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 1.5
"""Longer side of a picture over its shorter one, at most."""

_TRAIN_SCANS = 140
"""Scans of each digit for train; the rest, 34 or more, is for val."""
_GREY_EVERY = 17
"""One picture in so many is grey; a prime, so that it meets every class and split."""
_JPEG_QUALITY = 90
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Picture:
    """One picture of the download.

    Attributes:
        wnid: the class's WordNet-like number.
        split: `train` or `val`.
        number: within its class for train, over all classes for val; numbers have gaps.
        scan: row of scikit-learn's digits that is drawn; None for the drawn classes.
        is_grey: whether its file holds one channel.
    """

    wnid: str
    split: str
    number: int
    scan: int | None
    is_grey: bool

    @property
    def path(self) -> str:
        """Return the file's place under the download's root."""
        stem = f"{self.wnid}_{self.number}"
        if self.split == "val":
            stem = f"ILSVRC2012_val_{self.number:08d}"
        return f"{self.split}/{self.wnid}/{stem}.JPEG"


def _band(t: Array) -> Array:
    """Signed distance to bands that fill half of each period of 1; negative inside."""
    return np.abs(t % 1 - 0.5) - 0.25


def _checkerboard(x: Array, y: Array, rng: np.random.Generator) -> Array:
    period = rng.uniform(0.65, 1.05)
    a, b = _band(x / period), _band(y / period)
    return np.where(a * b > 0, 1, -1) * np.minimum(np.abs(a), np.abs(b)) * period


def _stripes(x: Array, y: Array, rng: np.random.Generator) -> Array:
    period = rng.uniform(0.25, 0.55)
    return _band(x / period) * period


def _dots(x: Array, y: Array, rng: np.random.Generator) -> Array:
    period, radius = rng.uniform(0.4, 0.65), rng.uniform(0.26, 0.34)
    return (np.hypot(x / period % 1 - 0.5, y / period % 1 - 0.5) - radius) * period


def _rings(x: Array, y: Array, rng: np.random.Generator) -> Array:
    period = rng.uniform(0.3, 0.5)
    return _band(np.hypot(x, y) / period + rng.random()) * period


def _spiral(x: Array, y: Array, rng: np.random.Generator) -> Array:
    arms, pitch = int(rng.integers(4, 7)), rng.uniform(0.8, 1.2) * rng.choice((-1, 1))
    radius = np.hypot(x, y) + 1e-6
    turns = arms / math.tau * (np.arctan2(y, x) + pitch * np.log(radius))
    return _band(turns) * radius * math.tau / (arms * math.hypot(1, pitch))


def _waves(x: Array, y: Array, rng: np.random.Generator) -> Array:
    period, height = rng.uniform(0.35, 0.55), rng.uniform(0.16, 0.22)
    length = rng.uniform(0.75, 1.05)
    phase = math.tau * x / length
    slope = height * math.tau / length * np.cos(phase)
    return _band((y + height * np.sin(phase)) / period) * period / np.hypot(1, slope)


def _star(x: Array, y: Array, rng: np.random.Generator) -> Array:
    outer = rng.uniform(0.6, 0.85)
    inner = outer * rng.uniform(0.38, 0.48)
    sector = math.pi / 5
    angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
    # The edge runs from the tip, at angle 0, to the notch, at the end of the half sector.
    dx, dy = inner * math.cos(sector) - outer, inner * math.sin(sector)
    radius = np.hypot(x, y)
    across = dy * (radius * np.cos(angle) - outer) - dx * radius * np.sin(angle)
    return across / math.hypot(dx, dy)


def _triangle(x: Array, y: Array, rng: np.random.Generator) -> Array:
    sector = math.pi / 3
    angle = np.arctan2(y, x) % (2 * sector) - sector
    return np.hypot(x, y) * np.cos(angle) - rng.uniform(0.32, 0.45)


def _cross(x: Array, y: Array, rng: np.random.Generator) -> Array:
    length = rng.uniform(0.5, 0.75)
    width = length * rng.uniform(0.25, 0.36)
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - length, np.minimum(x, y) - width)


def _crescent(x: Array, y: Array, rng: np.random.Generator) -> Array:
    radius = rng.uniform(0.55, 0.8)
    bite, shift = radius * rng.uniform(0.75, 0.85), radius * rng.uniform(0.4, 0.5)
    # Moved by half of what is bitten off, so that the visible part is in the middle.
    x = x - radius * 0.3
    return np.maximum(np.hypot(x, y) - radius, bite - np.hypot(x - shift, y))


_DRAWN: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "checkerboard": _checkerboard,
    "stripes": _stripes,
    "dots": _dots,
    "rings": _rings,
    "spiral": _spiral,
    "waves": _waves,
    "star": _star,
    "triangle": _triangle,
    "cross": _cross,
    "crescent": _crescent,
}
"""Signed distance to the edge, negative inside, in half sides of the central square."""

CLASSES = {f"n{90000001 + i}": name for i, name in enumerate((*_DRAWN, *DIGITS))}
"""Name of each class by its wnid, sorted; WordNet has no such numbers."""


@cache
def _scans() -> tuple[Array, NDArray[np.int64]]:
    """Return the scans, `[1797, 8, 8]` from 0 to 1, and the digit on each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16, digits.target


def _scans_of(name: str, split: str, count: int, rng: np.random.Generator) -> list[int | None]:
    """Choose scans of one split, each once before any comes again; None for a drawn class."""
    if name not in DIGITS:
        return [None] * count
    rows = rng.permutation(np.flatnonzero(_scans()[1] == DIGITS.index(name)))
    rows = rows[:_TRAIN_SCANS] if split == "train" else rows[_TRAIN_SCANS:]
    return [int(row) for row in np.resize(rows, count)]


def _numbers(count: int, highest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw distinct numbers from 1 on, in no order."""
    return rng.permutation(max(highest, 2 * count))[:count] + 1


def plan(seed: int, train_per_class: int, val_per_class: int) -> list[Picture]:
    """List the pictures by split, class and number; no scan of a digit is in both splits.

    Raises:
        ValueError: a split without pictures.
    """
    if min(train_per_class, val_per_class) < 1:
        raise ValueError(
            "train_per_class and val_per_class must be at least 1: got "
            f"{train_per_class} and {val_per_class}; use 80 and 16"
        )
    val = _numbers(val_per_class * len(CLASSES), 50_000, generator(seed, "val", "numbers"))
    numbers = {"val": dict(zip(CLASSES, np.split(val, len(CLASSES)), strict=True))}
    numbers["train"] = {
        wnid: _numbers(train_per_class, 15_000, generator(seed, wnid, "numbers"))
        for wnid in CLASSES
    }
    rows = [
        (split, wnid, int(number), scan)
        for split in ("train", "val")
        for wnid, name in CLASSES.items()
        for number, scan in zip(
            sorted(numbers[split][wnid]),
            # One order for both splits: they take its two ends.
            _scans_of(name, split, len(numbers[split][wnid]), generator(seed, wnid, "scans")),
            strict=True,
        )
    ]
    return [
        Picture(wnid, split, number, scan, i % _GREY_EVERY == 5)
        for i, (split, wnid, number, scan) in enumerate(rows)
    ]


def _colour(luminance: float, rng: np.random.Generator) -> Array:
    """Draw a hue and a saturation; tint or shade it to a luminance from 0 to 1."""
    wheel = np.clip(np.abs((rng.random() + np.array([0, 2, 1]) / 3) % 1 * 6 - 3) - 1, 0, 1)
    wheel = 0.5 + rng.uniform(0.35, 0.95) * (wheel - 0.5)
    own = float(_LUMA @ wheel)
    if luminance < own:
        return np.asarray(wheel * luminance / own)
    return np.asarray(1 - (1 - wheel) * (1 - luminance) / (1 - own))


def _slope(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """A gradient of light in a direction of its own, about 1."""
    angle = rng.uniform(0, math.tau)
    return 1 + rng.uniform(0.03, 0.13) * (x * math.cos(angle) + y * math.sin(angle))


def _drawn_cover(name: str, x: Array, y: Array, pixel: float, rng: np.random.Generator) -> Array:
    is_shape = name in ("star", "triangle", "cross", "crescent")
    reach = 0.15 if is_shape else 0.35
    x, y = x - rng.uniform(-reach, reach), y - rng.uniform(-reach, reach)
    angle = rng.uniform(0, math.tau)
    turned = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    return np.clip(0.5 - _DRAWN[name](*turned, rng) / pixel, 0, 1)


def _digit_cover(scan: int, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Share of ink under each pixel, `[height, width]`."""
    from PIL import Image

    margin = 3
    source = Image.fromarray(np.pad(_scans()[0][scan], margin).astype(np.float32), mode="F")
    width, height = size
    side = min(size)
    # A scan's 8 pixels span this share of the central square.
    cell = 8 / (side * rng.uniform(0.78, 0.92))
    angle = math.radians(rng.uniform(-5, 5))
    shear = rng.uniform(-0.06, 0.06)
    cos, sin = cell * math.cos(angle), cell * math.sin(angle)
    dx, dy = rng.uniform(-0.04, 0.04, 2) * side + (width / 2, height / 2)
    a, b, d, e = cos, shear * cos - sin, sin, shear * sin + cos
    middle = margin + 4
    matrix = (a, b, middle - a * dx - b * dy, d, e, middle - d * dx - e * dy)
    smooth = source.transform(
        size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )
    # A soft threshold: a harder one closes the loops of a six or an eight.
    edge = np.clip((np.asarray(smooth, dtype=np.float64) - 0.2) / 0.7, 0, 1)
    return np.asarray(edge * edge * (3 - 2 * edge))


def draw(name: str, scan: int | None, image_height: int, rng: np.random.Generator) -> Image:
    """Draw one RGB picture whose shorter side is `image_height`; its form is in the middle."""
    from PIL import Image

    longer = round(image_height * rng.choice((1, rng.uniform(1, LONGEST), 4 / 3)))
    size = (longer, image_height) if rng.random() < 0.65 else (image_height, longer)
    pixel = 2 / image_height
    across, down = ((np.arange(n) - (n - 1) / 2) * pixel for n in size)
    x, y = np.meshgrid(across, down)
    dark, light = _colour(rng.uniform(0.08, 0.28), rng), _colour(rng.uniform(0.72, 0.92), rng)
    if scan is None:
        cover = _drawn_cover(name, x, y, pixel, rng)
        swap = rng.random() < 0.5
    else:
        cover = _digit_cover(scan, size, rng)
        # Ink on paper, and sometimes chalk on a board.
        swap = rng.random() < 0.2
    front, back = (light, dark) if swap else (dark, light)
    mixed = back + cover[..., None] * (front - back)
    lit = mixed * _slope(x, y, rng)[..., None]
    noise = rng.normal(0, rng.uniform(0.01, 0.03), (*lit.shape[:2], 1))
    grain = rng.normal(0, rng.uniform(0.005, 0.015), lit.shape)
    return Image.fromarray(np.round(255 * np.clip(lit + noise + grain, 0, 1)).astype(np.uint8))


@dataclass(frozen=True)
class _Class:
    """The work on one class."""

    root: Path
    pictures: tuple[Picture, ...]
    seed: int
    image_height: int


def _write_class(work: _Class) -> int:
    for picture in work.pictures:
        rng = generator(work.seed, picture.path)
        image = draw(CLASSES[picture.wnid], picture.scan, work.image_height, rng)
        if picture.is_grey:
            image = image.convert("L")
        image.save(work.root / picture.path, format="JPEG", quality=_JPEG_QUALITY)
    return len(work.pictures)


def write_download(
    root: Path,
    *,
    seed: int,
    train_per_class: int,
    val_per_class: int,
    image_height: int,
    num_workers: int = 1,
) -> None:
    """Write `train/`, `val/` and `class_index.json` of a stand-in download under `root`.

    Equal arguments give equal bytes, whatever `num_workers` is. An existing `root` is replaced as
    a whole once everything is written.

    Args:
        root: the folder to become the download.
        seed: seed of the pictures, their numbers and the scans of each split.
        train_per_class: training pictures of each class; over 140, scans of digits come again, in
            another colour and place.
        val_per_class: validation pictures of each class.
        image_height: pixels of the shorter side; the longer has up to 1.5 times as many.
        num_workers: processes that draw at the same time.

    Raises:
        ValueError: a split without pictures.
    """
    from tqdm import tqdm

    pictures = plan(seed, train_per_class, val_per_class)
    with atomic_directory(root) as folder:
        for split in ("train", "val"):
            for wnid in CLASSES:
                (folder / split / wnid).mkdir(parents=True)
        index = {str(i): [wnid, name] for i, (wnid, name) in enumerate(CLASSES.items())}
        (folder / "class_index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
        jobs = [
            _Class(folder, tuple(p for p in pictures if p.wnid == wnid), seed, image_height)
            for wnid in CLASSES
        ]
        with tqdm(total=len(pictures), desc="embedded data", unit="picture") as bar:
            for count in ordered_map(_write_class, jobs, num_workers):
                bar.update(count)
