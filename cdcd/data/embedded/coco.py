"""Write a stand-in for an MS COCO 2014 download: the real layout and keys, drawn scenes.

A scene is one or two groups of equal objects before a background, and its captions say what was
drawn. It is read through the same adapter as a real download; nothing downstream knows the
difference.
"""

from __future__ import annotations

import colorsys
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded.music import generator
from cdcd.data.files import atomic_directory
from cdcd.data.parallel import ordered_map

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Array = NDArray[np.float64]
Point = tuple[float, float]
Rgb = tuple[int, int, int]

PLURALS = {
    "ball": "balls", "box": "boxes", "star": "stars", "tree": "trees", "house": "houses",
    "car": "cars",
}  # fmt: skip
"""Every kind of object, with its plural."""

KINDS = tuple(PLURALS)
CATEGORY_IDS = {"ball": 1, "box": 2, "star": 3, "tree": 5, "house": 6, "car": 8}
"""Number of each kind in the instance files; with gaps, as in the real ones."""

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
BACKGROUNDS = ("grass", "beach", "room", "snow")
RELATIONS = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""Where the first group is as seen from the second, with where the second is from the first."""

MAX_COUNT = 3
"""Most objects of one group."""

MIN_HEIGHT = 64
"""Least pixels of the shorter side."""

_COUNT_SHARES = (0.42, 0.36, 0.22)
SPLITS = ("train", "val")

_SUPERCATEGORIES = {
    "ball": "toy", "box": "toy", "star": "toy", "tree": "plant", "house": "building",
    "car": "vehicle",
}  # fmt: skip
_SUPERSAMPLE = 2
_QUALITY = 90
_MARGIN = 0.03
"""Of the central square, free on every side."""

_GAP = 0.03
"""Least distance of two objects."""
_SIZE = 0.265
"""Of an object as a share of the central square, unless there is too little room for it."""

_PROPORTIONS = {
    "ball": (1.0, 1.0), "box": (0.96, 0.96), "star": (1.05, 1.0), "tree": (0.94, 1.04),
    "house": (1.02, 1.02), "car": (1.24, 0.74),
}  # fmt: skip
"""Width and height of each kind, as multiples of the size.

Three fit beside each other at full size: were they smaller, three could cover what two cover, and
a count would be hard to read off a small picture.
"""

_HSV = {
    "red": (0.99, 0.88, 0.84), "orange": (0.07, 0.93, 0.97), "yellow": (0.15, 0.9, 0.99),
    "green": (0.39, 0.9, 0.52), "blue": (0.62, 0.86, 0.84), "purple": (0.79, 0.7, 0.66),
}  # fmt: skip
_WHEEL, _TRUNK, _ROOF, _GLASS = (32, 32, 38), (92, 62, 44), (74, 64, 64), (226, 236, 242)

_FAR = {
    "grass": ((176, 206, 228), (222, 234, 238)), "beach": ((186, 216, 230), (122, 170, 186)),
    "room": ((206, 200, 196), (222, 216, 210)), "snow": ((166, 180, 198), (212, 220, 230)),
}  # fmt: skip
"""Colours of the sky or wall, at the top and at the horizon."""

_NEAR = {
    "grass": ((182, 204, 146), (142, 174, 108)), "beach": ((232, 220, 192), (212, 194, 158)),
    "room": ((176, 158, 142), (150, 132, 118)), "snow": ((240, 244, 248), (216, 224, 234)),
}  # fmt: skip
"""Colours of the ground, at the horizon and at the bottom."""

_PLACES = {
    "grass": ("on the grass", "in a meadow", "on a lawn"),
    "beach": ("on the beach", "on the sand", "by the sea"),
    "room": ("in a room", "on the floor", "inside"),
    "snow": ("in the snow", "on a snowy field", "in winter"),
}
_RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_SIDES = {
    "left": "on the left", "right": "on the right", "above": "at the top",
    "below": "at the bottom",
}  # fmt: skip
_ONE_GROUP = (
    "{a} {place}",
    "there {is_a} {a} {place}",
    "a picture of {a} {place}",
    "a picture of {a}",
    "a scene with {a} {place}",
    "{a} seen {place}",
    "{place}, there {is_a} {a}",
    "{place} we see {a}",
    "{a} {is_a} {place}",
)
_TWO_GROUPS = (
    "{a} and {b} {place}",
    "{b} and {a}",
    "there are {b} and {a} {place}",
    "a picture of {a} with {b} {place}",
    "{place} we see {a} and {b}",
    "a scene with {b} and {a} {place}",
    "{b} together with {a} {place}",
    "{place}, there are {a} and {b}",
)
_RELATED_GROUPS = (
    "{a} {rel} {b} {place}",
    "{b} {inverse} {a} {place}",
    "there {is_a} {a} {rel} {b} {place}",
    "there {is_b} {b} {inverse} {a}",
    "a picture of {a} {rel} {b}",
    "a picture of {b} {inverse} {a} {place}",
    "{place}, {a} {is_a} {rel} {b}",
    "{a} {is_a} {rel} {b}",
    "{b} {is_b} {inverse} {a} {place}",
    "{place}, {a} {side} and {b} {other_side}",
    "{b} {other_side} and {a} {side}",
)


@dataclass(frozen=True)
class Group:
    """Equal objects.

    Attributes:
        kind: one of `KINDS`.
        colour: one of `COLOURS`.
        count: 1 to `MAX_COUNT`.
    """

    kind: str
    colour: str
    count: int


@dataclass(frozen=True)
class Scene:
    """What is to be seen in one picture.

    Attributes:
        background: one of `BACKGROUNDS`.
        groups: one or two groups; two differ in kind and in colour, so either names its group.
        relation: where the first group is as seen from the second, one of `RELATIONS`; `None`
            with one group, or with two that are mixed.
    """

    background: str
    groups: tuple[Group, ...]
    relation: str | None


@dataclass(frozen=True)
class Box:
    """A rectangle, in shares of the central square or in pixels; y points down."""

    x: float
    y: float
    width: float
    height: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene at random: a third have one group, most others two and a relation."""
    num_groups = 1 if rng.random() < 0.35 else 2
    kinds = rng.permutation(len(KINDS))[:num_groups]
    colours = rng.permutation(len(COLOURS))[:num_groups]
    counts = rng.choice(MAX_COUNT, num_groups, p=_COUNT_SHARES) + 1
    groups = tuple(
        Group(KINDS[kind], COLOURS[colour], int(count))
        for kind, colour, count in zip(kinds, colours, counts, strict=True)
    )
    is_related = num_groups == 2 and rng.random() < 0.85
    relation = tuple(RELATIONS)[rng.integers(len(RELATIONS))] if is_related else None
    return Scene(BACKGROUNDS[rng.integers(len(BACKGROUNDS))], groups, relation)


def place_objects(scene: Scene, rng: np.random.Generator) -> tuple[tuple[Box, ...], ...]:
    """Choose the rectangle of every object, by group, in shares of the central square.

    Rectangles do not overlap. With a relation, every object of the first group is on its side of
    every object of the second.
    """
    side = 1 - 2 * _MARGIN
    whole = Box(_MARGIN, _MARGIN, side, side)
    kinds = [[group.kind] * group.count for group in scene.groups]
    if scene.relation is None:
        order = [kind for group in kinds for kind in group]
        boxes = _place(order, whole, rng)
        ends = np.cumsum([len(group) for group in kinds]).tolist()
        return tuple(
            tuple(boxes[end - len(group) : end]) for group, end in zip(kinds, ends, strict=True)
        )
    cut = side * rng.uniform(0.48, 0.52)
    if scene.relation in ("left", "right"):
        halves = [
            Box(_MARGIN, _MARGIN, cut, side),
            Box(_MARGIN + cut, _MARGIN, side - cut, side),
        ]
    else:
        halves = [
            Box(_MARGIN, _MARGIN, side, cut),
            Box(_MARGIN, _MARGIN + cut, side, side - cut),
        ]
    if scene.relation in ("right", "below"):
        halves.reverse()
    return tuple(tuple(_place(group, half, rng)) for group, half in zip(kinds, halves, strict=True))


def _place(kinds: Sequence[str], region: Box, rng: np.random.Generator) -> list[Box]:
    """Put objects into random cells of a grid over the region, each anywhere in its cell."""
    widest = max(_PROPORTIONS[kind][0] for kind in kinds)
    tallest = max(_PROPORTIONS[kind][1] for kind in kinds)
    room = {
        (rows, columns): min(
            (region.width / columns - _GAP) / widest, (region.height / rows - _GAP) / tallest
        )
        for rows in (1, 2, 3)
        for columns in (1, 2, 3)
        if rows * columns >= len(kinds)
    }
    largest = _SIZE * rng.uniform(0.97, 1.03)
    # Any grid with room enough, so that places vary; the roomiest one where there is none.
    fitting = [grid for grid, size in room.items() if size >= largest]
    grid = fitting[rng.integers(len(fitting))] if fitting else max(room, key=lambda g: room[g])
    size = min(largest, room[grid])
    rows, columns = grid
    boxes = []
    for kind, cell in zip(kinds, rng.permutation(rows * columns)[: len(kinds)], strict=True):
        row, column = divmod(int(cell), columns)
        own = size * rng.uniform(0.97, 1.0)
        width, height = own * _PROPORTIONS[kind][0], own * _PROPORTIONS[kind][1]
        free_x, free_y = region.width / columns - width, region.height / rows - height
        x = region.x + column * region.width / columns + rng.uniform(_GAP / 2, free_x - _GAP / 2)
        y = region.y + row * region.height / rows + rng.uniform(_GAP / 2, free_y - _GAP / 2)
        boxes.append(Box(x, y, width, height))
    return boxes


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    angles = np.deg2rad(np.linspace(start, end, max(int(abs(end - start) / 12), 2)))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _outlines() -> dict[str, list[Point]]:
    """Return the outline of each kind, filling the unit square."""
    turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
    star = [
        (math.cos(t) * (1 if i % 2 == 0 else 0.5), math.sin(t) * (1 if i % 2 == 0 else 0.5))
        for i, t in enumerate(turns)
    ]
    left_tree = [
        (0.5, 0.0), (0.24, 0.3), (0.36, 0.3), (0.12, 0.56), (0.26, 0.56), (0.0, 0.84),
        (0.39, 0.84), (0.39, 1.0),
    ]  # fmt: skip
    car = [
        (0.0, 0.8), (0.0, 0.48), (0.18, 0.4), (0.3, 0.0), (0.68, 0.0), (0.82, 0.4), (1.0, 0.5),
        (1.0, 0.8), *_arc(0.76, 0.76, 0.13, 0.24, 10, 170),
        *_arc(0.24, 0.76, 0.13, 0.24, 10, 170),
    ]  # fmt: skip
    house = [(0.0, 0.44), (0.5, 0.0), (1.0, 0.44), (0.9, 0.44), (0.9, 1.0), (0.1, 1.0), (0.1, 0.44)]
    shapes = {
        "ball": _arc(0.0, 0.0, 1.0, 1.0, 0, 348),
        "box": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
        "star": star,
        "tree": left_tree + [(1 - x, y) for x, y in reversed(left_tree[1:])],
        "house": house,
        "car": car,
    }
    filled = {}
    for kind, points in shapes.items():
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        filled[kind] = [(float(x), float(y)) for x, y in (np.asarray(points) - low) / (high - low)]
    return filled


_OUTLINES = _outlines()


def _polygon(points: Sequence[Point], box: Box) -> list[Point]:
    return [(box.x + x * box.width, box.y + y * box.height) for x, y in points]


def _object_colour(colour: str, light: float, rng: np.random.Generator) -> Rgb:
    hue, saturation, value = _HSV[colour]
    r, g, b = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.012, 0.012)) % 1,
        min(saturation * rng.uniform(0.92, 1.06), 1.0),
        min(value * light * rng.uniform(0.95, 1.05), 1.0),
    )
    return round(255 * r), round(255 * g), round(255 * b)


def _mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    r, g, b = (round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))
    return r, g, b


def _gradient(rows: int, top: Rgb, bottom: Rgb) -> Array:
    share = np.linspace(0, 1, max(rows, 1))[:, None]
    return np.asarray((1 - share) * np.asarray(top) + share * np.asarray(bottom))


def _background(
    name: str, size: tuple[int, int], light: float, rng: np.random.Generator
) -> Image.Image:
    from PIL import Image, ImageDraw

    width, height = size
    horizon = round(height * rng.uniform(0.14, 0.26))
    column = np.concatenate(
        [_gradient(horizon, *_FAR[name]), _gradient(height - horizon, *_NEAR[name])]
    )
    # Light falls from one side, and the ground is a little uneven.
    slope = np.linspace(-1, 1, width) * rng.uniform(-0.07, 0.07)
    pixels = column[:, None] * (light * (1 + slope))[None, :, None]
    pixels[horizon:] += rng.normal(0.0, 2.5, (height - horizon, width, 1))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    near = _mixed((0, 0, 0), _NEAR[name][1], light)
    dark, bright = _mixed(near, (0, 0, 0), 0.14), _mixed(near, (255, 255, 255), 0.3)
    unit = min(size) / 100
    if name == "room":
        pen.rectangle((0, horizon - 2 * unit, width, horizon), fill=bright)
        for y in np.geomspace(8, 100, 6) / 100 * (height - horizon) + horizon:
            pen.line((0, y, width, y), fill=_mixed(near, (0, 0, 0), 0.1), width=_SUPERSAMPLE)
    elif name == "snow":
        hill = [(x, horizon - unit * (2 + 3 * math.sin(x / width * 5 + light * 9)))
                for x in range(0, width + 8, 8)]  # fmt: skip
        pen.polygon([*hill, (width, horizon + 2), (0, horizon + 2)], fill=_NEAR[name][0])
    for x, y in rng.random((70, 2)):
        x, y = x * width, horizon + y * (height - horizon)
        if name == "grass":
            pen.line((x, y, x + unit, y - 3 * unit), fill=dark, width=_SUPERSAMPLE)
        elif name == "beach":
            pen.ellipse((x, y, x + unit, y + 0.6 * unit), fill=dark)
        elif name == "snow":
            y *= rng.random()
            pen.ellipse((x, y, x + unit, y + unit), fill=(250, 252, 255))
    return picture


def _draw_shadow(pen: ImageDraw.ImageDraw, box: Box) -> None:
    reach, thick = 0.04 * box.width, 0.07 * box.height
    bottom = box.y + box.height
    pen.ellipse((box.x - reach, bottom - thick, box.x + box.width + reach, bottom + thick), fill=80)


def _draw_object(pen: ImageDraw.ImageDraw, kind: str, colour: Rgb, box: Box) -> None:
    """Draw an outline filled with its colour, and a few small things that tell the kind."""
    dark, bright = _mixed(colour, (0, 0, 0), 0.55), _mixed(colour, (255, 255, 255), 0.8)
    stroke = max(round(0.045 * box.width), 1)
    pen.polygon(_polygon(_OUTLINES[kind], box), fill=colour, outline=dark, width=stroke)

    def corners(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
        return tuple(v for point in _polygon([(x0, y0), (x1, y1)], box) for v in point)

    match kind:
        case "ball":
            band = [*_arc(0.5, 0.36, 0.46, 0.18, 10, 170), *_arc(0.5, 0.58, 0.46, 0.18, 170, 10)]
            pen.polygon(_polygon(band, box), fill=bright)
            pen.ellipse(corners(0.26, 0.13, 0.46, 0.29), fill=bright)
        case "box":
            pen.rectangle(corners(0.06, 0.42, 0.94, 0.58), fill=bright)
            pen.rectangle(corners(0.42, 0.06, 0.58, 0.94), fill=bright)
        case "star":
            pen.polygon(_polygon(_shrunk(_OUTLINES["star"], 0.42), box), fill=bright)
        case "tree":
            pen.rectangle(corners(0.39, 0.85, 0.61, 1.0), fill=_TRUNK)
            tip = [(0.5, 0.02), (0.34, 0.22), (0.66, 0.22)]
            band = [(0.3, 0.5), (0.7, 0.5), (0.78, 0.62), (0.22, 0.62)]
            pen.polygon(_polygon(tip, box), fill=bright)
            pen.polygon(_polygon(band, box), fill=bright)
        case "house":
            roof = [(0.0, 0.44), (0.5, 0.0), (1.0, 0.44)]
            pen.polygon(_polygon(roof, box), fill=_ROOF)
            pen.rectangle(corners(0.2, 0.58, 0.42, 0.76), fill=_GLASS)
            pen.rectangle(corners(0.58, 0.58, 0.78, 0.98), fill=_GLASS)
        case "car":
            glass = [(0.28, 0.4), (0.36, 0.1), (0.64, 0.1), (0.73, 0.4)]
            pen.polygon(_polygon(glass, box), fill=_GLASS)
            for x in (0.24, 0.76):
                pen.ellipse(corners(x - 0.13, 0.53, x + 0.13, 1.0), fill=_WHEEL)
                pen.ellipse(corners(x - 0.05, 0.68, x + 0.05, 0.86), fill=_GLASS)


def _shrunk(points: Sequence[Point], share: float) -> list[Point]:
    # About the middle of a star, which lies below that of its rectangle.
    return [(0.5 + (x - 0.5) * share, 0.55 + (y - 0.55) * share) for x, y in points]


def paint(
    scene: Scene,
    boxes: Sequence[Sequence[Box]],
    size: tuple[int, int],
    rng: np.random.Generator,
) -> Image.Image:
    """Paint a scene.

    Args:
        scene: what is to be seen.
        boxes: rectangle of every object by group, in pixels.
        size: width and height in pixels.
        rng: of hues, lighting and textures.

    Returns:
        An RGB picture of that size.
    """
    from PIL import Image, ImageDraw, ImageFilter

    light = rng.uniform(0.88, 1.04)
    large = (size[0] * _SUPERSAMPLE, size[1] * _SUPERSAMPLE)
    picture = _background(scene.background, large, light, rng)
    objects = [
        (group.kind, _object_colour(group.colour, light, rng), _scaled(box, _SUPERSAMPLE))
        for group, places in zip(scene.groups, boxes, strict=True)
        for box in places
    ]
    shadow = Image.new("L", large, 0)
    for _, _, box in objects:
        _draw_shadow(ImageDraw.Draw(shadow), box)
    shadow = shadow.filter(ImageFilter.GaussianBlur(min(large) / 100))
    picture.paste((20, 24, 32), mask=shadow)
    pen = ImageDraw.Draw(picture)
    for kind, colour, box in objects:
        _draw_object(pen, kind, colour, box)
    return picture.reduce(_SUPERSAMPLE)


def _scaled(box: Box, factor: float) -> Box:
    return Box(box.x * factor, box.y * factor, box.width * factor, box.height * factor)


def _phrase(group: Group, rng: np.random.Generator) -> str:
    if group.count > 1:
        return f"{('two', 'three')[group.count - 2]} {group.colour} {PLURALS[group.kind]}"
    article = "an" if group.colour[0] in "aeiou" else "a"
    return f"{'one' if rng.random() < 0.15 else article} {group.colour} {group.kind}"


def _sentence(template: str, scene: Scene, rng: np.random.Generator) -> str:
    def one_of(phrases: Sequence[str]) -> str:
        return phrases[int(rng.integers(len(phrases)))]

    first, last = scene.groups[0], scene.groups[-1]
    words = {
        "a": _phrase(first, rng),
        "b": _phrase(last, rng),
        "is_a": "is" if first.count == 1 else "are",
        "is_b": "is" if last.count == 1 else "are",
        "place": one_of(_PLACES[scene.background]),
    }
    if scene.relation is not None:
        inverse = RELATIONS[scene.relation]
        words |= {
            "rel": one_of(_RELATION_WORDS[scene.relation]),
            "inverse": one_of(_RELATION_WORDS[inverse]),
            "side": _SIDES[scene.relation],
            "other_side": _SIDES[inverse],
        }
    return template.format_map(words)


def _as_typed(sentence: str, rng: np.random.Generator) -> str:
    """Vary capital, final dot and, rarely, white space, as the writers of real captions do."""
    if rng.random() < 0.8:
        sentence = sentence[0].upper() + sentence[1:]
    if rng.random() < 0.75:
        sentence += "."
    slip = rng.random()
    if slip < 0.01:
        return " " + sentence
    if slip < 0.02:
        return sentence + "\n"
    if slip < 0.025:
        return sentence.replace(" ", "\n", 1)
    return sentence


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Describe a scene in five to seven distinct sentences, most of them with its relation."""
    num_captions = int(rng.choice((5, 6, 7), p=(0.8, 0.14, 0.06)))
    if len(scene.groups) == 1:
        templates = list(rng.permutation(_ONE_GROUP)[:num_captions])
    elif scene.relation is None:
        templates = list(rng.permutation(_TWO_GROUPS)[:num_captions])
    else:
        num_plain = int(rng.integers(1, 3))
        templates = [
            *rng.permutation(_RELATED_GROUPS)[: num_captions - num_plain],
            *rng.permutation(_TWO_GROUPS)[:num_plain],
        ]
    # Sentences of different templates differ: each has its own words around the groups.
    return [_as_typed(_sentence(str(t), scene, rng), rng) for t in rng.permutation(templates)]


@dataclass(frozen=True)
class _Job:
    """The work on one picture."""

    folder: Path
    seed: int
    split: str
    image_id: int
    image_height: int

    @property
    def file_name(self) -> str:
        return f"COCO_{self.split}2014_{self.image_id:012d}.jpg"


@dataclass(frozen=True)
class _Written:
    """One picture's entries of the annotation files, but for their numbers."""

    image: dict[str, Any]
    captions: list[str]
    instances: list[dict[str, Any]]


def _picture_size(image_height: int, rng: np.random.Generator) -> tuple[int, int]:
    longer = round(image_height * float(rng.choice((1.0, rng.uniform(1.0, 4 / 3), 4 / 3))))
    return (longer, image_height) if rng.random() < 0.7 else (image_height, longer)


def _instance(group: Group, box: Box) -> dict[str, Any]:
    polygon = np.round(_polygon(_OUTLINES[group.kind], box), 2)
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    x, y = polygon.T
    area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return {
        "category_id": CATEGORY_IDS[group.kind],
        "bbox": np.round([*low, *(high - low)], 2).tolist(),
        "area": round(area, 2),
        "iscrowd": 0,
        "segmentation": [polygon.ravel().tolist()],
        "attributes": {"color": group.colour},
    }


def _write_picture(job: _Job) -> _Written:
    rng = generator(job.seed, job.split, str(job.image_id))
    scene = draw_scene(rng)
    width, height = _picture_size(job.image_height, rng)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    boxes = [
        [Box(left + b.x * side, top + b.y * side, b.width * side, b.height * side) for b in places]
        for places in place_objects(scene, rng)
    ]
    picture = paint(scene, boxes, (width, height), rng)
    path = job.folder / f"{job.split}2014" / job.file_name
    picture.save(path, format="JPEG", quality=_QUALITY)
    return _Written(
        image={
            "license": 1,
            "file_name": job.file_name,
            "coco_url": "",
            "height": height,
            "width": width,
            "date_captured": "",
            "flickr_url": "",
            "id": job.image_id,
        },
        captions=write_captions(scene, rng),
        instances=[
            _instance(group, box)
            for group, places in zip(scene.groups, boxes, strict=True)
            for box in places
        ],
    )


def _with_ids(entries: list[dict[str, Any]], first: int, rng: np.random.Generator) -> int:
    """Number entries from `first` on, with gaps; return the next free number."""
    numbers = first + np.cumsum(rng.integers(1, 8, len(entries)))
    for entry, number in zip(entries, numbers.tolist(), strict=True):
        entry["id"] = number
    return int(numbers[-1]) + 1


def _write_annotations(folder: Path, written: dict[str, list[_Written]], seed: int) -> None:
    rng = generator(seed, "annotations")
    next_caption = next_instance = 1
    for split, pictures in written.items():
        captions: list[dict[str, Any]] = [
            {"image_id": picture.image["id"], "caption": caption}
            for picture in pictures
            for caption in picture.captions
        ]
        instances = [
            {**instance, "image_id": picture.image["id"]}
            for picture in pictures
            for instance in picture.instances
        ]
        next_caption = _with_ids(captions, next_caption, rng)
        next_instance = _with_ids(instances, next_instance, rng)
        shared = {
            "info": {
                "description": "Stand-in for MS COCO 2014: drawn scenes",
                "url": "",
                "version": "1.0",
                "year": 2014,
                "contributor": "synthesised by this project",
                "date_created": "",
            },
            "images": [picture.image for picture in pictures],
            "licenses": [{"url": "", "id": 1, "name": "Synthesised by this project"}],
        }
        categories = [
            {"supercategory": _SUPERCATEGORIES[kind], "id": CATEGORY_IDS[kind], "name": kind}
            for kind in KINDS
        ]
        # As published: captions of one picture do not stand together.
        mixed = [captions[i] for i in rng.permutation(len(captions))]
        files = {
            "captions": {**shared, "annotations": mixed},
            "instances": {**shared, "annotations": instances, "categories": categories},
        }
        for name, content in files.items():
            path = folder / "annotations" / f"{name}_{split}2014.json"
            path.write_text(json.dumps(content), encoding="utf-8")


def write_download(
    root: Path,
    *,
    seed: int,
    num_train: int,
    num_val: int,
    image_height: int,
    num_workers: int = 1,
) -> None:
    """Write `annotations/`, `train2014/` and `val2014/` of a stand-in download under `root`.

    Equal arguments give equal bytes, whatever `num_workers` is. An existing `root` is replaced as
    a whole once everything is written. Instance annotations carry one key more than the real
    ones, `attributes: {"color": ...}`, so that correspondence with a caption can be measured.

    Args:
        root: the folder to become the download.
        seed: seed of scenes, pictures, captions and numbers.
        num_train: pictures to train on.
        num_val: held-out pictures.
        image_height: pixels of the shorter side, at least `MIN_HEIGHT`; the longer one has up to
            a third more.
        num_workers: processes that paint at the same time.

    Raises:
        ValueError: no pictures, or too small ones.
    """
    from tqdm import tqdm

    counts = {"train": num_train, "val": num_val}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(
                f"num_{split} must be at least 1, because both splits are read: got {count}; "
                "use 200 or more"
            )
    if image_height < MIN_HEIGHT:
        raise ValueError(
            f"image_height must be at least {MIN_HEIGHT}, or objects cannot be told apart: got "
            f"{image_height}; use 96"
        )
    rng = generator(seed, "images")
    ids = rng.permutation(np.cumsum(rng.integers(1, 400, num_train + num_val))).tolist()
    with atomic_directory(root) as folder:
        for name in ("annotations", *(f"{split}2014" for split in SPLITS)):
            (folder / name).mkdir()
        jobs = [
            _Job(folder, seed, split, number, image_height)
            for split, numbers in (("train", ids[:num_train]), ("val", ids[num_train:]))
            for number in numbers
        ]
        written: dict[str, list[_Written]] = {split: [] for split in SPLITS}
        results = ordered_map(_write_picture, jobs, num_workers)
        with tqdm(total=len(jobs), desc="embedded data", unit="picture") as bar:
            for job, result in zip(jobs, results, strict=True):
                written[job.split].append(result)
                bar.update()
        _write_annotations(folder, written, seed)
