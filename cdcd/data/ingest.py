"""A dataset's download, or the embedded stand-in, turned into a checked manifest: `data/raw`."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdcd.config import Params
from cdcd.data.adapters import (
    EMBEDDED_LICENCE,
    Source,
    describe_source,
    open_dataset,
    restore_source,
)
from cdcd.data.files import atomic_directory, atomic_path, write_json
from cdcd.data.manifest import (
    Record,
    broken_reasons,
    describe_reasons,
    enforce_share,
    iterate_manifest,
    record_line,
    sorted_records,
    without_duplicates,
)
from cdcd.data.parallel import ordered_map
from cdcd.data.samples import MOTION_RATE_HZ, SPLITS

_log = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"
_BATCH = 16
"""Items that travel to a worker at a time: pictures are small work."""


def ingest(params: Params, dataset: str, out_dir: str | Path) -> dict[str, Any]:
    """Find, check and hash the files of a dataset.

    Writes `manifest.jsonl` (one record per listed item), `source.json` (where the files are) and
    `summary.json`; without a download also `download/`, a stand-in in the publisher's layout.
    `out_dir` is replaced as a whole at the end: after an error it is as it was before.

    Args:
        params: section `ingest`.
        dataset: one of `cdcd.config.DATASETS`.
        out_dir: normally `data/raw/<dataset>`.

    Returns:
        The summary: counts by split, reasons for skipping, songs or classes, terms of use.

    Raises:
        ValueError: a folder is missing or in another layout, or more than
            `ingest.max_skipped_share` of the items are unusable; the manifest that says which is
            then left beside `out_dir` as `<name>.rejected.jsonl`.
    """
    out_dir = Path(out_dir)
    rejected = out_dir.with_name(f"{out_dir.name}.rejected.jsonl")
    with atomic_directory(out_dir) as folder:
        source, is_embedded = open_dataset(params, dataset, folder)
        terms = EMBEDDED_LICENCE if is_embedded else source.terms
        _log.info("terms of %s: %s", dataset, terms)
        tally = Tally()
        if not is_embedded:
            _check_apart(source, out_dir, folder)
        # Listing is little beside reading and hashing what is listed.
        total = source.num_items()
        if total is None:
            total = sum(1 for _ in source.items())
        found = _inspect(source, params.ingest.num_workers, total)
        records = sorted_records(found, folder=folder)
        with (folder / MANIFEST).open("w", encoding="utf-8") as file:
            for record in without_duplicates(records):
                tally.add(record)
                file.write(record_line(record))
        _warn(tally, source.unit)
        try:
            tally.enforce(params.ingest.max_skipped_share, "ingest")
        except ValueError as error:
            with atomic_path(rejected) as temporary, temporary.open("w", encoding="utf-8") as file:
                for record in iterate_manifest(folder / MANIFEST):
                    if record.status == "skipped":
                        file.write(record_line(record))
            raise ValueError(f"{error} ({rejected} says why for each)") from None
        expected = source.expected()
        facts = {
            **describe_source(source, folder),
            "embedded": is_embedded,
            "licence": terms,
            "unit": source.unit,
            "expected": {
                "items": dict(expected.items),
                "samples": dict(expected.samples),
                "source": expected.source,
            },
        }
        write_json(folder / "source.json", facts)
        summary = {
            "dataset": dataset,
            "embedded": is_embedded,
            "licence": terms,
            **tally.summary(),
        }
        write_json(folder / "summary.json", summary)
    rejected.unlink(missing_ok=True)
    return summary


def _check_apart(source: Source, *outputs: Path) -> None:
    """Refuse a download inside a folder that this stage replaces: it would be deleted.

    Raises:
        ValueError: one line with rule, value and remedy.
    """
    for root in source.roots.values():
        for output in outputs:
            if root.resolve().is_relative_to(output.resolve()):
                raise ValueError(
                    f"ingest.{source.dataset} must name folders outside {outputs[0]}, which the "
                    f"stage replaces: got {str(root)!r}; move the download elsewhere"
                )


def read_source(raw_dir: str | Path) -> tuple[dict[str, Any], Source]:
    """Return `source.json` of a raw folder and the download it names.

    Raises:
        ValueError: it is missing, damaged, or a folder is no longer there.
    """
    raw_dir = Path(raw_dir)
    path = raw_dir / "source.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        source = restore_source(facts, raw_dir)
    except FileNotFoundError:
        raise ValueError(f"{path} must exist: no such file; run `dvc repro ingest`") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must say where the data are: {error!r}; write it again with "
            "`dvc repro --force ingest`"
        ) from None
    for folder in source.roots.values():
        if not folder.is_dir():
            raise ValueError(
                f"{path} must name existing folders: {str(folder)!r} is gone; bring it back, or "
                "mend params.yaml and run `dvc repro ingest`"
            )
    return facts, source


def _inspect(source: Source, num_workers: int, total: int | None) -> Iterator[Record]:
    results = ordered_map(partial(_inspect_batch, source), _batches(source.items()), num_workers)
    bar = tqdm(total=total, desc="ingest: checking", unit=source.unit)
    with bar:
        for batch in results:
            bar.update(len(batch))
            yield from batch


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, _BATCH)):
        yield batch


def _inspect_batch(source: Source, items: list[Any]) -> list[Record]:
    return [source.inspect(item) for item in items]


class Tally:
    """Counts records as they stream by; its memory grows with songs and classes, not records."""

    def __init__(self) -> None:
        self.num_listed = 0
        self.num_ok: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.songs: dict[str, set[str]] = {split: set() for split in SPLITS}
        self.labels: dict[str, set[int]] = {split: set() for split in SPLITS}
        self.audio_sources: Counter[str] = Counter()
        self.num_without_video = 0
        self.num_captions = 0
        self.seconds = 0.0

    def add(self, record: Record) -> None:
        """Count one record."""
        self.num_listed += 1
        if record.reason is not None:
            self.reasons[record.reason] += 1
            return
        self.num_ok[record.split] += 1
        if record.song is not None:
            self.songs[record.split].add(record.song)
        if record.label is not None:
            self.labels[record.split].add(record.label)
        facts = record.facts
        if "audio_source" in facts:
            self.audio_sources[facts["audio_source"]] += 1
            self.num_without_video += facts.get("video") is None
            self.seconds += facts["num_frames"] / facts.get("motion_rate_hz", MOTION_RATE_HZ)
        self.num_captions += len(facts.get("captions", ()))

    def enforce(self, limit: float, stage: str) -> None:
        """Stop a stage in which too much is broken; see `enforce_share`."""
        broken = broken_reasons(self.reasons)
        num_broken = sum(broken.values())
        total = num_broken + sum(self.num_ok.values())
        enforce_share(num_broken, total, limit, stage, broken)

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        num_ok = sum(self.num_ok.values())
        found: dict[str, Any] = {
            "num_listed": self.num_listed,
            "num_ok": num_ok,
            "num_skipped": self.num_listed - num_ok,
            "skipped": dict(sorted(self.reasons.items())),
            "num_ok_by_split": {split: self.num_ok[split] for split in SPLITS},
        }
        if any(self.songs.values()):
            found["num_songs_by_split"] = {split: len(self.songs[split]) for split in SPLITS}
        if any(self.labels.values()):
            found["num_classes_by_split"] = {split: len(self.labels[split]) for split in SPLITS}
        if self.audio_sources:
            found["num_without_video"] = self.num_without_video
            found["audio_sources"] = dict(sorted(self.audio_sources.items()))
            found["minutes"] = round(self.seconds / 60, 3)
        if self.num_captions:
            found["num_captions"] = self.num_captions
        return found


def _warn(tally: Tally, unit: str) -> None:
    if tally.reasons:
        told = describe_reasons(dict(tally.reasons))
        _log.warning("%ss left out (manifest.jsonl says why): %s", unit, told)
    if not tally.num_ok["train"]:
        _log.warning("split train has no usable %s", unit)
    if not tally.num_ok["val"] and not tally.num_ok["test"]:
        _log.warning("splits val and test have no usable %s", unit)
    songs = tally.songs
    leaked = sorted(songs["train"] & (songs["val"] | songs["test"]))
    if leaked:
        _log.warning("songs in train and in a held-out split: %s", ", ".join(leaked))
