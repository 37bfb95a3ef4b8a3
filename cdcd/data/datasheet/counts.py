"""Counters that go over the manifests once.

Memory grows with classes, songs and distinct numbers, not with the records.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from cdcd.data.manifest import CHOSEN_REASONS, Record
from cdcd.data.samples import GENRE_NAMES, GENRES, SMPL

SMALL_SIDE = 256
"""Pictures with a side below this are counted."""
PADS = ("motion_pad_frames", "audio_pad_samples", "video_pad_frames")
"""Facts of a segment that say how much of it was filled up."""
NUM_EXAMPLES = 5
"""Items named for each reason and each check."""
MAX_LETTERS = 300
"""Of any text from other people's files."""

Tree = dict[str, Any]
"""Part of `datasheet.json`."""


def printable(text: str, most: int = MAX_LETTERS) -> str:
    """Return a text from other people's files with nothing in it that does not print, cut short.

    Control characters, marks that turn the reading direction and lone surrogates become escapes.
    """
    shown = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text[:most]
    )
    return shown if len(text) <= most else f"{shown}…"


@dataclass
class Spread:
    """Numbers and how often each occurs; memory grows with distinct ones only."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """Count one number."""
        self.counts[value] += 1

    def summary(self) -> Tree | None:
        """Return count, min, mean, median, max and total; None without numbers."""
        count = self.counts.total()
        if not count:
            return None
        values = sorted(self.counts)
        total = sum(value * self.counts[value] for value in values)
        median = (self._at((count - 1) // 2) + self._at(count // 2)) / 2
        found = {"min": values[0], "mean": total / count, "median": median, "max": values[-1]}
        rounded = {name: round(value, 3) for name, value in {**found, "total": total}.items()}
        return {"count": count, **rounded}

    def _at(self, place: int) -> float:
        for value in sorted(self.counts):
            place -= self.counts[value]
            if place < 0:
                return value
        raise AssertionError("a place within the numbers")


@dataclass
class Skipped:
    """What was left out, by reason, with the first few of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[Tree]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        """Count one skipped record."""
        assert record.reason is not None
        self.counts[record.reason] += 1
        if len(self.examples[record.reason]) < NUM_EXAMPLES:
            told = {"key": record.key, "split": record.split, "detail": record.detail}
            self.examples[record.reason].append({k: printable(v) for k, v in told.items()})

    def rows(self, total: int) -> list[Tree]:
        """Return one entry for each reason, most frequent first; shares are of `total`."""
        return [
            {
                "reason": reason,
                "count": count,
                "share": round(count / total, 6),
                "is_chosen": reason in CHOSEN_REASONS,
                "examples": self.examples[reason],
            }
            for reason, count in sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        ]


Group = tuple[str, int, str]
"""What a sample belongs to: kind (genre, class, category), number (-1: none) and name."""


def _groups(record: Record) -> list[Group]:
    if record.genre is not None:
        code = GENRES[record.genre]
        return [("genre", record.genre, f"{code} {GENRE_NAMES[code]}")]
    if record.label is not None:
        return [("class", record.label, str(record.facts.get("class", "")))]
    return [("category", -1, str(name)) for name in record.facts.get("categories", ())]


class Items:
    """What the manifest of data/raw says."""

    def __init__(self) -> None:
        self.listed: Counter[str] = Counter()
        self.usable: Counter[str] = Counter()
        self.skipped = Skipped()
        self.groups: defaultdict[Group, Counter[str]] = defaultdict(Counter)
        self.licences: Counter[str] = Counter()
        self.captions, self.words = Spread(), Spread()
        self.seconds: defaultdict[str, Spread] = defaultdict(Spread)
        self.tempi: defaultdict[float, Counter[str]] = defaultdict(Counter)
        self.songs: defaultdict[str, set[str]] = defaultdict(set)
        self.audio_sources: Counter[str] = Counter()
        self.videos: Counter[str] = Counter()
        self.widths, self.heights = Spread(), Spread()
        self.num_small = 0
        self.modes: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count one record."""
        self.listed[record.split] += 1
        if record.reason is not None:
            self.skipped.add(record)
            return
        self.usable[record.split] += 1
        self.licences[record.licence] += 1
        for group in _groups(record):
            self.groups[group][record.split] += 1
        if record.song is not None:
            self.songs[record.split].add(record.song)
        facts = record.facts
        if "audio_source" in facts:
            self._add_dance(record)
        elif "mode" in facts:
            self._add_picture(facts)
        if "captions" in facts:
            self.captions.add(len(facts["captions"]))
            for _, text in facts["captions"]:
                self.words.add(len(text.split()))

    def _add_dance(self, record: Record) -> None:
        facts = record.facts
        rate_hz = facts.get("motion_rate_hz", SMPL.rate_hz)
        self.seconds[record.split].add(round(facts.get("num_frames", 0) / rate_hz, 3))
        if facts.get("bpm") is not None:
            self.tempi[facts["bpm"]][record.split] += 1
        self.audio_sources[facts["audio_source"]] += 1
        has_features = facts.get("video_feature") is not None
        kind = "present" if facts.get("video") else "features only" if has_features else "missing"
        self.videos[kind] += 1

    def _add_picture(self, facts: Tree) -> None:
        width, height = facts["width"], facts["height"]
        self.widths.add(width)
        self.heights.add(height)
        self.num_small += min(width, height) < SMALL_SIDE
        self.modes[facts["mode"]] += 1
        self.formats[facts["format"]] += 1


class Samples:
    """What the manifest of data/shards says."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.pairs: Counter[str] = Counter()
        self.skipped = Skipped()
        self.groups: Counter[Group] = Counter()
        self.pads: defaultdict[str, Spread] = defaultdict(Spread)
        self.num_partial = 0
        self.lengths: set[float] = set()
        self.decoders: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, record: Record) -> None:
        """Count one record."""
        if record.reason is not None:
            self.skipped.add(record)
            return
        facts = record.facts
        self.counts[record.split] += 1
        self.pairs[record.split] += facts.get("num_captions", 0)
        self.groups.update(_groups(record))
        for name in PADS:
            if facts.get(name):
                self.pads[name].add(facts[name])
        if "segment_seconds" in facts:
            self.lengths.add(facts["segment_seconds"])
            seconds = facts["segment_seconds"]
            self.num_partial += facts.get("valid_seconds", seconds) < seconds
        for name, version in facts.get("decoders", {}).items():
            self.decoders[printable(name)].add(printable(str(version)))
