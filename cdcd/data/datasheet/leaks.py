"""What splits share and should not: songs, classes, files, sequences, choreographies.

Memory grows with the held-out side; of train only what was found in both is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cdcd.data.adapters.aist import AistNameError, parse_name
from cdcd.data.datasheet.counts import NUM_EXAMPLES, Tree, printable
from cdcd.data.manifest import Record
from cdcd.data.samples import MOTIONS

OK, LEAK, NOT_APPLICABLE = "ok", "LEAK", "not applicable"
"""Verdicts of a check."""

_HELD_OUT = ("val", "test")


@dataclass(frozen=True)
class _Kind:
    """One thing that splits may not share; songs of val and test may, as published."""

    title: str
    within_held_out: bool = True


_KINDS = {
    "song": _Kind("songs in train and in a held-out split", within_held_out=False),
    "class": _Kind("classes in train and in a held-out split", within_held_out=False),
    "file": _Kind("identical files (pictures, motions, videos) in two splits"),
    "sequence": _Kind("one sequence in two splits"),
    "choreography": _Kind("one choreography of one dancer in two splits"),
}


class Leaks:
    """Looks for what splits share, from a pass over the held-out side and one over train."""

    def __init__(self, source: Tree) -> None:
        self.is_dance = source["dataset"] in MOTIONS
        self.dataset = source["dataset"]
        self.is_embedded = source["embedded"]
        self.cub_split = source.get("settings", {}).get("split")
        self.held_splits: set[str] = set()
        self.has_train = False
        self.held: dict[str, dict[str, dict[str, str]]] = {
            kind: {split: {} for split in _HELD_OUT} for kind in _KINDS
        }
        self.shared: dict[str, dict[str, list[str]]] = {kind: {} for kind in _KINDS}

    def add_held_out(self, record: Record) -> None:
        """Keep a usable record of val or test, and compare it with the other one."""
        if record.reason is not None:
            return
        if record.split not in _HELD_OUT:
            self.has_train = True
            return
        self.held_splits.add(record.split)
        other = "test" if record.split == "val" else "val"
        for kind, token in self._tokens(record):
            held = self.held[kind]
            if _KINDS[kind].within_held_out and token in held[other]:
                self._found(kind, token, other, held[other][token], record)
            held[record.split].setdefault(token, record.key)

    def compare_train(self, record: Record) -> None:
        """Compare a usable record of train with all that was kept."""
        if record.reason is not None or record.split in _HELD_OUT:
            return
        for kind, token in self._tokens(record):
            for split, held in self.held[kind].items():
                if token in held:
                    self._found(kind, token, split, held[token], record)

    def _found(self, kind: str, token: str, split: str, key: str, record: Record) -> None:
        self.shared[kind].setdefault(token, [f"{record.split}: {record.key}", f"{split}: {key}"])

    def _tokens(self, record: Record) -> Iterator[tuple[str, str]]:
        for name in ("image", "motion", "video"):
            path = str(record.facts.get(name, ""))
            if path in record.sources:
                yield "file", record.sources[path]
        if record.song is not None:
            yield "song", record.song
        if record.label is not None:
            yield "class", str(record.label)
        if record.sequence is not None:
            yield "sequence", record.sequence
            if self.dataset == "aist" and (danced := _choreography(record.sequence)):
                yield "choreography", danced

    def checks(self) -> list[Tree]:
        """Return name, title, verdict, what it rests on, count and examples of each check."""
        found = []
        for kind, about in _KINDS.items():
            excuse = self._excuse(kind)
            shared = {} if excuse else self.shared[kind]
            verdict = NOT_APPLICABLE if excuse else LEAK if shared else OK
            detail = excuse or f"{len(shared):,} shared"
            examples = [
                {"shared": printable(token), "items": [printable(item) for item in pair]}
                for token, pair in sorted(shared.items())[:NUM_EXAMPLES]
            ]
            found.append(
                {
                    "name": kind,
                    "title": about.title,
                    "verdict": verdict,
                    "detail": detail,
                    "count": len(shared),
                    "examples": examples,
                }
            )
        return found

    def _excuse(self, kind: str) -> str:
        """Return why a check says nothing about this dataset, empty where it does."""
        if kind in ("song", "sequence", "choreography") and not self.is_dance:
            return "pictures have none"
        if kind == "class" and self.is_dance:
            return "genres are meant to be shared"
        if kind == "class" and (self.dataset != "cub200" or self.cub_split == "official"):
            has_labels = any(self.held["class"].values())
            return "classes are meant to be shared" if has_labels else "the dataset has no classes"
        if kind == "choreography" and self.dataset != "aist":
            return "the dataset does not name any"
        if kind == "choreography" and self.is_embedded:
            return "the stand-in dances every piece anew: its numbers say nothing"
        if not self.held_splits:
            return "no usable item is held out"
        if not self.has_train and (len(self.held_splits) < 2 or not _KINDS[kind].within_held_out):
            return "there is nothing to compare the held-out items with"
        if not any(self.held[kind].values()):
            return "the held-out items do not name any"
        return ""


def _choreography(sequence: str) -> str | None:
    try:
        name = parse_name(sequence)
    except AistNameError:
        return None
    return f"{name.situation} {name.dancer} {name.choreography}"
