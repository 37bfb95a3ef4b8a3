"""`data/raw` turned into `data/shards`: items decoded to samples and written as tars.

Which records make up which tar is decided before anything is decoded, so every tar is a task of its
own: any number of processes or machines gives the same bytes, and a run that is killed keeps the
tars that it had finished. They wait, with a note of their checksum and records each, in a folder
beside the destination until all are there.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdcd.config import Params
from cdcd.data.adapters.base import Options, Source, decoders, skipped_sample
from cdcd.data.files import atomic_path, guarded_folder, replace_directory, sha256_file, write_json
from cdcd.data.ingest import MANIFEST, read_source
from cdcd.data.manifest import (
    Record,
    SkipItem,
    broken_reasons,
    by_key,
    describe_reasons,
    enforce_share,
    iterate_manifest,
    parse_record,
    record_line,
    sorted_records,
)
from cdcd.data.parallel import Mapper, ProcessMapper
from cdcd.data.samples import MOTIONS, SPLITS
from cdcd.data.shards import (
    Members,
    describe_shard,
    encode_sample,
    shard_name,
    write_index,
    write_tar,
)

_log = logging.getLogger(__name__)
_PARTS = ".parts"
_FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class ShardTask:
    """The work on one tar; picklable.

    Attributes:
        source: the download.
        options: how its items become samples.
        folder: where the tar goes.
        name: of the tar.
        split: of its samples.
        records: the items it is made of, in order.
        num_planned: samples they will give if all is well.
    """

    source: Source
    options: Options
    folder: Path
    name: str
    split: str
    records: tuple[Record, ...]
    num_planned: int


@dataclass(frozen=True)
class ShardDone:
    """What became of a task: its entry of the index, or None where no sample was usable."""

    name: str
    num_planned: int
    entry: dict[str, Any] | None
    was_kept: bool


def shard(
    params: Params, raw_dir: str | Path, out_dir: str | Path, mapper: Mapper | None = None
) -> dict[str, Any]:
    """Turn every usable item into samples and write them as WebDataset tars.

    Writes `<split>-<number>.tar`, `shards.json`, `manifest.jsonl` (one record per sample, skipped
    ones too) and `summary.json`. Equal input gives equal bytes, whatever maps the tasks, and
    whether or not the run was interrupted. `out_dir` is replaced as a whole at the end: after an
    error it is as it was before, and finished tars wait in `.<name>.work` for the next run.

    Args:
        params: section `shard`.
        raw_dir: folder written by `ingest`.
        out_dir: normally `data/shards/<dataset>`.
        mapper: runs the tasks; None: `shard.num_workers` processes.

    Returns:
        The summary: samples, shards and bytes by split, reasons for skipping.

    Raises:
        ValueError: the input is missing, or more than `shard.max_skipped_share` of the samples
            are unusable.
        StorageError: the disk filled up.
    """
    setting = params.shard
    raw_dir, out_dir = Path(raw_dir), Path(out_dir)
    facts, source = read_source(raw_dir)
    options = Options(
        segment_seconds=setting.segment_seconds,
        video_fps=setting.video_fps,
        video_height=setting.video_height,
        image_size=setting.image_size,
    )
    source.check_options(options)
    mapper = mapper or ProcessMapper(setting.num_workers)
    mark = _fingerprint(raw_dir, options, setting.samples_per_shard)
    with guarded_folder(out_dir) as work:
        _resume(work, out_dir, mark)
        total = sum(len(source.planned_keys(r, options)) for r in _usable(raw_dir))
        tasks = plan_shards(source, options, raw_dir, work, setting.samples_per_shard)
        entries: list[dict[str, Any]] = []
        num_kept = 0
        with tqdm(total=total, desc="shard", unit="sample") as bar:
            for done in mapper(write_shard, tasks):
                num_kept += done.was_kept
                if done.entry is not None:
                    entries.append(done.entry)
                bar.update(done.num_planned)
        if num_kept:
            _log.info("%d shards were finished by an earlier run and kept", num_kept)
        entries = write_index(work, entries)
        summary = {"embedded": facts["embedded"], "dataset": facts["dataset"]}
        if facts["dataset"] in MOTIONS:
            summary["segment_seconds"] = setting.segment_seconds
        summary |= _write_manifest(work, entries, setting.max_skipped_share)
        write_json(work / "summary.json", summary)
        replace_directory(work, out_dir)
    shutil.rmtree(out_dir / _PARTS)
    return summary


def _usable(raw_dir: Path) -> Iterator[Record]:
    return (r for r in iterate_manifest(raw_dir / MANIFEST) if r.status == "ok")


def plan_shards(
    source: Source, options: Options, raw_dir: Path, folder: Path, samples_per_shard: int
) -> Iterator[ShardTask]:
    """Yield the tasks: whole items in the order of their samples' keys, tars filled by split.

    A tar holds at most `samples_per_shard` samples, more only where a single item gives more. The
    manifest is streamed: no more records are held than one tar of each split needs.
    """

    def first_key(record: Record) -> tuple[str, ...]:
        # A sequence's name may sort differently from the names of its segments.
        return (min(source.planned_keys(record, options), default=record.key),)

    open_records: dict[str, list[Record]] = {split: [] for split in SPLITS}
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()

    def close(split: str) -> ShardTask:
        name = shard_name(split, numbers[split])
        task = ShardTask(
            source, options, folder, name, split, tuple(open_records[split]), sizes[split]
        )
        numbers[split] += 1
        sizes[split] = 0
        open_records[split] = []
        return task

    for record in sorted_records(_usable(raw_dir), first_key, folder):
        split, size = record.split, len(source.planned_keys(record, options))
        if open_records[split] and sizes[split] + size > samples_per_shard:
            yield close(split)
        open_records[split].append(record)
        sizes[split] += size
    for split in SPLITS:
        if open_records[split]:
            yield close(split)


def write_shard(task: ShardTask) -> ShardDone:
    """Decode the items of a task and write their tar, unless an earlier run has finished it.

    The records of its samples, skipped ones too, are noted beside it with its checksum.

    Raises:
        StorageError: the disk filled up.
    """
    note = task.folder / _PARTS / f"{task.name}.jsonl"
    path = task.folder / task.name
    is_finished, entry = _finished(note, path)
    if is_finished:
        return ShardDone(task.name, task.num_planned, entry, was_kept=True)
    records: list[Record] = []
    with suppress(FileNotFoundError):
        path.unlink()
    samples = _samples(task, records)
    first = next(samples, None)
    if first is None:
        entry = None
    else:
        count = write_tar(path, chain([first], samples))
        entry = describe_shard(path, task.split, count)
    with atomic_path(note) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(entry, sort_keys=True) + "\n")
        file.writelines(map(record_line, records))
    return ShardDone(task.name, task.num_planned, entry, was_kept=False)


def _finished(note: Path, path: Path) -> tuple[bool, dict[str, Any] | None]:
    """Tell whether an earlier run finished a tar, and return its index entry."""
    try:
        with note.open(encoding="utf-8") as file:
            entry: dict[str, Any] | None = json.loads(file.readline())
        if entry is None:
            return not path.exists(), None
        is_whole = path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
        return is_whole, entry
    except (OSError, KeyError, TypeError, ValueError):
        return False, None


def _samples(task: ShardTask, records: list[Record]) -> Iterator[tuple[str, Members]]:
    """Yield encoded samples and note every record; a bad file costs the whole item."""
    for item in task.records:
        try:
            loaded = list(task.source.load(item, task.options))
        except SkipItem as skip:
            keys = task.source.planned_keys(item, task.options)
            records += [skipped_sample(item, key, skip) for key in keys]
            continue
        for record, sample in loaded:
            records.append(record)
            if sample is not None:
                yield sample.key, encode_sample(sample)


def _fingerprint(raw_dir: Path, options: Options, samples_per_shard: int) -> str:
    """What finished tars depend on: the input, the options, the code and the decoders."""
    package = Path(__file__).parent
    code = [*package.rglob("*.py"), package.parent / "media.py"]
    code += (package.parent / "features").glob("*.py")
    facts = {
        "raw": {name: sha256_file(raw_dir / name) for name in (MANIFEST, "source.json")},
        "options": vars(options) | {"samples_per_shard": samples_per_shard},
        "code": [sha256_file(path) for path in sorted(code)],
        "decoders": decoders(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _resume(work: Path, out_dir: Path, mark: str) -> None:
    """Keep what an earlier run of the same work has finished, clear away anything else."""
    if not (work / _PARTS).is_dir() and (out_dir / _PARTS).is_dir():
        # Killed between the last rename and tidying up: everything is done but for that.
        shutil.rmtree(work, ignore_errors=True)
        out_dir.replace(work)
    note = work / _PARTS / _FINGERPRINT
    if not note.is_file() or note.read_text() != mark:
        shutil.rmtree(work, ignore_errors=True)
        (work / _PARTS).mkdir(parents=True)
        with atomic_path(note) as temporary:
            temporary.write_text(mark)
    for path in work.iterdir():
        if path.suffix != ".tar" and path.name != _PARTS:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def _write_manifest(work: Path, entries: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """Merge the notes of all tars into the manifest and count what is in it."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    num_padded = 0
    by_split = [_noted(work, split) for split in SPLITS]
    with atomic_path(work / MANIFEST) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in heapq.merge(*by_split, key=by_key):
            file.write(record_line(record))
            if record.reason is not None:
                reasons[record.reason] += 1
                continue
            counts[record.split] += 1
            pads = (record.facts.get(f"{name}_pad_{unit}", 0) for name, unit in _PADS)
            num_padded += any(pads)
    num_skipped = sum(reasons.values())
    if reasons:
        told = describe_reasons(dict(reasons))
        _log.warning("samples left out (manifest.jsonl says why): %s", told)
    broken = broken_reasons(reasons)
    num_broken = sum(broken.values())
    enforce_share(num_broken, num_broken + sum(counts.values()), limit, "shard", broken)
    return {
        "num_samples": sum(counts.values()),
        "num_samples_by_split": {split: counts[split] for split in SPLITS},
        "num_skipped": num_skipped,
        "skipped": dict(sorted(reasons.items())),
        "num_shards": len(entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "num_padded": num_padded,
    }


_PADS = (("motion", "frames"), ("audio", "samples"))


def _noted(work: Path, split: str) -> Iterable[Record]:
    """Yield the records of a split in the order of its tars, one note in memory at a time."""
    for note in sorted((work / _PARTS).glob(f"{split}-*.tar.jsonl")):
        with note.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield parse_record(line)
