"""CUB-200-2011 with its captions, from the places where people have put pictures and metadata.

Pictures come from the official archive, captions and the split by classes from the metadata
archive that StackGAN, AttnGAN and DF-GAN share. The two splits, `stackgan` and `official`, share
pictures across train and test, so one or the other is read, never both.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cdcd.config import Cub200Source
from cdcd.data import pickles
from cdcd.data.adapters.base import (
    Expected,
    Finding,
    is_file,
    read_bytes,
    read_through,
    sha256_bytes,
)
from cdcd.data.adapters.pictures import Item, PictureSource, decode_text
from cdcd.data.manifest import SkipItem
from cdcd.data.samples import safe_key

_log = logging.getLogger(__name__)

NUM_CLASSES = 200
NUM_IMAGES = 11_788
TEST_CLASSES = frozenset(
    (
        *(1, 4, 6, 8, 9, 14, 23, 29, 31, 33, 34, 35, 36, 37, 38, 43, 49, 51, 53, 66, 72, 79, 83),
        *(84, 86, 91, 95, 96, 98, 101, 102, 103, 112, 114, 119, 121, 130, 135, 138, 147, 156, 163),
        *(165, 166, 180, 183, 185, 186, 187, 197),
    )
)
"""Class numbers, from 1 on, of StackGAN's test split; the other 150 are for training."""
STACKGAN_ITEMS = {"train": 8_855, "test": 2_933}
OFFICIAL_ITEMS = {"train": 5_994, "test": 5_794}
STACKGAN_TEST_PAIRS = 29_330

IMAGES_ARCHIVE = "CUB_200_2011.tgz of www.vision.caltech.edu/datasets/cub_200_2011"
CAPTIONS_ARCHIVE = "the birds metadata archive of StackGAN / DF-GAN"

_MAX_TEXT_BYTES = 1 << 20
_EXTENSIONS = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png")
_NAME = re.compile(r"(?!\.)[^/\\]+/(?!\.)[^/\\]+")
_NUMBER = re.compile(r"(\d{1,9})\.")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BASES = ("", "CUB_200_2011/")
_CAPTION_FOLDERS = tuple(
    f"{base}{name}" for base in (*_BASES, "birds/") for name in ("text/text", "text", "text_c10")
)
_PARTS = frozenset({"images", "text", "text_c10", "birds", "CUB_200_2011", "train", "test"})


@dataclass(frozen=True)
class _Entry:
    """One line of a list.

    Attributes:
        name: `<class folder>/<file name without extension>`.
        split: `train` or `test`.
        file: the same with its extension, or None where the list does not say it.
    """

    name: str
    split: str
    file: str | None


@dataclass(frozen=True, eq=False)
class Cub200(PictureSource):
    """A CUB-200-2011 download.

    Its settings are the split, and where below the root things lie: `images`, `captions`, `lists`
    (the folder of images.txt), `pickles` (the folder of train/filenames.pickle), `attributes` and
    `attribute_names`, each None where there is none; `listed_by` says what the split is read from.
    """

    dataset: ClassVar[str] = "cub200"
    terms: ClassVar[str] = (
        "CUB-200-2011 pictures come from the web and are for non-commercial research and education "
        "only; captions and split lists have no stated licence: you must have obtained both "
        "yourself, and neither may be passed on"
    )
    licence: ClassVar[str] = "non-commercial research and education only"
    needs_captions: ClassVar[bool] = True

    def items(self) -> Iterator[Item]:
        """See `Source`: sorted by key, then split."""
        classes = self._class_numbers()
        attributes = self._attributes()
        entries = self._entries()
        for entry in sorted(entries, key=lambda entry: (safe_key(entry.name), entry.split)):
            yield self._item(entry, classes, attributes)

    def num_items(self) -> int:
        """See `Source`."""
        return len(self._entries())

    def expected(self) -> Expected:
        """See `Source`."""
        if self.settings["split"] == "official":
            return Expected(OFFICIAL_ITEMS, {}, "train_test_split.txt of CUB-200-2011")
        return Expected(
            STACKGAN_ITEMS, {"test": STACKGAN_TEST_PAIRS}, "StackGAN's split, ten captions each"
        )

    def captions_of(self, item: Item) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
        """See `PictureSource`: one caption for each line, named by its number from 0 on."""
        path = f"root/{self.settings['captions']}/{item.name}.txt"
        if not is_file(self.resolve(path)):
            raise SkipItem("missing_caption", f"no file {path}")
        data = read_bytes(self.resolve(path), _MAX_TEXT_BYTES)
        captions = enumerate(_LINE_END.split(decode_text(data)))
        return {path: sha256_bytes(data)}, tuple((str(number), line) for number, line in captions)

    def _item(
        self, entry: _Entry, classes: dict[str, int], attributes: dict[str, list[str]]
    ) -> Item:
        def skipped(reason: str, detail: str) -> Item:
            return Item(entry.name, entry.split, None, reason=reason, detail=detail)

        if not _NAME.fullmatch(entry.name) or not entry.name.isprintable():
            return skipped(
                "unsupported_name",
                f"a picture's name must be <class folder>/<file>: got {entry.name!r}",
            )
        folder = entry.name.partition("/")[0]
        number = _class_number(folder, classes)
        if number is None:
            return skipped(
                "missing_label",
                f"a class folder must begin with its number, 1 to {NUM_CLASSES}: got {folder!r}",
            )
        files = [entry.file] if entry.file else [entry.name + end for end in _EXTENSIONS]
        paths = [f"root/{self.settings['images']}/{file}" for file in files]
        path = next((path for path in paths if is_file(self.resolve(path))), None)
        if path is None:
            return skipped("missing_image", f"no file {paths[0]}")
        facts: tuple[tuple[str, Any], ...] = ()
        if self.settings["attributes"] is not None:
            facts = (("attributes", attributes.get(entry.name, [])),)
        class_name = _NUMBER.sub("", folder, count=1).replace("_", " ")
        return Item(entry.name, entry.split, path, number - 1, class_name, facts=facts)

    def _entries(self) -> list[_Entry]:
        """Return everything that is listed, in any order.

        Raises:
            ValueError: a list is missing or damaged, or classes of train and test meet.
        """
        listed_by = self.settings["listed_by"]
        if listed_by == "filenames.pickle":
            entries = [
                _Entry(name, split, None)
                for split in STACKGAN_ITEMS
                for name in self._pickled_names(split)
            ]
            _check_apart(entries)
            return entries
        if listed_by == "train_test_split.txt":
            return self._official_entries()
        classes = self._class_numbers()
        files = self._files() if listed_by == "images" else list(self._listed_files().values())
        entries = []
        for file in files:
            number = _class_number(file.partition("/")[0], classes)
            split = "test" if number in TEST_CLASSES else "train"
            entries.append(_Entry(_without_extension(file), split, file))
        return entries

    def _official_entries(self) -> list[_Entry]:
        is_train = self._read_list("train_test_split.txt")
        entries = []
        for image_id, file in self._listed_files().items():
            if is_train.get(image_id) not in ("0", "1"):
                raise ValueError(
                    "ingest.cub200.split: official needs 1 or 0 for every picture in "
                    f"train_test_split.txt: got {is_train.get(image_id)!r} for picture {image_id}; "
                    f"unpack {IMAGES_ARCHIVE} again"
                )
            split = "train" if is_train[image_id] == "1" else "test"
            entries.append(_Entry(_without_extension(file), split, file))
        return entries

    def _pickled_names(self, split: str) -> list[str]:
        path = self._below(self.settings["pickles"]) / split / "filenames.pickle"
        try:
            tree = pickles.load(path)
        except OSError as error:
            raise ValueError(_unreadable(path, error)) from None
        if not isinstance(tree, list | tuple | np.ndarray):
            raise ValueError(_no_names(path, tree))
        names = []
        for name in tree:
            if not isinstance(name, str | bytes):
                raise ValueError(_no_names(path, name))
            text = name if isinstance(name, str) else decode_text(name)
            names.append(_without_extension(text.strip()))
        return names

    def _listed_files(self) -> dict[str, str]:
        """Return the files of images.txt by picture id."""
        return self._read_list("images.txt")

    def _files(self) -> list[str]:
        """Return the files in the class folders; those that macOS adds begin with a dot."""
        folder = self._below(self.settings["images"])
        return [
            f"{path.parent.name}/{path.name}"
            for path in sorted(folder.glob("*/*"))
            if path.suffix.lower() in {end.lower() for end in _EXTENSIONS}
            and not path.name.startswith(".")
            and not path.parent.name.startswith(".")
        ]

    def _class_numbers(self) -> dict[str, int]:
        """Return the class numbers of classes.txt by folder; without that file nothing."""
        lists = self.settings["lists"]
        if lists is None or not is_file(self._below(lists) / "classes.txt"):
            return {}
        listed = self._read_list("classes.txt")
        return {name: int(number) for number, name in listed.items() if number.isdecimal()}

    def _read_list(self, name: str) -> dict[str, str]:
        """Return the second column of a list by the first."""
        return _read_pairs(self._below(self.settings["lists"]) / name)

    def _attributes(self) -> dict[str, list[str]]:
        """Return which attributes people saw in each picture, by the picture's name."""
        if self.settings["attributes"] is None:
            return {}
        names = _read_pairs(self._below(self.settings["attribute_names"]))
        encoded = {number.encode(): name for number, name in names.items()}
        present: defaultdict[bytes, list[str]] = defaultdict(list)
        num_damaged = 0
        path = self._below(self.settings["attributes"])
        try:
            file = read_through(partial(Path.open, mode="rb"), path)
        except SkipItem as error:
            _log.warning("pictures get no attributes: %s", error.detail)
            return {}
        with file:
            for line in file:
                # Some lines of the published file have columns too many behind these three.
                columns = line.split(None, 3)
                if len(columns) < 3 or columns[2] not in (b"0", b"1") or columns[1] not in encoded:
                    num_damaged += bool(columns)
                elif columns[2] == b"1":
                    present[columns[0]].append(encoded[columns[1]])
        if num_damaged:
            _log.warning(
                "%s: %d lines are not <picture id> <attribute id> <0 or 1> and were left out",
                self.settings["attributes"],
                num_damaged,
            )
        return {
            _without_extension(file): sorted(set(present[image_id.encode()]))
            for image_id, file in self._listed_files().items()
        }

    def _below(self, path: str) -> Path:
        return self.roots["root"] / path


def open_source(setting: Cub200Source, root: Path) -> Cub200:
    """Find pictures, captions and lists below `root`, one folder above it or one below.

    Raises:
        ValueError: something is missing; one line that says what and where it is to be had.
    """
    try:
        found, layout = _find(root)
        if layout["images"] is None or layout["captions"] is None:
            raise ValueError(_incomplete(root, layout))
        source = Cub200({"root": found}, _settings(found, layout, setting.split))
        num_items = source.num_items()
    except OSError as error:
        raise ValueError(_unreadable(root, error)) from None
    if not num_items:
        raise ValueError(
            f"ingest.cub200.root must list pictures: {str(found)!r} lists none; "
            f"unpack {IMAGES_ARCHIVE} there"
        )
    if found != root:
        _log.info("ingest.cub200.root: reading %s", found)
    return source


def _settings(root: Path, layout: dict[str, str | None], split: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"split": split, **layout}
    lists = layout["lists"]
    if split == "official":
        for name in ("images.txt", "train_test_split.txt"):
            if lists is None or not is_file(root / lists / name):
                raise ValueError(
                    f"ingest.cub200.split: official needs the lists of CUB-200-2011: {str(root)!r} "
                    f"has no {name} beside images/; unpack {IMAGES_ARCHIVE} there"
                )
        # Present or not: the other split's lists have no say here.
        return settings | {"pickles": None, "listed_by": "train_test_split.txt"}
    if layout["pickles"] is None:
        return settings | {"listed_by": "images" if lists is None else "images.txt"}
    for part in STACKGAN_ITEMS:
        path = f"{part}/filenames.pickle"
        if not is_file(root / layout["pickles"] / path):
            raise ValueError(
                f"ingest.cub200.split: stackgan needs both lists or none: {str(root)!r} has no "
                f"{path} but the other one; unpack {CAPTIONS_ARCHIVE} there"
            )
    return settings | {"listed_by": "filenames.pickle"}


def _find(root: Path) -> tuple[Path, dict[str, str | None]]:
    """Return the folder that holds everything, or else `root`, and where things lie below it."""
    own = _layout(root)
    candidates = [root, *sorted(child for child in root.iterdir() if child.is_dir())]
    if root.absolute().name in _PARTS:
        candidates.append(root.absolute().parent)
    for folder in candidates:
        layout = own if folder == root else _layout(folder)
        if layout["images"] is not None and layout["captions"] is not None:
            return folder, layout
    return root, own


def _layout(root: Path) -> dict[str, str | None]:
    def first(paths: tuple[str, ...], is_there: Callable[[Path], bool]) -> str | None:
        return next((path for path in paths if is_there(root / path)), None)

    images = first(("images", "CUB_200_2011/images"), _has_classes)
    bases = ("CUB_200_2011", ".") if images == "CUB_200_2011/images" else (".", "CUB_200_2011")
    lists = first(bases, lambda folder: is_file(folder / "images.txt"))
    labels = tuple(f"{base}attributes/image_attribute_labels.txt" for base in _BASES)
    names = tuple(
        f"{base}attributes.txt" for base in (*_BASES, *(f"{b}attributes/" for b in _BASES))
    )
    attributes, attribute_names = first(labels, is_file), first(names, is_file)
    if lists is None or attributes is None or attribute_names is None:
        attributes = attribute_names = None
    return {
        "images": images,
        "captions": first(_CAPTION_FOLDERS, _has_classes),
        "lists": lists,
        "pickles": first((".", "birds", "CUB_200_2011"), _has_pickles),
        "attributes": attributes,
        "attribute_names": attribute_names,
    }


def _has_classes(folder: Path) -> bool:
    """Tell whether class folders lie in a folder; `text/text` is none."""
    if not folder.is_dir():
        return False
    return any(
        path.is_dir() and path.name not in _PARTS and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def _has_pickles(folder: Path) -> bool:
    return any(is_file(folder / split / "filenames.pickle") for split in STACKGAN_ITEMS)


def _incomplete(root: Path, layout: dict[str, str | None]) -> str:
    missing = []
    if layout["images"] is None:
        missing.append(f"no images/<class> or CUB_200_2011/images/<class> ({IMAGES_ARCHIVE})")
    if layout["captions"] is None:
        missing.append(
            f"no text/text/<class>, text/<class> or text_c10/<class> ({CAPTIONS_ARCHIVE})"
        )
    return (
        f"ingest.cub200.root must hold CUB-200-2011 with its captions: {str(root)!r} has "
        f"{' and '.join(missing)}; unpack what is missing there"
    )


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"ingest.cub200.root must be readable: {error.filename or str(path)!r}: "
        f"{error.strerror or type(error).__name__}; mend the path or its rights"
    )


def _no_names(path: Path, value: Any) -> str:
    return (
        f"{path} must be a list of names: it holds {type(value).__name__}; "
        f"unpack {CAPTIONS_ARCHIVE} again"
    )


def _check_apart(entries: list[_Entry]) -> None:
    folders = {
        split: {
            entry.name.partition("/")[0]
            for entry in entries
            if entry.split == split and "/" in entry.name
        }
        for split in STACKGAN_ITEMS
    }
    shared = sorted(folders["train"] & folders["test"])
    if shared:
        raise ValueError(
            "ingest.cub200.split: stackgan needs classes apart: train and test share "
            f"{len(shared)}, first {shared[0]!r}; unpack {CAPTIONS_ARCHIVE} again, or remove "
            "train/ and test/ to divide by the 50 published test classes"
        )


def _class_number(folder: str, classes: dict[str, int]) -> int | None:
    """Return a class's number from 1 on: from its folder's name, or else from classes.txt."""
    match = _NUMBER.match(folder)
    number = int(match[1]) if match else classes.get(folder)
    return number if number is not None and 1 <= number <= NUM_CLASSES else None


def _without_extension(file: str) -> str:
    head, dot, extension = file.rpartition(".")
    return head if dot and f".{extension.lower()}" in _EXTENSIONS else file


def _read_pairs(path: Path) -> dict[str, str]:
    """Read lines `<id> <rest>`; blank lines and the kind of line end do not matter.

    Raises:
        ValueError: the file is missing, or a line is no such pair.
    """
    try:
        text = decode_text(read_bytes(path))
    except SkipItem as skip:
        raise ValueError(
            f"ingest.cub200.root must be readable: {skip.detail}; unpack {IMAGES_ARCHIVE} again"
        ) from None
    pairs = {}
    for number, line in enumerate(_LINE_END.split(text), start=1):
        columns = line.split(None, 1)
        if len(columns) == 2:
            pairs[columns[0]] = columns[1].strip()
        elif columns:
            raise ValueError(
                f"{path} line {number} must be an id and a value: got {line.strip()[:100]!r}; "
                f"unpack {IMAGES_ARCHIVE} again"
            )
    return pairs


def check(root: Path) -> list[Finding]:
    """Say what of CUB-200-2011 lies below a folder, part by part; never raises."""
    try:
        found, layout = _find(root)
    except OSError as error:
        return [Finding(False, _unreadable(root, error))]
    parts = (_check_images, _check_captions, _check_stackgan, _check_official, _check_attributes)
    findings = []
    for part in parts:
        try:
            findings.append(part(found, layout))
        except Exception as error:  # whatever lies there, the other parts are told
            told = " ".join(str(error).split()) or type(error).__name__
            findings.append(Finding(False, told))
    return findings


def _check_images(root: Path, layout: dict[str, str | None]) -> Finding:
    if layout["images"] is None:
        return Finding(False, f"pictures: none; unpack {IMAGES_ARCHIVE}")
    files = Cub200({"root": root}, {"images": layout["images"]})._files()
    classes = {file.partition("/")[0] for file in files}
    told = f"{layout['images']}: {len(files):,} of {NUM_IMAGES:,} pictures, {len(classes)} of "
    is_fine = len(files) == NUM_IMAGES and len(classes) == NUM_CLASSES
    remedy = "" if is_fine else f"; unpack {IMAGES_ARCHIVE} again"
    return Finding(is_fine, f"{told}{NUM_CLASSES} classes{remedy}")


def _check_captions(root: Path, layout: dict[str, str | None]) -> Finding:
    if layout["captions"] is None:
        return Finding(False, f"captions: none; unpack {CAPTIONS_ARCHIVE}")
    count = sum(not p.name.startswith(".") for p in (root / layout["captions"]).glob("*/*.txt"))
    remedy = "" if count == NUM_IMAGES else f"; unpack {CAPTIONS_ARCHIVE} again"
    told = f"{layout['captions']}: captions of {count:,} of {NUM_IMAGES:,} pictures{remedy}"
    return Finding(count == NUM_IMAGES, told)


def _check_stackgan(root: Path, layout: dict[str, str | None]) -> Finding:
    return _check_split(root, layout, "stackgan", STACKGAN_ITEMS, CAPTIONS_ARCHIVE)


def _check_official(root: Path, layout: dict[str, str | None]) -> Finding:
    return _check_split(root, layout, "official", OFFICIAL_ITEMS, IMAGES_ARCHIVE)


def _check_split(
    root: Path, layout: dict[str, str | None], split: str, expected: dict[str, int], archive: str
) -> Finding:
    if layout["images"] is None and layout["lists"] is None and layout["pickles"] is None:
        return Finding(False, f"split {split}: no lists; unpack {archive}")
    source = Cub200({"root": root}, _settings(root, layout, split))
    entries = source._entries()
    counts = {part: sum(entry.split == part for entry in entries) for part in expected}
    told = ", ".join(f"{part} {counts[part]:,} of {count:,}" for part, count in expected.items())
    listed_by = source.settings["listed_by"]
    if split == "stackgan" and layout["pickles"] is None:
        listed_by = f"the 50 published test classes and {listed_by}"
    is_fine = counts == expected
    remedy = "" if is_fine else f"; unpack {archive} again"
    return Finding(is_fine, f"split {split} (from {listed_by}): {told}{remedy}")


def _check_attributes(root: Path, layout: dict[str, str | None]) -> Finding:
    if layout["attributes"] is None or layout["attribute_names"] is None:
        return Finding(True, f"attributes: none; optional, in {IMAGES_ARCHIVE}")
    count = len(_read_pairs(root / layout["attribute_names"]))
    return Finding(True, f"{layout['attributes']}: {count} attributes (optional)")
