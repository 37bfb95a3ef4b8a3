"""Write a stand-in for CUB-200-2011 and its captions: the real layout, our own drawn birds.

A species is a tuple of attributes that are seen in its pictures and told in its captions; a picture
varies all the rest. The species of the test split are new combinations of the attributes of the
training ones, so whether a generated bird shows what its caption says can be measured. Pictures
and captions are synthesised by this project.
"""

from __future__ import annotations

import colorsys
import itertools
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded.music import generator
from cdcd.data.files import atomic_directory
from cdcd.data.parallel import ordered_map

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Array = NDArray[np.float64]
Colour = tuple[int, int, int]
Pair = tuple[float, float]

COLOURS = ("red", "yellow", "green", "blue", "purple", "brown", "black", "white")
SIZES = ("small", "large")
BILLS = ("short", "long")
PATTERNS = ("plain", "striped", "spotted")
TAILS = ("short", "long")
VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "body": COLOURS,
        "wing": COLOURS,
        "size": SIZES,
        "bill": BILLS,
        "pattern": PATTERNS,
        "tail": TAILS,
    }
)
"""Values of each attribute, in the order of their numbers."""

OFFICIAL_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "body": "has_primary_color",
        "wing": "has_wing_color",
        "size": "has_size",
        "bill": "has_bill_shape",
        "pattern": "has_back_pattern",
        "tail": "has_tail_shape",
    }
)
"""How `attributes.txt` calls each attribute."""

PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "size": {"small": ("small", "little"), "large": ("large", "big")},
        "bill": {
            "short": ("short bill", "short beak", "stubby bill", "stubby beak"),
            "long": ("long bill", "long beak", "long pointed bill", "pointed bill"),
        },
        "pattern": {
            "plain": ("plain", "smooth"),
            "striped": ("striped", "streaked"),
            "spotted": ("spotted", "speckled"),
        },
        "tail": {
            "short": ("short tail", "stubby tail"),
            "long": ("long tail", "lengthy tail"),
        },
    }
)
"""What captions call each value of the attributes that are no colours."""

NUM_CAPTIONS = 10
NUM_TOLD = 5
"""Captions of a picture that tell each attribute; all of them tell the two colours."""

_FAMILIES = (
    "Sparrow", "Finch", "Warbler", "Tern", "Wren", "Jay", "Gull", "Vireo", "Bunting", "Thrasher",
    "Oriole", "Swallow", "Flycatcher", "Woodpecker", "Kingfisher", "Grosbeak", "Tanager", "Cuckoo",
)  # fmt: skip
_MAX_SPECIES = 200
_MIN_SPECIES = 11
_TEST_EVERY = 4


@dataclass(frozen=True)
class Species:
    """One class of the download.

    Attributes:
        class_id: from 1 on.
        name: such as `Red_Sparrow`.
        split: `train` or `test`, StackGAN's split, which divides the classes.
        body: colour of head and body.
        wing: another colour.
        size: one of `SIZES`.
        bill: one of `BILLS`.
        pattern: of the body, one of `PATTERNS`.
        tail: one of `TAILS`.
    """

    class_id: int
    name: str
    split: str
    body: str
    wing: str
    size: str
    bill: str
    pattern: str
    tail: str

    @property
    def folder(self) -> str:
        """Name of the class: `001.Red_Sparrow`."""
        return f"{self.class_id:03d}.{self.name}"

    @property
    def attributes(self) -> dict[str, str]:
        """Value of each attribute of `VALUES`."""
        return {attribute: getattr(self, attribute) for attribute in VALUES}

    def stem(self, number: int, image_id: int) -> str:
        """Name of a picture; in some species its letter case is not the folder's, as in CUB."""
        name = "_".join(word[0].upper() + word[1:] for word in self.name.split("_"))
        return f"{name}_{number:04d}_{image_id}"


def plan(num_species: int) -> list[Species]:
    """List the species by class id: distinct tuples, one in four for the test split.

    Values, and pairs of values, occur about equally often within the training species and over
    all, and every value occurs in training. Training species come in twins that differ only in
    that body and wings have swapped colours: so which colours are there does not tell which is
    the body's.

    Raises:
        ValueError: too few species for every colour to occur in training, or more than CUB has.
    """
    if not _MIN_SPECIES <= num_species <= _MAX_SPECIES:
        raise ValueError(
            f"num_species must be {_MIN_SPECIES} to {_MAX_SPECIES}, because every colour occurs "
            f"among the training species: got {num_species}; use 160"
        )
    test = set(range(1, num_species, _TEST_EVERY))
    chosen = iter(_balanced(num_species - len(test), len(test)))
    order = sorted(range(num_species), key=lambda i: i in test)
    by_id = dict(zip(order, chosen, strict=True))
    species: list[Species] = []
    names: set[str] = set()
    for i in range(num_species):
        values = dict(zip(VALUES, by_id[i], strict=True))
        for family in (_FAMILIES[(i + j) % len(_FAMILIES)] for j in range(len(_FAMILIES))):
            plain = f"{values['body'].title()}_{family}"
            winged = f"{values['wing'].title()}_winged_{family}"
            free = (winged, plain) if i % 5 == 2 else (plain, winged)
            name = next((n for n in free if n not in names), None)
            if name is not None:
                break
        assert name is not None
        names.add(name)
        species.append(Species(i + 1, name, "test" if i in test else "train", **values))
    return species


def _balanced(num_train: int, num_test: int) -> list[tuple[str, ...]]:
    """Choose tuples one by one, each of the rarest values and pairs of values so far."""
    tuples = [t for t in itertools.product(*VALUES.values()) if t[0] != t[1]]
    # A fixed shuffle: among equals, the order of the values must not decide.
    tuples = [tuples[i] for i in np.random.default_rng(0).permutation(len(tuples))]
    numbers = {t: i for i, t in enumerate(tuples)}
    twin = np.array([numbers[(t[1], t[0], *t[2:])] for t in tuples])
    sizes = [len(values) for values in VALUES.values()]
    places = np.array(
        [[v.index(x) for v, x in zip(VALUES.values(), t, strict=True)] for t in tuples]
    )
    groups = [
        (places[:, a] * sizes[b] + places[:, b], sizes[a] * (sizes[b] if a != b else 1))
        for a, b in itertools.combinations_with_replacement(range(len(sizes)), 2)
    ]
    cost = np.zeros(len(tuples), dtype=np.int64)
    chosen: list[int] = []

    def choose(best: int) -> None:
        chosen.append(best)
        for codes, weight in groups:
            cost[codes == codes[best]] += weight
        cost[best] = np.iinfo(np.int32).max

    while len(chosen) < num_train:
        choose(int((cost + cost[twin]).argmin()))
        if len(chosen) < num_train:
            choose(int(twin[chosen[-1]]))
    for _ in range(num_test):
        choose(int(cost.argmin()))
    return [tuples[i] for i in chosen]


# Captions


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _listed(parts: Sequence[str], rng: np.random.Generator) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + _pick(rng, (" and ", ", and ")) + parts[-1]


def _caption(species: Species, told: set[str], rng: np.random.Generator) -> str:
    words = {
        attribute: _pick(rng, PHRASES[attribute][getattr(species, attribute)])
        for attribute in PHRASES
        if attribute in told
    }
    size = f"{words['size']} " if "size" in words else ""
    pattern = f"{words['pattern']} " if "pattern" in words else ""
    body, wing = species.body, species.wing
    wings = _pick(rng, (f"{wing} wings", f"{wing} wings", f"{wing} wing feathers"))
    extras = [f"a {words[a]}" for a in ("bill", "tail") if a in words]
    parts = [wings, *extras]
    parts = [parts[i] for i in rng.permutation(len(parts))]
    coloured = f"a {pattern}{body} {_pick(rng, ('body', 'body', 'breast', 'belly'))}"
    whole = [coloured, *parts]
    whole = [whole[i] for i in rng.permutation(len(whole))]
    has = _pick(rng, ("has", "has", "with"))
    spotted = f" and {words['pattern']}" if "pattern" in words else ""
    own = f" and it has {_listed(extras, rng)}" if extras else ""
    return _pick(
        rng,
        (
            f"a {size}{pattern}{body} bird with {_listed(parts, rng)}",
            f"this is a {size}{pattern}{body} bird that has {_listed(parts, rng)}",
            f"this {size}bird {has} {coloured} with {_listed(parts, rng)}",
            f"the {size}bird has {_listed(whole, rng)}",
            f"{_pick(rng, ('a', 'the', 'this'))} {size}bird with {_listed(whole, rng)}",
            f"this {size}bird is {body}{spotted} and has {_listed(parts, rng)}",
            f"a {size}bird that is mostly {body}{spotted}, with {_listed(parts, rng)}",
            f"with {_listed(parts, rng)}, this {size}bird is {body}{spotted}",
            f"the wings of this {size}bird are {wing}, its body is {body}{spotted}{own}",
            f"its body is {body}{spotted}, its wings are {wing}, the {size}bird is seen from the "
            f"side{own}",
        ),
    )


def make_captions(species: Species, rng: np.random.Generator) -> list[str]:
    """Write ten captions, no two equal, each telling both colours and each attribute in five."""
    told: list[set[str]] = [set() for _ in range(NUM_CAPTIONS)]
    for attribute in PHRASES:
        for i in rng.permutation(NUM_CAPTIONS)[:NUM_TOLD]:
            told[i].add(attribute)
    captions: list[str] = []
    for attributes in told:
        caption = _caption(species, attributes, rng)
        while caption in captions:
            caption = _caption(species, attributes, rng)
        captions.append(caption)
    capitals, dots = rng.random(NUM_CAPTIONS) < 0.2, rng.random(NUM_CAPTIONS) < 0.6
    return [
        (c[0].upper() + c[1:] if capital else c) + ("." if dot else "")
        for c, capital, dot in zip(captions, capitals, dots, strict=True)
    ]


_ANY = "|".join(COLOURS)
_COLOUR = re.compile(rf"\b(?:{_ANY})\b")
_WING = re.compile(rf"\b({_ANY}) wing|\bwings\b[a-z ]*? are ({_ANY})\b")


def told_attributes(caption: str) -> dict[str, str]:
    """Read the attributes that a caption of this stand-in tells, as values of `VALUES`."""
    text = caption.lower()
    found: dict[str, str] = {}
    wing = _WING.search(text)
    if wing:
        found["wing"] = wing[1] or wing[2]
    bodies = [colour for colour in _COLOUR.findall(text) if colour != found.get("wing")]
    if bodies:
        found["body"] = bodies[0]
    for attribute, values in PHRASES.items():
        for value, phrases in values.items():
            if any(re.search(rf"\b{phrase}\b", text) for phrase in phrases):
                found[attribute] = value
    return found


# Pictures: a bird in its own coordinates (facing right, y up, about 1.4 long) over a background.

_SUPERSAMPLE = 2
_QUALITY = 90
_UNIT = {"small": 0.25, "large": 0.36}
"""A unit of the bird's coordinates as a share of the central square."""

_MARGIN = 0.02
_HSV = {
    "red": (0.995, 0.84, 0.84),
    "yellow": (0.145, 0.84, 0.95),
    "green": (0.36, 0.72, 0.60),
    "blue": (0.605, 0.82, 0.84),
    "purple": (0.775, 0.66, 0.70),
    "brown": (0.07, 0.66, 0.46),
    "black": (0.65, 0.10, 0.12),
    "white": (0.12, 0.02, 0.97),
}
_LIGHT = ("yellow", "white")
_CREAM, _DARK = (246, 238, 214), (46, 38, 36)
# No colour of a body or a wing: bill and tail are seen as such on every bird.
_BILL, _TAIL, _TAIL_BAND, _LEG = (255, 140, 16), (92, 98, 112), (236, 234, 228), (92, 76, 66)

_OUTLINE = np.array([
    (0.76, 0.42), (0.70, 0.57), (0.52, 0.66), (0.32, 0.59), (0.12, 0.43), (-0.20, 0.27),
    (-0.50, 0.04), (-0.62, -0.12), (-0.48, -0.28), (-0.20, -0.41), (0.10, -0.44), (0.38, -0.32),
    (0.58, -0.06), (0.65, 0.17), (0.72, 0.32),
])  # fmt: skip
_WING_OUTLINE = np.array([
    (0.30, 0.02), (0.30, 0.20), (0.16, 0.46), (-0.12, 0.74), (-0.44, 0.92), (-0.56, 0.86),
    (-0.50, 0.74), (-0.60, 0.66), (-0.53, 0.54), (-0.60, 0.44), (-0.50, 0.34), (-0.50, 0.20),
    (-0.36, 0.08), (-0.10, -0.08), (0.12, -0.12),
])  # fmt: skip
_FEATHERS = (
    ((0.14, 0.16), (-0.10, 0.46), (-0.48, 0.76)),
    ((0.10, 0.08), (-0.14, 0.32), (-0.50, 0.55)),
    ((0.10, 0.00), (-0.16, 0.16), (-0.46, 0.35)),
)
_HEAD, _EYE = (0.50, 0.43), (0.55, 0.47)
_BILLS = {
    "short": ((0.71, 0.49), (0.85, 0.42), (0.71, 0.36)),
    "long": ((0.68, 0.56), (0.98, 0.50), (1.30, 0.37), (0.98, 0.33), (0.69, 0.30)),
}
_TAILS = {
    "short": ((-0.46, 0.02), (-0.66, -0.08), (-0.74, -0.22), (-0.64, -0.28), (-0.44, -0.26)),
    "long": ((-0.46, 0.04), (-0.90, -0.08), (-1.30, -0.22), (-1.34, -0.46), (-1.20, -0.66),
             (-0.84, -0.48), (-0.44, -0.26)),
}  # fmt: skip
_BANDS = (((-0.98, -0.12), (-0.94, -0.54)), ((-1.17, -0.18), (-1.08, -0.60)))
_LEG_LENGTH = 0.24


@cache
def _smooth_weights(steps: int = 6) -> Array:
    t = np.arange(steps) / steps
    rows = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2)
    return np.stack(rows, axis=1) / 2


def _smooth(points: Array) -> Array:
    """Close a curve through points (Catmull-Rom): `[n, 2]` to `[6 n, 2]`."""
    around = np.stack([np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2)], axis=1)
    return np.asarray(np.einsum("ts,nsd->ntd", _smooth_weights(), around).reshape(-1, 2))


def _exact_colour(name: str, rng: np.random.Generator) -> Colour:
    hue, saturation, value = _HSV[name]
    hue += rng.uniform(-0.015, 0.015)
    saturation = min(saturation * rng.uniform(0.92, 1.08), 1.0)
    value = min(value * rng.uniform(0.92, 1.06), 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(max(round(c * factor), 0), 255) for c in colour)
    return red, green, blue


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class _Pose:
    """Where a bird stands: its coordinates to pixels, and where its feet are."""

    unit: float
    matrix: Array
    origin: Array
    feet: Array

    def __call__(self, points: Any) -> Array:
        return np.asarray(points, dtype=np.float64) @ self.matrix.T + self.origin

    def pixels(self, points: Any) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in self(points)]


def _make_pose(
    species: Species, corner: tuple[float, float], side: float, rng: np.random.Generator
) -> _Pose:
    """Place a bird at random inside the square of that upper left corner and side."""
    tilt = math.radians(rng.uniform(-10, 14))
    facing = 1.0 if rng.random() < 0.5 else -1.0
    turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    matrix = np.diag([facing, -1.0]) @ turn
    shape = (
        np.concatenate([_OUTLINE, _WING_OUTLINE, _BILLS[species.bill], _TAILS[species.tail]])
        @ matrix.T
    )
    hips = np.array([(-0.06, -0.40), (0.10, -0.41)]) @ matrix.T
    feet = hips + np.array([(0.02 * facing, _LEG_LENGTH), (0.06 * facing, _LEG_LENGTH)])
    feet[:, 1] = feet[:, 1].max()
    whole = np.concatenate([shape, feet - 0.1, feet + 0.1])
    low, high = whole.min(axis=0) - 0.04, whole.max(axis=0) + 0.04
    room = side * (1 - 2 * _MARGIN)
    unit = side * _UNIT[species.size] * rng.uniform(0.96, 1.04)
    unit = min(unit, room / float((high - low).max()))
    # Rather in the middle: the mean of two uniform numbers.
    place = rng.random((2, 2)).mean(axis=0)
    free = room - unit * (high - low)
    origin = np.array(corner) + side * _MARGIN + place * free - unit * low
    return _Pose(unit, matrix * unit, origin, origin + unit * feet)


def _stroke(unit: float, width: float) -> int:
    return max(round(unit * width), 1)


def _draw_pattern(
    layer: Image.Image, species: Species, pose: _Pose, outline: list[Any], rng: np.random.Generator
) -> None:
    from PIL import Image, ImageChops, ImageDraw

    if species.pattern == "plain":
        return
    inside, marks = (Image.new("L", layer.size) for _ in range(2))
    ImageDraw.Draw(inside).polygon(outline, fill=255)
    pen = ImageDraw.Draw(marks)
    shift = rng.uniform(-0.03, 0.03)
    if species.pattern == "striped":
        for x in np.arange(-0.54, 0.8, 0.23) + shift:
            line = [(x + 0.05, 0.7), (x - 0.02, 0.2), (x + 0.02, -0.2), (x + 0.10, -0.7)]
            pen.line(pose.pixels(line), fill=255, width=_stroke(pose.unit, 0.105), joint="curve")
    else:
        radius = 0.068 * pose.unit
        for row, y in enumerate(np.arange(-0.36, 0.5, 0.19)):
            xs = np.arange(-0.62, 0.8, 0.25) + shift + 0.125 * (row % 2)
            for px, py in pose.pixels(np.stack([xs, np.full_like(xs, y + shift / 2)], axis=1)):
                pen.ellipse((px - radius, py - radius, px + radius, py + radius), fill=255)
    # The head stays plain, so that the body's own colour is seen whatever the pattern.
    (hx, hy), radius = pose.pixels([_HEAD])[0], 0.27 * pose.unit
    pen.ellipse((hx - radius, hy - radius, hx + radius, hy + radius), fill=0)
    colour = _DARK if species.body in _LIGHT else _CREAM
    layer.paste(colour, mask=ImageChops.multiply(inside, marks))


def _draw_bird(
    size: tuple[int, int], species: Species, pose: _Pose, rng: np.random.Generator
) -> Image.Image:
    """Draw a bird on a transparent layer."""
    from PIL import Image, ImageDraw

    layer = Image.new("RGBA", size)
    pen = ImageDraw.Draw(layer)
    unit = pose.unit
    edge = _stroke(unit, 0.028)
    body, wing = _exact_colour(species.body, rng), _exact_colour(species.wing, rng)
    dark_body, dark_wing = _scaled(body, 0.45), _scaled(wing, 0.5)
    hips = pose([(-0.06, -0.36), (0.10, -0.37)])
    for hip, foot in zip(hips, pose.feet, strict=True):
        x, y = float(foot[0]), float(foot[1])
        pen.line(((float(hip[0]), float(hip[1])), (x, y)), fill=_LEG, width=_stroke(unit, 0.05))
        toes = (x - 0.08 * unit, y - 0.02 * unit, x + 0.08 * unit, y + 0.04 * unit)
        pen.ellipse(toes, fill=_LEG)
    tail = pose.pixels(_TAILS[species.tail])
    pen.polygon(tail, fill=_TAIL, outline=_scaled(_TAIL, 0.5), width=edge)
    if species.tail == "long":
        for band in _BANDS:
            pen.line(pose.pixels(band), fill=_TAIL_BAND, width=_stroke(unit, 0.08))
    corners = pose.pixels(_BILLS[species.bill])
    pen.polygon(corners, fill=_BILL, outline=_scaled(_BILL, 0.55), width=edge)
    outline = pose.pixels(_smooth(_OUTLINE))
    pen.polygon(outline, fill=body)
    _draw_pattern(layer, species, pose, outline, rng)
    pen.line([*outline, outline[0]], fill=dark_body, width=edge)
    lift = math.radians(rng.uniform(-4, 7))
    turn = np.array([[math.cos(lift), -math.sin(lift)], [math.sin(lift), math.cos(lift)]])
    pivot = np.array([0.22, 0.1])
    folded = pose.pixels((_smooth(_WING_OUTLINE) - pivot) @ turn.T + pivot)
    pen.polygon(folded, fill=wing)
    for feather in _FEATHERS:
        line = pose.pixels((np.array(feather) - pivot) @ turn.T + pivot)
        shade = _mixed(wing, (150, 150, 150), 0.4) if max(wing) < 60 else _scaled(wing, 0.72)
        pen.line(line, fill=shade, width=edge, joint="curve")
    pen.line([*folded, folded[0]], fill=dark_wing, width=edge)
    (ex, ey), ring = pose.pixels([_EYE])[0], 0.085 * unit
    for radius, colour in ((ring, _CREAM), (0.7 * ring, (16, 14, 14))):
        pen.ellipse((ex - radius, ey - radius, ex + radius, ey + radius), fill=colour)
    glint, (gx, gy) = 0.25 * ring, (ex - 0.25 * ring, ey - 0.3 * ring)
    pen.ellipse((gx - glint, gy - glint, gx + glint, gy + glint), fill=(250, 250, 250))
    return layer


_SKIES: Mapping[str, tuple[Colour, Colour]] = MappingProxyType(
    {
        "sky": ((152, 194, 230), (226, 236, 242)),
        "leaves": ((176, 196, 156), (128, 152, 112)),
        "water": ((168, 200, 204), (104, 148, 158)),
        "sand": ((214, 222, 222), (226, 222, 210)),
    }
)


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    from PIL import Image

    share = np.linspace(0.0, 1.0, size[1])[:, None, None]
    column = (1 - share) * np.array(top) + share * np.array(bottom)
    pixels = np.broadcast_to(np.rint(column).astype(np.uint8), (size[1], size[0], 3))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _blob(
    pen: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radii: tuple[float, float],
    colour: Colour,
) -> None:
    (x, y), (rx, ry) = centre, radii
    pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _draw_background(
    kind: str, size: tuple[int, int], side: float, foot_y: float, rng: np.random.Generator
) -> Image.Image:
    """Draw what lies behind, out of focus."""
    from PIL import ImageDraw, ImageFilter

    width, height = size
    top, bottom = (_mixed(c, (128, 128, 128), rng.uniform(0, 0.15)) for c in _SKIES[kind])
    scene = _gradient(size, top, bottom)
    pen = ImageDraw.Draw(scene)

    def scatter(
        count: int, wide: Pair, tall: Pair, tones: tuple[Colour, Colour], high: float = 0.0
    ) -> None:
        for _ in range(count):
            place = float(rng.uniform(0, width)), float(rng.uniform(high, height))
            radii = side * float(rng.uniform(*wide)), side * float(rng.uniform(*tall))
            _blob(pen, place, radii, _mixed(*tones, float(rng.random())))

    match kind:
        case "sky":
            for _ in range(int(rng.integers(2, 6))):
                x, y = rng.uniform(0, width), float(rng.uniform(0, 0.7 * height))
                for shift in rng.uniform(-0.14, 0.14, 4) * side:
                    radii = (
                        side * float(rng.uniform(0.06, 0.14)),
                        side * float(rng.uniform(0.03, 0.06)),
                    )
                    _blob(pen, (float(x + shift), y), radii, (238, 241, 244))
        case "leaves":
            scatter(36, (0.04, 0.12), (0.03, 0.08), ((206, 216, 176), (92, 122, 84)))
        case "water":
            scatter(26, (0.08, 0.25), (0.006, 0.016), ((206, 224, 224), (88, 132, 144)))
        case _:
            horizon = min(float(rng.uniform(0.25, 0.6)) * height, foot_y - 0.06 * side)
            swell, phase = float(rng.uniform(0.01, 0.04)) * side, float(rng.uniform(0, 6))
            xs = range(0, width + 8, 8)
            hills = [(x, horizon + swell * math.sin(5 * x / side + phase)) for x in xs]
            pen.polygon([*hills, (width + 8, height), (0, height)], fill=(222, 203, 164))
            tones = ((236, 220, 186), (196, 174, 134))
            scatter(18, (0.05, 0.2), (0.01, 0.014), tones, high=horizon + 0.05 * side)
    return scene.filter(ImageFilter.GaussianBlur(0.012 * side))


def _draw_scene(
    size: tuple[int, int], side: float, feet: Array, rng: np.random.Generator
) -> Image.Image:
    """Draw a background and what the bird stands on."""
    from PIL import Image, ImageDraw

    kind = _pick(rng, tuple(_SKIES))
    foot_x, foot_y = float(feet[:, 0].mean()), float(feet[:, 1].mean()) + 0.01 * side
    # At half the size: it is blurred anyway.
    s = _SUPERSAMPLE
    behind = _draw_background(kind, (size[0] // s, size[1] // s), side / s, foot_y / s, rng)
    scene = behind.resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(scene)
    match kind:
        case "sky" | "leaves":
            _draw_branch(pen, size[0], (foot_x, foot_y), side, rng)
        case "water":
            half, depth = float(rng.uniform(0.22, 0.36)) * side, 0.12 * side
            stone = np.array(
                [(-1, 0.75), (-0.8, 0.2), (-0.4, 0.0), (0.4, 0.0), (0.85, 0.25), (1, 0.75)]
            )
            stone[:, 0] += rng.uniform(-0.08, 0.08, len(stone))
            stone = _smooth(stone * (half, depth) + (foot_x, foot_y))
            _blob(pen, (foot_x, foot_y + 0.75 * depth), (1.15 * half, 0.3 * depth), (122, 158, 164))
            pen.polygon([(float(x), float(y)) for x, y in stone], fill=(134, 132, 130))
            top = foot_x, foot_y + 0.12 * depth
            _blob(pen, top, (0.45 * half, 0.1 * depth), (160, 158, 154))
        case _:
            _blob(pen, (foot_x, foot_y + 0.01 * side), (0.2 * side, 0.024 * side), (184, 164, 126))
            for _ in range(7):
                x, y = rng.uniform(0, size[0]), rng.uniform(foot_y + 0.03 * side, size[1] + 9)
                _blob(pen, (float(x), float(y)), (0.014 * side, 0.009 * side), (162, 150, 132))
    return scene


def _draw_branch(
    pen: ImageDraw.ImageDraw,
    width: int,
    foot: tuple[float, float],
    side: float,
    rng: np.random.Generator,
) -> None:
    slope = math.tan(math.radians(rng.uniform(-5, 5)))
    thick = 0.05 * side
    bark, shade = (126, 112, 100), (96, 84, 76)
    xs = np.linspace(-10.0, width + 10.0, 9)
    ys = foot[1] + slope * (xs - foot[0]) + rng.uniform(-0.004, 0.004, len(xs)) * side
    upper = [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
    for _ in range(int(rng.integers(1, 4))):
        x = float(rng.uniform(0, width))
        y = foot[1] + slope * (x - foot[0]) + 0.5 * thick
        end = x + float(rng.uniform(-0.12, 0.12)) * side, y + float(rng.uniform(0.1, 0.2)) * side
        pen.line(((x, y), end), fill=shade, width=max(round(0.3 * thick), 1))
        for along in (0.6, 1.0):
            place = x + along * (end[0] - x), y + along * (end[1] - y)
            _blob(pen, place, (0.042 * side, 0.02 * side), (118, 142, 92))
    pen.polygon([*upper, *((x, y + thick) for x, y in reversed(upper))], fill=bark)
    pen.polygon(
        [*((x, y + 0.65 * thick) for x, y in upper), *((x, y + thick) for x, y in reversed(upper))],
        fill=shade,
    )


def draw_picture(
    species: Species, image_height: int, rng: np.random.Generator
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Draw one picture whose shorter side has `image_height` pixels.

    Returns:
        The RGB picture and the bird's box: x, y, width and height in pixels.
    """
    from PIL import ImageChops

    longer = round(image_height * rng.uniform(1.0, 1.5))
    shape = (longer, image_height) if rng.random() < 0.5 else (image_height, longer)
    size = (_SUPERSAMPLE * shape[0], _SUPERSAMPLE * shape[1])
    side = float(min(size))
    corner = ((size[0] - side) / 2, (size[1] - side) / 2)
    pose = _make_pose(species, corner, side, rng)
    scene = _draw_scene(size, side, pose.feet, rng)
    bird = _draw_bird(size, species, pose, rng)
    box = bird.getchannel("A").getbbox()
    assert box is not None
    left, top, right, bottom = box
    bird = bird.crop(box)
    # Light falls from above: the back is brighter than the belly.
    light = _gradient(bird.size, (255, 255, 255), (216, 216, 216))
    scene.paste(ImageChops.multiply(bird.convert("RGB"), light), (left, top), bird)
    gains = rng.uniform(0.88, 1.06) * rng.uniform(0.97, 1.03, 3)
    table = np.rint(np.clip(gains[:, None] * np.arange(256), 0, 255)).astype(int)
    picture = scene.reduce(_SUPERSAMPLE).point(table.reshape(-1).tolist())
    s = _SUPERSAMPLE
    return picture, (left / s, top / s, (right - left) / s, (bottom - top) / s)


# The download


@dataclass(frozen=True)
class _Job:
    """The work on one species; `first_id` is the id of its first picture."""

    root: Path
    species: Species
    seed: int
    first_id: int
    count: int
    image_height: int


@dataclass(frozen=True)
class _Picture:
    """What the lists say of one written picture."""

    image_id: int
    species: Species
    stem: str
    box: tuple[float, float, float, float]
    is_train: bool
    """In the official split, which divides every class."""


def _write_species(job: _Job) -> list[_Picture]:
    species = job.species
    images = job.root / "CUB_200_2011" / "images" / species.folder
    texts = job.root / "text" / "text" / species.folder
    images.mkdir(parents=True)
    texts.mkdir(parents=True)
    order = generator(job.seed, species.folder, "split").permutation(job.count)
    train = {int(i) for i in order[: (job.count + 1) // 2]}
    pictures = []
    for i in range(job.count):
        image_id = job.first_id + i
        stem = species.stem(i + 1, image_id)
        rng = generator(job.seed, species.folder, str(i), "picture")
        picture, box = draw_picture(species, job.image_height, rng)
        picture.save(images / f"{stem}.jpg", quality=_QUALITY)
        captions = make_captions(species, generator(job.seed, species.folder, str(i), "captions"))
        (texts / f"{stem}.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        pictures.append(_Picture(image_id, species, stem, box, i in train))
    return pictures


def _write_lists(root: Path, species: list[Species], pictures: list[_Picture], seed: int) -> None:
    folder = root / "CUB_200_2011"
    (folder / "attributes").mkdir()
    names = [(attribute, value) for attribute, values in VALUES.items() for value in values]
    labels = []
    for p in pictures:
        rng = generator(seed, p.stem, "labels")
        certainty, seconds = rng.integers(3, 5, len(names)), rng.uniform(1, 12, len(names))
        for number, (attribute, value) in enumerate(names):
            is_present = int(getattr(p.species, attribute) == value)
            answer = f"{is_present} {certainty[number]} {seconds[number]:.3f}"
            labels.append(f"{p.image_id} {number + 1} {answer}")
    texts = {
        root / "attributes.txt": [
            f"{number} {OFFICIAL_NAMES[attribute]}::{value}"
            for number, (attribute, value) in enumerate(names, start=1)
        ],
        folder / "images.txt": [f"{p.image_id} {p.species.folder}/{p.stem}.jpg" for p in pictures],
        folder / "image_class_labels.txt": [f"{p.image_id} {p.species.class_id}" for p in pictures],
        folder / "classes.txt": [f"{s.class_id} {s.folder}" for s in species],
        folder / "train_test_split.txt": [f"{p.image_id} {int(p.is_train)}" for p in pictures],
        folder / "bounding_boxes.txt": [
            " ".join([str(p.image_id), *(f"{value:.1f}" for value in p.box)]) for p in pictures
        ],
        folder / "attributes" / "image_attribute_labels.txt": labels,
    }
    for path, lines in texts.items():
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for split in ("train", "test"):
        members = [p for p in pictures if p.species.split == split]
        (root / split).mkdir()
        _dump(root / split / "filenames.pickle", [f"{p.species.folder}/{p.stem}" for p in members])
        _dump(root / split / "class_info.pickle", [p.species.class_id for p in members])


def _dump(path: Path, value: list[Any]) -> None:
    with path.open("wb") as file:
        # As published: Python 2 wrote these.
        pickle.dump(value, file, protocol=0)


def write_download(
    root: Path,
    *,
    seed: int,
    num_species: int,
    images_per_species: int,
    image_height: int,
    num_workers: int = 1,
) -> None:
    """Write a stand-in download of CUB-200-2011, with captions and StackGAN's split, under `root`.

    Equal arguments give equal bytes, whatever `num_workers` is. An existing `root` is replaced as
    a whole once everything is written.

    Args:
        root: the folder to become the download.
        seed: of pictures and captions; the species are always those of `plan`.
        num_species: 11 to 200 classes; one in four is in the test split. Of few species a network
            learns which one it sees rather than its attributes: 160 are enough, 40 are not.
        images_per_species: pictures of each class, at least 2.
        image_height: pixels of a picture's shorter side, at least 32.
        num_workers: processes that draw at the same time.

    Raises:
        ValueError: a number is out of its range.
    """
    from tqdm import tqdm

    species = plan(num_species)
    if images_per_species < 2:
        raise ValueError(
            "images_per_species must be at least 2, because the official split divides every "
            f"class: got {images_per_species}; use 24"
        )
    if image_height < 32:
        raise ValueError(
            "image_height must be at least 32 pixels, or the birds cannot be told apart: "
            f"got {image_height}; use 96"
        )
    with atomic_directory(root) as folder:
        jobs = [
            _Job(folder, s, seed, i * images_per_species + 1, images_per_species, image_height)
            for i, s in enumerate(species)
        ]
        pictures: list[_Picture] = []
        total = num_species * images_per_species
        with tqdm(total=total, desc="embedded data", unit="picture") as bar:
            for written in ordered_map(_write_species, jobs, num_workers):
                pictures += written
                bar.update(len(written))
        _write_lists(folder, species, pictures, seed)
