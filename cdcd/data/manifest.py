"""One record per sample: where it came from, or why it was left out.

Manifests are streamed, written and read: a hundred million records fit in no memory.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cdcd.data.files import atomic_path

REASONS = frozenset(
    {
        "changed_source",
        "corrupt_motion",
        "duplicate_key",
        "ignored_image",
        "ignored_sequence",
        "length_mismatch",
        "missing_audio",
        "missing_caption",
        "missing_image",
        "missing_label",
        "missing_motion",
        "missing_video",
        "no_audio_stream",
        "nonfinite_motion",
        "partial_segment",
        "too_short",
        "unknown_genre",
        "unreadable_audio",
        "unreadable_feature",
        "unreadable_file",
        "unreadable_image",
        "unreadable_video",
        "unsafe_pickle",
        "unsupported_motion",
        "unsupported_name",
    }
)
CHOSEN_REASONS = frozenset({"ignored_image", "ignored_sequence", "partial_segment"})
"""Skips that a setting asks for: recorded like the others, but no sign of broken data."""


class SkipItem(Exception):  # noqa: N818 - not a failure of the program: one item is left out
    """Raised where one item is found unusable; carries the reason that the manifest records."""

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SkipItem], tuple[str, str]]:
        # Exceptions cross process borders by their constructor's arguments.
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class Record:
    """What became of one sequence, segment or picture.

    Attributes:
        key: its stable name.
        split: `train`, `val` or `test`.
        status: `ok`, or `skipped` together with a `reason`.
        reason: one of `REASONS`, or None.
        detail: the reason in words, with the values that led to it.
        genre: index into `cdcd.data.samples.GENRES`, or None where there is no label.
        song: the music's name, or None.
        sequence: the annotated sequence that it belongs to, or None.
        label: class of a picture from 0 on, or None where there is none.
        licence: terms of use of this item, in short.
        sources: SHA-256 of each source file by its path (`<root>/<path below the root>`).
        facts: anything else worth keeping, JSON-able (pad counts, frame counts, chosen source).
    """

    key: str
    split: str
    status: Literal["ok", "skipped"] = "ok"
    reason: str | None = None
    detail: str = ""
    genre: int | None = None
    song: str | None = None
    sequence: str | None = None
    label: int | None = None
    licence: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.status == "skipped") != (self.reason is not None):
            raise ValueError(
                f"{self.key}: a record has a reason exactly when it is skipped: got status "
                f"{self.status!r} and reason {self.reason!r}"
            )
        if self.reason is not None and self.reason not in REASONS:
            raise ValueError(f"{self.key}: {self.reason!r} is not a known skip reason")


RUN_SIZE = 100_000
"""Records sorted in memory at a time; longer manifests are merged from sorted runs on disk."""

SortKey = Callable[[Record], tuple[str, ...]]


def by_key(record: Record) -> tuple[str, ...]:
    """Order of manifests: key, then split, then usable before skipped."""
    return (record.key, record.split, record.status)


def sorted_records(
    records: Iterable[Record],
    order: SortKey = by_key,
    folder: str | Path | None = None,
    run_size: int = RUN_SIZE,
) -> Iterator[Record]:
    """Sort records in memory that does not grow with their number (external merge sort).

    Args:
        records: in any order; equal ones keep it.
        order: what to sort by.
        folder: where runs may be kept meanwhile, on a disk with room; None: the system's.
        run_size: records in memory at a time.
    """
    records = iter(records)
    with ExitStack() as stack:
        runs: list[Iterator[Record]] = []
        keep = ""
        while run := sorted(islice(records, run_size), key=order):
            if len(run) < run_size:  # the last one
                runs.append(iter(run))
                break
            keep = keep or stack.enter_context(
                tempfile.TemporaryDirectory(dir=folder, prefix=".sorting")
            )
            path = Path(keep) / str(len(runs))
            with path.open("w", encoding="utf-8") as file:
                file.writelines(map(record_line, run))
            runs.append(iterate_manifest(path))
        yield from heapq.merge(*runs, key=order)


def without_duplicates(records: Iterable[Record]) -> Iterator[Record]:
    """Mark a usable record whose key another usable one has already, in records sorted by key."""
    earlier: Record | None = None
    for record in records:
        if record.status == "ok":
            if earlier is not None and earlier.key == record.key:
                mine, theirs = (", ".join(sorted(r.sources)) for r in (record, earlier))
                yield replace(
                    record,
                    status="skipped",
                    reason="duplicate_key",
                    detail=f"{mine or record.split} has the key of {theirs or earlier.split}",
                )
                continue
            earlier = record
        yield record


def record_line(record: Record) -> str:
    """Return a record as one line of JSON; equal records give equal lines."""
    return json.dumps(asdict(record), sort_keys=True, allow_nan=False) + "\n"


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, sorted by key, atomically; equal records give equal bytes."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in sorted_records(records, folder=temporary.parent):
            file.write(record_line(record))


_FIELDS = frozenset(item.name for item in fields(Record))


def parse_record(line: str) -> Record:
    """Return the record of one line.

    Raises:
        ValueError: it is none.
        TypeError: it lacks a field.
    """
    tree = json.loads(line)
    if not isinstance(tree, dict) or not set(tree) <= _FIELDS:
        raise ValueError("not a record")
    return Record(**tree)


def iterate_manifest(path: str | Path) -> Iterator[Record]:
    """Yield the records of a manifest one by one, in its order.

    Raises:
        ValueError: the file is missing, or a line is not a record.
    """
    path = Path(path)
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(
            f"{path} must exist: no such file; run the stage that writes it first (`dvc repro`)"
        ) from None
    with file:
        for number, line in enumerate(file, start=1):
            try:
                record = parse_record(line)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path} line {number} must be one JSON record: {error}; "
                    "run the stage that writes it again (`dvc repro --force`)"
                ) from None
            yield record


def read_manifest(path: str | Path) -> list[Record]:
    """Read a whole manifest at once; `iterate_manifest` streams it."""
    return list(iterate_manifest(path))


def broken_reasons(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the counts by reason that mean broken data, by name: not what a setting asks for."""
    return {reason: n for reason, n in sorted(counts.items()) if reason not in CHOSEN_REASONS}


def describe_reasons(counts: dict[str, int]) -> str:
    """Return reason counts in words, most frequent first: `missing_audio 3, too_short 1`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count}" for reason, count in ordered) or "none"


def enforce_share(
    num_skipped: int,
    num_total: int,
    limit: float,
    stage: str,
    reasons: dict[str, int] | None = None,
) -> None:
    """Stop a stage in which more than the allowed share of items is bad, or none is left.

    Args:
        num_skipped: items left out because they are bad.
        num_total: all items that the stage was asked to use, 0 or more.
        limit: allowed share in [0, 1].
        stage: its name, as in params.yaml (`<stage>.max_skipped_share`).
        reasons: counts to list in the message.

    Raises:
        ValueError: the share is above `limit`, or nothing usable is left.
    """
    told = f" ({describe_reasons(reasons)})" if reasons else ""
    if num_total <= num_skipped:
        raise ValueError(
            f"{stage} must have at least one usable item: {num_skipped} of {num_total} are "
            f"unusable{told}; mend the data or name another folder in params.yaml"
        )
    if num_skipped > limit * num_total:
        raise ValueError(
            f"{stage}.max_skipped_share must not be exceeded: {num_skipped} of {num_total} items "
            f"({num_skipped / num_total:.3f}) are unusable{told}, the limit is {limit}; "
            "mend the data, or raise the limit to go on without them"
        )
