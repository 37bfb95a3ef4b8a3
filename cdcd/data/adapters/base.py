"""What every dataset adapter is: a found download that lists, checks and loads its items.

An adapter never writes into the download, never unpickles freely, and never puts another item in
the place of a broken one: it raises `SkipItem` with a reason instead.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from cdcd.data.files import sha256_file
from cdcd.data.manifest import Record, SkipItem
from cdcd.data.parallel import is_transient, with_retries
from cdcd.data.samples import Picture, Sample

MAX_FILE_BYTES = 256 << 20
"""Files that are read whole may not be larger; the largest real ones have a tenth of it."""


@dataclass(frozen=True)
class Options:
    """How items become samples; the section `shard` of params.yaml.

    Attributes:
        segment_seconds: length of dance segments: 2, 4 or 6.
        video_fps: constant frame rate of stored clips, in Hz.
        video_height: their shorter side, in pixels.
        image_size: shorter side of stored pictures in pixels; smaller ones stay as they are.
    """

    segment_seconds: int
    video_fps: int
    video_height: int
    image_size: int


@dataclass(frozen=True)
class Finding:
    """One line of `cdcd ingest --check`: what was found, or what is missing and where to get it."""

    is_fine: bool
    text: str


@dataclass(frozen=True)
class Expected:
    """What the publisher's download holds: items by split, or None where it is not known.

    Attributes:
        items: listed items (sequences, videos, pictures) by split.
        samples: samples by split for some length of segment, or pairs with captions.
        source: where the counts come from.
    """

    items: Mapping[str, int]
    samples: Mapping[str, int]
    source: str


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """A download that was found and understood; picklable, because workers load from it.

    Attributes:
        roots: folders by name; manifests name files as `<root>/<path below it>`.
        settings: JSON-able facts that decide what is listed and how (layout, camera, lists).
    """

    roots: Mapping[str, Path]
    settings: Mapping[str, Any]

    dataset: ClassVar[str]
    terms: ClassVar[str]
    """Terms of use, in a sentence or two; shown by ingest."""
    licence: ClassVar[str]
    """The same in a few words, for each record."""
    unit: ClassVar[str] = "picture"
    """What one item is, for progress bars and messages."""

    @abstractmethod
    def items(self) -> Iterator[Any]:
        """Yield everything that is listed, small and picklable; the number is `num_items`."""

    @abstractmethod
    def num_items(self) -> int | None:
        """Return how many items will be listed, None where counting costs as much as listing."""

    @abstractmethod
    def inspect(self, item: Any) -> Record:
        """Find, check and hash the files of one item without decoding them whole."""

    @abstractmethod
    def planned_keys(self, record: Record, options: Options) -> list[str]:
        """Return the keys of the samples that a usable record will become, sorted."""

    @abstractmethod
    def load(
        self, record: Record, options: Options
    ) -> Iterator[tuple[Record, Sample | Picture | None]]:
        """Decode a usable record to samples, sorted by key; None where the record says skipped.

        Raises:
            SkipItem: a file turned out unusable; the whole item is out.
        """

    @abstractmethod
    def expected(self) -> Expected:
        """Return the publisher's counts for these settings."""

    def check_options(self, options: Options) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse options that this download cannot serve.

        Raises:
            ValueError: one line with rule, value and remedy.
        """

    def resolve(self, path: str) -> Path:
        """Return the file behind a manifest path."""
        root, _, below = path.partition("/")
        return self.roots[root] / below


def read_through(function: Any, path: Path) -> Any:
    """Return `function(path)`; what cannot be read for good becomes a skip, not a crash.

    Transient errors are tried again first.

    Raises:
        SkipItem: missing rights, a folder or a loop of links in the file's place, a failing disk.
    """
    try:
        return with_retries(function, path)
    except OSError as error:
        if not is_transient(error) and error.filename is None:
            raise  # not about this file: a full disk, for example
        told = error.strerror or type(error).__name__
        raise SkipItem("unreadable_file", f"{path.name} cannot be read: {told}") from None


def read_bytes(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a file whole, but no file of unreasonable size.

    Raises:
        SkipItem: it cannot be read, or is larger than `limit` bytes.
    """

    def read(path: Path) -> bytes:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise SkipItem(
                "unreadable_file", f"{path.name} must have at most {limit} bytes: it has more"
            )
        return data

    data = read_through(read, path)
    assert isinstance(data, bytes)
    return data


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_file(path: Path) -> bool:
    """Tell whether something that is no folder has this name; rights and loops do not matter."""
    try:
        return path.is_file() or (path.is_symlink() and not path.is_dir())
    except OSError:
        return True


def skipped_sample(record: Record, key: str, skip: SkipItem) -> Record:
    """Return the record of a sample that is left out of a usable item."""
    return Record(
        key=key,
        split=record.split,
        status="skipped",
        reason=skip.reason,
        detail=skip.detail,
        genre=record.genre,
        song=record.song,
        sequence=record.sequence,
        label=record.label,
        licence=record.licence,
        sources=record.sources,
    )


def check_unchanged(source: Source, record: Record) -> None:
    """Compare the files of a record with the checksums that ingest noted.

    Raises:
        SkipItem: changed_source or unreadable_file.
    """
    for path, checksum in record.sources.items():
        file = source.resolve(path)
        state = read_through(Path.stat, file)
        if _checksum(file, state.st_mtime_ns, state.st_size) != checksum:
            raise SkipItem("changed_source", f"{path} is not the file that ingest saw")


@lru_cache(maxsize=64)  # one song serves many sequences
def _checksum(path: Path, _mtime: int, _size: int) -> str:
    return str(read_through(sha256_file, path))


@lru_cache(maxsize=1)
def decoders() -> dict[str, str]:
    """Return the versions of the installed decoders of sound, video and pictures."""
    found = {}
    for package in ("av", "decord", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
