"""ImageNet (ILSVRC2012): each of its published layouts as pictures with the same keys and labels.

A class is known by its WordNet number (`n01440764`), never by its English name: two classes are
called `crane`. Labels follow the sorted numbers; the ids of the official development kit are in
another order and go through its table first.
"""

from __future__ import annotations

import csv
import heapq
import io
import json
import logging
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from subprocess import SubprocessError, run
from typing import Any, ClassVar

from cdcd.config import ImagenetSource
from cdcd.data.adapters.base import Expected, Finding, read_bytes, read_through
from cdcd.data.adapters.pictures import Item, PictureSource, decode_text
from cdcd.data.manifest import SkipItem
from cdcd.data.samples import safe_key

_log = logging.getLogger(__name__)

NUM_PICTURES = {"train": 1_281_167, "val": 50_000}
NUM_CLASSES = 1000
VAL_PER_CLASS = 50

EXCLUDED = {"n06596364_9591": "the authors of VQGAN exclude it"}
"""Stems of pictures that are left out on purpose, and why."""

_EXTENSIONS = frozenset({"jpeg", "jpg", "png"})
_WNID = re.compile(r"n[0-9]{8}")
_VAL_STEM = re.compile(r"ILSVRC2012_val_([0-9]{8})")

_FOLDERS = {"train": ("train", "ILSVRC2012_img_train"), "val": ("val", "ILSVRC2012_img_val")}
"""Names of the folder of a split, the usual one first."""
_KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
_INNER = ("", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
"""Where train/ and val/ may lie below a root that is as published or a level off."""
_DEVKIT = "ILSVRC2012_devkit_t12"
_DEVKIT_FOLDERS = (f"{_DEVKIT}/data", "data", "devkit/data", "")
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_SOLUTION = "LOC_val_solution.csv"
_ANNOTATIONS = "Annotations/CLS-LOC/val"
_INDEX = "class_index.json"
_MAPPING = "LOC_synset_mapping.txt"

_ARCHIVES = {
    "train": "ILSVRC2012_img_train.tar of image-net.org, and each tar inside into a folder of its "
    "own name",
    "val": "ILSVRC2012_img_val.tar of image-net.org",
}
_LAYOUTS = (
    "use the folder that holds train/ and val/ (ILSVRC2012_img_train.tar and "
    "ILSVRC2012_img_val.tar of image-net.org, unpacked) or Kaggle's ILSVRC/ "
    "(imagenet-object-localization-challenge), or null for the stand-in"
)
_LABELS_REMEDY = (
    f"unpack {_DEVKIT}.tar.gz of image-net.org there, or copy Kaggle's {_SOLUTION} there"
)

MAX_TABLE_BYTES = 64 << 20
"""The largest real table, the csv, has 4 million bytes."""

READ_SECONDS = 120
"""A whole meta.mat takes less than two."""

_META_READER = """
import json, sys
import numpy as np
from scipy.io import loadmat
table = loadmat(sys.argv[1], variable_names=["synsets"], squeeze_me=True)["synsets"]
rows = [[row[name] for name in ("ILSVRC2012_ID", "WNID", "words")] for row in np.atleast_1d(table)]
json.dump([[int(number), str(wnid).strip(), str(words).strip()] for number, wnid, words in rows],
          sys.stdout)
"""

Lookup = Callable[[str], str]
"""From the stem of a flat val picture to its wnid; raises SkipItem where there is none."""


@dataclass(frozen=True)
class Classes:
    """Label and name of each class by wnid."""

    labels: Mapping[str, int]
    names: Mapping[str, str]


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True


def _is_picture(name: str) -> bool:
    # Names that start with a dot are leftovers of operating systems: `._n01440764_1.JPEG`.
    stem, _, extension = name.rpartition(".")
    return bool(stem) and not name.startswith(".") and extension.lower() in _EXTENSIONS


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    # A class whose folder is a broken link still counts, or all classes after it would shift.
    try:
        return entry.is_dir() or entry.is_symlink()
    except OSError:
        return True


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted class folders, and the pictures, that lie directly in a folder."""
    classes, pictures = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _WNID.fullmatch(entry.name):
                if _may_be_folder(entry):
                    classes.append(entry.name)
            elif _is_picture(entry.name):
                pictures.append(entry.name)
    return sorted(classes), pictures


def _scan(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Do as `_listed`, for the folder of a split, without which nothing can go on."""
    try:
        classes, pictures = read_through(_listed, folder)
    except SkipItem as skip:
        raise ValueError(
            f"ingest.imagenet.root must have a readable {split}/: got {str(folder)!r}, "
            f"{skip.detail}; mend its rights"
        ) from None
    return classes, pictures


def _table(path: Path) -> str:
    try:
        return decode_text(read_bytes(path, MAX_TABLE_BYTES))
    except SkipItem as skip:
        raise _damaged(path, skip.detail, "mend the file or download it again") from None


def _damaged(path: Path, told: object, remedy: str) -> ValueError:
    what = " ".join(str(told).split()) or type(told).__name__
    return ValueError(
        f"ingest.imagenet.root must hold a whole {path.name}: got {str(path)!r}, {what}; {remedy}"
    )


def read_meta(path: Path) -> dict[int, tuple[str, str]]:
    """Read the development kit's `meta.mat`: wnid and words by id.

    Raises:
        ValueError: it is damaged or no such table.
    """
    remedy = f"unpack {_DEVKIT}.tar.gz of image-net.org again"
    try:
        state = path.stat()
    except OSError as error:
        raise _damaged(path, error.strerror, remedy) from None
    try:
        return _meta(path, state.st_mtime_ns, state.st_size)
    except (ValueError, TypeError, SubprocessError) as error:
        raise _damaged(path, error, remedy) from None


@lru_cache(maxsize=2)  # needed for labels and for names
def _meta(path: Path, _mtime: int, size: int) -> dict[int, tuple[str, str]]:
    if size > MAX_TABLE_BYTES:
        raise ValueError(f"it has more than {MAX_TABLE_BYTES} bytes")
    # In a process of its own: damaged tables make SciPy read memory that is not its own.
    command = [sys.executable, "-P", "-c", _META_READER, str(path.absolute())]
    done = run(command, capture_output=True, timeout=READ_SECONDS, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(told[-1][:200] if told else "SciPy does not survive it")
    found: dict[int, tuple[str, str]] = {}
    for number, wnid, words in json.loads(done.stdout):
        if not _WNID.fullmatch(wnid) or number in found:
            raise ValueError(f"id {number} with WNID {wnid!r} is no class of its own")
        found[number] = (wnid, words)
    if not found:
        raise ValueError("no synsets")
    return found


def _read_index(path: Path) -> Classes:
    labels: dict[str, int] = {}
    names: dict[str, str] = {}
    try:
        tree = json.loads(_table(path))
        for key, (wnid, *words) in tree.items():
            if not _WNID.fullmatch(wnid) or wnid in labels:
                raise ValueError(f"{wnid!r} is no wnid, or is there twice")
            labels[wnid] = int(key)
            names[wnid] = str(words[0]) if words else wnid
        if not labels or sorted(labels.values()) != list(range(len(labels))):
            raise ValueError("its keys are not 0, 1, 2 and so on")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if str(error).startswith("ingest."):
            raise
        remedy = 'it must be {"0": ["n01440764", "tench"], ...}; mend it, or remove it to number '
        raise _damaged(path, error, remedy + "the sorted class folders of train/") from None
    return Classes(labels, names)


def _read_names(path: Path) -> dict[str, str]:
    """Return the first of the words of each class, where a table of them is readable."""
    try:
        if path.name == _META:
            rows: Iterable[tuple[str, str]] = read_meta(path).values()
        else:
            lines = _table(path).splitlines()
            rows = [(wnid, words.strip()) for wnid, _, words in (x.partition(" ") for x in lines)]
    except ValueError as error:
        _log.warning("classes go without names: %s", error)
        return {}
    return {wnid: words.split(",")[0] for wnid, words in rows if words}


def _read_solution(path: Path) -> Lookup:
    found: dict[str, set[str]] = {}
    try:
        for row in csv.reader(_table(path).splitlines()):
            if len(row) >= 2 and (wnids := _WNID.findall(row[1])):
                found.setdefault(row[0].strip(), set()).update(wnids)
    except csv.Error as error:
        raise _damaged(path, error, "download it from Kaggle again") from None
    if not found:
        raise _damaged(
            path,
            "no line like ILSVRC2012_val_00048981,n03995372 …",
            "download it from Kaggle again",
        )

    def lookup(stem: str) -> str:
        return _only(found.get(stem, set()), stem, path)

    return lookup


def _only(wnids: set[str], stem: str, path: Path) -> str:
    if len(wnids) != 1:
        told = f"several classes, {', '.join(sorted(wnids))}," if wnids else "no class"
        raise SkipItem("missing_label", f"{path.name} gives {told} for {stem}")
    return next(iter(wnids))


def _read_devkit(folder: Path) -> Lookup:
    path = folder / _GROUND_TRUTH
    meta = read_meta(folder / _META)
    ids = array("q")
    # Blank lines count: the number of the line is the number of the picture.
    for number, line in enumerate(_table(path).rstrip().splitlines(), start=1):
        try:
            ids.append(int(line))
        except (ValueError, OverflowError):
            remedy = f"unpack {_DEVKIT}.tar.gz of image-net.org again"
            raise _damaged(path, f"line {number} is {line[:40]!r}, no id", remedy) from None

    def lookup(stem: str) -> str:
        match = _VAL_STEM.fullmatch(stem)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(ids):
            raise SkipItem("missing_label", f"{path.name} has no line for {stem}")
        if ids[number - 1] not in meta:
            raise SkipItem("missing_label", f"{_META} has no id {ids[number - 1]}, that of {stem}")
        return meta[ids[number - 1]][0]

    return lookup


def _annotation_lookup(folder: Path) -> Lookup:
    def lookup(stem: str) -> str:
        path = folder / f"{stem}.xml"
        try:
            text = decode_text(read_bytes(path, 1 << 20))
        except SkipItem as skip:
            raise SkipItem("missing_label", skip.detail) from None
        # Searched, not parsed: a hostile XML file can expand to any size.
        return _only(set(re.findall(r"<name>\s*(n[0-9]{8})\s*</name>", text)), stem, path)

    return lookup


def _read_labels(root: Path, labels: Mapping[str, str] | None) -> Lookup:
    path = root / labels["path"] if labels is not None else root
    match labels["kind"] if labels is not None else None:
        case "solution":
            return _read_solution(path)
        case "devkit":
            return _read_devkit(path)
        case "annotations":
            return _annotation_lookup(path)

    def lookup(stem: str) -> str:
        raise SkipItem("missing_label", f"no table has the class of {stem}; {_LABELS_REMEDY}")

    return lookup


@dataclass(frozen=True)
class _Place:
    """Where a download was found: its root, and what there is of train/ and val/ below it."""

    root: Path
    pictures: Path
    train: Path | None
    val: Path | None

    def search(self) -> list[Path]:
        """Return the folders in which tables may lie: from beside train/ up to the root."""
        folders = [self.pictures]
        while folders[-1] != self.root:
            folders.append(folders[-1].parent)
        return folders

    def find(self, name: str) -> Path | None:
        """Return the first file of this name."""
        return next((f / name for f in self.search() if _exists(f / name)), None)

    def below(self, path: Path) -> str:
        """Return a path below the root with forward slashes."""
        return path.relative_to(self.root).as_posix()


def _split_folder(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in _FOLDERS[split] if _is_dir(folder / name)), None)


def _place(root: Path, pictures: Path) -> _Place:
    inner = pictures.resolve()
    if inner.parts[-3:] == _KAGGLE and inner.parents[2] in root.resolve().parents:
        # Kaggle's tables lie beside ILSVRC/: a root further down is widened to have them too.
        root, pictures = inner.parents[2], inner
    return _Place(root, pictures, _split_folder(pictures, "train"), _split_folder(pictures, "val"))


def _locate(root: Path) -> _Place:
    """Find train/ and val/ at, just above or just below a folder.

    Raises:
        ValueError: there are none, or several.
    """
    if not _is_dir(root):
        raise ValueError(
            f"ingest.imagenet.root must be an existing folder: got {str(root)!r}; {_LAYOUTS}"
        )
    places = [_place(root, root / inner) for inner in _INNER]
    whole = root.resolve()
    if whole.name in (*_FOLDERS["train"], *_FOLDERS["val"], _DEVKIT):
        places.append(_place(whole.parent, whole.parent))
    for place in places:
        if place.train and place.val:
            return place
    try:
        children = sorted(child for child in root.iterdir() if _is_dir(child))
    except OSError as error:
        raise ValueError(
            f"ingest.imagenet.root must be a readable folder: got {str(root)!r}, "
            f"{error.strerror}; mend its rights"
        ) from None
    deeper = [_place(root, child / inner) for child in children for inner in _INNER]
    complete = [place for place in deeper if place.train and place.val]
    if len(complete) > 1:
        names = ", ".join(place.below(place.pictures) for place in complete)
        raise ValueError(
            f"ingest.imagenet.root must hold one download: {str(root)!r} has several ({names}); "
            "name the one to use"
        )
    partial = [place for place in places + deeper if place.train or place.val]
    for place in complete + partial:
        return place
    told = "holds neither train/ nor val/"
    if any(_WNID.fullmatch(child.name) for child in children):
        told = "holds class folders; name the folder above, which holds train/ and val/"
    raise ValueError(
        f"ingest.imagenet.root must be an ImageNet download: {str(root)!r} {told}; {_LAYOUTS}"
    )


def _missing_split(place: _Place, split: str) -> ValueError:
    return ValueError(
        f"ingest.imagenet.root must hold {split}/: {str(place.pictures)!r} has none; unpack "
        f"{_ARCHIVES[split]}, into {split}/ there"
    )


def _train_classes(place: _Place) -> list[str]:
    if place.train is None:
        raise _missing_split(place, "train")
    classes, _ = _scan(place.train, "train")
    if not classes:
        packed = any(_WNID.fullmatch(path.stem) for path in place.train.glob("n*.tar"))
        told = "it holds n01440764.tar and the like" if packed else "it has none"
        raise ValueError(
            f"ingest.imagenet.root must have class folders like n01440764/ in train/: got "
            f"{str(place.train)!r}, {told}; unpack {_ARCHIVES['train']}"
        )
    return classes


def _find_labels(place: _Place) -> dict[str, str] | None:
    """Return what says the classes of a flat val folder, or None where nothing does."""
    solution = place.find(_SOLUTION)
    if solution is not None:
        return {"kind": "solution", "path": place.below(solution)}
    devkits = [folder / inner for folder in place.search() for inner in _DEVKIT_FOLDERS]
    for folder in devkits:
        if _exists(folder / _GROUND_TRUTH) and _exists(folder / _META):
            return {"kind": "devkit", "path": place.below(folder)}
    annotations = place.find(_ANNOTATIONS)
    if annotations is not None and _is_dir(annotations):
        return {"kind": "annotations", "path": place.below(annotations)}
    return None


def _missing_labels(place: _Place) -> ValueError:
    told = f"has neither {_GROUND_TRUTH} with {_META} nor {_SOLUTION}"
    folders = [folder / inner for folder in place.search() for inner in _DEVKIT_FOLDERS]
    if any(_exists(folder / _GROUND_TRUTH) for folder in folders):
        told = f"has {_GROUND_TRUTH} without the {_META} that explains its ids"
    elif place.find("ImageSets/CLS-LOC/val.txt") is not None:
        told += " (ImageSets/CLS-LOC/val.txt has names alone)"
    return ValueError(
        f"ingest.imagenet.root must say the classes of its flat val/: {str(place.root)!r} {told}; "
        f"{_LABELS_REMEDY}, or sort val/ into class folders"
    )


def _find_names(place: _Place) -> Path | None:
    folders = [folder / inner for folder in place.search() for inner in _DEVKIT_FOLDERS]
    metas = [folder / _META for folder in folders]
    return place.find(_MAPPING) or next((path for path in metas if _exists(path)), None)


def _describe(place: _Place) -> dict[str, Any]:
    """Return the settings of a download in folders.

    Raises:
        ValueError: a part is missing.
    """
    train = _train_classes(place)
    if place.val is None:
        raise _missing_split(place, "val")
    in_folders, flat = _scan(place.val, "val")
    if not in_folders and not flat:
        raise ValueError(
            f"ingest.imagenet.root must have pictures in val/: {str(place.val)!r} has none; unpack "
            f"{_ARCHIVES['val']}, there"
        )
    labels = _find_labels(place) if flat else None
    if flat and not in_folders and labels is None:
        raise _missing_labels(place)
    is_kaggle = place.pictures.name == _KAGGLE[-1]
    layout = "kaggle" if is_kaggle else "class_folders" if in_folders else "official"
    assert place.train is not None
    parts = {"train": place.below(place.train), "val": place.below(place.val)}
    return _with_classes(place, {"layout": layout, **parts, "labels": labels}, train)


def _with_classes(place: _Place, settings: dict[str, Any], train: list[str]) -> dict[str, Any]:
    index, names = place.find(_INDEX), _find_names(place)
    return {
        **settings,
        "class_index": None if index is None else place.below(index),
        "names": None if names is None or index is not None else place.below(names),
        "num_classes": len(train) if index is None else len(_read_index(index).labels),
    }


@dataclass(frozen=True)
class _List:
    """A list of files: where the lines of each class start, and what is no `wnid/file`.

    Offsets in place of 1.3 million strings: the list is sorted class by class.
    """

    data: bytes
    starts: Mapping[str, array[int]]
    strange: list[str]

    def entries(self, wnid: str) -> list[str]:
        """Return the listed files of one class."""
        ends = ((start, self.data.find(b"\n", start)) for start in self.starts[wnid])
        return [_entry(self.data[start : None if end < 0 else end]) for start, end in ends]


def _entry(line: bytes) -> str:
    """Return the first word of a line, empty where there is none."""
    words = line.removeprefix(b"\xef\xbb\xbf").split(maxsplit=1)
    return os.fsdecode(words[0]) if words else ""


def _entry_class(entry: str) -> str | None:
    path = PurePosixPath(entry)
    is_below = not path.is_absolute() and ".." not in path.parts and "\0" not in entry
    if is_below and len(path.parts) >= 2 and _is_picture(path.name):
        match = _WNID.fullmatch(path.parts[-2])
        return match[0] if match else None
    return None


def _read_list(path: Path, split: str) -> _List:
    key = f"ingest.imagenet.{split}_list"
    try:
        data = read_bytes(path)
    except SkipItem as skip:
        raise ValueError(
            f"{key} must be a readable file: got {str(path)!r}, {skip.detail}; name a text file "
            "with one wnid/file per line, or set both lists to null"
        ) from None
    starts: dict[str, array[int]] = {}
    strange = []
    start = 0
    for line in io.BytesIO(data):
        entry = _entry(line)
        wnid = _entry_class(entry)
        if wnid is not None:
            starts.setdefault(wnid, array("q")).append(start)
        elif entry:
            strange.append(entry)
        start += len(line)
    if not starts:
        raise ValueError(
            f"{key} must list pictures, one per line, like n01440764/n01440764_10026.JPEG: "
            f"{str(path)!r} has no such line; mend it, or set both lists to null"
        )
    return _List(data, starts, strange)


def _list_path(name: str, root: Path) -> Path:
    path = Path(name).expanduser()
    return path if _exists(path) or not _exists(root / path) else root / path


def _describe_lists(setting: ImagenetSource, root: Path) -> dict[str, Any]:
    if not _is_dir(root):
        raise ValueError(
            f"ingest.imagenet.root must be an existing folder: got {str(root)!r}; name the folder "
            "that the files of train_list and val_list lie in"
        )
    assert setting.train_list is not None
    assert setting.val_list is not None
    settings: dict[str, Any] = {"layout": "lists", "labels": None}
    train: list[str] = []
    for split, name in (("train", setting.train_list), ("val", setting.val_list)):
        path = _list_path(name, root)
        listed = _read_list(path, split)
        heads = {PurePosixPath(listed.entries(wnid)[0]).parts[0] for wnid in listed.starts}
        settings[f"{split}_list"] = str(path)
        # The published lists name files below the folder of their split.
        settings[split] = next(
            (
                below
                for below in ("", *_FOLDERS[split])
                if any(_exists(root / below / head) for head in heads)
            ),
            "",
        )
        train = train or sorted(listed.starts)
    return _with_classes(_Place(root, root, None, None), settings, train)


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _sort_key(item: Item) -> str:
    return safe_key(item.name)


@dataclass(frozen=True, eq=False)
class Imagenet(PictureSource):
    """An ImageNet download in one of its layouts; made by `open_source`."""

    dataset: ClassVar[str] = "imagenet"
    terms: ClassVar[str] = (
        "ImageNet may be used for non-commercial research and education only, under the terms of "
        "access of image-net.org, which you must have accepted: pictures may not be passed on, "
        "except to associates who accept the same terms"
    )
    licence: ClassVar[str] = "ImageNet terms of access: non-commercial research and education"

    def items(self) -> Iterator[Item]:
        """See `Source`: sorted by key over both splits, one folder at a time."""
        if self.settings["layout"] == "lists":
            lists = {
                split: _read_list(Path(self.settings[f"{split}_list"]), split)
                for split in ("train", "val")
            }
            classes = self._classes(sorted(lists["train"].starts))
            streams = [
                stream
                for split, listed in lists.items()
                for stream in (self._in_list(split, listed, classes), self._strange(split, listed))
            ]
        else:
            train, _ = _scan(self._folder("train"), "train")
            val, flat = _scan(self._folder("val"), "val")
            classes = self._classes(train)
            streams = [
                self._in_folders("train", train, classes),
                self._in_folders("val", val, classes),
                self._flat(flat, classes),
            ]
        yield from heapq.merge(*streams, key=_sort_key)

    def num_items(self) -> int | None:
        """See `Source`: counting is listing here."""
        return None

    def expected(self) -> Expected:
        """See `Source`."""
        samples = {**NUM_PICTURES, "train": NUM_PICTURES["train"] - len(EXCLUDED)}
        return Expected(NUM_PICTURES, samples, "ILSVRC2012, image-net.org")

    def _folder(self, split: str) -> Path:
        return self.roots["root"] / str(self.settings[split])

    def _classes(self, train: list[str]) -> Classes:
        root = self.roots["root"]
        if self.settings["class_index"] is not None:
            return _read_index(root / self.settings["class_index"])
        names = self.settings["names"]
        return Classes(
            {wnid: label for label, wnid in enumerate(train)},
            {} if names is None else _read_names(root / names),
        )

    def _inspect(self, item: Item) -> tuple[dict[str, str], dict[str, Any]]:
        if item.reason is None and item.path is not None:
            try:
                self.resolve(item.path).lstat()
            except (FileNotFoundError, NotADirectoryError):
                raise SkipItem("missing_image", f"{item.path} does not exist") from None
            except OSError:
                pass  # reading it says why
        return super()._inspect(item)

    def _item(self, split: str, name: str, below: str, wnid: str, classes: Classes) -> Item:
        """Describe the file `below` the folder of its split."""
        label = classes.labels.get(wnid)
        stem = name.rpartition("/")[2]
        reason, detail = None, ""
        if stem in EXCLUDED:
            reason, detail = "ignored_image", f"{below}: {EXCLUDED[stem]}"
        elif label is None:
            known = self.settings["class_index"] or "train"
            reason, detail = "missing_label", f"class {wnid} is not in {known}"
        return Item(
            name=name,
            split=split,
            path=self._manifest_path(split, below),
            label=label,
            class_name=classes.names.get(wnid, wnid),
            facts=(("wnid", wnid),),
            reason=reason,
            detail=detail,
        )

    def _manifest_path(self, split: str, below: str) -> str:
        return "/".join(part for part in ("root", self.settings[split], below) if part)

    def _in_folders(self, split: str, wnids: list[str], classes: Classes) -> Iterator[Item]:
        for wnid in wnids:
            try:
                _, names = read_through(_listed, self._folder(split) / wnid)
            except SkipItem as skip:
                yield Item(wnid, split, None, reason=skip.reason, detail=skip.detail)
                continue
            yield from self._of_class(split, wnid, [f"{wnid}/{name}" for name in names], classes)

    def _in_list(self, split: str, listed: _List, classes: Classes) -> Iterator[Item]:
        for wnid in sorted(listed.starts):
            files = [PurePosixPath(entry).as_posix() for entry in listed.entries(wnid)]
            yield from self._of_class(split, wnid, files, classes)

    def _of_class(
        self, split: str, wnid: str, files: list[str], classes: Classes
    ) -> Iterator[Item]:
        found = [
            self._item(split, f"{wnid}/{_stem(below)}", below, wnid, classes)
            for below in sorted(files)
        ]
        yield from sorted(found, key=_sort_key)

    def _flat(self, files: list[str], classes: Classes) -> Iterator[Item]:
        if not files:
            return
        lookup = _read_labels(self.roots["root"], self.settings["labels"])
        names = [(f"val/{_stem(file)}", file) for file in sorted(files)]
        for name, file in sorted(names, key=lambda pair: safe_key(pair[0])):
            try:
                yield self._item("val", name, file, lookup(_stem(file)), classes)
            except SkipItem as skip:
                path = self._manifest_path("val", file)
                yield Item(name, "val", path, reason=skip.reason, detail=skip.detail)

    def _strange(self, split: str, listed: _List) -> Iterator[Item]:
        for entry in sorted(listed.strange, key=safe_key):
            detail = (
                f"{split}_list must name pictures as wnid/file below ingest.imagenet.root: "
                f"got {entry[:200]!r}"
            )
            yield Item(entry, split, None, reason="unsupported_name", detail=detail)


def open_source(setting: ImagenetSource, root: Path) -> Imagenet:
    """Find out the layout of a download.

    Args:
        setting: section `ingest.imagenet` of params.yaml; its lists, where given, say what to use.
        root: the download, or for lists the folder that their files lie in.

    Raises:
        ValueError: it is no ImageNet download, or a part is missing; one line with what and where
            to get it.
    """
    if setting.train_list is not None:
        return Imagenet({"root": root}, _describe_lists(setting, root))
    place = _locate(root)
    settings = _describe(place)
    if settings["labels"] is not None:
        _read_labels(place.root, settings["labels"])  # refuses damaged tables now, not in an hour
    _log.info("ImageNet below %s: %s", place.root, settings)
    return Imagenet({"root": place.root}, settings)


def check(root: Path) -> list[Finding]:
    """Count the parts of a download against the official counts; never raises."""
    try:
        place = _locate(root)
    except Exception as error:
        return [Finding(False, " ".join(str(error).split()))]
    findings = [Finding(True, f"root: train/ and val/ are looked for in {place.pictures}")]
    for part in (_check_train, _check_val, _check_classes):
        try:
            findings += part(place)
        except Exception as error:
            findings.append(Finding(False, " ".join(str(error).split())))
    return findings


def _check_train(place: _Place) -> list[Finding]:
    classes = _train_classes(place)
    assert place.train is not None
    count, unreadable = 0, []
    for wnid in classes:
        try:
            count += len(read_through(_listed, place.train / wnid)[1])
        except SkipItem as skip:
            unreadable.append(skip.detail)
    is_whole = count == NUM_PICTURES["train"] and len(classes) == NUM_CLASSES
    remedy = "" if is_whole else f"; for the rest unpack {_ARCHIVES['train']}"
    text = (
        f"train: {count:,} of {NUM_PICTURES['train']:,} pictures in {len(classes):,} of "
        f"{NUM_CLASSES:,} classes{remedy}"
    )
    problems = [Finding(False, f"train: {detail}") for detail in unreadable[:3]]
    return [Finding(is_whole, text), *problems]


def _check_val(place: _Place) -> list[Finding]:
    if place.val is None:
        raise _missing_split(place, "val")
    in_folders, flat = _scan(place.val, "val")
    counts: Counter[str] = Counter()
    problems = []
    for wnid in in_folders:
        try:
            counts[wnid] = len(read_through(_listed, place.val / wnid)[1])
        except SkipItem as skip:
            problems.append(Finding(False, f"val: {skip.detail}"))
    count = counts.total() + len(flat)
    is_whole = count == NUM_PICTURES["val"]
    remedy = "" if is_whole else f"; for the rest unpack {_ARCHIVES['val']}"
    text = f"val: {count:,} of {NUM_PICTURES['val']:,} pictures{remedy}"
    findings = [Finding(is_whole, text), *problems[:3]]
    unlabelled = 0
    if flat:
        labels = _find_labels(place)
        if labels is None:
            return [*findings, Finding(False, str(_missing_labels(place)))]
        try:
            lookup = _read_labels(place.root, labels)
        except ValueError as error:
            return [*findings, Finding(False, str(error))]
        findings.append(Finding(True, f"val: classes come from {labels['path']}"))
        for name in flat:
            try:
                counts[lookup(_stem(name))] += 1
            except SkipItem:
                unlabelled += 1
    if unlabelled:
        findings.append(Finding(False, f"val: {unlabelled:,} pictures have no class"))
    uneven = {wnid: n for wnid, n in sorted(counts.items()) if n != VAL_PER_CLASS}
    told = ", ".join(f"{wnid} has {n}" for wnid, n in list(uneven.items())[:3])
    is_even = not uneven and len(counts) == NUM_CLASSES
    text = (
        f"val: {len(counts) - len(uneven):,} of {NUM_CLASSES:,} classes have {VAL_PER_CLASS} "
        f"pictures{'; ' + told if told else ''}"
    )
    return [*findings, Finding(is_even, text)]


def _check_classes(place: _Place) -> list[Finding]:
    index = place.find(_INDEX)
    if index is not None:
        count = len(_read_index(index).labels)
        text = f"classes: {_INDEX} numbers {count:,} of {NUM_CLASSES:,}"
        return [Finding(count == NUM_CLASSES, text)]
    names = _find_names(place)
    told = f"no {_INDEX}: labels follow the sorted class folders of train/, "
    if names is None:
        told += f"names are missing (nothing needs them; {_MAPPING} of Kaggle has them)"
    else:
        told += f"names come from {place.below(names)}"
    return [Finding(True, f"classes: {told}")]
