"""What is asked for and what is seen in pictures of the embedded stand-ins.

A stand-in says what its pictures show, so a small classifier can be trained on its real training
pictures and then asked whether a generated picture shows what its caption told, or its class. No
real download has such labels for generated pictures, so none of this is scored there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.embedded import coco, cub200
from cdcd.data.images import evaluation_crop
from cdcd.data.samples import Picture
from cdcd.evaluation.attributes import SIZE, UNKNOWN, AttributeClassifier, fit_classifier

Told = dict[str, str]
"""Value asked for, by attribute, e.g. `{"wing": "black"}` or `{"count of ball": "2"}`."""

CLASS = "class"
"""The head that says the class."""

_NOTHING = "none"


@dataclass(frozen=True)
class StandIn:
    """How one stand-in is read.

    Attributes:
        values: of each attribute, in the order of their numbers; empty where only classes are told.
        shown: the attributes that a real picture shows, from its meta data.
        told: the attributes that a caption tells.
        family: the column of an attribute, e.g. `count` of `count of ball`.
        has_classes: whether the classes of held-out pictures occur in training.
        training: how the classifier is trained.
    """

    values: Mapping[str, tuple[str, ...]]
    shown: Callable[[Picture], Told]
    told: Callable[[str], Told]
    family: Callable[[str], str]
    has_classes: bool
    training: Mapping[str, Any]


def _cub_shown(picture: Picture) -> Told:
    """Attributes as the download lists them; where it does not, what all captions tell."""
    names = {official: name for name, official in cub200.OFFICIAL_NAMES.items()}
    pairs = [text.split("::", 1) for text in picture.meta.get("attributes", ())]
    listed = {names[pair[0]]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in names}
    told: Told = {}
    for caption in picture.captions:
        told |= cub200.told_attributes(caption.text)
    return told | listed


_COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_SINGULAR = {plural: kind for kind, plural in coco.PLURALS.items()} | {k: k for k in coco.KINDS}
_GROUP = re.compile(
    rf"\b({'|'.join(_COUNTS)}) ({'|'.join(coco.COLOURS)}) ({'|'.join(sorted(_SINGULAR)[::-1])})\b"
)
_COCO_VALUES = {
    **{f"count of {kind}": tuple(map(str, range(coco.MAX_COUNT + 1))) for kind in coco.KINDS},
    **{f"colour of {kind}": (_NOTHING, *coco.COLOURS) for kind in coco.KINDS},
}


def _coco_shown(picture: Picture) -> Told:
    """Count and colour of every kind; the objects of a kind share their colour."""
    if "objects" not in picture.meta:
        return {}
    shown = {f"count of {kind}": "0" for kind in coco.KINDS}
    shown |= {f"colour of {kind}": _NOTHING for kind in coco.KINDS}
    for found in picture.meta["objects"]:
        kind, colour = found["category"], (found.get("attributes") or {}).get("color")
        if f"count of {kind}" in shown:
            shown[f"count of {kind}"] = str(int(shown[f"count of {kind}"]) + 1)
            shown[f"colour of {kind}"] = str(colour)
    return shown


def _coco_told(caption: str) -> Told:
    told: Told = {}
    for count, colour, noun in _GROUP.findall(caption.lower()):
        kind = _SINGULAR[noun]
        told |= {f"count of {kind}": str(_COUNTS[count]), f"colour of {kind}": colour}
    return told


STAND_INS: Mapping[str, StandIn] = {
    "cub200": StandIn(
        values=cub200.VALUES,
        shown=_cub_shown,
        told=cub200.told_attributes,
        family=lambda attribute: attribute,
        # Held-out species are new combinations of known attributes.
        has_classes=False,
        training={"num_epochs": 13, "batch_size": 48, "learning_rate": 6e-3, "width": 16},
    ),
    "coco": StandIn(
        values=_COCO_VALUES,
        shown=_coco_shown,
        told=_coco_told,
        family=lambda attribute: attribute.split(" ")[0],
        has_classes=False,
        training={"num_epochs": 24, "batch_size": 24, "learning_rate": 1e-2, "width": 12},
    ),
    "imagenet": StandIn(
        values={},
        shown=lambda picture: {},
        told=lambda caption: {},
        family=lambda attribute: attribute,
        has_classes=True,
        training={
            **{"num_epochs": 7, "batch_size": 32, "learning_rate": 6e-3, "width": 16},
            "mirror": False,  # digits
        },
    ),
}


@dataclass(frozen=True, eq=False)
class Reader:
    """A classifier trained on a stand-in's real pictures.

    Attributes:
        stand_in: what it knows to read.
        classifier: the network.
        num_train: pictures it was trained on.
    """

    stand_in: StandIn
    classifier: AttributeClassifier
    num_train: int

    @property
    def attributes(self) -> list[str]:
        """Attributes it reads, the class apart."""
        return [name for name in self.classifier.num_values if name != CLASS]

    def value(self, attribute: str, number: int) -> str:
        """Name a predicted value."""
        return self.stand_in.values[attribute][number]


def fit_reader(dataset: str, pictures: Iterable[Picture], image_size: int, seed: int) -> Reader:
    """Train a stand-in's classifier.

    Pictures are cut as evaluation cuts them and brought to 64 x 64 by way of `image_size`, so
    that they are as sharp as generated ones can be.

    Args:
        dataset: a name in `STAND_INS`.
        pictures: the training split.
        image_size: pixels per side of generated pictures.
        seed: of the training.

    Raises:
        ValueError: no picture, or none with a label.
    """
    stand_in = STAND_INS[dataset]
    squares: list[NDArray[np.uint8]] = []
    labels: dict[str, list[int]] = {name: [] for name in stand_in.values}
    if stand_in.has_classes:
        labels[CLASS] = []
    for picture in pictures:
        squares.append(small(evaluation_crop(picture.image, image_size)[None])[0])
        shown = stand_in.shown(picture)
        for name, values in stand_in.values.items():
            value = shown.get(name)
            labels[name].append(values.index(value) if value in values else UNKNOWN)
        if stand_in.has_classes:
            labels[CLASS].append(UNKNOWN if picture.label is None else picture.label)
    numbers = {name: np.array(found, dtype=np.int64) for name, found in labels.items()}
    numbers = {name: found for name, found in numbers.items() if (found != UNKNOWN).any()}
    if not numbers:
        raise ValueError(
            f"the train split of {dataset} must hold pictures with labels to learn from: got "
            f"{len(squares)} pictures and no label; run `dvc repro --force shard`"
        )
    classifier = fit_classifier(
        np.stack(squares),
        numbers,
        seed=seed,
        progress="evaluate: learning to read",
        **stand_in.training,
    )
    return Reader(stand_in, classifier, len(squares))


def small(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bring square pictures uint8 `[b, s, s, 3]` to the classifier's 64 x 64 (Lanczos)."""
    if pictures.shape[1] == SIZE:
        return pictures
    return np.stack([evaluation_crop(picture, SIZE) for picture in pictures])
