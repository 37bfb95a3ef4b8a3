"""`data/raw` turned into `data/shards`: sequences cut into samples and written as tars."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdcd.config import Params
from cdcd.data.adapters import aist
from cdcd.data.files import atomic_directory, write_json
from cdcd.data.ingest import read_source
from cdcd.data.manifest import (
    CHOSEN_REASONS,
    Record,
    SkipItem,
    count_reasons,
    describe_reasons,
    enforce_share,
    read_manifest,
    write_manifest,
)
from cdcd.data.parallel import ordered_map
from cdcd.data.samples import SPLITS
from cdcd.data.shards import Members, ShardWriter, encode_sample

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Task:
    record: Record
    roots: aist.Roots
    options: aist.SegmentOptions


def shard(params: Params, raw_dir: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Cut every usable sequence into samples and write them as WebDataset tars.

    Writes `<split>-<number>.tar`, `shards.json`, `manifest.jsonl` (one record per segment, skipped
    ones too) and `summary.json`. Equal input gives equal bytes, whatever the number of workers.
    `out_dir` is replaced as a whole at the end: after an error it is as it was before.

    Args:
        params: section `shard`.
        raw_dir: folder written by `ingest`.
        out_dir: normally `data/shards/<dataset>`.

    Returns:
        The summary: samples, shards and bytes by split, reasons for skipping.

    Raises:
        ValueError: the input is missing, or more than `shard.max_skipped_share` of the segments
            are unusable.
        StorageError: the disk filled up.
    """
    setting = params.shard
    source, roots = read_source(raw_dir)
    options = aist.SegmentOptions(
        segment_seconds=setting.segment_seconds,
        drop_partial=source["drop_partial_6s"],
        video_fps=setting.video_fps,
        video_height=setting.video_height,
    )
    usable = [r for r in read_manifest(Path(raw_dir) / "manifest.jsonl") if r.status == "ok"]
    tasks = [_Task(record, roots, options) for record in usable]
    total = sum(len(aist.planned_segments(record, options)) for record in usable)
    records: list[Record] = []
    with atomic_directory(out_dir) as folder:
        results = ordered_map(_load, tasks, setting.num_workers)
        bar = tqdm(total=total, desc="shard", unit="sample")
        with bar, ShardWriter(folder, setting.samples_per_shard) as writer:
            for record, members in _flat(results):
                records.append(record)
                if members is not None:
                    writer.write(record.key, record.split, members)
                bar.update()
        _enforce(records, setting.max_skipped_share)
        write_manifest(folder / "manifest.jsonl", records)
        summary = _summarise(records, writer.shards, setting.segment_seconds)
        write_json(folder / "summary.json", summary)
    return summary


def _flat(
    results: Iterator[list[tuple[Record, Members | None]]],
) -> Iterator[tuple[Record, Members | None]]:
    for result in results:
        yield from result


def _load(task: _Task) -> list[tuple[Record, Members | None]]:
    """Decode one sequence in a worker; a file that turns out bad costs the whole sequence."""
    try:
        loaded = list(aist.load_samples(task.record, task.roots, task.options))
    except SkipItem as skip:
        return [
            (aist.skipped_segment(task.record, key, skip), None)
            for key, _ in aist.planned_segments(task.record, task.options)
        ]
    return [
        (record, None if sample is None else encode_sample(sample)) for record, sample in loaded
    ]


def _enforce(records: list[Record], limit: float) -> None:
    told = count_reasons(records)
    if told:
        _log.warning("segments left out (manifest.jsonl says why): %s", describe_reasons(told))
    counted = [record for record in records if record.reason not in CHOSEN_REASONS]
    reasons = count_reasons(counted)
    num_broken = sum(record.is_broken for record in counted)
    enforce_share(num_broken, len(counted), limit, "shard", reasons)


def _summarise(
    records: list[Record], shards: list[dict[str, Any]], segment_seconds: int
) -> dict[str, Any]:
    used = [record for record in records if record.status == "ok"]
    return {
        "segment_seconds": segment_seconds,
        "num_samples": len(used),
        "num_samples_by_split": {split: sum(r.split == split for r in used) for split in SPLITS},
        "num_skipped": len(records) - len(used),
        "skipped": count_reasons(records),
        "num_shards": len(shards),
        "bytes": sum(item["bytes"] for item in shards),
        "num_padded": sum(
            r.facts["motion_pad_frames"] > 0 or r.facts["audio_pad_samples"] > 0 for r in used
        ),
    }
