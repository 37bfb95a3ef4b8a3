"""One record per sample: where it came from, or why it was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cdcd.data.files import atomic_path

REASONS = frozenset(
    {
        "corrupt_motion",
        "duplicate_key",
        "ignored_sequence",
        "length_mismatch",
        "missing_audio",
        "missing_caption",
        "missing_motion",
        "missing_video",
        "no_audio_stream",
        "nonfinite_motion",
        "partial_segment",
        "too_short",
        "unknown_genre",
        "unreadable_audio",
        "unreadable_image",
        "unreadable_video",
        "unsafe_pickle",
        "unsupported_name",
    }
)
CHOSEN_REASONS = frozenset({"ignored_sequence", "partial_segment"})
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
    """What became of one sequence or segment.

    Attributes:
        key: its stable name.
        split: `train`, `val` or `test`.
        status: `ok`, or `skipped` together with a `reason`.
        reason: one of `REASONS`, or None.
        detail: the reason in words, with the values that led to it.
        genre: index into `cdcd.data.samples.GENRES`, or None where there is no label.
        song: the music's name, or None.
        sequence: the annotated sequence that it belongs to, or None.
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

    @property
    def is_broken(self) -> bool:
        """Whether the item was left out because it is bad, not because a setting says so."""
        return self.reason is not None and self.reason not in CHOSEN_REASONS


def write_manifest(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, sorted by key, atomically; equal records give equal bytes."""
    ordered = sorted(records, key=lambda record: (record.key, record.split, record.status))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in ordered:
            file.write(json.dumps(asdict(record), sort_keys=True, allow_nan=False) + "\n")


def read_manifest(path: str | Path) -> list[Record]:
    """Read a manifest written by `write_manifest`.

    Raises:
        ValueError: the file is missing, or a line is not a record.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(
            f"{path} must exist: no such file; run the stage that writes it first (`dvc repro`)"
        ) from None
    known = {item.name for item in fields(Record)}
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            tree = json.loads(line)
            if not isinstance(tree, dict) or not set(tree) <= known:
                raise ValueError("not a record")
            records.append(Record(**tree))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} line {number} must be one JSON record: {error}; "
                "run the stage that writes it again (`dvc repro --force`)"
            ) from None
    return records


def count_reasons(records: Iterable[Record]) -> dict[str, int]:
    """Return how many records were skipped for each reason, by name."""
    counts = Counter(record.reason for record in records if record.reason is not None)
    return dict(sorted(counts.items()))


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
