"""MS COCO 2014: captions of its json files with the pictures they describe.

The json files are read piece by piece, because instances_train2014.json alone would fill several
gigabytes of memory. A picture is one item however many captions it has.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

from cdcd.config import CocoSource
from cdcd.data.adapters.base import Expected, Finding, is_file
from cdcd.data.adapters.pictures import Item, PictureSource

_log = logging.getLogger(__name__)

NUM_IMAGES = {"train": 82_783, "val": 40_504}
NUM_CAPTIONS = {"train": 414_113, "val": 202_654}

ANNOTATIONS_ARCHIVE = "annotations_trainval2014.zip of cocodataset.org"
_MAX_ID = 10**12
_CHUNK = 1 << 20
_ANNOTATION_FOLDERS = (
    "annotations",
    "annotations/annotations",
    "annotations_trainval2014/annotations",
    ".",
)
_PARTS = frozenset(
    {"annotations", "annotations_trainval2014", *(f"{split}2014" for split in NUM_IMAGES)}
)


def _images_archive(split: str) -> str:
    return f"{split}2014.zip of cocodataset.org"


@dataclass(frozen=True, eq=False)
class Coco(PictureSource):
    """An MS COCO 2014 download.

    Its settings are the `splits` that are there, the folder of `annotations`, the folders of
    `images` by split (one or both of `train2014/train2014` and `train2014`) and the splits that
    have `instances`.
    """

    dataset: ClassVar[str] = "coco"
    terms: ClassVar[str] = (
        "COCO annotations are CC BY 4.0, COCO Consortium (attribution required); each picture is "
        "under its own Flickr licence, which its record names, and the Flickr terms of use apply"
    )
    licence: ClassVar[str] = "the picture's own Flickr licence, not stated"
    needs_captions: ClassVar[bool] = True

    def items(self) -> Iterator[Item]:
        """See `Source`: sorted by key, then split.

        Raises:
            ValueError: a json file is damaged or of another shape.
        """
        yield from heapq.merge(
            *map(self._split_items, self.settings["splits"]),
            key=lambda item: (item.name, item.split),
        )

    def num_items(self) -> None:
        """See `Source`: counting would read the files once more."""

    def expected(self) -> Expected:
        """See `Source`."""
        return Expected(NUM_IMAGES, NUM_CAPTIONS, "captions_train2014.json, captions_val2014.json")

    def _split_items(self, split: str) -> Iterator[Item]:
        captions = read_captions(self._annotations("captions", split))
        instances = None
        if split in self.settings["instances"]:
            instances = read_instances(self._annotations("instances", split))
        for image in sorted(captions.images, key=lambda image: image.number):
            yield self._item(split, image, captions, instances)

    def _item(
        self, split: str, image: _Image, captions: _Captions, instances: _Instances | None
    ) -> Item:
        name = f"{image.number:012d}"
        path = reason = None
        detail = ""
        folders = self.settings["images"][split]
        paths = [f"root/{folder}/{image.file_name}" for folder in folders]
        if not _is_below(image.file_name):
            reason = "unsupported_name"
            detail = f"a file_name must lie below {folders[-1]}/: got {image.file_name[:200]!r}"
        else:
            path = next((path for path in paths if is_file(self.resolve(path))), None)
            if path is None:
                reason, detail = "missing_image", f"no file {paths[-1]}"
        facts: dict[str, Any] = {"image_id": image.number}
        if instances is not None:
            facts |= instances.facts(image.number)
        return Item(
            name,
            split,
            path,
            captions=tuple(
                (str(n), text) for n, text in sorted(captions.texts.get(image.number, {}).items())
            ),
            facts=tuple(facts.items()),
            licence=captions.licences.get(image.licence, ""),
            reason=reason,
            detail=detail,
        )

    def _annotations(self, kind: str, split: str) -> Path:
        return self.roots["root"] / self.settings["annotations"] / f"{kind}_{split}2014.json"


def _is_below(name: str) -> bool:
    """Tell whether a file name of a json stays in its folder, and is one that can be asked for."""
    path = PurePosixPath(name)
    is_relative = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return is_relative and name.isprintable() and "\\" not in name and len(name) < 1000


@dataclass(frozen=True)
class _Image:
    number: int
    file_name: str
    licence: int | None


@dataclass(frozen=True)
class _Captions:
    """What a captions json says: texts by picture and annotation, names of licences."""

    images: list[_Image] = field(default_factory=list)
    texts: defaultdict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    licences: dict[int | None, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Instances:
    """What an instances json says: category, box and attributes of the objects of each picture."""

    categories: dict[int, str] = field(default_factory=dict)
    objects: defaultdict[int, list[tuple[int, tuple[float, ...], Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def facts(self, image: int) -> dict[str, Any]:
        objects = [
            {"category": self.categories[category], "bbox": list(box)}
            | ({} if attributes is None else {"attributes": attributes})
            for category, box, attributes in self.objects.get(image, ())
        ]
        categories = sorted({item["category"] for item in objects})
        return {"categories": categories, "num_objects": len(objects), "objects": objects}


def read_captions(path: Path) -> _Captions:
    """Read a captions json.

    Raises:
        ValueError: it is damaged or of another shape; one line.
    """
    found = _Captions()
    num_repeated = 0

    def image(entry: dict[str, Any]) -> None:
        licence = entry.get("license")
        number, name = _id(entry["id"]), _text(entry["file_name"])
        found.images.append(_Image(number, name, licence if type(licence) is int else None))

    def annotation(entry: dict[str, Any]) -> None:
        nonlocal num_repeated
        texts = found.texts[_id(entry["image_id"])]
        number, text = _id(entry["id"]), _text(entry["caption"])
        num_repeated += number in texts
        texts.setdefault(number, text)

    def licence(entry: dict[str, Any]) -> None:
        found.licences[_id(entry["id"])] = _text(entry["name"])

    _read(path, {"images": image, "annotations": annotation}, {"licenses": licence})
    num_orphans = len(found.texts.keys() - {image.number for image in found.images})
    for count, told in (
        (num_repeated, "captions repeat the id of another one of their picture"),
        (num_orphans, "pictures have captions but are not listed"),
    ):
        if count:
            _log.warning("%s: %d %s and are left out", path.name, count, told)
    return found


def read_instances(path: Path) -> _Instances:
    """Read an instances json, without its outlines.

    Raises:
        ValueError: it is damaged or of another shape; one line.
    """
    found = _Instances()

    def category(entry: dict[str, Any]) -> None:
        found.categories[_id(entry["id"])] = _text(entry["name"])

    def annotation(entry: dict[str, Any]) -> None:
        box = tuple(entry["bbox"])
        numbers = [n for n in box if type(n) in (int, float) and math.isfinite(n)]
        if len(numbers) != 4 or len(box) != 4:
            raise TypeError(f"bbox must be four numbers: got {box!r:.100}")
        attributes = entry.get("attributes")
        if attributes is not None:
            json.dumps(attributes, allow_nan=False)
        kind = _id(entry["category_id"])
        found.objects[_id(entry["image_id"])].append((kind, box, attributes))

    _read(path, {"annotations": annotation, "categories": category}, {})
    used = {category for objects in found.objects.values() for category, _, _ in objects}
    unknown = sorted(used - found.categories.keys())
    if unknown:
        raise ValueError(_damaged(path, f"category_id {unknown[0]} is not among its categories"))
    return found


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_ID:
        raise TypeError(f"an id must be a number of at most 12 digits: got {value!r:.100}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"names and captions must be text: got {value!r:.100}")
    # Half of a surrogate pair cannot be written to any file.
    return value.encode("utf-8", "replace").decode("utf-8")


def _damaged(path: Path, told: str) -> str:
    return (
        f"ingest.coco.root must hold the json files of MS COCO 2014: {str(path)!r}: {told}; "
        f"unzip {ANNOTATIONS_ARCHIVE} again"
    )


_Reader = Callable[[dict[str, Any]], None]


def _read(path: Path, needed: Mapping[str, _Reader], optional: Mapping[str, _Reader]) -> None:
    """Give each entry of the lists of a json object to the reader of the list's name."""
    readers = {**needed, **optional}
    seen = set()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for name, number, entry in _entries(file):
                seen.add(name)
                if name not in readers or number is None:
                    continue
                if not isinstance(entry, dict):
                    raise TypeError(f"{name}[{number}] must be an object: got {entry!r:.100}")
                try:
                    readers[name](entry)
                except (KeyError, TypeError, ValueError) as error:
                    told = f"has no {error}" if isinstance(error, KeyError) else str(error)
                    raise TypeError(f"{name}[{number}]: {told}") from None
        missing = [name for name in needed if name not in seen]
        if missing:
            raise TypeError(f"it has no list {missing[0]}")
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise ValueError(_damaged(path, told)) from None


def _entries(file: IO[str]) -> Iterator[tuple[str, int | None, Any]]:
    """Yield the lists of a json object entry by entry: name, number of the entry, entry.

    A list itself, and whatever is no list, comes once without number and entry.
    """
    text = _Pieces(file)
    text.expect("{")
    while not text.skip("}"):
        name = text.value()
        if not isinstance(name, str):
            raise TypeError(f"a name must be text: got {name!r:.100}")
        text.expect(":")
        if not text.skip("["):
            text.value()
            yield f"{name} (no list)", None, None
        else:
            yield name, None, None
            number = 0
            while not text.skip("]"):
                yield name, number, text.value()
                number += 1
                if not text.skip(","):
                    text.expect("]")
                    break
        if not text.skip(","):
            text.expect("}")
            break
    if text.peek():
        raise TypeError("something follows its end")


class _Pieces:
    """A json text of which only the piece at hand is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.text = ""
        self.place = 0
        self.decoder = json.JSONDecoder(parse_constant=_no_constant)

    def _more(self) -> bool:
        # As much again as is left, so that a long value is not tried again for every chunk.
        left = self.text[self.place :]
        added = self.file.read(max(_CHUNK, len(left)))
        self.text, self.place = left + added, 0
        return bool(added)

    def peek(self) -> str:
        """Return the next character that is no blank, or nothing at the end."""
        while True:
            while self.place < len(self.text):
                if self.text[self.place] not in " \t\n\r":
                    return self.text[self.place]
                self.place += 1
            if not self._more():
                return ""

    def skip(self, mark: str) -> bool:
        """Step over a mark if it comes next."""
        is_next = self.peek() == mark
        self.place += is_next
        return is_next

    def expect(self, mark: str) -> None:
        """Step over a mark that must come next."""
        if not self.skip(mark):
            raise TypeError(f"a json object of lists must go on with {mark}: got {self.peek()!r}")

    def value(self) -> Any:
        """Read one value whole."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise TypeError(error.msg) from None  # its position is within the piece
                continue
            # A number that ends with the piece may go on in the next one.
            if end == len(self.text) and self._more():
                continue
            self.place = end
            return value


def _no_constant(name: str) -> None:
    raise TypeError(f"numbers must be finite: got {name}")


def open_source(setting: CocoSource, root: Path) -> Coco:
    """Find annotations and pictures below `root`, one folder above it or one below.

    Raises:
        ValueError: something is missing; one line that says what and where it is to be had.
    """
    del setting  # nothing but the folder is to be chosen
    try:
        found = _find(root)
        settings = _layout(found)
        _check_layout(found, settings)
    except OSError as error:
        raise ValueError(_unreadable(root, error)) from None
    if found != root:
        _log.info("ingest.coco.root: reading %s", found)
    for split in NUM_IMAGES:
        if split not in settings["splits"]:
            _log.warning(
                "ingest.coco.root: no split %s, neither annotations nor pictures (%s, %s)",
                split,
                ANNOTATIONS_ARCHIVE,
                _images_archive(split),
            )
    return Coco({"root": found}, settings)


def _find(root: Path) -> Path:
    """Return the folder that holds everything, or else `root`."""
    candidates = [root, *sorted(child for child in root.iterdir() if child.is_dir())]
    if root.absolute().name in _PARTS:
        candidates.append(root.absolute().parent)

    def is_whole(folder: Path) -> bool:
        layout = _layout(folder)
        return bool(layout["splits"]) and all(layout["images"][s] for s in layout["splits"])

    return next((folder for folder in candidates if is_whole(folder)), root)


def _layout(root: Path) -> dict[str, Any]:
    """Return settings as far as they are found: pictures and annotations may not go together."""

    def has(folder: str, kind: str, split: str) -> bool:
        return is_file(root / folder / f"{kind}_{split}2014.json")

    folders = [
        folder
        for folder in _ANNOTATION_FOLDERS
        if any(has(folder, "captions", split) for split in NUM_IMAGES)
    ]
    images = {
        split: [
            folder
            for folder in (f"{split}2014/{split}2014", f"{split}2014")
            if (root / folder).is_dir()
        ]
        for split in NUM_IMAGES
    }
    return {
        "annotations": folders[0] if folders else None,
        "splits": [s for s in NUM_IMAGES if folders and has(folders[0], "captions", s)],
        "instances": [s for s in NUM_IMAGES if folders and has(folders[0], "instances", s)],
        "images": images,
    }


def _check_layout(root: Path, layout: dict[str, Any]) -> None:
    rule = "ingest.coco.root must hold MS COCO 2014"
    has_any = layout["splits"] or any(layout["images"].values())
    if not has_any and _is_2017(root):
        raise ValueError(
            f"{rule}: {str(root)!r} is in the layout of 2017, which divides train and val in "
            f"another way; unzip train2014.zip, val2014.zip and {ANNOTATIONS_ARCHIVE} there"
        )
    for split in NUM_IMAGES:
        if split in layout["splits"] and not layout["images"][split]:
            raise ValueError(
                f"{rule}: {str(root)!r} has captions_{split}2014.json but no {split}2014/; unzip "
                f"{_images_archive(split)} there"
            )
        if split not in layout["splits"] and (layout["images"][split] or not has_any):
            raise ValueError(
                f"{rule}: {str(root)!r} has no annotations/captions_{split}2014.json; unzip "
                f"{ANNOTATIONS_ARCHIVE} there"
            )


def _is_2017(root: Path) -> bool:
    names = ("train2017", "val2017", "annotations/captions_train2017.json")
    return any((root / name).exists() for name in (*names, "annotations/captions_val2017.json"))


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"ingest.coco.root must be readable: {error.filename or str(path)!r}: "
        f"{error.strerror or type(error).__name__}; mend the path or its rights"
    )


def check(root: Path) -> list[Finding]:
    """Say what of MS COCO 2014 lies below a folder, part by part; never raises."""
    findings = []
    try:
        found = _find(root)
        layout = _layout(found)
        if _is_2017(found):
            told = "pictures or annotations of 2017 are here: they are another division, not read"
            findings.append(Finding(bool(layout["splits"]), told))
    except OSError as error:
        return [Finding(False, _unreadable(root, error))]
    for part in (_check_images, _check_captions, _check_instances):
        for split in NUM_IMAGES:
            try:
                findings.append(part(found, layout, split))
            except Exception as error:  # whatever lies there, the other parts are told
                told = " ".join(str(error).split()) or type(error).__name__
                findings.append(Finding(False, told))
    return findings


def _check_images(root: Path, layout: dict[str, Any], split: str) -> Finding:
    folders = layout["images"][split]
    if not folders:
        return Finding(False, f"{split}2014: no pictures; unzip {_images_archive(split)}")
    names = {
        entry.name
        for folder in folders
        for entry in os.scandir(root / folder)
        if entry.name.endswith(".jpg") and not entry.name.startswith(".")
    }
    is_fine = len(names) == NUM_IMAGES[split]
    remedy = "" if is_fine else f"; unzip {_images_archive(split)} again"
    return Finding(
        is_fine, f"{folders[0]}: {len(names):,} of {NUM_IMAGES[split]:,} pictures{remedy}"
    )


def _check_captions(root: Path, layout: dict[str, Any], split: str) -> Finding:
    name = f"captions_{split}2014.json"
    if split not in layout["splits"]:
        return Finding(False, f"{name}: not there; unzip {ANNOTATIONS_ARCHIVE}")
    captions = read_captions(root / layout["annotations"] / name)
    counts = len(captions.images), sum(len(texts) for texts in captions.texts.values())
    is_fine = counts == (NUM_IMAGES[split], NUM_CAPTIONS[split])
    remedy = "" if is_fine else f"; unzip {ANNOTATIONS_ARCHIVE} again"
    return Finding(
        is_fine,
        f"{name}: {counts[0]:,} of {NUM_IMAGES[split]:,} pictures, {counts[1]:,} of "
        f"{NUM_CAPTIONS[split]:,} captions{remedy}",
    )


def _check_instances(root: Path, layout: dict[str, Any], split: str) -> Finding:
    name = f"instances_{split}2014.json"
    if split not in layout["instances"]:
        return Finding(True, f"{name}: not there; optional, in {ANNOTATIONS_ARCHIVE}")
    size = (root / layout["annotations"] / name).stat().st_size
    return Finding(size > 0, f"{name}: {size:,} bytes (optional)")
